//! Rows of activations, rounded to eight bits.

use super::super::simd::{self, Isa, Kernel};
use crate::ops::quantized::{BLOCK, PART, PARTS};
use rayon::prelude::*;

/// Rows of a tile of a matrix unit.
const TILE: usize = 16;
/// Elements of one task; fewer run on the calling thread.
const CHUNK: usize = 1 << 15;

/// 64 numbers on the start of a line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Numbers([i8; 64]);

/// Rows, block by block of K; the last block is filled with zeros, and so are rows up to whole
/// tiles.
pub(in super::super) struct Rows {
    numbers: Vec<Numbers>,
    /// Rows that there are.
    pub(in super::super) count: usize,
    /// Rows of a tile, as many in each.
    pub(in super::super) width: usize,
    pub(in super::super) tiles: usize,
    pub(in super::super) blocks: usize,
    /// Of each row, the scale of each block.
    pub(in super::super) scales: Vec<f32>,
    /// Of each row, the sum of each part of each block.
    pub(in super::super) sums: Vec<i32>,
}

impl Rows {
    /// Rounds `x`: `[count, k]`, neither of them 0.
    pub(super) fn new(x: &[f32], k: usize) -> Self {
        let count = x.len() / k;
        let tiles = count.div_ceil(TILE);
        let width = count.div_ceil(tiles);
        let blocks = k.div_ceil(BLOCK);
        let lines = blocks * BLOCK / 64;
        let mut rows = Self {
            numbers: vec![Numbers([0; 64]); tiles * width * lines],
            count,
            width,
            tiles,
            blocks,
            scales: vec![0.0; tiles * width * blocks],
            sums: vec![0; count * blocks * PARTS],
        };
        let at_once = if x.len() <= CHUNK {
            count
        } else {
            (CHUNK / k).max(1)
        };
        rows.numbers
            .par_chunks_mut(at_once * lines)
            .zip(rows.scales.par_chunks_mut(at_once * blocks))
            .zip(rows.sums.par_chunks_mut(at_once * blocks * PARTS))
            .zip(x.par_chunks(at_once * k))
            .for_each(|(((numbers, scales), sums), x)| {
                simd::run(Round {
                    x,
                    k,
                    numbers,
                    scales,
                    sums,
                });
            });
        rows
    }

    /// Where a block of a row begins.
    #[inline(always)]
    pub(in super::super) fn at(&self, row: usize, block: usize) -> *const i8 {
        let start = self.numbers.as_ptr().cast::<i8>();
        start.wrapping_add((row * self.blocks + block) * BLOCK)
    }

    /// The numbers of a block of a row.
    #[inline(always)]
    pub(super) fn block(&self, row: usize, block: usize) -> &[i8; BLOCK] {
        let lines = &self.numbers[(row * self.blocks + block) * BLOCK / 64..][..BLOCK / 64];
        // SAFETY: whole lines of plain numbers.
        unsafe { &*lines.as_ptr().cast() }
    }
}

struct Round<'a> {
    x: &'a [f32],
    k: usize,
    numbers: &'a mut [Numbers],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl Kernel for Round<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let blocks = self.k.div_ceil(BLOCK);
        let (numbers, _) = self.numbers.as_chunks_mut::<{ BLOCK / 64 }>();
        let (sums, _) = self.sums.as_chunks_mut::<PARTS>();
        let rows = self.x.chunks_exact(self.k);
        let numbers = numbers.chunks_mut(blocks);
        let scales = self.scales.chunks_mut(blocks);
        for (((row, numbers), scales), sums) in
            rows.zip(numbers).zip(scales).zip(sums.chunks_mut(blocks))
        {
            let (whole, rest) = row.as_chunks::<BLOCK>();
            for (b, block) in whole.iter().enumerate() {
                scales[b] = round(block, &mut numbers[b], &mut sums[b]);
            }
            if !rest.is_empty() {
                let mut block = [0.0; BLOCK];
                block[..rest.len()].copy_from_slice(rest);
                let b = whole.len();
                scales[b] = round(&block, &mut numbers[b], &mut sums[b]);
            }
        }
    }
}

/// Rounds a block; its scale. A number that is none makes the scale none.
#[inline(always)]
fn round(x: &[f32; BLOCK], numbers: &mut [Numbers; BLOCK / 64], sums: &mut [i32; PARTS]) -> f32 {
    // Adding it rounds to a whole number, ties to even, whose value is in the low bits then.
    const ROUND: f32 = 12_582_912.0;
    // Without a sign, bits are in the order of the numbers, and NaN is the greatest.
    let most = x
        .iter()
        .fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    let most = f32::from_bits(most);
    let inverse = if most <= 1e-30 {
        0.0
    } else {
        most.recip() * 127.0
    };
    for (((numbers, x), sums), _) in numbers
        .iter_mut()
        .flat_map(|n| n.0.chunks_exact_mut(PART))
        .zip(x.chunks_exact(PART))
        .zip(sums)
        .zip(0..PARTS)
    {
        let mut sum = 0;
        for (number, x) in numbers.iter_mut().zip(x) {
            let shifted = x * inverse + ROUND;
            let whole = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
            *number = whole as i8;
            sum += i32::from(whole as i8);
        }
        *sums = sum;
    }
    most / 127.0
}
