//! `x * weight^T` on tiles, for weights of `bf16` as they lie in the file.
//!
//! 16 rows of the weight by 32 elements of K are one tile, read in place; the activations, far
//! fewer, are rounded to `bf16` and packed. A product of tiles adds 32 elements of K to 16 outputs
//! of up to 16 rows. So an output adds its products step by step of K in the order that the
//! instruction has, on as many rows as there are, and one row has the same bits in any batch.

use super::{
    super::{
        gemm::Linear,
        memory::{Raw, lines},
    },
    Tiles,
    pack::{Columns, SIDE, STEP, write_rows},
};
use half::bf16;
use rayon::prelude::*;
use std::arch::asm;
use std::ops::Range;

/// Outputs of a panel: two tiles of the weight.
const PANEL: usize = 2 * SIDE;
/// Steps of one pass over K: with them the rows of a block stay in the second-level cache.
const DEPTH: usize = 32;
/// Pairs of groups of rows in a block, where K takes one pass; half of it where it takes more,
/// since their sums stay in the cache as well.
const BLOCK: usize = 18;
/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL: usize = 1 << 17;

/// The result, `[m, n]`, one task for each range of outputs.
///
/// # Panics
/// When the machine has no tiles, or the operands do not fit each other.
pub(in super::super) fn linear(op: Linear<'_, bf16>) -> Vec<f32> {
    assert!(super::available(), "a machine with a matrix unit");
    let m = op.rows();
    let mut result: Vec<f32> = Vec::with_capacity(m * op.n);
    let x = Columns::new(op.x, op.k);
    let out = Raw(result.as_mut_ptr());
    let threads = match m * op.n * op.k {
        ..SERIAL => 1,
        _ => rayon::current_num_threads(),
    };
    // A few tasks for each thread, so that one that is held up holds up little; where sums are
    // kept between passes over K, at most as many outputs as stay in the cache.
    let width = match threads {
        1 => op.n,
        _ => op.n.div_ceil(threads * 4),
    };
    let most = if x.steps > DEPTH { 8 } else { 64 };
    let width = width.next_multiple_of(PANEL).min(most * PANEL);
    let range = |first: usize| {
        let outputs = first..op.n.min(first + width);
        // SAFETY: the machine has tiles, and no other task has these outputs.
        unsafe { Task::new(op, &x, outputs, out.get()).run() }
    };
    if threads == 1 {
        (0..op.n).step_by(width).for_each(range);
    } else {
        let tasks: Vec<usize> = (0..op.n).step_by(width).collect();
        tasks.into_par_iter().with_max_len(1).for_each(range);
    }
    // SAFETY: within the capacity, and the tasks wrote every output of every row.
    unsafe { result.set_len(m * op.n) };
    result
}

/// A range of outputs for all rows.
struct Task<'a> {
    op: Linear<'a, bf16>,
    x: &'a Columns,
    outputs: Range<usize>,
    out: *mut f32,
    /// Steps of K that lie in the weight as a whole.
    whole: usize,
}

/// A panel of the weight: where its steps of K are.
#[derive(Clone, Copy)]
struct Panel {
    /// The first output.
    first: usize,
    /// Outputs, up to [`PANEL`].
    outputs: usize,
    /// Row by row, [`stride`](Self::stride) apart; rows that are not there are zeros.
    start: *const u8,
    stride: usize,
    /// Steps that are there.
    steps: usize,
    /// The step after them, filled with zeros; a row every 64 bytes.
    tail: *const u8,
}

/// Sums that are to be written as rows.
#[derive(Clone, Copy)]
struct Written {
    sums: *const f32,
    pair: usize,
    first: usize,
    outputs: usize,
}

impl<'a> Task<'a> {
    fn new(op: Linear<'a, bf16>, x: &'a Columns, outputs: Range<usize>, out: *mut f32) -> Self {
        let whole = op.k / STEP;
        Self {
            op,
            x,
            outputs,
            out,
            whole,
        }
    }

