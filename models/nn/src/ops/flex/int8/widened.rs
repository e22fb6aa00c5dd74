//! The product for machines without an instruction for it, and what the others are tested against.

use super::{
    super::{
        layers::Out,
        simd::{self, Isa, Kernel, Level},
    },
    Rows, Slab, scaled,
};
use crate::ops::quantized::{GROUP, STEP, STEP_BYTES_8};
use std::ops::Range;

/// Some groups for some rows.
///
/// # Safety
/// Nothing else writes these outputs.
pub(super) unsafe fn multiply(
    level: Level,
    rows: &Rows,
    pass: Range<usize>,
    slabs: &[Slab<'_>],
    out: Out<'_>,
) {
    let multiply = Multiply {
        rows,
        pass,
        slabs,
        out,
    };
    simd::run_at(level, multiply);
}

struct Multiply<'a> {
    rows: &'a Rows,
    pass: Range<usize>,
    slabs: &'a [Slab<'a>],
    out: Out<'a>,
}

impl Kernel for Multiply<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        for slab in self.slabs {
            let (steps, _) = slab.numbers.as_chunks::<STEP_BYTES_8>();
            for row in self.pass.clone() {
                let mut low = [0; GROUP];
                for (s, step) in steps.iter().enumerate() {
                    // SAFETY: a step of a row, of plain numbers.
                    add(&mut low, unsafe { &*self.rows.at(row, s).cast() }, step);
                }
                let mut high = [0; GROUP];
                let inside = row % self.rows.width * STEP;
                for (s, rows) in self.rows.seconds(row / self.rows.width) {
                    // SAFETY: as above.
                    let numbers = unsafe { &*rows.add(inside).cast() };
                    add(&mut high, numbers, &steps[s]);
                }
                for o in 0..slab.outputs {
                    let output = slab.first + o;
                    let scale = self.rows.scales[row] * slab.scales[o];
                    let bias = self.out.bias.map_or(0.0, |bias| bias[output]);
                    let value = scaled(low[o], high[o], scale) + bias;
                    // SAFETY: an output of a row, which nothing else writes.
                    unsafe { *self.out.at(row, output) = value };
                }
            }
        }
    }
}

/// Adds the products of a row's step with the 16 outputs.
#[inline(always)]
fn add(sums: &mut [i32; GROUP], row: &[i8; STEP], step: &[u8; STEP_BYTES_8]) {
    let (fours, _) = step.as_chunks::<{ 4 * GROUP }>();
    let (row, _) = row.as_chunks::<4>();
    for (four, row) in fours.iter().zip(row) {
        for o in 0..GROUP {
            for i in 0..4 {
                sums[o] += i32::from(four[o * 4 + i] as i8) * i32::from(row[i]);
            }
        }
    }
}
