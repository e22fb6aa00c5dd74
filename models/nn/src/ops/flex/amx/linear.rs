//! `x * weight^T` on tiles, for weights of `bf16` as they lie in the file.
//!
//! 16 rows of the weight by 32 elements of K are one tile; the activations, far fewer, are rounded
//! to `bf16` and packed, once for all weights that take them. A product of tiles adds 32 elements of
//! K to 16 outputs of up to 16 rows. So an output adds its products step by step of K in the order
//! that the instruction has, on as many rows as there are, and one row has the same bits in any
//! batch.
//!
//! What follows a layer (bias, activation, gate, residual) is done to the sums before they are
//! written: they are in the cache then, and the matrix unit has the next ones meanwhile.

use super::{
    super::{
        memory::{Floats, Room, lines},
        pool,
        simd::height,
    },
    Tiles, cursor,
    cursor::Cursor,
    pack::{Columns, SIDE, Then, write_gated, write_rows},
    panel::{Copy, PANEL, Panel, Source},
};
use half::bf16;
use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
use std::ops::Range;

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

/// A weight, `[n, k]`, and a bias.
#[derive(Clone, Copy)]
pub(in super::super) struct Affine<'a> {
    pub(in super::super) weight: &'a [bf16],
    pub(in super::super) bias: Option<&'a [f32]>,
}

/// A layer of `n` outputs.
#[derive(Clone, Copy)]
pub(in super::super) struct Layer<'a> {
    pub(in super::super) affine: Affine<'a>,
    /// What the layer gates, if it is a gate.
    pub(in super::super) gated: Option<Affine<'a>>,
    pub(in super::super) n: usize,
    pub(in super::super) then: Then,
}

impl<'a> Layer<'a> {
    /// Outputs of a panel: a gate has those that it gates beside its own.
    fn outputs(&self) -> usize {
        if self.gated.is_some() { SIDE } else { PANEL }
    }

    fn panels(&self) -> usize {
        self.n.div_ceil(self.outputs())
    }

    /// The first output of a tile of a panel, how many there are, and whose.
    fn tile(&self, panel: usize, tile: usize) -> (usize, usize, Affine<'a>) {
        let (first, affine) = match self.gated {
            Some(gated) => (panel * SIDE, [self.affine, gated][tile]),
            None => (panel * PANEL + tile * SIDE, self.affine),
        };
        (first, self.n.saturating_sub(first).min(SIDE), affine)
    }

    fn source(&self, panel: usize, k: usize) -> Source<'a> {
        let tiles = [0, 1].map(|tile| {
            let (first, count, affine) = self.tile(panel, tile);
            let rows = affine.weight.get(first * k..(first + count) * k);
            rows.unwrap_or_default()
        });
        Source { tiles, k }
    }
}

/// The results, `[rows, n]` of each layer.
///
/// # Panics
/// When the machine has no tiles, or the operands do not fit each other.
pub(in super::super) fn linear<const N: usize>(x: &Columns, layers: [Layer<'_>; N]) -> [Floats; N] {
    let mut rooms = layers.map(|layer| Room::new(x.rows * layer.n));
    let outs = rooms.each_mut().map(|room| room.start().get());
    // SAFETY: room for the results, of which nothing is read.
    unsafe { linear_to(x, layers, outs) };
    // SAFETY: every output of every row is written.
    rooms.map(|room| unsafe { room.written() })
}

/// [`linear`] to where the results belong.
///
/// # Safety
/// Room for the results, which nothing else has a hold of; with [`Then::Add`], of numbers.
///
/// # Panics
/// As [`linear`].
pub(in super::super) unsafe fn linear_to<const N: usize>(
    x: &Columns,
    layers: [Layer<'_>; N],
    outs: [*mut f32; N],
) {
    assert!(super::available(), "a machine with a matrix unit");
    for layer in &layers {
        for affine in [Some(layer.affine), layer.gated].into_iter().flatten() {
            assert_eq!(affine.weight.len(), layer.n * x.k, "a row for each output");
            let biases = affine.bias.map_or(layer.n, <[f32]>::len);
            assert_eq!(biases, layer.n, "a bias for each output");
        }
    }
    let job = Job {
        x,
        layers: &layers,
        outs: Outs(&outs),
    };
    let panels: usize = layers.iter().map(Layer::panels).sum();
    let threads = match x.rows * panels * PANEL * x.k {
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
        1 => panels,
        _ => panels.div_ceil(threads * each),
    };
    let width = width.min(if x.steps > DEPTH { 16 } else { 64 }).max(1);
    pool::each(panels.div_ceil(width), |task| {
        let panels = task * width..panels.min((task + 1) * width);
        // SAFETY: the machine has tiles, and no other task has these outputs.
        unsafe { job.run(panels) }
    });
}

/// Where results go.
#[derive(Clone, Copy)]
struct Outs<'a>(&'a [*mut f32]);

// SAFETY: tasks write outputs of their own.
unsafe impl Sync for Outs<'_> {}

/// Layers of the same rows.
struct Job<'a> {
    x: &'a Columns,
    layers: &'a [Layer<'a>],
    outs: Outs<'a>,
}

