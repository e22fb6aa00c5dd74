//! The product by AVX-512's instruction that adds four products of bytes to a lane of 32 bits.
//!
//! One of its operands has no sign. That is the weight, plus 128. What that adds to a sum, a
//! multiple of the activations' own sum, is taken from it again.

use super::{Out, Rows, SIDE_BY_SIDE, Slab};
use crate::ops::quantized::{
    GROUP, HIGH, PART, PART_BYTES_4, PARTS, STEP, STEP_BYTES_4, STEP_BYTES_8,
};
use std::arch::x86_64::{
    __m512i, _mm512_add_epi16, _mm512_add_ps, _mm512_and_si512, _mm512_cvtepi32_ps,
    _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_mullo_epi16, _mm512_permutexvar_epi16,
    _mm512_set1_epi8, _mm512_set1_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_srli_epi16, _mm512_ternarylogic_epi32, _mm512_xor_si512,
};

/// Rows up to which numbers of four bits are unpacked in registers.
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
    let mut low = [[_mm512_setzero_si512(); N]; M];
    for (r, low) in low.iter_mut().enumerate() {
        *low = [unsigned(rows.sums[first + r]); N];
    }
    for s in 0..rows.steps {
        // SAFETY: a step of each row and of each slab.
        unsafe {
            let x: [*const i8; M] = std::array::from_fn(|r| rows.at(first + r, s));
            step(&mut low, x, slabs, s);
        }
    }
    for (r, low) in low.iter().enumerate() {
        let row = first + r;
        let mut high = [[unsigned(rows.sum_of_seconds(row)); N]];
        let inside = row % rows.width * STEP;
        for (s, numbers) in rows.seconds(row / rows.width) {
            // SAFETY: as above.
            unsafe { step(&mut high, [numbers.add(inside)], slabs, s) };
        }
        for ((low, high), slab) in low.iter().zip(high[0]).zip(slabs) {
            // SAFETY: what the caller promised.
            unsafe { write(*low, high, rows.scales[row], slab, row, out) };
        }
    }
}

/// What an unsigned weight adds to a sum too much, for activations of a sum.
#[inline]
#[target_feature(enable = "avx512f")]
fn unsigned(sum: i32) -> __m512i {
    _mm512_set1_epi32(sum.wrapping_mul(-128))
}

/// Adds a step of `M` rows by `N` groups.
///
/// # Safety
/// The step of each row is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn step<const M: usize, const N: usize>(
    sums: &mut [[__m512i; N]; M],
    x: [*const i8; M],
    slabs: [Slab<'_>; N],
    step: usize,
) {
    let sign = _mm512_set1_epi8(-128);
    let weights: [&[u8]; N] =
        std::array::from_fn(|g| &slabs[g].numbers[step * STEP_BYTES_8..][..STEP_BYTES_8]);
    for four in 0..STEP / 4 {
        // SAFETY: four elements of the step, of the groups and of the rows.
        unsafe {
            let w: [__m512i; N] = std::array::from_fn(|g| {
                let w = _mm512_loadu_si512(weights[g].as_ptr().add(four * 4 * GROUP).cast());
                _mm512_xor_si512(w, sign)
            });
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = x.add(four * 4).cast::<i32>().read_unaligned();
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm512_dpbusd_epi32(*sum, w, _mm512_set1_epi32(x));
                }
            }
        }
    }
}

/// A part of a group at four bits.
pub(super) struct Part<'a> {
    lines: &'a [u8],
    /// Of each output, in both halves of its lane.
    slope: __m512i,
    base: __m512i,
}