    /// # Safety
    /// The machine has tiles, and nothing else writes these outputs.
    unsafe fn run(&self) {
        let width = self.x.width * 4;
        // SAFETY: the machine has tiles; `run` is called by tasks, which do not nest.
        let _tiles = unsafe { Tiles::of([width, width, width, width, 64, 64, width, width]) };
        let pairs = self.x.groups.div_ceil(2);
        let passes = self.x.steps.div_ceil(DEPTH);
        let most = if passes == 1 { BLOCK } else { BLOCK / 2 };
        let block = pairs.div_ceil(pairs.div_ceil(most));
        let panels = self.outputs.len().div_ceil(PANEL);
        // Sums of four tiles: of two pairs in turn, or of all pairs of a block.
        let kept = if passes == 1 { 2 } else { panels * block };
        let mut sums = lines(kept * 4096);
        let sums = sums.as_mut_ptr().cast::<f32>();
        // The rest of K, and the last panel where it is not whole.
        let mut tail = lines(PANEL * 64);
        let mut padded = lines(PANEL * self.x.steps * 64);
        let (tail, padded) = (tail.as_mut_ptr().cast(), padded.as_mut_ptr().cast());
        let mut written = None;
        for first in (0..pairs).step_by(block) {
            for pass in 0..passes {
                let steps = pass * DEPTH..self.x.steps.min((pass + 1) * DEPTH);
                for p in 0..panels {
                    // SAFETY: the buffers have the sizes that are asked for.
                    let panel = unsafe { self.panel(p, tail, padded) };
                    for pair in first..pairs.min(first + block) {
                        let slot = if passes == 1 {
                            pair % 2
                        } else {
                            p * block + pair - first
                        };
                        // SAFETY: a slot of the sums; the two slots in turn keep what is still
                        // to be written apart from what is computed.
                        unsafe {
                            let sums = sums.add(slot * 1024);
                            self.multiply(panel, pair, steps.clone(), sums, written);
                            written = (steps.end == self.x.steps).then_some(Written {
                                sums,
                                pair,
                                first: panel.first,
                                outputs: panel.outputs,
                            });
                        }
                    }
                }
            }
        }
        if let Some(written) = written {
            for tile in 0..4 {
                // SAFETY: the sums are still there.
                unsafe { self.write(written, tile) };
            }
        }
    }

    /// # Safety
    /// `tail` has 2 KiB; `padded` has a row of all steps for each output of a panel.
    unsafe fn panel(&self, p: usize, tail: *mut u8, padded: *mut u8) -> Panel {
        let k = self.op.k;
        let first = self.outputs.start + p * PANEL;
        let outputs = PANEL.min(self.outputs.end - first);
        let weight = &self.op.weight[first * k..][..outputs * k];
        if outputs == PANEL {
            if !k.is_multiple_of(STEP) {
                let rest = weight.chunks_exact(k).map(|row| &row[self.whole * STEP..]);
                // SAFETY: 32 rows of 64 bytes.
                unsafe { pad(rest, 64, tail) };
            }
            return Panel {
                first,
                outputs,
                start: weight.as_ptr().cast(),
                stride: k * 2,
                steps: self.whole,
                tail,
            };
        }
        let stride = self.x.steps * 64;
        // SAFETY: 32 rows of all steps.
        unsafe {
            pad(weight.chunks_exact(k), stride, padded);
            let rest = (PANEL - outputs) * stride;
            padded.add(outputs * stride).write_bytes(0, rest);
        }
        Panel {
            first,
            outputs,
            start: padded,
            stride,
            steps: self.x.steps,
            tail,
        }
    }

    /// Adds the products of some steps of a panel and of a pair of groups, and writes what is to
    /// be written along the way, while the matrix unit is busy.
    ///
    /// # Safety
    /// The tiles are configured, `sums` are four tiles that hold the steps before.
    unsafe fn multiply(
        &self,
        panel: Panel,
        pair: usize,
        steps: Range<usize>,
        sums: *mut f32,
        written: Option<Written>,
    ) {
        let two = 2 * pair + 1 < self.x.groups;
        let width = self.x.width * 4;
        let mut at = Cursor {
            weight: panel.start.wrapping_add(steps.start * 64),
            stride: panel.stride,
            group: self.x.at(2 * pair, steps.start),
            // Where there is one group only, the other's sums are not looked at.
            other: self.x.at(2 * pair + usize::from(two), steps.start),
            width,
            step: self.x.step_bytes(),
        };
        let whole = panel.steps.min(steps.end) - steps.start.min(panel.steps);
        // SAFETY: the cursor walks over whole steps of the panel and of the groups.
        unsafe {
            if steps.start == 0 {
                clear();
            } else {
                load(sums);
            }
            for tile in 0..4 {
                let count = whole * (tile + 1) / 4 - whole * tile / 4;
                match two {
                    true => at.four(count),
                    false => at.two(count),
                }
                if let Some(written) = written {
                    self.write(written, tile);
                }
            }
            if whole < steps.len() {
                (at.weight, at.stride) = (panel.tail, 64);
                match two {
                    true => at.four(1),
                    false => at.two(1),
                }
            }
            store(sums);
        }
    }

