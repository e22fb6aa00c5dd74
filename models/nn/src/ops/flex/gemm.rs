//! `x * weight^T`: 16 outputs side by side in a register, row by row.
//!
//! An output adds its products in the order of K, 128 of them by themselves, and what comes of each
//! such part to what came of those before. How rows and outputs are blocked, which thread does it
//! and how wide registers are change no bit of that.
//!
//! Weights lie output by output. A part of some outputs is turned round and widened into a panel,
//! which stays in the first-level cache while rows go by.

use super::{
    element::{Element, Fetch},
    layers::{self, Layer, Operand, Out, PAIR, Then},
    memory::{self, Floats, Raw},
    norm::Norm,
    pool,
    simd::{self, Isa, Kernel, LANES, Level, Line},
};
use std::ops::Range;

/// Elements of K of one part.
const DEPTH: usize = 128;
/// Groups of 16 outputs of a panel.
const GROUPS: usize = PAIR / LANES;
/// Rows of one pass: a part of theirs and their sums stay in the second-level cache.
const PASS: usize = 384;
/// Pairs of groups that are multiplied by a part of K before the next part is: the rows' part is in
/// the cache.
const PAIRS: usize = 4;
/// Rows up to which a pair takes all of K at once: there is little to be read again, and weights are
/// read in the order they lie in.
const FEW: usize = 16;
/// Elements of K that are multiplied in a row, and rows of weights that are fetched together.
const EIGHT: usize = 8;
/// Elements of rows below which one thread packs them.
const CHUNK: usize = 1 << 15;

/// The operands of `out = x * weight^T + bias`; neither `n` nor `k` is 0.
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

/// The result, `[m, n]`.
pub(super) fn linear<E: Element>(op: Linear<'_, E>) -> Floats {
    linear_at(simd::best(), op, false)
}

/// [`linear`] on one instruction set, of rows that are rounded to `bf16` if so asked.
pub(super) fn linear_at<E: Element>(level: Level, op: Linear<'_, E>, rounded: bool) -> Floats {
    let Linear {
        x,
        weight,
        bias,
        k,
        n,
    } = op;
    let rows = Rows::at(level, x, k, None, rounded);
    let op = Affine { weight, bias, n, k };
    let layer = Layer {
        op,
        then: Then::Write,
    };
    let [out] = layers::each(level, &rows, [layer]);
    out
}

/// A weight and a bias; neither `n` nor `k` is 0.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a, E> {
    /// `[n, k]`
    pub(super) weight: &'a [E],
    /// `[n]`
    pub(super) bias: Option<&'a [f32]>,
    /// Outputs.
    pub(super) n: usize,
    /// Elements of a row.
    pub(super) k: usize,
}

/// Rows as they are read: of each part of K, the rows, with the room of a whole part each.
pub(super) struct Rows {
    numbers: Vec<Line>,
    count: usize,
    k: usize,
}

impl Rows {
    /// Packs `x`: `[count, k]`, neither of them 0, normalised first, and rounded to `bf16` if so asked.
    pub(super) fn new(x: &[f32], k: usize, norm: Option<Norm<'_>>, rounded: bool) -> Self {
        Self::at(simd::best(), x, k, norm, rounded)
    }

    /// [`new`](Self::new) on one instruction set.
    pub(super) fn at(
        level: Level,
        x: &[f32],
        k: usize,
        norm: Option<Norm<'_>>,
        rounded: bool,
    ) -> Self {
        assert_eq!(x.len() % k, 0, "whole rows");
        let count = x.len() / k;
        let mut numbers = Vec::with_capacity(k.div_ceil(DEPTH) * count * DEPTH / LANES);
        let to = Raw(numbers.as_mut_ptr());
        let each = match x.len() {
            ..=CHUNK => count,
            _ => (CHUNK / 4 / k).max(1),
        };
        pool::each(count.div_ceil(each), |task| {
            let first = task * each;
            let pack = Pack {
                x: &x[first * k..count.min(first + each) * k],
                k,
                norm,
                rounded,
                first,
                count,
                to: to.get(),
            };
            simd::run_at(level, pack);
        });
        Self { numbers, count, k }
    }

