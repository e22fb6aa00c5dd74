//! Layers on rows that are rounded once for all of them, and what follows: it is done to a task's
//! outputs while these are in the cache.

use super::{
    super::{
        activation::{Apply, Gate},
        memory::{Floats, Raw, Room},
        pool, simd,
    },
    Out, Quantized, Rows, SIDE_BY_SIDE, Unit, run,
};
use crate::ops::{Activation, quantized::GROUP};
use std::ops::Range;

/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL: usize = 1 << 18;
/// Pairs of groups of outputs that are finished together: with some hundred rows, their results
/// stay in the second-level cache.
const FINISHED: usize = 4;
/// Outputs of a pair.
const PAIR: usize = SIDE_BY_SIDE * GROUP;

/// A layer.
#[derive(Clone, Copy)]
pub(in super::super) struct Layer<'a> {
    pub(in super::super) op: Quantized<'a>,
    pub(in super::super) then: Then<'a>,
}

/// What becomes of a layer's results.
#[derive(Clone, Copy)]
pub(in super::super) enum Then<'a> {
    Write,
    Activate(Activation),
    /// Activated, and multiplied by those of another layer.
    Gate(Activation, Quantized<'a>),
    /// Added to what is there.
    Add,
}

/// The results, `[m, n]` of each layer.
pub(in super::super) fn each<const N: usize>(rows: &Rows, layers: [Layer<'_>; N]) -> [Floats; N] {
    each_at(Unit::best(rows.count), rows, layers)
}

/// [`each`] by one unit that the machine has.
pub(super) fn each_at<const N: usize>(
    unit: Unit,
    rows: &Rows,
    layers: [Layer<'_>; N],
) -> [Floats; N] {
    let mut rooms = layers.map(|layer| Room::new(rows.count * layer.op.packing.n));
    let outs = rooms.each_mut().map(Room::start);
    // SAFETY: room for the results, of which nothing is read.
    unsafe { finish(unit, rows, &layers, &outs) };
    // SAFETY: the tasks wrote every output of every row.
    rooms.map(|room| unsafe { room.written() })
}

/// `to += rows * weight^T + bias`
pub(in super::super) fn added(rows: &Rows, op: Quantized<'_>, to: &mut [f32]) {
    assert_eq!(to.len(), rows.count * op.packing.n, "a sum for each output");
    let layer = Layer {
        op,
        then: Then::Add,
    };
    // SAFETY: the numbers are the caller's alone.
    unsafe {
        finish(
            Unit::best(rows.count),
            rows,
            &[layer],
            &[Raw(to.as_mut_ptr())],
        );
    }
}

/// One task for each range of outputs of each layer.
///
/// # Safety
/// The machine has the unit. Room for the results of each layer, which nothing else has a hold of;
/// with [`Then::Add`], of numbers.
unsafe fn finish(unit: Unit, rows: &Rows, layers: &[Layer<'_>], outs: &[Raw<f32>]) {
    let mut work = 0;
    for Layer { op, then } in layers {
        let gated = match then {
            Then::Gate(_, gated) => Some(gated),
            _ => None,
        };
        for op in [Some(op), gated].into_iter().flatten() {
            op.check();
            work += rows.count * op.packing.n * op.packing.k;
        }
    }
    let threads = match work {
        ..SERIAL => 1,
        _ => pool::threads(),
    };
    let pairs = |layer: &Layer<'_>| layer.op.packing.groups().div_ceil(SIDE_BY_SIDE);
    let all: usize = layers.iter().map(pairs).sum();
    // A few tasks for each thread, so that one that is held up holds up little.
    let width = match threads {
        1 => all,
        _ => all.div_ceil(threads * 4),
    };
    let mut tasks: Vec<(usize, Range<usize>)> = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let end = pairs(layer);
        let ranges = (0..end).step_by(width.max(1));
        tasks.extend(ranges.map(|first| (at, first..end.min(first + width))));
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
unsafe fn outputs(unit: Unit, rows: &Rows, layer: Layer<'_>, pairs: Range<usize>, start: *mut f32) {
    let Layer { op, then } = layer;
    let n = op.packing.n;
    let out = op.to(start, 0, n);
    if let Then::Write = then {
        // SAFETY: the caller's promise.
        return unsafe { run(unit, op, rows, pairs, out) };
    }
    let mut beside = match then {
        Then::Gate(..) | Then::Add => Room::new(rows.count * FINISHED.min(pairs.len()) * PAIR),
        Then::Write | Then::Activate(_) => Room::new(0),
    };
    for first in pairs.clone().step_by(FINISHED) {
        let some = first..pairs.end.min(first + FINISHED);
        let outputs = first * PAIR..n.min(some.end * PAIR);
        let width = outputs.len();
        let aside = beside.start().get();
        // SAFETY: within the results, or within the room beside them, which is as wide as some
        // pairs; what is read was written just before. The rest is the caller's promise.
        unsafe {
            match then {
                Then::Gate(_, gated) => run(
                    unit,
                    gated,
                    rows,
                    some.clone(),
                    gated.to(aside, outputs.start, width),
                ),
                Then::Add => run(
                    unit,
                    op,
                    rows,
                    some.clone(),
                    op.to(aside, outputs.start, width),
                ),
                Then::Write | Then::Activate(_) => {}
            }
            if !matches!(then, Then::Add) {
                run(unit, op, rows, some, out);
            }
            for row in 0..rows.count {
                let values = start.add(row * n + outputs.start);
                let values = std::slice::from_raw_parts_mut(values, width);
                let beside = || std::slice::from_raw_parts(aside.add(row * width), width);
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

impl<'a> Quantized<'a> {
    /// Its results to a place with so many elements in a row, the first of them of this output.
    fn to(self, start: *mut f32, first: usize, n: usize) -> Out<'a> {
        Out {
            start,
            first,
            n,
            bias: self.bias,
        }
    }

    fn check(&self) {
        let groups = self.packing.groups();
        assert_eq!(self.data.len(), groups * self.packing.group_bytes());
        assert_eq!(self.scales.len(), groups * GROUP);
        assert!(
            self.bias.is_none_or(|bias| bias.len() == self.packing.n),
            "a bias for each output"
        );
    }
}
