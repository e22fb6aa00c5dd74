//! Layers on rows that are packed once for all of them, and what follows: it is done to a task's
//! outputs while these are in the cache.

use super::{
    activation::{Apply, Gate},
    memory::{Floats, Raw, Room},
    pool, simd,
};
use crate::ops::Activation;
use std::ops::Range;

/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL: usize = 1 << 18;
/// Pairs of groups of outputs that are finished together: with some hundred rows, their results
/// stay in the second-level cache.
const FINISHED: usize = 4;
/// Outputs of a pair of groups.
pub(super) const PAIR: usize = 32;

/// Pairs that kernels take side by side where registers are wide: so many, or a multiple of it, is what
/// a task takes.
pub(super) const SIDE_BY_SIDE: usize = 2;

/// A weight and a bias, in a form that some unit of the machine multiplies.
pub(super) trait Operand: Copy + Sync {
    /// Rows as that unit reads them.
    type Rows: Sync;
    /// What multiplies.
    type Unit: Copy + Sync;

    /// Outputs and elements of a row.
    fn dims(&self) -> [usize; 2];

    /// `[n]`
    fn bias(&self) -> Option<&[f32]>;

    /// # Panics
    /// When its parts do not fit each other, or the rows.
    fn check(&self, rows: &Self::Rows);

    /// How many rows there are.
    fn count(rows: &Self::Rows) -> usize;

    /// How many of them go by together: what is read and kept of these stays in the cache.
    fn pass(unit: Self::Unit, rows: &Self::Rows) -> usize;

    /// Some pairs of groups of outputs for a pass of rows.
    ///
    /// # Safety
    /// The machine has the unit, and all that is checked fits. There is room for the results, which
    /// nothing else reads or writes.
    unsafe fn run(self, unit: Self::Unit, part: Part<'_, Self::Rows>, out: Out<'_>);
}

/// What is computed at a time.
pub(super) struct Part<'a, R> {
    pub(super) rows: &'a R,
    /// The rows of a pass.
    pub(super) pass: Range<usize>,
    /// Pairs of groups of outputs.
    pub(super) pairs: Range<usize>,
}

/// Where results go: those of some outputs, row by row.
#[derive(Clone, Copy)]
pub(super) struct Out<'a> {
    pub(super) start: *mut f32,
    /// The output that is first in a row.
    pub(super) first: usize,
    /// Elements of a row.
    pub(super) n: usize,
    /// Of all outputs.
    pub(super) bias: Option<&'a [f32]>,
}

impl Out<'_> {
    /// An output of a row.
    #[inline(always)]
    pub(super) fn at(self, row: usize, output: usize) -> *mut f32 {
        // Where results begin may be before what there is room for.
        self.start
            .wrapping_add(row * self.n)
            .wrapping_add(output - self.first)
    }
}

/// A layer.
#[derive(Clone, Copy)]
pub(super) struct Layer<O> {
    pub(super) op: O,
    pub(super) then: Then<O>,
}

/// What becomes of a layer's results.
#[derive(Clone, Copy)]
pub(super) enum Then<O> {
    Write,
    Activate(Activation),
    /// Activated, and multiplied by those of another layer.
    Gate(Activation, O),
    /// Added to what is there.
    Add,
}

/// The results, `[m, n]` of each layer, by one unit that the machine has.
///
/// # Panics
/// When the operands do not fit each other.
pub(super) fn each<const N: usize, O: Operand>(
    unit: O::Unit,
    rows: &O::Rows,
    layers: [Layer<O>; N],
) -> [Floats; N] {
    let mut rooms = layers.map(|layer| Room::new(O::count(rows) * layer.op.dims()[0]));
    let outs = rooms.each_mut().map(Room::start);
    // SAFETY: room for the results, of which nothing is read.
    unsafe { finish(unit, rows, &layers, &outs) };
    // SAFETY: the tasks wrote every output of every row.
    rooms.map(|room| unsafe { room.written() })
}

/// `to += rows * weight^T + bias`, by one unit that the machine has.
///
/// # Panics
/// As [`each`], and when there is not a sum for each output.
pub(super) fn added<O: Operand>(unit: O::Unit, rows: &O::Rows, op: O, to: &mut [f32]) {
    let [n, _] = op.dims();
    assert_eq!(to.len(), O::count(rows) * n, "a sum for each output");
    let layer = Layer {
        op,
        then: Then::Add,
    };
    // SAFETY: the numbers are the caller's alone.
    unsafe { finish(unit, rows, &[layer], &[Raw(to.as_mut_ptr())]) };
}

