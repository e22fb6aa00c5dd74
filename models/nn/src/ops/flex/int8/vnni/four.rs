//! At four bits: how numbers are unpacked in registers, and the product with so few rows that these
//! need not be written first.

use super::{
    super::{Rows, Slab},
    unsigned, write,
};
use crate::ops::flex::layers::Out;
use crate::ops::quantized::{LINE, LINES, PART, PARTS, STEP, STEP_BYTES_4};
use std::arch::x86_64::{
    __m128i, __m512i, _mm_loadu_si128, _mm512_add_epi8, _mm512_add_epi32, _mm512_and_si512,
    _mm512_broadcast_i32x4, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_maddubs_epi16,
    _mm512_mulhrs_epi16, _mm512_packus_epi16, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_srli_epi16, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

/// Rows up to which numbers of four bits are unpacked in registers.
pub(in super::super) const FEW: usize = 2;

/// A step of a group at four bits.
pub(in super::super) struct Step<'a> {
    lines: &'a [u8],
    /// Slopes and bases.
    head: __m512i,
}

impl<'a> Step<'a> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn new(step: &'a [u8; STEP_BYTES_4]) -> Self {
        let (head, lines) = step.split_at(LINE);
        // SAFETY: a line.
        let head = unsafe { _mm512_loadu_si512(head.as_ptr().cast()) };
        Self { lines, head }
    }

    /// Four outputs at eight bits, plus 128, in a quarter of a register each: 16 elements of a part,
    /// and the other 16. Each output's 16 numbers are made first, and looked up then.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(in super::super) fn numbers(&self, part: usize, line: usize) -> (__m512i, __m512i) {
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
pub(in super::super) fn turned([a, b, c, d]: [__m512i; LINES]) -> [__m512i; LINES] {
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
/// As of [`super::multiply`]; the slab's numbers are of four bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(in super::super) unsafe fn few(rows: &Rows, slab: Slab<'_>, out: Out<'_>) {
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
