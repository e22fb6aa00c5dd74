//! The product of numbers of eight bits on tiles: rows as they are, by weights as they are packed.
//!
//! Sums stay in the tiles over a pass of K, of which the weights stay in the first-level cache while
//! all rows go by; rows are loaded past it. Between passes sums lie in memory. Second numbers of
//! rows, where there are some, are multiplied when the last pass is done. Weights that come from memory
//! are fetched ahead, a part of the next groups with each step of these.

use super::{
    super::{
        int8::{Rows, Slab, write},
        layers::Out,
        memory::{Line, lines},
        simd::height,
    },
    Tiles, cursor,
};
use crate::ops::quantized::{GROUP, STEP, STEP_BYTES_8};
use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch, _mm512_load_si512, _mm512_setzero_si512};
use std::ops::Range;

/// Steps of a pass: the weights of two groups take 32 KiB.
const DEPTH: usize = 16;
/// Bytes of a tile of sums.
const TILE: usize = 16 * GROUP * 4;

/// Sums between passes: of two by two tiles, tile by tile and row by row.
pub(in super::super) struct Sums {
    lines: Vec<Line>,
    /// Of second numbers: two tiles.
    seconds: Vec<Line>,
}

impl Sums {
    /// For as many tiles of rows.
    pub(in super::super) fn new(rows: &Rows, tiles: usize) -> Self {
        // Of one pass, nothing is kept.
        let pairs = if rows.steps > DEPTH {
            tiles.div_ceil(2)
        } else {
            1
        };
        Self {
            lines: lines(pairs * 4 * TILE),
            seconds: lines(2 * TILE),
        }
    }
}

/// Tiles 0 to 3 for sums, 4 and 5 for rows, 6 and 7 for weights.
///
/// # Safety
/// As of [`Tiles::of`].
pub(in super::super) unsafe fn tiles(rows: usize) -> Tiles {
    // SAFETY: what the caller promised.
    unsafe { Tiles::with_rows([64; 8], [rows, rows, rows, rows, rows, rows, 16, 16]) }
}

/// Tiles of rows that stay in the second-level cache while all weights go by: two at least.
pub(in super::super) fn block(rows: &Rows) -> usize {
    /// What the cache holds beside weights and sums.
    const BYTES: usize = 5 << 18;
    let tile = rows.width * rows.steps * STEP;
    let most = (BYTES / tile / 2).max(1) * 2;
    height(rows.tiles, most).next_multiple_of(2)
}

