//! The product by AVX-512's instruction that adds four products of bytes to a lane of 32 bits.
//!
//! One of its operands has no sign. That is the weight, plus 128. What that adds to a sum, a
//! multiple of the activations' own sum, is taken from it again.
#![expect(
    clippy::needless_range_loop,
    reason = "a loop of known length over registers unrolls, where an iterator may stay a call"
)]

use super::{Rows, SIDE_BY_SIDE, Slab};
use crate::ops::flex::layers::Out;
use crate::ops::quantized::{
    GROUP, HIGH, LINE, LINES, PART, PARTS, STEP, STEP_BYTES_4, STEP_BYTES_8,
};
use std::arch::x86_64::{
    __m128i, __m512i, _mm_loadu_si128, _mm512_add_epi8, _mm512_add_epi32, _mm512_add_ps,
    _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_maddubs_epi16, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_mulhrs_epi16, _mm512_packus_epi16,
    _mm512_set1_epi8, _mm512_set1_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_srli_epi16, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_xor_si512,
};

/// Rows up to which numbers of four bits are unpacked in registers.
pub(super) const FEW: usize = 2;
/// Rows of a block: with two groups 24 registers of sums.
pub(super) const ROWS: usize = 12;

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
    for tile in 0..rows.tiles {
        let first = tile * rows.width;
        let count = rows.width.min(rows.count - first);
        let blocks = count.div_ceil(ROWS);
        let (low, higher) = (count / blocks, count % blocks);
        let mut row = first;
        for block in 0..blocks {
            let height = low + usize::from(block < higher);
            // SAFETY: what the caller promised.
            unsafe {
                match slabs {
                    [a, b] => heights::<SIDE_BY_SIDE>(height, rows, row, [*a, *b], out),
                    _ => heights::<1>(height, rows, row, [slabs[0]], out),
                }
            }
            row += height;
        }
    }
}

/// [`block`] of so many rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn heights<const N: usize>(
    height: usize,
    rows: &Rows,
    first: usize,
    slabs: [Slab<'_>; N],
    out: Out<'_>,
) {
    // SAFETY: what the caller promised.
    unsafe {
        match height {
            1 => block::<1, N>(rows, first, slabs, out),
            2 => block::<2, N>(rows, first, slabs, out),
            3 => block::<3, N>(rows, first, slabs, out),
            4 => block::<4, N>(rows, first, slabs, out),
            5 => block::<5, N>(rows, first, slabs, out),
            6 => block::<6, N>(rows, first, slabs, out),
            7 => block::<7, N>(rows, first, slabs, out),
            8 => block::<8, N>(rows, first, slabs, out),
            9 => block::<9, N>(rows, first, slabs, out),
            10 => block::<10, N>(rows, first, slabs, out),
            11 => block::<11, N>(rows, first, slabs, out),
            _ => block::<ROWS, N>(rows, first, slabs, out),
        }
    }
}

/// `M` rows of a tile by `N` groups.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn block<const M: usize, const N: usize>(
    rows: &Rows,
    first: usize,
    slabs: [Slab<'_>; N],
    out: Out<'_>,
) {
    let mut low = [[_mm512_setzero_si512(); N]; M];
    for r in 0..M {
        low[r] = [unsigned(rows.sums[first + r]); N];
    }
    let mut weights = [std::ptr::null(); N];
    for g in 0..N {
        assert!(slabs[g].numbers.len() >= rows.steps * STEP_BYTES_8);
        weights[g] = slabs[g].numbers.as_ptr();
    }
    let mut x = rows.at(first, 0);
    for s in 0..rows.steps {
        // SAFETY: a step of each row and of each slab.
        unsafe { step(&mut low, x, weights, s) };
        x = x.wrapping_add(rows.width * STEP);
    }
    let mut high = [[_mm512_setzero_si512(); N]; M];
    for r in 0..M {
        high[r] = [unsigned(rows.sum_of_seconds(first + r)); N];
    }
    let inside = first % rows.width * STEP;
    for (s, numbers) in rows.seconds(first / rows.width) {
        // SAFETY: as above.
        unsafe { step(&mut high, numbers.add(inside), weights, s) };
    }
    for r in 0..M {
        let row = first + r;
        for g in 0..N {
            // SAFETY: what the caller promised.
            unsafe { write(low[r][g], high[r][g], rows.scales[row], slabs[g], row, out) };
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
/// The step of each row is there, one behind the other, and that of each group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn step<const M: usize, const N: usize>(
    sums: &mut [[__m512i; N]; M],
    x: *const i8,
    weights: [*const u8; N],
    step: usize,
) {
    // No closures: they would be compiled for any machine, and called.
    let sign = _mm512_set1_epi8(-128);
    for four in 0..STEP / 4 {
        // SAFETY: four elements of the step, of the groups and of the rows.
        unsafe {
            let mut w = [sign; N];
            for g in 0..N {
                let at = weights[g].add(step * STEP_BYTES_8 + four * 4 * GROUP);
                w[g] = _mm512_xor_si512(_mm512_loadu_si512(at.cast()), sign);
            }
            for r in 0..M {
                let x = x.add(r * STEP + four * 4).cast::<i32>().read_unaligned();
                let x = _mm512_set1_epi32(x);
                for g in 0..N {
                    sums[r][g] = _mm512_dpbusd_epi32(sums[r][g], w[g], x);
                }
            }
        }
    }
}

/// A step of a group at four bits.
pub(super) struct Step<'a> {
    lines: &'a [u8],
    /// Slopes and bases.
    head: __m512i,
}

impl<'a> Step<'a> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(step: &'a [u8; STEP_BYTES_4]) -> Self {
        let (head, lines) = step.split_at(LINE);
        // SAFETY: a line.
        let head = unsafe { _mm512_loadu_si512(head.as_ptr().cast()) };
        Self { lines, head }
    }

    /// Four outputs at eight bits, plus 128, in a quarter of a register each: 16 elements of a part,
    /// and the other 16. Each output's 16 numbers are made first, and looked up then.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn numbers(&self, part: usize, line: usize) -> (__m512i, __m512i) {
        /// By what slope and base are multiplied, of the first eight numbers: of the others the
        /// slopes' are 8 more.
        const FACTORS: [u8; 16] = [0, 16, 1, 16, 2, 16, 3, 16, 4, 16, 5, 16, 6, 16, 7, 16];
        let pair = _mm512_set1_epi16((part * 8 + line * 2) as i16 * 0x101 + 0x100);
        let pair = _mm512_shuffle_epi8(self.head, pair);
        // SAFETY: 16 bytes.
        let factors = unsafe { _mm_loadu_si128(FACTORS.as_ptr().cast()) };
        let first = _mm512_broadcast_i32x4(factors);
        let second = _mm512_add_epi8(first, _mm512_set1_epi16(8));
        // Times 2,048 and the high 16 of 31 bits: a 16th, rounded.
        let sixteenth = _mm512_set1_epi16(2048);
        let table = _mm512_packus_epi16(
            _mm512_mulhrs_epi16(_mm512_maddubs_epi16(pair, first), sixteenth),
            _mm512_mulhrs_epi16(_mm512_maddubs_epi16(pair, second), sixteenth),
        );
        let bytes = &self.lines[(part * LINES + line) * LINE..][..LINE];
        // SAFETY: a line.
        let bytes = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        let mask = _mm512_set1_epi8(15);
        let low = _mm512_and_si512(bytes, mask);
        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
        (
            _mm512_shuffle_epi8(table, low),
            _mm512_shuffle_epi8(table, high),
        )
    }
}

