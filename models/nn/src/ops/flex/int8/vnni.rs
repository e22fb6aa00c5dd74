//! The product by AVX-512's instruction that adds four products of bytes to a lane of 32 bits.
//!
//! One of its operands has no sign. That is the weight: numbers of four bits as they are, numbers
//! of eight bits plus 128. What that adds to a sum, a multiple of the activations' own sum, is
//! taken from it again.

use super::{Out, Rows, SIDE_BY_SIDE, Slab};
use crate::ops::quantized::{BLOCK, BLOCK_BYTES_4, BLOCK_BYTES_8, GROUP, PART, PARTS};
use std::arch::x86_64::{
    __m128i, __m512, __m512i, _mm_loadu_si128, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_mul_ps, _mm512_mullo_epi32, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_srli_epi16, _mm512_srli_epi32,
    _mm512_sub_epi32, _mm512_xor_si512,
};

/// Rows up to which numbers of four bits are multiplied as they are.
pub(super) const FEW: usize = 8;
/// Rows of a block: with two groups 24 registers of sums.
const ROWS: usize = 6;

/// Whether the machine has the instruction, and with it all that is used here.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// Some groups at eight bits for all rows.
///
/// # Safety
/// The machine has the instructions, and nothing else writes these outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn multiply(rows: &Rows, slabs: &[Slab<'_>], out: Out<'_>) {
    let height = rows.count.div_ceil(rows.count.div_ceil(ROWS));
    for first in (0..rows.count).step_by(height) {
        let count = height.min(rows.count - first);
        // SAFETY: what the caller promised.
        unsafe {
            if let [a, b] = slabs {
                let slabs = [*a, *b];
                match count {
                    1 => block::<1, SIDE_BY_SIDE>(rows, first, slabs, out),
                    2 => block::<2, SIDE_BY_SIDE>(rows, first, slabs, out),
                    3 => block::<3, SIDE_BY_SIDE>(rows, first, slabs, out),
                    4 => block::<4, SIDE_BY_SIDE>(rows, first, slabs, out),
                    5 => block::<5, SIDE_BY_SIDE>(rows, first, slabs, out),
                    _ => block::<ROWS, SIDE_BY_SIDE>(rows, first, slabs, out),
                }
            } else {
                for row in first..first + count {
                    block::<1, 1>(rows, row, [slabs[0]], out);
                }
            }
        }
    }
}

