//! The product of numbers of eight bits on tiles: rows as they are, by weights as they are packed.
//!
//! A block of K is two products of tiles. Its sums leave the tiles for the scales while the matrix
//! unit has the next block. Rows are loaded past the first-level cache, in which the weights would
//! not stay otherwise.

use super::{
    super::int8::{Out, Rows, Slab, write},
    Tiles,
};
use crate::ops::quantized::{BLOCK, BLOCK_BYTES_8, GROUP};
use std::arch::asm;
use std::arch::x86_64::{
    _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_load_ps, _mm512_load_si512, _mm512_loadu_ps,
    _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_store_ps,
};
use std::ops::Range;

/// Lanes of four tiles: of two by two, tile by tile and row by row.
#[repr(C, align(64))]
struct Four<T>([[[T; GROUP]; 16]; 4]);

struct Work {
    /// Of the last block, and of the one before.
    sums: [Four<i32>; 2],
    /// Of all blocks so far.
    acc: Four<f32>,
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
    /// About half of the cache.
    const BYTES: usize = 1 << 20;
    let tile = rows.width * rows.blocks * BLOCK;
    let most = (BYTES / tile / 2).max(1) * 2;
    rows.tiles
        .div_ceil(rows.tiles.div_ceil(most))
        .next_multiple_of(2)
}

/// Some groups for some tiles of rows.
///
/// # Safety
/// The tiles are those of [`tiles`] for these rows, and nothing else writes these outputs.
#[target_feature(enable = "avx512f")]
pub(in super::super) unsafe fn multiply(
    rows: &Rows,
    tiles: Range<usize>,
    slabs: &[Slab<'_>],
    out: Out<'_>,
) {
    let mut work = Work {
        sums: [const { Four([[[0; GROUP]; 16]; 4]) }; 2],
        acc: Four([[[0.0; GROUP]; 16]; 4]),
    };
    for first in tiles.clone().step_by(2) {
        let high = 2.min(tiles.end - first);
        // SAFETY: what the caller promised.
        unsafe { pair(rows, first, high, slabs, &mut work, out) };
    }
}

/// One or two tiles of rows by one or two groups.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pair(
    rows: &Rows,
    first: usize,
    high: usize,
    slabs: &[Slab<'_>],
    work: &mut Work,
    out: Out<'_>,
) {
    let Work { sums, acc } = work;
    let stride = rows.blocks * BLOCK;
    // Where there is one, it stands for the other, whose sums are not looked at.
    let other = slabs.len() - 1;
    for b in 0..rows.blocks {
        let a0 = rows.at(first * rows.width, b);
        let a1 = rows.at((first + high - 1) * rows.width, b);
        let b0 = slabs[0].numbers[b * BLOCK_BYTES_8..].as_ptr();
        let b1 = slabs[other].numbers[b * BLOCK_BYTES_8..].as_ptr();
        // SAFETY: two tiles of each row block and of each group.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tileloaddt1 tmm4, [{a0} + {stride}]",
                "tileloadd tmm6, [{b0} + {line}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {line}]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tileloaddt1 tmm5, [{a1} + {stride}]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "tileloaddt1 tmm4, [{a0} + {stride} + 64]",
                "tileloadd tmm6, [{b0} + {line} + 1024]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {line} + 1024]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tileloaddt1 tmm5, [{a1} + {stride} + 64]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                a0 = in(reg) a0,
                a1 = in(reg) a1,
                b0 = in(reg) b0,
                b1 = in(reg) b1,
                stride = in(reg) stride,
                line = in(reg) 64usize,
                options(nostack, readonly),
            );
            if b > 0 {
                add(rows, first, high, slabs, b - 1, &sums[(b - 1) % 2], acc);
            }
            asm!(
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 1024], tmm1",
                "tilestored [{sums} + {line} + 2048], tmm2",
                "tilestored [{sums} + {line} + 3072], tmm3",
                sums = in(reg) &raw mut sums[b % 2],
                line = in(reg) 64usize,
                options(nostack),
            );
        }
    }
    let b = rows.blocks - 1;
    add(rows, first, high, slabs, b, &sums[b % 2], acc);
    for t in 0..high {
        let row = (first + t) * rows.width;
        for r in 0..rows.width.min(rows.count.saturating_sub(row)) {
            for (g, slab) in slabs.iter().enumerate() {
                // SAFETY: what the caller promised.
                unsafe {
                    let acc = _mm512_load_ps(acc.0[t * 2 + g][r].as_ptr());
                    write(acc, *slab, row + r, out);
                }
            }
        }
    }
}

/// Adds the sums of a block, times its scales.
#[inline]
#[target_feature(enable = "avx512f")]
fn add(
    rows: &Rows,
    first: usize,
    high: usize,
    slabs: &[Slab<'_>],
    b: usize,
    sums: &Four<i32>,
    acc: &mut Four<f32>,
) {
    let mut scales = [_mm512_setzero_ps(); 2];
    for (scales, slab) in scales.iter_mut().zip(slabs) {
        let from = &slab.scales[b * slab.stride..][..GROUP];
        // SAFETY: 16 numbers.
        *scales = unsafe { _mm512_loadu_ps(from.as_ptr()) };
    }
    for t in 0..high {
        let row = (first + t) * rows.width;
        for r in 0..rows.width {
            let scale = _mm512_set1_ps(rows.scales[(row + r) * rows.blocks + b]);
            for (g, scales) in scales.iter().enumerate().take(slabs.len()) {
                let acc = acc.0[t * 2 + g][r].as_mut_ptr();
                let sums = sums.0[t * 2 + g][r].as_ptr();
                // SAFETY: 16 numbers each, which begin with a line.
                unsafe {
                    let sums = _mm512_cvtepi32_ps(_mm512_load_si512(sums.cast()));
                    let scale = _mm512_mul_ps(scale, *scales);
                    let before = match b {
                        0 => _mm512_setzero_ps(),
                        _ => _mm512_load_ps(acc),
                    };
                    _mm512_store_ps(acc, _mm512_fmadd_ps(sums, scale, before));
                }
            }
        }
    }
}
