//! `x * weight^T` on tiles, for weights of `bf16` as they lie in the file.
//!
//! 16 rows of the weight by 32 elements of K are one tile, read in place; the activations, far
//! fewer, are rounded to `bf16` and packed. A product of tiles adds 32 elements of K to 16 outputs
//! of up to 16 rows. So an output adds its products step by step of K in the order that the
//! instruction has, on as many rows as there are, and one row has the same bits in any batch.

use super::{
    super::{
        gemm::Linear,
        memory::{Floats, Room, lines},
        pool,
    },
    Tiles,
    pack::{Columns, SIDE, STEP, write_rows},
};
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::{
    _MM_HINT_ET0, _mm_prefetch, _mm512_loadu_si512, _mm512_maskz_loadu_epi16, _mm512_store_si512,
};
use std::ops::Range;

/// Outputs of a panel: two tiles of the weight.
const PANEL: usize = 2 * SIDE;
/// Steps of one pass over K: with them the rows of a block stay in the second-level cache.
const DEPTH: usize = 32;
/// Pairs of groups of rows from which copying a panel pays: it is read as one run, and half a
/// pass of it stays in the first-level cache while all rows of a block go by.
const MANY: usize = 4;
/// Steps of a copied panel that do.
const HALF: usize = DEPTH / 2;
/// Pairs of groups of rows in a block, where K takes one pass; half of it where it takes more,
/// since their sums stay in the cache as well.
const BLOCK: usize = 18;
/// Bytes of the sums of a panel and a pair of groups: four tiles.
const SUMS: usize = 4096;
/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL: usize = 1 << 17;