    /// Writes one of the four tiles of sums.
    ///
    /// # Safety
    /// The sums are there, and nothing else writes these outputs.
    unsafe fn write(&self, written: Written, tile: usize) {
        let (high, right) = (tile / 2, tile % 2);
        let row = (2 * written.pair + right) * self.x.width;
        let rows = self.x.rows.saturating_sub(row).min(self.x.width);
        let outputs = written.outputs.saturating_sub(high * SIDE).min(SIDE);
        if rows == 0 || outputs == 0 || (right == 1 && 2 * written.pair + 1 >= self.x.groups) {
            return;
        }
        let first = written.first + high * SIDE;
        let bias = match self.op.bias {
            Some(bias) => bias[first..].as_ptr(),
            None => std::ptr::null(),
        };
        // SAFETY: rows and outputs of the result.
        unsafe {
            let out = self.out.add(row * self.op.n + first);
            write_rows(
                written.sums.add(tile * 256),
                bias,
                rows,
                out,
                self.op.n,
                outputs,
            );
        }
    }
}

/// Copies rows to `to`, `stride` bytes each, filled with zeros.
///
/// # Safety
/// `to` has room for them.
unsafe fn pad<'a>(rows: impl Iterator<Item = &'a [bf16]>, stride: usize, to: *mut u8) {
    for (r, row) in rows.enumerate() {
        let bytes = size_of_val(row);
        // SAFETY: what the caller promised.
        unsafe {
            let to = to.add(r * stride);
            to.copy_from_nonoverlapping(row.as_ptr().cast(), bytes);
            to.add(bytes).write_bytes(0, stride - bytes);
        }
    }
}

/// Where two tiles of the weight and two groups of rows stand.
struct Cursor {
    weight: *const u8,
    stride: usize,
    group: *const u8,
    other: *const u8,
    /// Bytes of a pair of K in a group.
    width: usize,
    /// Bytes of a step in a group.
    step: usize,
}

impl Cursor {
    /// Tiles 0 to 3 take `count` steps: both tiles of the weight by both groups. The groups are
    /// loaded past the first-level cache, in which the weight would not stay otherwise.
    ///
    /// # Safety
    /// The tiles are configured, and the steps are there.
    #[inline(always)]
    unsafe fn four(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        // SAFETY: what the caller promised.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{low} + {stride}]",
                "tileloaddt1 tmm6, [{group} + {width}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloaddt1 tmm7, [{other} + {width}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{high} + {stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {low}, 64",
                "add {high}, 64",
                "add {group}, {step}",
                "add {other}, {step}",
                "dec {count}",
                "jnz 2b",
                low = inout(reg) self.weight,
                high = inout(reg) self.weight.wrapping_add(SIDE * self.stride) => _,
                stride = in(reg) self.stride,
                group = inout(reg) self.group,
                other = inout(reg) self.other,
                width = in(reg) self.width,
                step = in(reg) self.step,
                count = inout(reg) count => _,
                options(nostack, readonly),
            );
        }
    }

    /// Tiles 0 and 2 take `count` steps: both tiles of the weight by the first group.
    ///
    /// # Safety
    /// As of [`four`](Self::four).
    #[inline(always)]
    unsafe fn two(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        // SAFETY: what the caller promised.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{low} + {stride}]",
                "tileloadd tmm6, [{group} + {width}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{high} + {stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {low}, 64",
                "add {high}, 64",
                "add {group}, {step}",
                "dec {count}",
                "jnz 2b",
                low = inout(reg) self.weight,
                high = inout(reg) self.weight.wrapping_add(SIDE * self.stride) => _,
                stride = in(reg) self.stride,
                group = inout(reg) self.group,
                width = in(reg) self.width,
                step = in(reg) self.step,
                count = inout(reg) count => _,
                options(nostack, readonly),
            );
        }
    }
}

/// Tiles 0 to 3 to zero.
///
/// # Safety
/// The tiles are configured.
#[inline(always)]
unsafe fn clear() {
    // SAFETY: what the caller promised.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, nomem),
        );
    }
}

/// Tiles 0 to 3 from memory, 1 KiB each.
///
/// # Safety
/// The tiles are configured; `sums` are four tiles.
#[inline(always)]
unsafe fn load(sums: *const f32) {
    // SAFETY: what the caller promised.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {line}]",
            "tileloadd tmm1, [{sums} + {line} + 1024]",
            "tileloadd tmm2, [{sums} + {line} + 2048]",
            "tileloadd tmm3, [{sums} + {line} + 3072]",
            sums = in(reg) sums,
            line = in(reg) 64usize,
            options(nostack, readonly),
        );
    }
}

/// Tiles 0 to 3 to memory.
///
/// # Safety
/// As of [`load`].
#[inline(always)]
unsafe fn store(sums: *mut f32) {
    // SAFETY: what the caller promised.
    unsafe {
        asm!(
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            sums = in(reg) sums,
            line = in(reg) 64usize,
            options(nostack),
        );
    }
}