impl<'a> Part<'a> {
    /// `flip` is exclusive-or'ed to the numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new(part: &'a [u8; PART_BYTES_4], flip: u8) -> Self {
        /// Each output's slope twice; 16 further on are the bases.
        const TWICE: [u16; 32] = {
            let mut twice = [0; 32];
            let mut i = 0;
            while i < 32 {
                twice[i] = i as u16 / 2;
                i += 1;
            }
            twice
        };
        let (head, lines) = part.split_at(4 * GROUP);
        // SAFETY: a line of 32 numbers each.
        let (head, twice) = unsafe {
            (
                _mm512_loadu_si512(head.as_ptr().cast()),
                _mm512_loadu_si512(TWICE.as_ptr().cast()),
            )
        };
        let bases = _mm512_add_epi16(twice, _mm512_set1_epi16(GROUP as i16));
        let base = _mm512_permutexvar_epi16(bases, head);
        let flip = _mm512_set1_epi16(i16::from_be_bytes([flip, 0]));
        Self {
            lines,
            slope: _mm512_permutexvar_epi16(twice, head),
            base: _mm512_xor_si512(base, flip),
        }
    }

    /// Eight elements of K of all outputs at eight bits: four, and the other four.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn numbers(&self, eight: usize) -> (__m512i, __m512i) {
        /// Where the first has a bit, the second's; else that of the third.
        const SELECT: i32 = 0xca;
        let line = &self.lines[eight * 4 * GROUP..][..4 * GROUP];
        let mask = _mm512_set1_epi16(15);
        let high = _mm512_set1_epi16(-256);
        // SAFETY: a line.
        let line = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
        let number =
            |i: __m512i| _mm512_add_epi16(_mm512_mullo_epi16(i, self.slope), self.base);
        // The high bytes of two times 32 numbers, one beside the other.
        let both = |even: __m512i, odd: __m512i| {
            let even = _mm512_srli_epi16::<8>(number(even));
            _mm512_ternarylogic_epi32::<SELECT>(high, number(odd), even)
        };
        (
            both(
                _mm512_and_si512(line, mask),
                _mm512_and_si512(_mm512_srli_epi16::<4>(line), mask),
            ),
            both(
                _mm512_and_si512(_mm512_srli_epi16::<8>(line), mask),
                _mm512_srli_epi16::<12>(line),
            ),
        )
    }
}

/// A group at four bits for a few rows, which are one tile.
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
    let mut low: [__m512i; M] = std::array::from_fn(|r| unsigned(rows.sums[r]));
    let mut high: [__m512i; M] = std::array::from_fn(|r| unsigned(rows.sum_of_seconds(r)));
    let mut seconds = rows.seconds(0).peekable();
    let (steps, _) = slab.numbers.as_chunks::<STEP_BYTES_4>();
    for (s, step) in steps.iter().enumerate() {
        let second = seconds.next_if(|(at, _)| *at == s);
        let (parts, _) = step.as_chunks::<PART_BYTES_4>();
        for (p, part) in parts.iter().enumerate().take(PARTS) {
            let part = Part::new(part, 0x80);
            for eight in 0..PART / 8 {
                let w = part.numbers(eight);
                let at = p * PART + eight * 8;
                // SAFETY: eight elements of the step of each row.
                unsafe {
                    add(&mut low, w, rows.tile(0, s).add(at));
                    if let Some((_, numbers)) = second {
                        add(&mut high, w, numbers.add(at));
                    }
                }
            }
        }
    }
    for (r, (low, high)) in low.into_iter().zip(high).enumerate() {
        // SAFETY: what the caller promised.
        unsafe { write(low, high, rows.scales[r], slab, r, out) };
    }
}

/// Adds the products of eight elements of `M` rows of a tile.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn add<const M: usize>(
    sums: &mut [__m512i; M],
    (first, second): (__m512i, __m512i),
    x: *const i8,
) {
    for (r, sum) in sums.iter_mut().enumerate() {
        // SAFETY: what the caller promised.
        unsafe {
            let x = x.add(r * STEP).cast::<i32>();
            let y = x.add(1).read_unaligned();
            let x = x.read_unaligned();
            *sum = _mm512_dpbusd_epi32(*sum, first, _mm512_set1_epi32(x));
            *sum = _mm512_dpbusd_epi32(*sum, second, _mm512_set1_epi32(y));
        }
    }
}

/// Writes a group's outputs of a row, of the sums of its numbers and second numbers.
///
/// # Safety
/// Nothing else writes them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in super::super) unsafe fn write(
    low: __m512i,
    high: __m512i,
    scale: f32,
    slab: Slab<'_>,
    row: usize,
    out: Out<'_>,
) {
    let mask = ((1u32 << slab.outputs) - 1) as u16;
    // SAFETY: masked to the outputs that there are.
    unsafe {
        let bias = match out.bias {
            Some(bias) => _mm512_maskz_loadu_ps(mask, bias[slab.first..].as_ptr()),
            None => _mm512_setzero_ps(),
        };
        let scale = _mm512_mul_ps(
            _mm512_set1_ps(scale),
            _mm512_loadu_ps(slab.scales.as_ptr()),
        );
        let high = _mm512_mul_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(HIGH as f32));
        let value = _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(low), high), scale);
        let value = _mm512_add_ps(value, bias);
        _mm512_mask_storeu_ps(out.start.add(row * out.n + slab.first), mask, value);
    }
}
