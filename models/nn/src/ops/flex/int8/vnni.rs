//! The product by AVX-512's instruction that adds four products of bytes to a lane of 32 bits.
//!
//! One of its operands has no sign. That is the weight, plus 128. What that adds to a sum, a
//! multiple of the activations' own sum, is taken from it again.
#![expect(
    clippy::needless_range_loop,
    reason = "a loop of known length over registers unrolls, where an iterator may stay a call"
)]

use super::{Rows, Slab};
use crate::ops::flex::{
    layers::Out,
    memory::{Line, lines},
    simd::blocks,
};
use crate::ops::quantized::{
    GROUP, HIGH, LINE, LINES, PART, PARTS, STEP, STEP_BYTES_4, STEP_BYTES_8,
};
use std::arch::x86_64::{
    __m128i, __m512i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm512_add_epi8,
    _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_cvtepi32_ps,
    _mm512_dpbusd_epi32, _mm512_load_si512, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_maddubs_epi16, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_mulhrs_epi16, _mm512_packus_epi16, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_epi8, _mm512_srli_epi16, _mm512_store_si512, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_xor_si512,
};
use std::ops::Range;

/// Rows up to which numbers of four bits are unpacked in registers.
pub(super) const FEW: usize = 2;
/// Rows of a block, and groups of one: 24 registers of sums.
const ROWS: usize = 6;
pub(super) const SIDE_BY_SIDE: usize = 4;
/// Rows of a tile: two blocks.
pub(super) const TILE: usize = 2 * ROWS;
/// Steps of a pass: those of the groups stay in the first-level cache while rows go by.
const DEPTH: usize = 4;

/// Whether the machine has the instruction, and with it all that is used here.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// Room for what stays in the cache while rows go by.
pub(super) struct Room {
    /// Steps of some groups, without a sign: `[DEPTH, 16, groups]` lines.
    panel: Vec<Line>,
    /// The sums of all rows by some groups between two passes.
    sums: Vec<Line>,
}

impl Room {
    pub(super) fn new(rows: &Rows) -> Self {
        let (panel, sums) = match rows.count {
            ..=ROWS => (0, 0),
            count => (DEPTH * STEP_BYTES_8 / GROUP, count),
        };
        Self {
            panel: lines(panel * SIDE_BY_SIDE * GROUP),
            sums: lines(sums * SIDE_BY_SIDE * size_of::<Line>()),
        }
    }
}

