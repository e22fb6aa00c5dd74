//! At eight bits. Few rows read weights as they lie. For more, K is taken in passes: the steps of four
//! groups are written without a sign once, and stay in the first-level cache while all rows go by; sums
//! are kept in memory in between.
#![expect(
    clippy::needless_range_loop,
    reason = "a loop of known length over registers unrolls, where an iterator may stay a call"
)]

use super::{
    super::{Rows, Slab},
    unsigned, write,
};
use crate::ops::flex::{
    layers::{self, Out, PAIR},
    memory::{Line, lines},
    simd::{blocks, height},
};
use crate::ops::quantized::{GROUP, LINE, STEP, STEP_BYTES_8};
use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_load_si512,
    _mm512_loadu_si512, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_store_si512, _mm512_xor_si512,
};
use std::ops::Range;

/// Rows of a block, and groups of one: 24 registers of sums.
const ROWS: usize = 6;
pub(in super::super) const GROUPS: usize = layers::SIDE_BY_SIDE * PAIR / GROUP;
/// Rows of a tile: a block. A step goes by again with the rows of a block that has second numbers of it.
pub(in super::super) const TILE: usize = ROWS;
/// Steps of a pass: those of the groups stay in the first-level cache while rows go by.
const DEPTH: usize = 4;

/// Room for what stays in the cache while rows go by.
pub(in super::super) struct Room {
    /// Steps of some groups, without a sign: `[DEPTH, 16, groups]` lines.
    panel: Vec<Line>,
    /// The sums of all rows by some groups between two passes.
    sums: Vec<Line>,
}

impl Room {
    /// For as many tiles of rows.
    pub(in super::super) fn new(rows: &Rows, tiles: usize) -> Self {
        let (steps, count) = match rows.count {
            ..=ROWS => (0, 0),
            _ => (DEPTH, tiles * rows.width),
        };
        Self {
            panel: lines(steps * GROUPS * STEP_BYTES_8),
            sums: lines(count * GROUPS * size_of::<Line>()),
        }
    }
}

/// Tiles of rows whose sums, and a pass of K of theirs, stay in the second-level cache.
pub(in super::super) fn pass(rows: &Rows) -> usize {
    /// Rows.
    const MOST: usize = 640;
    height(rows.tiles, MOST / rows.width)
}

/// Some groups at eight bits for some tiles of rows, for which there is room.
///
/// # Safety
/// The machine has the instructions, and nothing else writes these outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(in super::super) unsafe fn multiply(
    rows: &Rows,
    tiles: Range<usize>,
    slabs: &[Slab<'_>],
    room: &mut Room,
    out: Out<'_>,
) {
    for slab in slabs {
        assert!(slab.numbers.len() >= rows.steps * STEP_BYTES_8);
    }
    // SAFETY: what the caller promised.
    unsafe {
        match slabs {
            [a, b, c, d] => {
                passes::<GROUPS>(rows, tiles, [*a, *b, *c, *d], room, out);
            }
            _ => {
                for slab in slabs {
                    passes::<1>(rows, tiles.clone(), [*slab], room, out);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn passes<const N: usize>(
    rows: &Rows,
    tiles: Range<usize>,
    slabs: [Slab<'_>; N],
    room: &mut Room,
    out: Out<'_>,
) {
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
        for tile in tiles.clone() {
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
                    sums: sums.wrapping_add((first + row - tiles.start * rows.width) * N * GROUP),
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
        // A pointer: a loop with checks inside would not unroll, and sums would go through memory.
        let row_sums = rows.sums[first..first + M].as_ptr();
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
        if steps.end == rows.steps {
            // SAFETY: what the caller promised.
            return unsafe { self.finish(low) };
        }
        for r in 0..M {
            for g in 0..N {
                // SAFETY: room for the sums.
                unsafe {
                    _mm512_store_si512(sums.add((r * N + g) * GROUP).cast(), low[r][g]);
                }
            }
        }
    }

    /// Adds the second numbers of `M` rows, if there are some, and writes the outputs.
    ///
    /// # Safety
    /// As of [`run`](Self::run).
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn finish<const M: usize>(&self, low: [[__m512i; N]; M]) {
        let Self { rows, first, .. } = *self;
        let mut high = [[_mm512_setzero_si512(); N]; M];
        let mut seconds = rows.seconds(first / rows.width).peekable();
        if seconds.peek().is_some() {
            for r in 0..M {
                high[r] = [unsigned(rows.sum_of_seconds(first + r)); N];
            }
        }
        let inside = first % rows.width * STEP;
        for (s, numbers) in seconds {
            let product = self.as_it_lies(numbers.wrapping_add(inside), s);
            // SAFETY: a step of each row and of each slab.
            let more = unsafe { product.sums::<M, false>() };
            for r in 0..M {
                for g in 0..N {
                    high[r][g] = _mm512_add_epi32(high[r][g], more[r][g]);
                }
            }
        }
        for r in 0..M {
            let (row, scale) = (first + r, rows.scales[first + r]);
            for g in 0..N {
                let (low, high) = (low[r][g], high[r][g]);
                // SAFETY: what the caller promised.
                unsafe { write(low, high, scale, self.slabs[g], row, self.out) };
            }
        }
    }
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
