//! Linear layers on quantized weights: whole numbers of eight bits on both sides.
//!
//! A sum over K is exact, in whatever order an instruction adds, and scaled once: the same
//! arithmetic at its end. So every unit of a machine gives the same bits, and the number of rows may
//! decide which one is used.

mod pack;
mod rows;
mod unpack;
#[cfg(target_arch = "x86_64")]
mod vnni;
mod widened;

pub(super) use pack::pack;
pub(super) use rows::Rows;
#[cfg(target_arch = "x86_64")]
pub(super) use vnni::write;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::{
    layers::{Operand, Out, PAIR, Part},
    memory::{Line, lines},
    simd::{self, Level},
};
use crate::ops::{
    Quantization,
    quantized::{GROUP, HIGH, Packing, STEP_BYTES_8},
};
use std::ops::Range;

/// Groups of a pair, and outputs that a matrix unit multiplies side by side.
const GROUPS: usize = PAIR / GROUP;

/// A weight, packed, and a bias.
#[derive(Clone, Copy)]
pub(super) struct Quantized<'a> {
    pub(super) data: &'a [u8],
    /// `[groups * 16]`
    pub(super) scales: &'a [f32],
    /// `[n]`
    pub(super) bias: Option<&'a [f32]>,
    pub(super) packing: Packing,
}

/// What multiplies numbers of eight bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Both widened to 32 bits.
    Widened(Level),
    /// AVX-512's products of four.
    #[cfg(target_arch = "x86_64")]
    Fours,
    /// A matrix unit.
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Unit {
    /// All that this machine has.
    #[cfg(test)]
    pub(super) fn available() -> Vec<Self> {
        let mut units: Vec<Self> = Level::available().into_iter().map(Self::Widened).collect();
        #[cfg(target_arch = "x86_64")]
        {
            if vnni::available() {
                units.push(Self::Fours);
            }
            if amx::available() {
                units.push(Self::Tiles);
            }
        }
        units
    }

    /// The best for some rows.
    pub(super) fn best(rows: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            // Rows from which filling tiles pays.
            const TILES: usize = 8;
            if rows >= TILES && amx::available() {
                return Self::Tiles;
            }
            if vnni::available() {
                return Self::Fours;
            }
        }
        let _ = rows;
        Self::Widened(simd::best())
    }
}

/// A group of outputs: steps of K, of each 16 times four elements of 16 outputs where the numbers
/// are of eight bits.
#[derive(Clone, Copy)]
pub(super) struct Slab<'a> {
    pub(super) numbers: &'a [u8],
    /// A scale for each output.
    pub(super) scales: &'a [f32; GROUP],
    /// The first output.
    pub(super) first: usize,
    /// Outputs that there are, up to 16.
    pub(super) outputs: usize,
}

/// What the sums of an output's numbers and second numbers stand for.
#[inline(always)]
fn scaled(low: i32, high: i32, scale: f32) -> f32 {
    (low as f32 + high as f32 * HIGH as f32) * scale
}

/// `x * weight^T + bias`, `[m, n]`, by one unit that the machine has.
#[cfg(test)]
pub(super) fn linear_at(unit: Unit, x: &[f32], op: Quantized<'_>) -> super::memory::Floats {
    let rows = Rows::new(x, op.packing.k, None);
    let layer = super::layers::Layer {
        op,
        then: super::layers::Then::Write,
    };
    let [out] = super::layers::each(unit, &rows, [layer]);
    out
}