/// Some groups for some tiles of rows.
///
/// # Safety
/// The tiles are those of [`tiles`] for these rows, `sums` is of as many, and nothing else writes
/// these outputs. `next` is where the next groups will be read, if that is worth fetching ahead.
#[target_feature(enable = "avx512f")]
pub(in super::super) unsafe fn multiply(
    rows: &Rows,
    tiles: Range<usize>,
    slabs: &[Slab<'_>],
    next: Option<*const u8>,
    sums: &mut Sums,
    out: Out<'_>,
) {
    let ahead = next.map(|start| Ahead {
        start,
        group: rows.steps * STEP_BYTES_8,
        lines: LINES_OF_STEP.div_ceil(tiles.len().div_ceil(2)),
    });
    let passes = rows.steps.div_ceil(DEPTH);
    // Of about the same length.
    let depth = rows.steps.div_ceil(passes);
    for pass in 0..passes {
        let steps = pass * depth..rows.steps.min((pass + 1) * depth);
        for (pair, first) in tiles.clone().step_by(2).enumerate() {
            let kept: *mut u8 = sums.lines.as_mut_ptr().cast();
            let room = if passes > 1 { pair } else { 0 };
            let at = Pair {
                first,
                high: 2.min(tiles.end - first),
                sums: kept.wrapping_add(room * 4 * TILE),
                ahead: ahead.map(|ahead| (ahead, pair)),
            };
            // SAFETY: what the caller promised.
            unsafe {
                at.add(rows, steps.clone(), slabs, pass > 0);
                if pass + 1 == passes {
                    at.finish(rows, slabs, sums.seconds.as_mut_ptr().cast(), out);
                }
            }
        }
    }
}

/// One or two tiles of rows.
struct Pair {
    first: usize,
    high: usize,
    /// Room for four tiles.
    sums: *mut u8,
    /// What to fetch, and the number of this pair.
    ahead: Option<(Ahead, usize)>,
}

/// Lines of a step of two groups.
const LINES_OF_STEP: usize = 2 * STEP_BYTES_8 / 64;

/// The next two groups.
#[derive(Clone, Copy)]
struct Ahead {
    start: *const u8,
    /// Bytes of a group.
    group: usize,
    /// Lines of a step that each pair of tiles of rows fetches.
    lines: usize,
}

impl Ahead {
    /// Fetches a pair's share of a step.
    #[inline]
    fn fetch(self, pair: usize, step: usize) {
        let first = pair * self.lines;
        for line in first..LINES_OF_STEP.min(first + self.lines) {
            let (group, line) = (line / (LINES_OF_STEP / 2), line % (LINES_OF_STEP / 2));
            let at = group * self.group + step * STEP_BYTES_8 + line * 64;
            // SAFETY: no address is too wild to be fetched ahead.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.start.wrapping_add(at).cast()) };
        }
    }
}

impl Pair {
    /// Adds the products of some steps with one or two groups to sums of before, if there are some.
    ///
    /// # Safety
    /// As of [`multiply`].
    #[inline]
    unsafe fn add(&self, rows: &Rows, steps: Range<usize>, slabs: &[Slab<'_>], before: bool) {
        // SAFETY: room for four tiles.
        unsafe {
            match before {
                true => cursor::load(self.sums.cast()),
                false => cursor::clear(),
            }
        }
        // Where there is one, it stands for the other, whose sums are not looked at.
        let (last, other) = (self.first + self.high - 1, slabs.len() - 1);
        for s in steps {
            if let Some((ahead, pair)) = self.ahead {
                ahead.fetch(pair, s);
            }
            // SAFETY: a step of each tile of rows and of each group.
            unsafe {
                asm!(
                    "tileloaddt1 tmm4, [{a0} + {line}]",
                    "tileloadd tmm6, [{b0} + {line}]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {line}]",
                    "tdpbssd tmm1, tmm4, tmm7",
                    "tileloaddt1 tmm5, [{a1} + {line}]",
                    "tdpbssd tmm2, tmm5, tmm6",
                    "tdpbssd tmm3, tmm5, tmm7",
                    a0 = in(reg) rows.tile(self.first, s),
                    a1 = in(reg) rows.tile(last, s),
                    b0 = in(reg) slabs[0].numbers[s * STEP_BYTES_8..].as_ptr(),
                    b1 = in(reg) slabs[other].numbers[s * STEP_BYTES_8..].as_ptr(),
                    line = in(reg) 64usize,
                    options(nostack, readonly),
                );
            }
        }
        // SAFETY: room for four tiles.
        unsafe {
            cursor::store(self.sums.cast());
        }
    }

    /// Adds the second numbers, and writes the outputs.
    ///
    /// # Safety
    /// As of [`multiply`]; the sums are those of all steps, and `seconds` has room for two tiles.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn finish(&self, rows: &Rows, slabs: &[Slab<'_>], seconds: *mut u8, out: Out<'_>) {
        for t in 0..self.high {
            let tile = self.first + t;
            // SAFETY: what the caller promised.
            let some = unsafe { second(rows, tile, slabs, seconds) };
            let row = tile * rows.width;
            for r in 0..rows.width.min(rows.count.saturating_sub(row)) {
                for (g, slab) in slabs.iter().enumerate() {
                    // SAFETY: lines of the tiles; the rest is what the caller promised.
                    unsafe {
                        let low = self.sums.add((t * 2 + g) * TILE + r * 64);
                        let low = _mm512_load_si512(low.cast());
                        let high = if some {
                            _mm512_load_si512(seconds.add(g * TILE + r * 64).cast())
                        } else {
                            _mm512_setzero_si512()
                        };
                        write(low, high, rows.scales[row + r], *slab, row + r, out);
                    }
                }
            }
        }
    }
}

/// The sums of the products of a tile's second numbers, two tiles, if it has some.
///
/// # Safety
/// As of [`Pair::finish`].
#[inline]
unsafe fn second(rows: &Rows, tile: usize, slabs: &[Slab<'_>], sums: *mut u8) -> bool {
    let mut some = false;
    let other = slabs.len() - 1;
    for (s, numbers) in rows.seconds(tile) {
        // SAFETY: a step of the tile and of each group.
        unsafe {
            if !some {
                asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
            }
            asm!(
                "tileloaddt1 tmm4, [{a} + {line}]",
                "tileloadd tmm6, [{b0} + {line}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {line}]",
                "tdpbssd tmm1, tmm4, tmm7",
                a = in(reg) numbers,
                b0 = in(reg) slabs[0].numbers[s * STEP_BYTES_8..].as_ptr(),
                b1 = in(reg) slabs[other].numbers[s * STEP_BYTES_8..].as_ptr(),
                line = in(reg) 64usize,
                options(nostack, readonly),
            );
        }
        some = true;
    }
    if some {
        // SAFETY: room for two tiles.
        unsafe {
            asm!(
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 1024], tmm1",
                sums = in(reg) sums,
                line = in(reg) 64usize,
                options(nostack),
            );
        }
    }
    some
}