/// The result, `[m, n]`, one task for each range of outputs.
///
/// # Panics
/// When the machine has no tiles, or the operands do not fit each other.
pub(in super::super) fn linear(op: Linear<'_, bf16>) -> Floats {
    assert!(super::available(), "a machine with a matrix unit");
    let m = op.rows();
    let mut result = Room::new(m * op.n);
    let x = Columns::new(op.x, op.k);
    let out = result.start();
    let threads = match m * op.n * op.k {
        ..SERIAL => 1,
        _ => pool::threads(),
    };
    // A few tasks for each thread, so that one that is held up holds up little. But a task reads
    // all rows: where they do not stay in the cache, fewer and wider ones.
    let each = if x.steps > DEPTH && x.groups >= 2 * MANY {
        1
    } else {
        4
    };
    let width = match threads {
        1 => op.n,
        _ => op.n.div_ceil(threads * each),
    };
    let most = if x.steps > DEPTH { 16 } else { 64 };
    let width = width.next_multiple_of(PANEL).min(most * PANEL);
    let range = |task: usize| {
        let first = task * width;
        let outputs = first..op.n.min(first + width);
        // SAFETY: the machine has tiles, and no other task has these outputs.
        unsafe { Task::new(op, &x, outputs, out.get()).run() }
    };
    pool::each(op.n.div_ceil(width), range);
    // SAFETY: the tasks wrote every output of every row.
    unsafe { result.written() }
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

/// Some steps of a panel of the weight: two tiles of each.
#[derive(Clone, Copy)]
struct Panel {
    /// The first output.
    first: usize,
    /// Outputs, up to [`PANEL`].
    outputs: usize,
    /// The first output's first step.
    low: *const u8,
    /// That of the output 16 further on.
    high: *const u8,
    /// Bytes to the next output.
    stride: usize,
    /// Bytes to the next step.
    step: usize,
    /// Steps that are there.
    steps: usize,
    /// The step after them, filled with zeros; a row every 64 bytes.
    tail: *const u8,
}

impl Panel {
    /// `steps` of its steps, after some that are left out.
    fn from(self, left_out: usize, steps: usize) -> Self {
        Self {
            low: self.low.wrapping_add(left_out * self.step),
            high: self.high.wrapping_add(left_out * self.step),
            steps,
            ..self
        }
    }
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
        // SAFETY: as the caller promised.
        unsafe {
            match self.x.groups.div_ceil(2) {
                ..MANY => self.few(),
                _ => self.many(),
            }
        }
    }

    /// Few rows: a panel is read where it is, and stays in the second-level cache for all of them.
    unsafe fn few(&self) {
        let pairs = self.x.groups.div_ceil(2);
        let mut sums = lines(2 * SUMS);
        // The rest of K, and the last panel where it is not whole.
        let mut tail = lines(PANEL * 64);
        let mut padded = lines(PANEL * self.x.steps * 64);
        let (tail, padded) = (tail.as_mut_ptr().cast(), padded.as_mut_ptr().cast());
        let mut written = None;
        for p in 0..self.outputs.len().div_ceil(PANEL) {
            // SAFETY: the buffers have the sizes that are asked for. Two sums in turn keep what is
            // still to be written apart from what is computed.
            unsafe {
                let panel = self.in_place(p, tail, padded);
                for pair in 0..pairs {
                    let sums = sums.as_mut_ptr().cast::<u8>().add(pair % 2 * SUMS).cast();
                    self.multiply(panel, pair, 0..self.x.steps, sums, sums, written);
                    written = Some(self.written(panel, pair, sums));
                }
            }
        }
        // SAFETY: the last sums are still there.
        unsafe { self.write_all(written) };
    }

    /// Many rows: in blocks, and in passes over K, by copied panels.
    unsafe fn many(&self) {
        let pairs = self.x.groups.div_ceil(2);
        let steps = self.x.steps;
        let most = if steps <= DEPTH { BLOCK } else { BLOCK / 2 };
        let block = pairs.div_ceil(pairs.div_ceil(most));
        let panels = self.outputs.len().div_ceil(PANEL);
        // Of the pairs of a block; where K takes several passes, of all panels.
        let kept = if steps <= DEPTH {
            block
        } else {
            panels * block
        };
        let mut sums = lines(kept * SUMS);
        let sums: *mut u8 = sums.as_mut_ptr().cast();
        let mut copied = lines(PANEL * DEPTH * 64);
        let copied: *mut u8 = copied.as_mut_ptr().cast();
        let mut written = None;
        for first in (0..pairs).step_by(block) {
            let pairs = first..pairs.min(first + block);
            for pass in (0..steps).step_by(DEPTH) {
                let pass = pass..steps.min(pass + DEPTH);
                for p in 0..panels {
                    // SAFETY: room for all steps of a pass.
                    let panel = unsafe { self.copied(p, pass.clone(), copied) };
                    for half in pass.clone().step_by(HALF) {
                        let half = half..pass.end.min(half + HALF);
                        let skipped = half.start - pass.start;
                        let panel = panel.from(skipped, half.len());
                        for pair in pairs.clone() {
                            let slot = |pair: usize| {
                                let slot = if steps <= DEPTH { 0 } else { p * block };
                                // SAFETY: one of the kept sums.
                                unsafe { sums.add((slot + pair - first) * SUMS).cast::<f32>() }
                            };
                            let next = slot(if pair + 1 < pairs.end {
                                pair + 1
                            } else {
                                first
                            });
                            // SAFETY: the sums hold the steps before these; what is still to be
                            // written is written before its place is needed.
                            unsafe {
                                let sums = slot(pair);
                                self.multiply(panel, pair, half.clone(), sums, next, written);
                                written =
                                    (half.end == steps).then(|| self.written(panel, pair, sums));
                            }
                        }
                    }
                }
            }
        }
        // SAFETY: the last sums are still there.
        unsafe { self.write_all(written) };
    }

    /// A panel where it is in the weight.
    ///
    /// # Safety
    /// `tail` has 2 KiB; `padded` has a row of all steps for each output of a panel.
    unsafe fn in_place(&self, p: usize, tail: *mut u8, padded: *mut u8) -> Panel {
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
                low: weight.as_ptr().cast(),
                high: weight[SIDE * k..].as_ptr().cast(),
                stride: k * 2,
                step: 64,
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
            low: padded,
            high: padded.wrapping_add(SIDE * stride),
            stride,
            step: 64,
            steps: self.x.steps,
            tail,
        }
    }

    /// Some steps of a panel, copied: of each step 32 rows of 64 bytes, filled with zeros.
    ///
    /// # Safety
    /// `to` begins with a line and has room for them; the machine has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn copied(&self, p: usize, steps: Range<usize>, to: *mut u8) -> Panel {
        let k = self.op.k;
        let first = self.outputs.start + p * PANEL;
        let outputs = PANEL.min(self.outputs.end - first);
        for r in 0..PANEL {
            let row: &[bf16] = match r < outputs {
                true => &self.op.weight[(first + r) * k..][..k][steps.start * STEP..],
                false => &[],
            };
            let (whole, rest) = row.as_chunks::<STEP>();
            let count = whole.len().min(steps.len());
            // SAFETY: a row of each step; the rest is masked to the elements that there are.
            unsafe {
                let to = to.add(r * 64);
                for (s, from) in whole[..count].iter().enumerate() {
                    let line = _mm512_loadu_si512(from.as_ptr().cast());
                    _mm512_store_si512(to.add(s * PANEL * 64).cast(), line);
                }
                for s in count..steps.len() {
                    let there = if s == whole.len() { rest.len() } else { 0 };
                    let mask = ((1u64 << there) - 1) as u32;
                    let line = _mm512_maskz_loadu_epi16(mask, rest.as_ptr().cast());
                    _mm512_store_si512(to.add(s * PANEL * 64).cast(), line);
                }
            }
        }
        Panel {
            first,
            outputs,
            low: to,
            high: to.wrapping_add(SIDE * 64),
            stride: 64,
            step: PANEL * 64,
            steps: steps.len(),
            tail: to,
        }
    }

    fn written(&self, panel: Panel, pair: usize, sums: *const f32) -> Written {
        Written {
            sums,
            pair,
            first: panel.first,
            outputs: panel.outputs,
        }
    }

    /// # Safety
    /// As of [`write`](Self::write).
    unsafe fn write_all(&self, written: Option<Written>) {
        for tile in 0..4 {
            if let Some(written) = written {
                // SAFETY: what the caller promised.
                unsafe { self.write(written, tile) };
            }
        }
    }

    /// Adds the products of a panel's steps, which are steps `steps` of K, and of a pair of groups.
    /// Writes what is to be written along the way, while the matrix unit is busy, and fetches the
    /// sums that come next.
    ///
    /// # Safety
    /// The tiles are configured, `sums` are four tiles that hold the steps before.
    unsafe fn multiply(
        &self,
        panel: Panel,
        pair: usize,
        steps: Range<usize>,
        sums: *mut f32,
        next: *const f32,
        written: Option<Written>,
    ) {
        let two = 2 * pair + 1 < self.x.groups;
        let mut at = Cursor {
            low: panel.low,
            high: panel.high,
            stride: panel.stride,
            advance: panel.step,
            group: self.x.at(2 * pair, steps.start),
            // Where there is one group only, the other's sums are not looked at.
            other: self.x.at(2 * pair + usize::from(two), steps.start),
            width: self.x.width * 4,
            step: self.x.step_bytes(),
        };
        let whole = panel.steps.min(steps.len());
        // SAFETY: the cursor walks over whole steps of the panel and of the groups; fetching a
        // line does nothing else.
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
                if next != sums {
                    for line in 0..SIDE {
                        _mm_prefetch::<_MM_HINT_ET0>(next.add((tile * SIDE + line) * SIDE).cast());
                    }
                }
                if let Some(written) = written {
                    self.write(written, tile);
                }
            }
            if whole < steps.len() {
                (at.low, at.high) = (panel.tail, panel.tail.add(SIDE * 64));
                at.stride = 64;
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
    low: *const u8,
    high: *const u8,
    /// Bytes from an output to the next.
    stride: usize,
    /// Bytes from a step of the weight to the next.
    advance: usize,
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
                "add {low}, {advance}",
                "add {high}, {advance}",
                "add {group}, {step}",
                "add {other}, {step}",
                "dec {count}",
                "jnz 2b",
                low = inout(reg) self.low,
                high = inout(reg) self.high,
                stride = in(reg) self.stride,
                advance = in(reg) self.advance,
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
                "add {low}, {advance}",
                "add {high}, {advance}",
                "add {group}, {step}",
                "dec {count}",
                "jnz 2b",
                low = inout(reg) self.low,
                high = inout(reg) self.high,
                stride = in(reg) self.stride,
                advance = in(reg) self.advance,
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