impl Operand for Quantized<'_> {
    type Rows = Rows;
    type Unit = Unit;

    fn dims(&self) -> [usize; 2] {
        [self.packing.n, self.packing.k]
    }

    fn bias(&self) -> Option<&[f32]> {
        self.bias
    }

    fn check(&self, rows: &Rows) {
        let groups = self.packing.groups();
        assert_eq!(self.data.len(), groups * self.packing.group_bytes());
        assert_eq!(self.scales.len(), groups * GROUP);
        assert_eq!(
            rows.steps,
            self.packing.steps(),
            "as many elements in a row"
        );
        assert!(
            self.bias.is_none_or(|bias| bias.len() == self.packing.n),
            "a bias for each output"
        );
    }

    fn count(rows: &Rows) -> usize {
        rows.count
    }

    fn pass(unit: Unit, rows: &Rows) -> usize {
        let most = match unit {
            Unit::Widened(_) => rows.tiles,
            #[cfg(target_arch = "x86_64")]
            Unit::Fours => vnni::pass(rows),
            #[cfg(target_arch = "x86_64")]
            Unit::Tiles => amx::int8::block(rows),
        };
        most * rows.width
    }

    unsafe fn run(self, unit: Unit, part: Part<'_, Rows>, out: Out<'_>) {
        let op = self;
        let Part { rows, pass, pairs } = part;
        #[cfg(target_arch = "x86_64")]
        let tiles = pass.start / rows.width..pass.end.div_ceil(rows.width);
        match unit {
            Unit::Widened(level) => each::<GROUPS>(op, pairs, |slabs| {
                // SAFETY: the caller's promise.
                unsafe { widened::multiply(level, rows, pass.clone(), slabs, out) };
            }),
            #[cfg(target_arch = "x86_64")]
            Unit::Fours if op.packing.kind == Quantization::Q4 && rows.count <= vnni::FEW => {
                let size = op.packing.group_bytes();
                for group in groups(op, &pairs) {
                    let slab = slab(op, group, &op.data[group * size..][..size]);
                    // SAFETY: the machine has the instructions; the rest is the caller's promise.
                    unsafe { vnni::few(rows, slab, out) };
                }
            }
            #[cfg(target_arch = "x86_64")]
            Unit::Fours => {
                let mut room = vnni::Room::new(rows, tiles.len());
                each::<{ vnni::GROUPS }>(op, pairs, |slabs| {
                    // SAFETY: as above.
                    unsafe { vnni::multiply(rows, tiles.clone(), slabs, &mut room, out) }
                });
            }
            #[cfg(target_arch = "x86_64")]
            Unit::Tiles => {
                // SAFETY: the machine has a matrix unit; tasks do not nest.
                let _tiles = unsafe { amx::int8::tiles(rows.width) };
                let mut sums = amx::int8::Sums::new(rows, tiles.len());
                each::<GROUPS>(op, pairs, |slabs| {
                    // Four bits are unpacked into a buffer that is in the cache.
                    let next = slabs.last().filter(|_| op.packing.kind == Quantization::Q8);
                    let next = next.map(|slab| slab.numbers.as_ptr_range().end);
                    // SAFETY: as above; the rest is the caller's promise.
                    unsafe { amx::int8::multiply(rows, tiles.clone(), slabs, next, &mut sums, out) }
                });
            }
        }
    }
}

/// The groups of some pairs.
fn groups(op: Quantized<'_>, pairs: &Range<usize>) -> Range<usize> {
    pairs.start * GROUPS..op.packing.groups().min(pairs.end * GROUPS)
}

/// Has the groups of some pairs multiplied at eight bits, `N` at a time.
fn each<const N: usize>(
    op: Quantized<'_>,
    pairs: Range<usize>,
    mut multiply: impl FnMut(&[Slab<'_>]),
) {
    let packing = op.packing;
    let size = packing.group_bytes();
    let unpacked = packing.steps() * STEP_BYTES_8;
    let mut buffer: Vec<Line> = match packing.kind {
        Quantization::Q8 => Vec::new(),
        Quantization::Q4 => lines(N * unpacked),
    };
    let all = groups(op, &pairs);
    for first in all.clone().step_by(N) {
        let count = N.min(all.end - first);
        let data = &op.data[first * size..][..count * size];
        let numbers = match packing.kind {
            Quantization::Q8 => data,
            Quantization::Q4 => unpack::unpack(data, &mut buffer),
        };
        let slabs: [Slab<'_>; N] = std::array::from_fn(|g| {
            // What is not there is the last one again, and not used.
            let g = g.min(count - 1);
            slab(op, first + g, &numbers[g * unpacked..][..unpacked])
        });
        multiply(&slabs[..count]);
    }
}

fn slab<'a>(op: Quantized<'a>, group: usize, numbers: &'a [u8]) -> Slab<'a> {
    let (scales, _) = op.scales.as_chunks();
    Slab {
        numbers,
        scales: &scales[group],
        first: group * GROUP,
        outputs: GROUP.min(op.packing.n - group * GROUP),
    }
}
