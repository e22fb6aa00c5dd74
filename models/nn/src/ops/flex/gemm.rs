//! `x * weight^T`: every output is one sum over K of 16 lanes, in the same order whatever else is
//! in the batch.
//!
//! Lane `l` adds the products of elements `l`, `l + 16`, ... one after the other; then the lanes
//! are summed as a tree. How rows and outputs are blocked, where K is cut for the cache, whether a
//! weight is widened beforehand and which thread does it change no bit of that.

use super::{
    element::Element,
    pool,
    simd::{self, Isa, Kernel, LANES, Lanes, Level, Line},
};
use std::ops::Range;

/// Rows from which widening a weight once, ahead of its use, pays.
const PACK_ROWS: usize = 13;
/// Groups of K of one pass over packed operands: a block of rows stays in the first-level cache.
const PACK_K: usize = 64;
/// Rows of a packed block.
const BLOCK: usize = 6;
/// Rows of one pass, whole blocks: for each of them the weights are widened again.
const PACK_M: usize = 768;
/// Outputs of one pass: their weights, widened, stay in the second-level cache.
const PACK_N: usize = 32;
/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL: usize = 1 << 16;

/// The operands of `out = x * weight^T + bias`; `k` is not 0.
#[derive(Clone, Copy)]
pub(super) struct Linear<'a, E> {
    /// `[m, k]`
    pub(super) x: &'a [f32],
    /// `[n, k]`
    pub(super) weight: &'a [E],
    /// `[n]`
    pub(super) bias: Option<&'a [f32]>,
    /// Elements of a row.
    pub(super) k: usize,
    /// Outputs.
    pub(super) n: usize,
}

impl<E> Linear<'_, E> {
    /// Rows of `x`.
    ///
    /// # Panics
    /// When the operands do not fit each other.
    pub(super) fn rows(&self) -> usize {
        let (k, n) = (self.k, self.n);
        assert_eq!(self.x.len() % k, 0, "whole rows");
        assert_eq!(
            self.weight.len(),
            n * k,
            "a row of the weight for each output"
        );
        assert!(
            self.bias.is_none_or(|bias| bias.len() == n),
            "a bias for each output"
        );
        self.x.len() / k
    }
}

/// Computes `out`: `[m, n]`, one task for each range of outputs.
pub(super) fn linear<E: Element>(op: Linear<'_, E>, out: &mut [f32]) {
    linear_at(simd::best(), op, out);
}

/// [`linear`] on one instruction set.
pub(super) fn linear_at<E: Element>(level: Level, op: Linear<'_, E>, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let rows = out.len() / op.n;
    let threads = match out.len() * op.k {
        ..SERIAL => 1,
        _ => pool::threads(),
    };
    let packed = (rows >= PACK_ROWS).then(|| pack(op.x, op.k));
    // A few tasks for each thread, so that one that is held up holds up little.
    let width = match threads {
        1 => op.n,
        _ => op.n.div_ceil(threads * 4).next_multiple_of(PACK_N / 2),
    };
    let mut panels: Vec<Panel<'_, E>> = (0..op.n)
        .step_by(width)
        .map(|first| Panel {
            op,
            packed: packed.as_deref(),
            first,
            rows: Vec::with_capacity(rows),
        })
        .collect();
    for row in out.chunks_mut(op.n) {
        for (panel, part) in panels.iter_mut().zip(row.chunks_mut(width)) {
            panel.rows.push(part);
        }
    }
    pool::consume(panels, |panel| simd::run_at(level, panel));
}

/// The rows in blocks as they are read: of each block group by group of K, the last filled with
/// zeros, and of each group row by row.
fn pack(x: &[f32], k: usize) -> Vec<Line> {
    let groups = k.div_ceil(LANES);
    let mut packed = vec![Line([0.0; LANES]); x.len() / k * groups];
    pool::chunks_mut(&mut packed, BLOCK * groups, |i, packed| {
        let x = &x[i * BLOCK * k..];
        let height = packed.len() / groups;
        for (r, row) in x.chunks_exact(k).take(height).enumerate() {
            let (whole, rest) = row.as_chunks::<LANES>();
            for (s, group) in whole.iter().enumerate() {
                packed[s * height + r].0 = *group;
            }
            if !rest.is_empty() {
                packed[whole.len() * height + r].0 = simd::padded(rest);
            }
        }
    });
    packed
}

/// A range of outputs for all rows.
struct Panel<'a, E> {
    op: Linear<'a, E>,
    /// The rows as [`pack`] lays them out, where there are many.
    packed: Option<&'a [Line]>,
    /// The first output.
    first: usize,
    /// Its part of each row of the result.
    rows: Vec<&'a mut [f32]>,
}