/// Lines of four outputs each, as lines of all outputs: the fours of an output's elements, which
/// are side by side in a quarter of a line, go to one line each.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn turned([a, b, c, d]: [__m512i; LINES]) -> [__m512i; LINES] {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ef, gh) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ef, gh),
        _mm512_unpackhi_epi64(ef, gh),
    ]
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
            FEW => few_rows::<FEW>(rows, slab, out),
            more => panic!("{more} rows are not few"),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn few_rows<const M: usize>(rows: &Rows, slab: Slab<'_>, out: Out<'_>) {
    // Of each line, a quarter of an output's elements in each of its lanes.
    let mut low = [[_mm512_setzero_si512(); LINES]; M];
    let mut high = low;
    let mut seconds = rows.seconds(0).peekable();
    let (steps, _) = slab.numbers.as_chunks::<STEP_BYTES_4>();
    for (s, step) in steps.iter().enumerate() {
        let second = seconds.next_if(|(at, _)| *at == s);
        let step = Step::new(step);
        for p in 0..PARTS {
            let at = p * PART;
            for line in 0..LINES {
                let w = step.numbers(p, line);
                // SAFETY: a part of the step of each row.
                unsafe {
                    add(&mut low, line, w, rows.tile(0, s).add(at));
                    if let Some((_, numbers)) = second {
                        add(&mut high, line, w, numbers.add(at));
                    }
                }
            }
        }
    }
    for (r, (low, high)) in low.into_iter().zip(high).enumerate() {
        let low = whole(low, rows.sums[r]);
        let high = whole(high, rows.sum_of_seconds(r));
        // SAFETY: what the caller promised.
        unsafe { write(low, high, rows.scales[r], slab, r, out) };
    }
}

/// The sums of all lanes of an output, of activations of a sum.
#[inline]
#[target_feature(enable = "avx512f")]
fn whole(lines: [__m512i; LINES], sum: i32) -> __m512i {
    let [a, b, c, d] = turned(lines);
    let (ab, cd) = (_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
    _mm512_add_epi32(_mm512_add_epi32(ab, cd), unsigned(sum))
}

/// Adds the products of a part of `M` rows of a tile to the sums of a line.
///
/// # Safety
/// The part of each row is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn add<const M: usize>(
    sums: &mut [[__m512i; LINES]; M],
    line: usize,
    (first, second): (__m512i, __m512i),
    x: *const i8,
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: what the caller promised.
        unsafe {
            let x = x.add(r * STEP).cast::<__m128i>();
            let y = _mm512_broadcast_i32x4(_mm_loadu_si128(x.add(1)));
            let x = _mm512_broadcast_i32x4(_mm_loadu_si128(x));
            sums[line] = _mm512_dpbusd_epi32(sums[line], first, x);
            sums[line] = _mm512_dpbusd_epi32(sums[line], second, y);
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
        let scale = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(slab.scales.as_ptr()));
        let high = _mm512_mul_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(HIGH as f32));
        let value = _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(low), high), scale);
        let value = _mm512_add_ps(value, bias);
        _mm512_mask_storeu_ps(out.at(row, slab.first), mask, value);
    }
}