    /// A part of a row.
    fn part(&self, part: usize, row: usize) -> *const f32 {
        let at = (part * self.count + row) * DEPTH;
        self.numbers.as_ptr().cast::<f32>().wrapping_add(at)
    }
}

/// Some rows, from `first` on.
struct Pack<'a> {
    x: &'a [f32],
    k: usize,
    norm: Option<Norm<'a>>,
    rounded: bool,
    first: usize,
    count: usize,
    to: *mut Line,
}

impl Kernel for Pack<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let mut normal = Vec::new();
        for (r, row) in self.x.chunks_exact(self.k).enumerate() {
            let row = match self.norm {
                None => row,
                Some(norm) => {
                    normal.clear();
                    normal.extend_from_slice(row);
                    norm.apply(&mut normal);
                    &normal
                }
            };
            for (part, x) in row.chunks(DEPTH).enumerate() {
                let at = (part * self.count + self.first + r) * DEPTH;
                // SAFETY: a part of a row of this task's.
                let to = unsafe {
                    let to = self.to.cast::<f32>().add(at);
                    to.copy_from_nonoverlapping(x.as_ptr(), x.len());
                    std::slice::from_raw_parts_mut(to, x.len())
                };
                if self.rounded {
                    super::bf16::round(to);
                }
            }
        }
    }
}

impl<E: Element> Operand for Affine<'_, E> {
    type Rows = Rows;
    type Unit = Level;

    fn dims(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    fn bias(&self) -> Option<&[f32]> {
        self.bias
    }

    fn check(&self, rows: &Rows) {
        assert_eq!(rows.k, self.k, "as many elements in a row");
        assert_eq!(
            self.weight.len(),
            self.n * self.k,
            "a row of the weight for each output"
        );
        assert!(
            self.bias.is_none_or(|bias| bias.len() == self.n),
            "a bias for each output"
        );
    }

    fn count(rows: &Rows) -> usize {
        rows.count
    }

    unsafe fn run(self, unit: Level, rows: &Rows, pairs: Range<usize>, out: Out<'_>) {
        let task = Task {
            op: self,
            rows,
            pairs,
            out,
        };
        simd::run_at(unit, task);
    }
}

/// Some pairs of groups of outputs for all rows.
struct Task<'a, E> {
    op: Affine<'a, E>,
    rows: &'a Rows,
    pairs: Range<usize>,
    out: Out<'a>,
}

impl<E: Element> Kernel for Task<'_, E> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let count = self.rows.count;
        let (together, most) = match count {
            ..=FEW => (1, count),
            _ => (PAIRS, count.div_ceil(count.div_ceil(PASS))),
        };
        let mut panel = memory::lines(DEPTH * GROUPS * size_of::<Line>());
        let mut sums = memory::lines(most * together * GROUPS * size_of::<Line>());
        let panel: *mut Line = panel.as_mut_ptr().cast();
        let sums: *mut Line = sums.as_mut_ptr().cast();
        for first in self.pairs.clone().step_by(together) {
            let pairs = self.pairs.end.min(first + together) - first;
            let groups = (pairs * GROUPS).min(self.op.n.div_ceil(LANES) - first * GROUPS);
            for row in (0..count).step_by(most) {
                let rows = row..count.min(row + most);
                for part in 0..self.op.k.div_ceil(DEPTH) {
                    for group in (0..groups).step_by(GROUPS) {
                        let next = self.next(first * GROUPS + group, part, together);
                        let block = Block {
                            panel,
                            groups: GROUPS.min(groups - group),
                            depth: DEPTH.min(self.op.k - part * DEPTH),
                            sums: sums.wrapping_add(group),
                            stride: groups,
                            add: part > 0,
                            fetch: Fetch {
                                start: next.start.wrapping_add(GROUPS * EIGHT * next.row),
                                ..next
                            },
                        };
                        // SAFETY: room for a panel, and for the sums of these rows and groups.
                        unsafe {
                            self.turn::<I>(first * GROUPS + group, part, together, block);
                            block.rows::<I>(self.rows.part(part, rows.start), rows.len());
                        }
                    }
                }
                // SAFETY: the sums are written; nothing else has these places.
                unsafe { self.write(first * PAIR, rows, groups, sums) };
            }
        }
    }
}