/// `M` rows by `N` groups.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn block<const M: usize, const N: usize>(
    rows: &Rows,
    first: usize,
    slabs: [Slab<'_>; N],
    out: Out<'_>,
) {
    let high = _mm512_set1_epi8(-128);
    let mut acc = [[_mm512_setzero_ps(); N]; M];
    for b in 0..rows.blocks {
        let mut sums = [[_mm512_setzero_si512(); N]; M];
        for (r, sums) in sums.iter_mut().enumerate() {
            let parts = &rows.sums[((first + r) * rows.blocks + b) * PARTS..][..PARTS];
            *sums = [_mm512_set1_epi32(-128 * parts.iter().sum::<i32>()); N];
        }
        // SAFETY: a block of each slab and of each row.
        unsafe {
            let weights: [*const u8; N] =
                std::array::from_fn(|g| slabs[g].numbers.as_ptr().add(b * BLOCK_BYTES_8));
            let x: [*const i8; M] = std::array::from_fn(|r| rows.at(first + r, b));
            for four in 0..BLOCK / 4 {
                let w: [__m512i; N] = std::array::from_fn(|g| {
                    let w = _mm512_loadu_si512(weights[g].add(four * 4 * GROUP).cast());
                    _mm512_xor_si512(w, high)
                });
                for r in 0..M {
                    let x = _mm512_set1_epi32(x[r].add(four * 4).cast::<i32>().read_unaligned());
                    for g in 0..N {
                        sums[r][g] = _mm512_dpbusd_epi32(sums[r][g], w[g], x);
                    }
                }
            }
            for (r, (acc, sums)) in acc.iter_mut().zip(sums).enumerate() {
                let scale = _mm512_set1_ps(rows.scales[(first + r) * rows.blocks + b]);
                for (g, (acc, sum)) in acc.iter_mut().zip(sums).enumerate() {
                    let scales = slabs[g].scales[b * slabs[g].stride..][..GROUP].as_ptr();
                    let scale = _mm512_mul_ps(scale, _mm512_loadu_ps(scales));
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, *acc);
                }
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        for (acc, slab) in acc.iter().zip(slabs) {
            // SAFETY: what the caller promised.
            unsafe { write(*acc, slab, first + r, out) };
        }
    }
}

/// A group at four bits for a few rows.
///
/// # Safety
/// As of [`multiply`]; the slab's numbers are of four bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn few(rows: &Rows, slab: Slab<'_>, out: Out<'_>) {
    // SAFETY: what the caller promised.
    unsafe {
        match rows.count {
            1 => few_rows::<1>(rows, slab, out),
            2 => few_rows::<2>(rows, slab, out),
            3 => few_rows::<3>(rows, slab, out),
            4 => few_rows::<4>(rows, slab, out),
            5 => few_rows::<5>(rows, slab, out),
            6 => few_rows::<6>(rows, slab, out),
            7 => few_rows::<7>(rows, slab, out),
            FEW => few_rows::<FEW>(rows, slab, out),
            more => panic!("{more} rows are not few"),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn few_rows<const M: usize>(rows: &Rows, slab: Slab<'_>, out: Out<'_>) {
    let low = _mm512_set1_epi8(15);
    let one = _mm512_set1_epi32(1);
    let fifteen = _mm512_set1_epi32(15);
    let mut acc = [_mm512_setzero_ps(); M];
    let (blocks, _) = slab.numbers.as_chunks::<BLOCK_BYTES_4>();
    for (b, block) in blocks.iter().enumerate() {
        let mut sums = [_mm512_setzero_si512(); M];
        for p in 0..PARTS {
            // SAFETY: the steps and the numbers of a part of the block, and a part of each row.
            unsafe {
                let steps = block.as_ptr().add(p * GROUP).cast::<__m128i>();
                let steps = _mm512_cvtepu8_epi32(_mm_loadu_si128(steps));
                let zero = _mm512_srli_epi32::<4>(steps);
                let step = _mm512_add_epi32(_mm512_and_si512(steps, fifteen), one);
                let numbers = block.as_ptr().add(PARTS * GROUP + p * PART * GROUP / 2);
                let mut part = [_mm512_setzero_si512(); M];
                for four in 0..PART / 8 {
                    let both = _mm512_loadu_si512(numbers.add(four * 4 * GROUP).cast());
                    let first = _mm512_and_si512(both, low);
                    let second = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                    for (r, part) in part.iter_mut().enumerate() {
                        let x = rows.at(r, b).add(p * PART + four * 4).cast::<i32>();
                        let y = x.add(PART / 8).read_unaligned();
                        let x = x.read_unaligned();
                        *part = _mm512_dpbusd_epi32(*part, first, _mm512_set1_epi32(x));
                        *part = _mm512_dpbusd_epi32(*part, second, _mm512_set1_epi32(y));
                    }
                }
                for (r, (sum, part)) in sums.iter_mut().zip(part).enumerate() {
                    let x = rows.sums[(r * rows.blocks + b) * PARTS + p];
                    let zeros = _mm512_mullo_epi32(zero, _mm512_set1_epi32(x));
                    let part = _mm512_mullo_epi32(step, _mm512_sub_epi32(part, zeros));
                    *sum = _mm512_add_epi32(*sum, part);
                }
            }
        }
        for (r, (acc, sum)) in acc.iter_mut().zip(sums).enumerate() {
            let scale = _mm512_set1_ps(rows.scales[r * rows.blocks + b]);
            *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, *acc);
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        // SAFETY: what the caller promised.
        unsafe { write(*acc, slab, r, out) };
    }
}

/// Writes a group's outputs of a row.
///
/// # Safety
/// Nothing else writes them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in super::super) unsafe fn write(acc: __m512, slab: Slab<'_>, row: usize, out: Out<'_>) {
    let mask = ((1u32 << slab.outputs) - 1) as u16;
    // SAFETY: masked to the outputs that there are.
    unsafe {
        let bias = match out.bias {
            Some(bias) => _mm512_maskz_loadu_ps(mask, bias[slab.first..].as_ptr()),
            None => _mm512_setzero_ps(),
        };
        let value = _mm512_mul_ps(acc, _mm512_loadu_ps(slab.last.as_ptr()));
        let value = _mm512_add_ps(value, bias);
        _mm512_mask_storeu_ps(out.start.add(row * out.n + slab.first), mask, value);
    }
}