/// Some groups at eight bits for all rows, for which there is room.
///
/// # Safety
/// The machine has the instructions, and nothing else writes these outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn multiply(rows: &Rows, slabs: &[Slab<'_>], room: &mut Room, out: Out<'_>) {
    for slab in slabs {
        assert!(slab.numbers.len() >= rows.steps * STEP_BYTES_8);
    }
    // SAFETY: what the caller promised.
    unsafe {
        match slabs {
            [a, b, c, d] => passes::<SIDE_BY_SIDE>(rows, [*a, *b, *c, *d], room, out),
            _ => {
                for slab in slabs {
                    passes::<1>(rows, [*slab], room, out);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn passes<const N: usize>(rows: &Rows, slabs: [Slab<'_>; N], room: &mut Room, out: Out<'_>) {
    // What few rows multiply is read once, as it lies.
    let few = rows.count <= ROWS;
    let depth = if few { rows.steps } else { DEPTH };
    let panel: *mut u8 = room.panel.as_mut_ptr().cast();
    let sums: *mut i32 = room.sums.as_mut_ptr().cast();
    for start in (0..rows.steps).step_by(depth) {
        let end = rows.steps.min(start + depth);
        if !few {
            // SAFETY: there is room.
            unsafe { lift(slabs, start..end, panel) };
        }
        for tile in 0..rows.tiles {
            let first = tile * rows.width;
            let count = rows.width.min(rows.count - first);
            for (row, height) in blocks(count, ROWS) {
                let block = Block {
                    rows,
                    first: first + row,
                    // Behind the last block of a tile the next tile begins.
                    next: match row + height {
                        end if end == count => rows.tile(tile + 1, start),
                        next => rows.at(first + next, start),
                    },
                    slabs,
                    panel,
                    sums: sums.wrapping_add((first + row) * N * GROUP),
                    out,
                };
                let steps = start..end;
                // SAFETY: what the caller promised.
                unsafe {
                    match height {
                        1 => block.run::<1>(steps, few),
                        2 => block.run::<2>(steps, few),
                        3 => block.run::<3>(steps, few),
                        4 => block.run::<4>(steps, few),
                        5 => block.run::<5>(steps, few),
                        _ => block.run::<ROWS>(steps, few),
                    }
                }
            }
        }
    }
}

/// Writes some steps of the groups without a sign, line by line.
///
/// # Safety
/// There is room for them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn lift<const N: usize>(slabs: [Slab<'_>; N], steps: Range<usize>, panel: *mut u8) {
    let sign = _mm512_set1_epi8(-128);
    let mut to = panel;
    for line in steps.start * STEP_BYTES_8 / LINE..steps.end * STEP_BYTES_8 / LINE {
        for g in 0..N {
            // SAFETY: the caller's promise; the steps are there.
            unsafe {
                let numbers = slabs[g].numbers.as_ptr().add(line * LINE);
                let numbers = _mm512_loadu_si512(numbers.cast());
                _mm512_store_si512(to.cast(), _mm512_xor_si512(numbers, sign));
                to = to.add(LINE);
            }
        }
    }
}

/// Some rows of a tile by `N` groups.
struct Block<'a, const N: usize> {
    rows: &'a Rows,
    first: usize,
    /// What is read after these rows.
    next: *const i8,
    slabs: [Slab<'a>; N],
    panel: *const u8,
    /// `[rows, N * 16]`, between two passes.
    sums: *mut i32,
    out: Out<'a>,
}

impl<const N: usize> Block<'_, N> {
    /// The product with a step of the slabs.
    #[inline]
    fn as_it_lies(&self, x: *const i8, step: usize) -> Product<N> {
        let mut weights = [std::ptr::null(); N];
        for g in 0..N {
            weights[g] = self.slabs[g].numbers[step * STEP_BYTES_8..].as_ptr();
        }
        Product {
            x,
            further: 0,
            weights,
            steps: 1,
            next: x,
        }
    }

    /// Some steps of `M` rows, of the panel or, of few rows, of the slabs.
    ///
    /// # Safety
    /// The machine has the instructions, and nothing else writes these outputs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn run<const M: usize>(&self, steps: Range<usize>, few: bool) {
        let Self {
            rows, first, sums, ..
        } = *self;
        // By pointers: a loop with checks inside would not unroll, and sums would go through memory.
        let row_sums = rows.sums[first..first + M].as_ptr();
        let scales = rows.scales[first..first + M].as_ptr();
        let mut product = self.as_it_lies(rows.at(first, steps.start), steps.start);
        product.further = rows.width * STEP;
        product.steps = steps.len();
        // SAFETY: the steps of each row, and of the panel or of each slab.
        let mut low = unsafe {
            if few {
                product.sums::<M, false>()
            } else {
                product.weights = [self.panel; N];
                product.next = self.next;
                product.sums::<M, true>()
            }
        };
        if steps.start > 0 {
            for r in 0..M {
                for g in 0..N {
                    // SAFETY: the sums of the last pass.
                    let kept = unsafe { _mm512_load_si512(sums.add((r * N + g) * GROUP).cast()) };
                    low[r][g] = _mm512_add_epi32(low[r][g], kept);
                }
            }
        } else {
            for r in 0..M {
                // SAFETY: a row's.
                let much = unsigned(unsafe { *row_sums.add(r) });
                for g in 0..N {
                    low[r][g] = _mm512_add_epi32(low[r][g], much);
                }
            }
        }
        if steps.end < rows.steps {
            for r in 0..M {
                for g in 0..N {
                    // SAFETY: room for the sums.
                    unsafe {
                        _mm512_store_si512(sums.add((r * N + g) * GROUP).cast(), low[r][g]);
                    }
                }
            }
            return;
        }
        let tile = first / rows.width;
        let mut seconds = rows.seconds(tile).peekable();
        if seconds.peek().is_none() {
            let none = _mm512_setzero_si512();
            for r in 0..M {
                for g in 0..N {
                    // SAFETY: what the caller promised; a row's scale.
                    unsafe {
                        let scale = *scales.add(r);
                        write(low[r][g], none, scale, self.slabs[g], first + r, self.out);
                    }
                }
            }
            return;
        }
        let mut high = [[_mm512_setzero_si512(); N]; M];
        for r in 0..M {
            high[r] = [unsigned(rows.sum_of_seconds(first + r)); N];
        }
        let inside = first % rows.width * STEP;
        for (s, numbers) in seconds {
            // SAFETY: as above.
            let more = unsafe {
                self.as_it_lies(numbers.wrapping_add(inside), s)
                    .sums::<M, false>()
            };
            for r in 0..M {
                for g in 0..N {
                    high[r][g] = _mm512_add_epi32(high[r][g], more[r][g]);
                }
            }
        }
        for r in 0..M {
            for g in 0..N {
                // SAFETY: as above.
                unsafe {
                    let scale = *scales.add(r);
                    write(
                        low[r][g],
                        high[r][g],
                        scale,
                        self.slabs[g],
                        first + r,
                        self.out,
                    );
                }
            }
        }
    }
}

/// What an unsigned weight adds to a sum too much, for activations of a sum.
#[inline]
#[target_feature(enable = "avx512f")]
fn unsigned(sum: i32) -> __m512i {
    _mm512_set1_epi32(sum.wrapping_mul(-128))
}

/// Some steps of rows by `N` groups.
#[derive(Clone, Copy)]
struct Product<const N: usize> {
    /// Where the rows begin, one behind the other, and how many bytes are from a step to the next.
    x: *const i8,
    further: usize,
    /// Where the groups begin; of a panel, where it begins.
    weights: [*const u8; N],
    steps: usize,
    /// What rows are asked for on the way: they need not be there.
    next: *const i8,
}

impl<const N: usize> Product<N> {
    /// The sums of `M` rows. They are given back as a value, so that they are in registers here.
    ///
    /// # Safety
    /// The steps of each row are there, one at least, and those of each group.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn sums<const M: usize, const LIFTED: bool>(mut self) -> [[__m512i; N]; M] {
        /// Elements, in fours, between which more is asked for.
        const PART: usize = 4;
        // No closures: they would be compiled for any machine, and called.
        let sign = _mm512_set1_epi8(-128);
        let mut sums = [[_mm512_setzero_si512(); N]; M];
        let mut part = 0;
        // There is a step: else zeros would be written to memory beforehand.
        loop {
            for line in 0..M.div_ceil(PART) {
                let line = part % (STEP / 4 / PART) * M.div_ceil(PART) + line;
                _mm_prefetch::<_MM_HINT_T0>(self.next.wrapping_add(line * STEP));
            }
            for four in 0..PART {
                // SAFETY: four elements of the groups and of the rows.
                unsafe {
                    let mut w = [sign; N];
                    for g in 0..N {
                        let at = match LIFTED {
                            true => self.weights[0].add((four * N + g) * LINE),
                            false => self.weights[g].add(four * LINE),
                        };
                        w[g] = _mm512_loadu_si512(at.cast());
                        if !LIFTED {
                            w[g] = _mm512_xor_si512(w[g], sign);
                        }
                    }
                    for r in 0..M {
                        let x = self.x.add(r * STEP + four * 4);
                        let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
                        for g in 0..N {
                            sums[r][g] = _mm512_dpbusd_epi32(sums[r][g], w[g], x);
                        }
                    }
                }
            }
            if LIFTED {
                self.weights[0] = self.weights[0].wrapping_add(PART * N * LINE);
            } else {
                for g in 0..N {
                    self.weights[g] = self.weights[g].wrapping_add(PART * LINE);
                }
            }
            self.x = self.x.wrapping_add(PART * 4);
            if part % (STEP / 4 / PART) == STEP / 4 / PART - 1 {
                self.x = self.x.wrapping_add(self.further - STEP);
                self.next = self.next.wrapping_add(self.further);
            }
            part += 1;
            if part == self.steps * (STEP / 4 / PART) {
                return sums;
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