impl<E: Element> Task<'_, E> {
    /// What is fetched beside a part of K: as much of the outputs that come after these, in the order
    /// it lies in, which memory is fastest in and the order of reading is not. It is fetched evenly
    /// over all that is done with a panel, since a processor waits for few lines at a time: a quarter
    /// beside each group that is turned round, and half beside the products.
    #[inline(always)]
    fn next(&self, group: usize, part: usize, together: usize) -> Fetch {
        let row = DEPTH * size_of::<E>();
        let place = (group / GROUPS + together) * PAIR * self.op.k + part * PAIR * DEPTH;
        Fetch {
            start: self.op.weight.as_ptr().wrapping_add(place).cast(),
            row,
            quarter: row / 4,
        }
    }

    /// Turns a part of some groups' weights into a panel.
    ///
    /// # Safety
    /// There is room for it.
    #[inline(always)]
    unsafe fn turn<I: Isa>(&self, group: usize, part: usize, together: usize, block: Block) {
        let Affine { weight, n, k, .. } = self.op;
        let fetch = self.next(group, part, together);
        for g in 0..block.groups {
            let first = (group + g) * LANES;
            let row = |l: usize| {
                // An output that is not there may be any other: nobody looks at it.
                let output = if first + l < n { first + l } else { first };
                weight[output * k + part * DEPTH..][..block.depth].as_ptr()
            };
            let rows = std::array::from_fn(row);
            let to = block.panel.wrapping_add(g);
            let fetch = Fetch {
                start: fetch.start.wrapping_add(g * EIGHT * fetch.row),
                ..fetch
            };
            // SAFETY: the caller's promise.
            unsafe { E::turn::<I>(rows, block.depth, fetch, to, block.groups) };
        }
    }

    /// Writes sums, and adds the bias.
    ///
    /// # Safety
    /// They are there, and so is the room.
    #[inline(always)]
    unsafe fn write(&self, output: usize, rows: Range<usize>, groups: usize, sums: *const Line) {
        let outputs = (groups * LANES).min(self.op.n - output);
        for (r, row) in rows.enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let sums = sums.add(r * groups).cast::<f32>();
                let sums = std::slice::from_raw_parts(sums, outputs);
                let out = self.out.at(row, output);
                out.copy_from_nonoverlapping(sums.as_ptr(), outputs);
                if let Some(bias) = self.out.bias {
                    let out = std::slice::from_raw_parts_mut(out, outputs);
                    for (out, bias) in out.iter_mut().zip(&bias[output..]) {
                        *out += bias;
                    }
                }
            }
        }
    }
}

/// A panel, and where the sums of some rows by it go.
#[derive(Clone, Copy)]
struct Block {
    /// `[depth, groups]`
    panel: *mut Line,
    groups: usize,
    depth: usize,
    /// `[rows, stride]`
    sums: *mut Line,
    stride: usize,
    /// Whether they are added to what is there.
    add: bool,
    /// What is fetched meanwhile.
    fetch: Fetch,
}

