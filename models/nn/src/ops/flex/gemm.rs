//! `x * weight^T`, in an order of sums that suits few rows and many.
//!
//! An output takes K in spans of 1024. Of a span, lane `l` adds the products of elements `l`, `l + 16`,
//! ... one after the other; then the lanes are added to what came of the spans before, one after the
//! other. How rows and outputs are blocked, which thread does it and how wide registers are change no
//! bit of that.
//!
//! Few rows ([`direct`]) take weights as they lie, a lane of a register for each lane: memory is read in
//! its own order. For many ([`panel`]) a lane's elements are one part of K. Weights are turned round
//! into a panel of 16 outputs side by side, part by part, and a row's number is multiplied with all of
//! them: less is read for a product, and nothing is summed across a register.
#![expect(
    clippy::needless_range_loop,
    reason = "a loop of known length over registers unrolls, where an iterator may stay a call"
)]

mod direct;
mod panel;

use super::{
    element::Element,
    layers::{self, Layer, Operand, Out, Part, Then},
    memory::{Floats, Line as Room, Raw, lines},
    norm::Norm,
    pool,
    simd::{self, Isa, Kernel, LANES, Level, Line},
};
use std::ops::Range;

/// Elements of K of a lane of a span.
const DEPTH: usize = 64;
/// Elements of K of a span.
const SPAN: usize = DEPTH * LANES;
/// Rows up to which weights are taken as they lie.
const FEW: usize = 12;
/// Rows of one pass: their sums and a part of theirs stay in the second-level cache.
const PASS: usize = 640;
/// Elements of rows below which one thread packs them.
const CHUNK: usize = 1 << 15;

/// The operands of `out = x * weight^T + bias` beside the rows; neither `n` nor `k` is 0.
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

impl<E> Affine<'_, E> {
    /// # Panics
    /// When the parts do not fit each other.
    pub(super) fn fits(&self) {
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
}

/// The result, `[m, n]`, of `x`: `[m, k]`.
///
/// # Panics
/// When the operands do not fit each other.
pub(super) fn linear<E: Element>(x: &[f32], op: Affine<'_, E>) -> Floats {
    linear_at(simd::best(), x, op, false)
}

/// [`linear`] on one instruction set, of rows that are rounded to `bf16` if so asked.
pub(super) fn linear_at<E: Element>(
    level: Level,
    x: &[f32],
    op: Affine<'_, E>,
    rounded: bool,
) -> Floats {
    let rows = Rows::at(level, x, op.k, None, rounded);
    let then = Then::Write;
    let [out] = layers::each(level, &rows, [Layer { op, then }]);
    out
}

/// Rows as they are read. Few are filled with zeros up to whole groups of 16, and a group's rows lie side
/// by side: whole rows would often lie a power of two apart, where they drive each other out of the
/// cache. Of many, each span has its lanes, a lane the rows, and a row `depth` elements, of which the
/// last span uses the first.
pub(super) struct Rows {
    numbers: Vec<Room>,
    count: usize,
    k: usize,
    depth: usize,
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
        let depth = DEPTH.min(k.div_ceil(LANES));
        let width = match count {
            ..=FEW => k.next_multiple_of(LANES),
            _ => k.div_ceil(SPAN) * LANES * depth,
        };
        let mut numbers = lines(count * width * size_of::<f32>());
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
                depth,
                to: to.get().cast(),
            };
            simd::run_at(level, pack);
        });
        Self {
            numbers,
            count,
            k,
            depth,
        }
    }

    /// A lane of a span of a row, of many.
    fn part(&self, span: usize, lane: usize, row: usize) -> *const f32 {
        let at = ((span * LANES + lane) * self.count + row) * self.depth;
        self.numbers.as_ptr().cast::<f32>().wrapping_add(at)
    }

    /// Group `at` of a row, of few; the next group is `count` groups further on.
    fn group(&self, row: usize, at: usize) -> *const f32 {
        let at = (at * self.count + row) * LANES;
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
    depth: usize,
    to: *mut f32,
}

impl Kernel for Pack<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let groups = self.k.div_ceil(LANES);
        // Whole squares of 16 groups; what is behind the row stays zero.
        let mut row = vec![0.0; groups.next_multiple_of(LANES) * LANES];
        for (r, x) in self.x.chunks_exact(self.k).enumerate() {
            row[..self.k].copy_from_slice(x);
            if let Some(norm) = self.norm {
                norm.apply(&mut row[..self.k]);
            }
            if self.rounded {
                super::bf16::round(&mut row[..self.k]);
            }
            // SAFETY: this row's place, which no other task has; the buffer has whole squares.
            unsafe {
                if self.count <= FEW {
                    for group in 0..groups {
                        let group_of_row = row.as_ptr().add(group * LANES);
                        let to = self.to.add((group * self.count + self.first + r) * LANES);
                        I::store(to, I::load(group_of_row));
                    }
                    continue;
                }
                for group in (0..groups).step_by(LANES) {
                    let mut square = [I::splat(&0.0); LANES];
                    for i in 0..LANES {
                        square[i] = I::load(row.as_ptr().add((group + i) * LANES));
                    }
                    let columns = I::transpose(square);
                    let (span, at) = (group / DEPTH, group % DEPTH / LANES);
                    for l in 0..LANES {
                        let place = (span * LANES + l) * self.count + self.first + r;
                        let to = self.to.add(place * self.depth + at * LANES);
                        if self.depth.is_multiple_of(LANES) {
                            I::store(to, columns[l]);
                        } else {
                            let mut line = Line([0.0; LANES]);
                            I::store(line.0.as_mut_ptr(), columns[l]);
                            let count = LANES.min(self.depth - at * LANES);
                            to.copy_from_nonoverlapping(line.0.as_ptr(), count);
                        }
                    }
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
        self.fits();
    }

    fn count(rows: &Rows) -> usize {
        rows.count
    }

    fn pass(_: Level, rows: &Rows) -> usize {
        simd::height(rows.count, PASS)
    }

    unsafe fn run(self, unit: Level, part: Part<'_, Rows>, out: Out<'_>) {
        let op = self;
        simd::run_at(unit, Task { op, part, out });
    }
}

struct Task<'a, E> {
    op: Affine<'a, E>,
    part: Part<'a, Rows>,
    out: Out<'a>,
}

impl<E: Element> Kernel for Task<'_, E> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        match self.part.rows.count {
            ..=FEW => self.direct::<I>(),
            _ => self.panels::<I>(),
        }
    }
}

impl<E: Element> Task<'_, E> {
    /// Writes sums, `[rows, groups]`, and adds the bias.
    ///
    /// # Safety
    /// They are there, and so is the room.
    #[inline(always)]
    unsafe fn write(&self, output: usize, rows: Range<usize>, groups: usize, sums: *const f32) {
        let outputs = (groups * LANES).min(self.op.n - output);
        for (r, row) in rows.enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let sums = sums.add(r * groups * LANES);
                let out = self.out.at(row, output);
                out.copy_from_nonoverlapping(sums, outputs);
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
