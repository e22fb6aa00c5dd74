//! `x * weight^T`: every output is one sum over K of 16 lanes, in the same order whatever else is
//! in the batch.
//!
//! Lane `l` adds the products of elements `l`, `l + 16`, ... one after the other; then the lanes
//! are summed as a tree. How rows and outputs are blocked, where K is cut for the cache, whether a
//! weight is widened beforehand and which thread does it change no bit of that.

use super::{
    element::Element,
    simd::{self, Isa, Kernel, LANES, Lanes},
};
use rayon::prelude::*;

/// Rows from which widening a weight once, ahead of its use, pays.
const PACK_ROWS: usize = 8;
/// Elements of K of one pass over packed weights: six rows of them stay in the first-level cache.
const PACK_K: usize = 1024;
/// Rows of one pass: their lanes and inputs stay in the second-level cache.
const PACK_M: usize = 96;
/// Outputs of one pass, as many as a packed block holds.
const PACK_N: usize = 32;
/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL: usize = 1 << 16;

/// The operands of `out = x * weight^T + bias`.
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

/// Computes `out`: `[m, n]`, one task for each range of outputs.
pub(super) fn linear<E: Element>(op: Linear<'_, E>, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let rows = out.len() / op.n;
    let threads = rayon::current_num_threads();
    if threads == 1 || out.len() * op.k < SERIAL {
        let rows = out.chunks_mut(op.n).collect();
        simd::run(Panel { op, first: 0, rows });
        return;
    }
    // A few tasks for each thread, so that one that is held up holds up little.
    let width = op.n.div_ceil(threads * 4).next_multiple_of(PACK_N);
    let mut panels: Vec<Panel<'_, E>> = (0..op.n.div_ceil(width))
        .map(|p| Panel {
            op,
            first: p * width,
            rows: Vec::with_capacity(rows),
        })
        .collect();
    for row in out.chunks_mut(op.n) {
        for (panel, part) in panels.iter_mut().zip(row.chunks_mut(width)) {
            panel.rows.push(part);
        }
    }
    panels.into_par_iter().for_each(simd::run);
}

/// A range of outputs for all rows.
pub(super) struct Panel<'a, E> {
    /// The operands.
    pub(super) op: Linear<'a, E>,
    /// The first output.
    pub(super) first: usize,
    /// Its part of each row of the result.
    pub(super) rows: Vec<&'a mut [f32]>,
}