/// One task for each range of outputs of each layer.
///
/// # Safety
/// Room for the results of each layer, which nothing else has a hold of; with [`Then::Add`], of
/// numbers.
unsafe fn finish<O: Operand>(
    unit: O::Unit,
    rows: &O::Rows,
    layers: &[Layer<O>],
    outs: &[Raw<f32>],
) {
    let mut work = 0;
    for Layer { op, then } in layers {
        let gated = match then {
            Then::Gate(_, gated) => Some(gated),
            _ => None,
        };
        for op in [Some(op), gated].into_iter().flatten() {
            op.check(rows);
            let [n, k] = op.dims();
            work += O::count(rows) * n * k;
        }
    }
    let threads = match work {
        ..SERIAL => 1,
        _ => pool::threads(),
    };
    let pairs = |layer: &Layer<O>| layer.op.dims()[0].div_ceil(PAIR);
    let mut left: usize = layers.iter().map(pairs).sum();
    // Ever smaller ones, so that threads end at about the same time though one of them is held up.
    let mut tasks: Vec<(usize, Range<usize>)> = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let (mut first, end) = (0, pairs(layer));
        while first < end {
            let width = match threads {
                1 => left,
                _ => left.div_ceil(threads * 2).next_multiple_of(SIDE_BY_SIDE),
            };
            let width = width.min(end - first);
            tasks.push((at, first..first + width));
            first += width;
            left -= width;
        }
    }
    pool::each(tasks.len(), |task| {
        let (at, pairs) = &tasks[task];
        // SAFETY: no other task has these outputs; the rest is the caller's promise.
        unsafe { outputs(unit, rows, layers[*at], pairs.clone(), outs[*at].get()) }
    });
}

/// Some pairs of groups of a layer, to their end.
///
/// # Safety
/// As [`finish`], of these outputs.
unsafe fn outputs<O: Operand>(
    unit: O::Unit,
    rows: &O::Rows,
    layer: Layer<O>,
    pairs: Range<usize>,
    start: *mut f32,
) {
    let Layer { op, then } = layer;
    let (count, [n, _]) = (O::count(rows), op.dims());
    let most = O::pass(unit, rows);
    let together = match then {
        Then::Write => pairs.len(),
        Then::Activate(_) | Then::Gate(..) | Then::Add => FINISHED,
    };
    let mut beside = match then {
        Then::Gate(..) | Then::Add => Room::new(most * together.min(pairs.len()) * PAIR),
        Then::Write | Then::Activate(_) => Room::new(0),
    };
    for row in (0..count).step_by(most) {
        let pass = row..count.min(row + most);
        for first in pairs.clone().step_by(together) {
            let pairs = first..pairs.end.min(first + together);
            let outputs = first * PAIR..n.min(pairs.end * PAIR);
            let width = outputs.len();
            let run = |op: &O, start, first, n| {
                let part = Part {
                    rows,
                    pass: pass.clone(),
                    pairs: pairs.clone(),
                };
                let bias = op.bias();
                let out = Out {
                    start,
                    first,
                    n,
                    bias,
                };
                // SAFETY: the caller's promise.
                unsafe { op.run(unit, part, out) }
            };
            let aside = beside.start().get();
            // Where row 0 would be.
            let from = aside.wrapping_sub(pass.start * width);
            // SAFETY: within the results, or within the room beside them, which is as wide as some
            // pairs; what is read was written just before. The rest is the caller's promise.
            unsafe {
                match then {
                    Then::Gate(_, gated) => run(&gated, from, outputs.start, width),
                    Then::Add => run(&op, from, outputs.start, width),
                    Then::Write | Then::Activate(_) => {}
                }
                if !matches!(then, Then::Add) {
                    run(&op, start, 0, n);
                }
                if let Then::Write = then {
                    continue;
                }
                for row in pass.clone() {
                    let values = start.add(row * n + outputs.start);
                    let values = std::slice::from_raw_parts_mut(values, width);
                    let beside = || {
                        let row = aside.add((row - pass.start) * width);
                        std::slice::from_raw_parts(row, width)
                    };
                    match then {
                        Then::Write => {}
                        Then::Activate(kind) => simd::run(Apply { kind, values }),
                        Then::Gate(kind, _) => simd::run(Gate {
                            kind,
                            gate: values,
                            up: beside(),
                        }),
                        Then::Add => {
                            for (to, value) in values.iter_mut().zip(beside()) {
                                *to += value;
                            }
                        }
                    }
                }
            }
        }
    }
}