impl Block {
    /// Takes rows through the panel, in blocks of about the same height.
    ///
    /// # Safety
    /// A part of each of so many rows, a panel, and room for the sums.
    #[inline(always)]
    unsafe fn rows<I: Isa>(self, x: *const f32, count: usize) {
        let blocks = count.div_ceil(I::ROWS);
        let (low, higher) = (count / blocks, count % blocks);
        let mut row = 0;
        for block in 0..blocks {
            let height = low + usize::from(block < higher);
            let to = Self {
                sums: self.sums.wrapping_add(row * self.stride),
                // Once; what is in the cache costs nothing.
                fetch: match block {
                    0 => self.fetch,
                    _ => Fetch {
                        start: self.panel.cast(),
                        ..self.fetch
                    },
                },
                ..self
            };
            let x = x.wrapping_add(row * DEPTH);
            // SAFETY: the caller's promise.
            unsafe { to.block::<I>(x, height) };
            row += height;
        }
    }

    #[inline(always)]
    unsafe fn block<I: Isa>(self, x: *const f32, height: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match height {
                1 => self.groups::<I, 1>(x),
                2 => self.groups::<I, 2>(x),
                3 if I::ROWS > 2 => self.groups::<I, 3>(x),
                4 if I::ROWS > 2 => self.groups::<I, 4>(x),
                5 if I::ROWS > 2 => self.groups::<I, 5>(x),
                6 if I::ROWS > 2 => self.groups::<I, 6>(x),
                7 if I::ROWS > 6 => self.groups::<I, 7>(x),
                8 if I::ROWS > 6 => self.groups::<I, 8>(x),
                9 if I::ROWS > 6 => self.groups::<I, 9>(x),
                10 if I::ROWS > 6 => self.groups::<I, 10>(x),
                11 if I::ROWS > 6 => self.groups::<I, 11>(x),
                12 if I::ROWS > 6 => self.groups::<I, 12>(x),
                _ => unreachable!("a block has at most as many rows as registers hold"),
            }
        }
    }

    #[inline(always)]
    unsafe fn groups<I: Isa, const M: usize>(self, x: *const f32) {
        // SAFETY: the caller's promise.
        unsafe {
            if I::WIDE && self.groups == GROUPS {
                return self.multiply::<I, M, GROUPS>(x);
            }
            for g in 0..self.groups {
                let one = Self {
                    panel: self.panel.add(g),
                    sums: self.sums.add(g),
                    ..self
                };
                one.multiply::<I, M, 1>(x);
            }
        }
    }

    /// `M` rows by `N` groups.
    #[inline(always)]
    unsafe fn multiply<I: Isa, const M: usize, const N: usize>(self, x: *const f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut line = self.panel.cast_const();
            let mut x = x;
            let zero = I::splat(&0.0);
            let mut sums = [[zero; N]; M];
            for eight in 0..self.depth / EIGHT {
                for k in 0..EIGHT {
                    if k % 2 == 0 {
                        self.fetch.line::<I>(eight, k / 2);
                    }
                    add::<I, M, N>(&mut sums, x.add(k), line.add(k * self.groups));
                }
                line = line.add(EIGHT * self.groups);
                x = x.add(EIGHT);
            }
            for k in 0..self.depth % EIGHT {
                add::<I, M, N>(&mut sums, x.add(k), line.add(k * self.groups));
            }
            for r in 0..M {
                for g in 0..N {
                    let to = self.sums.add(r * self.stride + g);
                    let sum = match self.add {
                        true => I::add(I::load(to), sums[r][g]),
                        false => sums[r][g],
                    };
                    I::store(to, sum);
                }
            }
        }
    }
}

/// Adds the products of an element of `M` rows and a line of `N` groups.
///
/// # Safety
/// They are there, and the machine has the instruction set.
#[inline(always)]
unsafe fn add<I: Isa, const M: usize, const N: usize>(
    sums: &mut [[I::Vector; N]; M],
    x: *const f32,
    line: *const Line,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut w = [I::splat(&0.0); N];
        for g in 0..N {
            w[g] = I::load(line.add(g));
        }
        for r in 0..M {
            let x = I::splat(x.add(r * DEPTH));
            for g in 0..N {
                sums[r][g] = I::fma(x, w[g], sums[r][g]);
            }
        }
    }
}