/// A panel of a layer.
#[derive(Clone, Copy)]
struct Place {
    layer: usize,
    panel: usize,
}

/// Sums that are to be written as rows.
#[derive(Clone, Copy)]
struct Written {
    sums: *const f32,
    pair: usize,
    place: Place,
}

/// What is done beside a product, a quarter of it at a time.
struct Aside<'a, 'b> {
    /// The sums that come next.
    next: *const f32,
    written: Option<Written>,
    /// A copy to go on with, and by how many lines.
    copy: Option<(&'b mut Copy<'a>, usize)>,
}

impl<'a> Job<'a> {
    /// Where a panel of all layers belongs.
    fn place(&self, mut panel: usize) -> Place {
        for (layer, l) in self.layers.iter().enumerate() {
            if panel < l.panels() {
                return Place { layer, panel };
            }
            panel -= l.panels();
        }
        unreachable!("a panel of one of the layers")
    }

    fn source(&self, place: Place) -> Source<'a> {
        self.layers[place.layer].source(place.panel, self.x.k)
    }

    /// # Safety
    /// The machine has tiles, and nothing else writes these outputs.
    unsafe fn run(&self, panels: Range<usize>) {
        let width = self.x.width * 4;
        // SAFETY: the machine has tiles; `run` is called by tasks, which do not nest.
        let _tiles = unsafe { Tiles::of([width, width, width, width, 64, 64, width, width]) };
        // SAFETY: as the caller promised.
        unsafe {
            match self.x.groups.div_ceil(2) {
                ..MANY => self.few(panels),
                _ => self.many(panels),
            }
        }
    }

    /// Few rows: a panel is read where it is, and stays in the second-level cache for all of them.
    unsafe fn few(&self, panels: Range<usize>) {
        let pairs = self.x.groups.div_ceil(2);
        let mut sums = lines(2 * SUMS);
        // The rest of K, and the last panel where it is not whole.
        let mut tail = lines(PANEL * 64);
        let mut padded = lines(PANEL * self.x.steps * 64);
        let (tail, padded) = (tail.as_mut_ptr().cast(), padded.as_mut_ptr().cast());
        let mut written = None;
        for place in panels.map(|panel| self.place(panel)) {
            // SAFETY: the buffers have the sizes that are asked for. Two sums in turn keep what is
            // still to be written apart from what is computed.
            unsafe {
                let panel = self.source(place).in_place(tail, padded);
                for pair in 0..pairs {
                    let sums = sums.as_mut_ptr().cast::<u8>().add(pair % 2 * SUMS).cast();
                    let aside = Aside {
                        next: sums,
                        written,
                        copy: None,
                    };
                    self.multiply(panel, pair, 0..self.x.steps, sums, aside);
                    written = Some(Written { sums, pair, place });
                }
            }
        }
        // SAFETY: the last sums are still there.
        unsafe { self.write_all(written) };
    }

    /// Many rows: in blocks, and in passes over K, by copied panels.
    unsafe fn many(&self, panels: Range<usize>) {
        let pairs = self.x.groups.div_ceil(2);
        let steps = self.x.steps;
        let most = if steps <= DEPTH { BLOCK } else { BLOCK / 2 };
        let block = height(pairs, most);
        let count = panels.len();
        // Of the pairs of a block; where K takes several passes, of all panels.
        let kept = if steps <= DEPTH { block } else { count * block };
        let mut sums = lines(kept * SUMS);
        let sums: *mut u8 = sums.as_mut_ptr().cast();
        // The panel that is multiplied, and the next one.
        let mut copied = lines(2 * PANEL * DEPTH * 64);
        let copied: *mut u8 = copied.as_mut_ptr().cast();
        let copy = |turn: usize| {
            let passes = steps.div_ceil(DEPTH);
            let (round, p) = (turn / count, turn % count);
            let pass = round % passes * DEPTH;
            let source = self.source(self.place(panels.start + p));
            let to = copied.wrapping_add(turn % 2 * PANEL * DEPTH * 64);
            // SAFETY: room for all steps of a pass, and the panel there is done with.
            unsafe { Copy::new(source, pass..steps.min(pass + DEPTH), to) }
        };
        let turns = pairs.div_ceil(block) * steps.div_ceil(DEPTH) * count;
        let mut turn = 0;
        let mut ahead = Some(copy(0));
        let mut written = None;
        for first in (0..pairs).step_by(block) {
            let pairs = first..pairs.min(first + block);
            for pass in (0..steps).step_by(DEPTH) {
                let pass = pass..steps.min(pass + DEPTH);
                for p in 0..count {
                    let place = self.place(panels.start + p);
                    let Some(ready) = ahead.take() else {
                        unreachable!("a copy is begun for every turn");
                    };
                    // SAFETY: the machine has AVX-512.
                    let panel = unsafe { ready.finish() };
                    turn += 1;
                    ahead = (turn < turns).then(|| copy(turn));
                    let calls = pass.len().div_ceil(HALF) * pairs.len();
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
                            let aside = Aside {
                                next,
                                written,
                                copy: ahead.as_mut().map(|copy| {
                                    let each = copy.lines().div_ceil(calls * 4);
                                    (copy, each)
                                }),
                            };
                            // SAFETY: the sums hold the steps before these; what is still to be
                            // written is written before its place is needed.
                            unsafe {
                                let sums = slot(pair);
                                self.multiply(panel, pair, half.clone(), sums, aside);
                                written =
                                    (half.end == steps).then_some(Written { sums, pair, place });
                            }
                        }
                    }
                }
            }
        }
        // SAFETY: the last sums are still there.
        unsafe { self.write_all(written) };
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
    /// What is to be done beside it is done while the matrix unit is busy.
    ///
    /// # Safety
    /// The tiles are configured, `sums` are four tiles that hold the steps before.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn multiply(
        &self,
        panel: Panel,
        pair: usize,
        steps: Range<usize>,
        sums: *mut f32,
        aside: Aside<'_, '_>,
    ) {
        let Aside {
            next,
            written,
            mut copy,
        } = aside;
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
                cursor::clear();
            } else {
                cursor::load(sums);
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
                if let Some((copy, lines)) = &mut copy {
                    copy.advance(*lines);
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
            cursor::store(sums);
        }
    }

    /// Writes one of the four tiles of sums.
    ///
    /// # Safety
    /// The sums are there, and nothing else writes these outputs.
    unsafe fn write(&self, written: Written, tile: usize) {
        let (high, right) = (tile / 2, tile % 2);
        let layer = &self.layers[written.place.layer];
        let (first, outputs, affine) = layer.tile(written.place.panel, high);
        let row = (2 * written.pair + right) * self.x.width;
        let rows = self.x.rows.saturating_sub(row).min(self.x.width);
        if rows == 0 || outputs == 0 || (right == 1 && 2 * written.pair + 1 >= self.x.groups) {
            return;
        }
        let bias = |affine: Affine<'_>| match affine.bias {
            Some(bias) => bias[first..].as_ptr(),
            None => std::ptr::null(),
        };
        let bounds = (rows, outputs, layer.n);
        // SAFETY: rows and outputs of the result.
        unsafe {
            let sums = written.sums.add(tile * 256);
            let out = self.outs.0[written.place.layer].add(row * layer.n + first);
            match layer.gated {
                None => write_rows(sums, bias(affine), bounds, out, layer.then),
                // Both tiles are written with the gate's.
                Some(_) if high == 1 => {}
                Some(gated) => {
                    let up = (sums.add(2 * 256), bias(gated));
                    write_gated((sums, bias(affine)), up, bounds, out, layer.then);
                }
            }
        }
    }
}
