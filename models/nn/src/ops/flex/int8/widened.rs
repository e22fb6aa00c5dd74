//! The product for machines without an instruction for it, and what the others are tested against.

use super::{
    super::simd::{self, Isa, Kernel, Level},
    Out, Rows, Slab,
};
use crate::ops::quantized::{BLOCK, BLOCK_BYTES_8, GROUP};

/// Some groups for all rows.
///
/// # Safety
/// Nothing else writes these outputs.
pub(super) unsafe fn multiply(level: Level, rows: &Rows, slabs: &[Slab<'_>], out: Out<'_>) {
    simd::run_at(level, Multiply { rows, slabs, out });
}

struct Multiply<'a> {
    rows: &'a Rows,
    slabs: &'a [Slab<'a>],
    out: Out<'a>,
}

impl Kernel for Multiply<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        for slab in self.slabs {
            let (blocks, _) = slab.numbers.as_chunks::<BLOCK_BYTES_8>();
            for row in 0..self.rows.count {
                let mut acc = [0.0f32; GROUP];
                for (b, block) in blocks.iter().enumerate() {
                    let sums = products(self.rows.block(row, b), block);
                    let scale = self.rows.scales[row * self.rows.blocks + b];
                    let scales = &slab.scales[b * slab.stride..][..GROUP];
                    for o in 0..GROUP {
                        acc[o] = I::mul_add(sums[o] as f32, scale * scales[o], acc[o]);
                    }
                }
                for (o, acc) in acc.iter().enumerate().take(slab.outputs) {
                    let output = slab.first + o;
                    let bias = self.out.bias.map_or(0.0, |bias| bias[output]);
                    let value = acc * slab.last[o] + bias;
                    // SAFETY: an output of a row, which nothing else writes.
                    unsafe { *self.out.start.add(row * self.out.n + output) = value };
                }
            }
        }
    }
}

/// The sums of the products of a row's block with the 16 outputs.
#[inline(always)]
fn products(row: &[i8; BLOCK], block: &[u8; BLOCK_BYTES_8]) -> [i32; GROUP] {
    let (fours, _) = block.as_chunks::<{ 4 * GROUP }>();
    let (row, _) = row.as_chunks::<4>();
    let mut sums = [0i32; GROUP];
    for (four, row) in fours.iter().zip(row) {
        for o in 0..GROUP {
            for i in 0..4 {
                sums[o] += i32::from(four[o * 4 + i] as i8) * i32::from(row[i]);
            }
        }
    }
    sums
}