impl<E: Element> Kernel for Panel<'_, E> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        if self.rows.len() < PACK_ROWS {
            self.direct::<I>();
        } else {
            match I::WIDE {
                true => self.packed::<I, 4>(),
                false => self.packed::<I, 2>(),
            }
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
    fn x(&self, row: usize) -> &'a [f32] {
        &self.op.x[row * self.op.k..][..self.op.k]
    }

    #[inline(always)]
    fn weight(&self, output: usize) -> &'a [E] {
        &self.op.weight[(self.first + output) * self.op.k..][..self.op.k]
    }

    /// Few rows: each weight is read once, from where it is.
    #[inline(always)]
    fn direct<I: Isa>(&mut self) {
        let n = self.rows[0].len();
        let mut j = 0;
        while j < n {
            let m = self.rows.len();
            let wide = j + 4 <= n;
            let mut i = 0;
            while i < m {
                i += match (wide, m - i) {
                    (true, 4..) if I::WIDE => self.outer::<I, 4, 4>(i, j),
                    (true, 2..) => self.outer::<I, 2, 4>(i, j),
                    (true, _) => self.outer::<I, 1, 4>(i, j),
                    (false, _) => self.outer::<I, 1, 1>(i, j),
                };
            }
            j += if wide { 4 } else { 1 };
        }
    }

    /// Rows `i..i + M` by outputs `j..j + N`; `M`.
    #[inline(always)]
    fn outer<I: Isa, const M: usize, const N: usize>(&mut self, i: usize, j: usize) -> usize {
        let mut x: [&[f32]; M] = [&[]; M];
        for (r, x) in x.iter_mut().enumerate() {
            *x = self.x(i + r);
        }
        let mut w: [&[E]; N] = [&[]; N];
        for (c, w) in w.iter_mut().enumerate() {
            *w = self.weight(j + c);
        }
        let mut lanes = [[[0.0; LANES]; N]; M];
        block::<I, E, M, N>(x, w, &mut lanes);
        tail::<I, E, M, N>(x, w, &mut lanes);
        for (r, row) in lanes.iter().enumerate() {
            for (c, lanes) in row.iter().enumerate() {
                self.rows[i + r][j + c] = simd::sum(*lanes);
            }
        }
        M
    }

    /// Many rows: weights are widened into a block that stays in the cache, `N` at a time.
    #[inline(always)]
    fn packed<I: Isa, const N: usize>(&mut self) {
        let k = self.op.k;
        let n = self.rows[0].len();
        let m = self.rows.len();
        let depth = PACK_K.min(k);
        let mut pack = vec![0.0f32; PACK_N * depth];
        let mut lanes = vec![[[0.0; LANES]; N]; PACK_M * PACK_N / N];
        for i in (0..m).step_by(PACK_M) {
            let height = PACK_M.min(m - i);
            for j in (0..n).step_by(PACK_N) {
                let width = PACK_N.min(n - j);
                lanes.fill([[0.0; LANES]; N]);
                for d in (0..k).step_by(PACK_K) {
                    let depth = PACK_K.min(k - d);
                    for (c, packed) in pack.chunks_exact_mut(depth).take(width).enumerate() {
                        for (to, from) in packed.iter_mut().zip(&self.weight(j + c)[d..]) {
                            *to = from.widen();
                        }
                    }
                    let mut r = 0;
                    while r < height {
                        let lanes = &mut lanes[r * (PACK_N / N)..];
                        let span = (i + r, d, depth, width);
                        r += match height - r {
                            6.. if I::WIDE => self.inner::<I, 6, N>(span, &pack, lanes),
                            4.. if I::WIDE => self.inner::<I, 4, N>(span, &pack, lanes),
                            3.. if !I::WIDE => self.inner::<I, 3, N>(span, &pack, lanes),
                            2.. => self.inner::<I, 2, N>(span, &pack, lanes),
                            _ => self.inner::<I, 1, N>(span, &pack, lanes),
                        };
                    }
                }
                for r in 0..height {
                    let lanes = &lanes[r * (PACK_N / N)..][..PACK_N / N];
                    let out = &mut self.rows[i + r][j..j + width];
                    for (out, lanes) in out.iter_mut().zip(lanes.as_flattened()) {
                        *out = simd::sum(*lanes);
                    }
                }
            }
        }
    }

    /// Adds `depth` elements of K from `d` to the lanes of `M` rows from `row` and of all outputs
    /// of a packed block; `M`.
    #[inline(always)]
    fn inner<I: Isa, const M: usize, const N: usize>(
        &self,
        (row, d, depth, width): (usize, usize, usize, usize),
        pack: &[f32],
        lanes: &mut [[Lanes; N]],
    ) -> usize {
        let mut x: [&[f32]; M] = [&[]; M];
        for (r, x) in x.iter_mut().enumerate() {
            *x = &self.x(row + r)[d..][..depth];
        }
        for c in 0..width.div_ceil(N) {
            let mut w: [&[f32]; N] = [&[]; N];
            for (o, w) in w.iter_mut().enumerate() {
                *w = &pack[(c * N + o) * depth..][..depth];
            }
            let mut acc = [[[0.0; LANES]; N]; M];
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = lanes[r * (PACK_N / N) + c];
            }
            block::<I, f32, M, N>(x, w, &mut acc);
            tail::<I, f32, M, N>(x, w, &mut acc);
            for (r, acc) in acc.iter().enumerate() {
                lanes[r * (PACK_N / N) + c] = *acc;
            }
        }
        M
    }
}

/// Adds the products of whole groups of 16 elements to the lanes of `M` rows by `N` outputs.
#[inline(always)]
fn block<I: Isa, E: Element, const M: usize, const N: usize>(
    x: [&[f32]; M],
    w: [&[E]; N],
    lanes: &mut [[Lanes; N]; M],
) {
    let steps = x[0].len() / LANES;
    let mut xs: [&[Lanes]; M] = [&[]; M];
    for r in 0..M {
        xs[r] = &x[r].as_chunks::<LANES>().0[..steps];
    }
    let mut ws: [&[[E; LANES]]; N] = [&[]; N];
    for c in 0..N {
        ws[c] = &w[c].as_chunks::<LANES>().0[..steps];
    }
    let mut acc = *lanes;
    for s in 0..steps {
        let mut b = [[0.0; LANES]; N];
        for c in 0..N {
            let stored = &ws[c][s];
            for l in 0..LANES {
                b[c][l] = stored[l].widen();
            }
        }
        for r in 0..M {
            let a = xs[r][s];
            for c in 0..N {
                simd::fma::<I>(&mut acc[r][c], &a, &b[c]);
            }
        }
    }
    *lanes = acc;
}

/// Adds what is left of K as one more group, filled with zeros.
#[inline(always)]
fn tail<I: Isa, E: Element, const M: usize, const N: usize>(
    x: [&[f32]; M],
    w: [&[E]; N],
    lanes: &mut [[Lanes; N]; M],
) {
    let whole = x[0].len() / LANES * LANES;
    if whole == x[0].len() {
        return;
    }
    for c in 0..N {
        let mut b = [0.0; LANES];
        for (b, stored) in b.iter_mut().zip(&w[c][whole..]) {
            *b = stored.widen();
        }
        for r in 0..M {
            simd::fma::<I>(&mut lanes[r][c], &simd::padded(&x[r][whole..]), &b);
        }
    }
}