impl<E: Element> Kernel for Panel<'_, E> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        match (self.packed, I::WIDE) {
            (None, true) => self.direct::<I, 4>(),
            (None, false) => self.direct::<I, 2>(),
            (Some(x), true) => self.packed::<I, 4>(x),
            (Some(x), false) => self.packed::<I, 2>(x),
        }
        if let Some(bias) = self.op.bias {
            for row in &mut self.rows {
                for (out, bias) in row.iter_mut().zip(&bias[self.first..]) {
                    *out += bias;
                }
            }
        }
    }
}

impl<'a, E: Element> Panel<'a, E> {
    #[inline(always)]
    fn weight(&self, output: usize) -> &'a [E] {
        &self.op.weight[(self.first + output) * self.op.k..][..self.op.k]
    }

    /// Few rows: each weight is read once, from where it is.
    #[inline(always)]
    fn direct<I: Isa, const N: usize>(&mut self) {
        let n = self.rows[0].len();
        let m = self.rows.len();
        let mut j = 0;
        while j < n {
            let whole = j + N <= n;
            let mut i = 0;
            while i < m {
                i += match (whole, m - i) {
                    (true, 6..) if I::WIDE => self.straight::<I, 6, N>(i, j),
                    (true, 4..) if I::WIDE => self.straight::<I, 4, N>(i, j),
                    (true, 3..) => self.straight::<I, 3, N>(i, j),
                    (true, 2) => self.straight::<I, 2, N>(i, j),
                    (true, _) => self.straight::<I, 1, N>(i, j),
                    (false, _) => self.straight::<I, 1, 1>(i, j),
                };
            }
            j += if whole { N } else { 1 };
        }
    }

    /// Rows `i..i + M` by outputs `j..j + N`; `M`.
    #[inline(always)]
    fn straight<I: Isa, const M: usize, const N: usize>(&mut self, i: usize, j: usize) -> usize {
        let k = self.op.k;
        let mut x: [(&[Lanes], &[f32]); M] = [(&[], &[]); M];
        for (r, x) in x.iter_mut().enumerate() {
            *x = self.op.x[(i + r) * k..][..k].as_chunks();
        }
        let mut w: [(&[[E; LANES]], &[E]); N] = [(&[], &[]); N];
        for (c, w) in w.iter_mut().enumerate() {
            *w = self.weight(j + c).as_chunks();
        }
        let groups = k / LANES;
        let mut xs: [&[Lanes]; M] = [&[]; M];
        for r in 0..M {
            xs[r] = &x[r].0[..groups];
        }
        let mut ws: [&[[E; LANES]]; N] = [&[]; N];
        for c in 0..N {
            ws[c] = &w[c].0[..groups];
        }
        let mut acc = [[[0.0; LANES]; N]; M];
        for s in 0..groups {
            let mut b = [[0.0; LANES]; N];
            for c in 0..N {
                b[c] = E::widen_lanes::<I>(&ws[c][s]);
            }
            for r in 0..M {
                let a = xs[r][s];
                for c in 0..N {
                    simd::fma::<I>(&mut acc[r][c], &a, &b[c]);
                }
            }
        }
        if !k.is_multiple_of(LANES) {
            // What is left of K is one more group, filled with zeros.
            for c in 0..N {
                let mut stored = [E::narrow(0.0); LANES];
                stored[..k % LANES].copy_from_slice(w[c].1);
                let b = E::widen_lanes::<I>(&stored);
                for r in 0..M {
                    simd::fma::<I>(&mut acc[r][c], &simd::padded(x[r].1), &b);
                }
            }
        }
        for (r, row) in acc.iter().enumerate() {
            for (c, lanes) in row.iter().enumerate() {
                self.rows[i + r][j + c] = simd::sum(*lanes);
            }
        }
        M
    }

    /// Many rows: weights are widened into a block that stays in the cache, and both operands are
    /// read in the order they lie in.
    #[inline(always)]
    fn packed<I: Isa, const N: usize>(&mut self, x: &[Line]) {
        let groups = self.op.k.div_ceil(LANES);
        let n = self.rows[0].len();
        let m = self.rows.len();
        let zero = Line([0.0; LANES]);
        let mut weights = vec![zero; PACK_N * PACK_K.min(groups)];
        // Where K takes several passes, the lanes of each block of rows are kept.
        let stride = if groups > PACK_K { PACK_N } else { 0 };
        let mut lanes = vec![zero; (PACK_M.min(m) * stride).max(BLOCK * PACK_N)];
        let mut sums = [[0.0; PACK_N]; BLOCK];
        for i in (0..m).step_by(PACK_M) {
            let rows = PACK_M.min(m - i);
            for j in (0..n).step_by(PACK_N) {
                let outputs = PACK_N.min(n - j);
                for d in (0..groups).step_by(PACK_K) {
                    let depth = PACK_K.min(groups - d);
                    self.widen::<I, N>(j..j + outputs, d..d + depth, &mut weights);
                    let weights = &weights[..outputs.div_ceil(N) * depth * N];
                    let last = d + depth == groups;
                    for r in (0..rows).step_by(BLOCK) {
                        let high = BLOCK.min(rows - r);
                        let x = &x[(i + r) * groups + d * high..][..depth * high];
                        let to = Tiles {
                            lanes: &mut lanes[r * stride..][..high * PACK_N],
                            first: d == 0,
                            sums: last.then_some(&mut sums),
                        };
                        match high {
                            6 => to.add::<I, 6, N>(x, weights),
                            5 => to.add::<I, 5, N>(x, weights),
                            4 => to.add::<I, 4, N>(x, weights),
                            3 => to.add::<I, 3, N>(x, weights),
                            2 => to.add::<I, 2, N>(x, weights),
                            _ => to.add::<I, 1, N>(x, weights),
                        }
                        if last {
                            let out = self.rows[i + r..][..high].iter_mut();
                            for (out, sums) in out.zip(&sums) {
                                out[j..j + outputs].copy_from_slice(&sums[..outputs]);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Widens some outputs' groups of K, `N` outputs side by side.
    #[inline(always)]
    fn widen<I: Isa, const N: usize>(
        &self,
        outputs: Range<usize>,
        groups: Range<usize>,
        to: &mut [Line],
    ) {
        let depth = groups.len();
        for (o, output) in outputs.enumerate() {
            let weight = self.weight(output);
            let weight = &weight[groups.start * LANES..weight.len().min(groups.end * LANES)];
            let (whole, rest) = weight.as_chunks::<LANES>();
            let at = o / N * depth * N + o % N;
            for (s, group) in whole.iter().enumerate() {
                to[at + s * N].0 = E::widen_lanes::<I>(group);
            }
            if !rest.is_empty() {
                let mut stored = [E::narrow(0.0); LANES];
                stored[..rest.len()].copy_from_slice(rest);
                to[at + whole.len() * N].0 = E::widen_lanes::<I>(&stored);
            }
        }
    }
}

/// Where the products of a block of rows and a block of weights go.
struct Tiles<'a> {
    /// The lanes: `N` outputs of a row, the rows of the block, the next `N` outputs.
    lanes: &'a mut [Line],
    /// Whether this is the first pass over K.
    first: bool,
    /// The sums, if it is the last.
    sums: Option<&'a mut [[f32; PACK_N]; BLOCK]>,
}

impl Tiles<'_> {
    /// Adds the products of `H` rows: all at once, or three where registers hold no more.
    #[inline(always)]
    fn add<I: Isa, const H: usize, const N: usize>(mut self, x: &[Line], weights: &[Line]) {
        if I::WIDE {
            self.add_rows::<I, H, H, N>(x, weights, 0);
        } else {
            for row in (0..H).step_by(3) {
                match H - row {
                    1 => self.add_rows::<I, H, 1, N>(x, weights, row),
                    2 => self.add_rows::<I, H, 2, N>(x, weights, row),
                    _ => self.add_rows::<I, H, 3, N>(x, weights, row),
                }
            }
        }
        if let Some(sums) = self.sums {
            let (lanes, _) = self.lanes.as_chunks::<N>();
            for (block, lanes) in lanes.chunks_exact(H).enumerate() {
                for (lanes, sums) in lanes.iter().zip(&mut *sums) {
                    sum_each(lanes, &mut sums[block * N..]);
                }
            }
        }
    }

    /// [`add`](Self::add) for rows `row..row + M`, `N` outputs at a time.
    #[inline(always)]
    fn add_rows<I: Isa, const H: usize, const M: usize, const N: usize>(
        &mut self,
        x: &[Line],
        weights: &[Line],
        row: usize,
    ) {
        let (x, _) = x.as_chunks::<H>();
        let (lanes, _) = self.lanes.as_chunks_mut::<N>();
        for (block, weights) in weights.chunks_exact(x.len() * N).enumerate() {
            let (weights, _) = weights.as_chunks::<N>();
            let at = block * H + row;
            let mut acc = [[[0.0; LANES]; N]; M];
            if !self.first {
                for (acc, lanes) in acc.iter_mut().zip(&lanes[at..][..M]) {
                    for (acc, lanes) in acc.iter_mut().zip(lanes) {
                        *acc = lanes.0;
                    }
                }
            }
            for (a, b) in x.iter().zip(weights) {
                for r in 0..M {
                    for c in 0..N {
                        simd::fma::<I>(&mut acc[r][c], &a[row + r].0, &b[c].0);
                    }
                }
            }
            for (acc, lanes) in acc.iter().zip(&mut lanes[at..][..M]) {
                for (acc, lanes) in acc.iter().zip(lanes) {
                    lanes.0 = *acc;
                }
            }
        }
    }
}

/// The sum of each line. Not inlined: next to AVX-512 the compiler would turn the few shuffles
/// into gathers, or spoil the loop that the lanes come from.
#[inline(never)]
fn sum_each(lanes: &[Line], sums: &mut [f32]) {
    for (lanes, sum) in lanes.iter().zip(sums) {
        *sum = simd::sum(lanes.0);
    }
}
