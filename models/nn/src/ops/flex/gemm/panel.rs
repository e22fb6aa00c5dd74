//! Many rows: parts of weights, turned round and widened, in the cache while rows go by.

use super::{
    super::{
        element::Element,
        layers::PAIR,
        memory::lines,
        simd::{Isa, LANES, Line},
    },
    DEPTH, SPAN, Task,
};

/// Groups of 16 outputs of a panel.
const GROUPS: usize = PAIR / LANES;
/// Rows of one pass: their sums and a part of theirs stay in the second-level cache.
const PASS: usize = 320;
/// Pairs of groups that are turned round together: a part of the rows is in the cache for all but
/// the first.
const PAIRS: usize = 4;

impl<E: Element> Task<'_, E> {
    #[inline(always)]
    pub(super) fn panels<I: Isa>(&self) {
        let (count, k) = (self.rows.count, self.op.k);
        let most = count.div_ceil(count.div_ceil(PASS));
        let together = PAIRS.min(self.pairs.len());
        // Lines of a lane of a group, an even number since `bf16` is turned round two by two, and those
        // of a pair's panels of a span.
        let lines_of_lane = self.rows.depth.next_multiple_of(2);
        let pair = LANES * lines_of_lane * GROUPS;
        let mut panels = lines(together * pair * size_of::<Line>());
        let mut sums = lines(most * together * GROUPS * size_of::<Line>());
        let panels: *mut Line = panels.as_mut_ptr().cast();
        let sums: *mut Line = sums.as_mut_ptr().cast();
        for first in self.pairs.clone().step_by(PAIRS) {
            let pairs = self.pairs.end.min(first + PAIRS) - first;
            let groups = (pairs * GROUPS).min(self.op.n.div_ceil(LANES) - first * GROUPS);
            for row in (0..count).step_by(most) {
                let rows = row..count.min(row + most);
                for span in 0..k.div_ceil(SPAN) {
                    let depth = DEPTH.min((k - span * SPAN).div_ceil(LANES));
                    // SAFETY: room for the panels, and for the sums of these rows and groups.
                    unsafe {
                        for group in 0..groups {
                            let to = panels.add(group / GROUPS * pair + group % GROUPS);
                            let stride = GROUPS.min(groups - group / GROUPS * GROUPS);
                            let strides = [lines_of_lane * stride, stride];
                            self.turn::<I>(first * GROUPS + group, span, to, strides);
                        }
                        for lane in 0..LANES {
                            for group in (0..groups).step_by(GROUPS) {
                                let width = GROUPS.min(groups - group);
                                let at = group / GROUPS * pair + lane * lines_of_lane * width;
                                let block = Block {
                                    panel: panels.add(at),
                                    groups: width,
                                    depth,
                                    row: self.rows.depth,
                                    sums: sums.add(group),
                                    stride: groups,
                                    add: span + lane > 0,
                                };
                                let x = self.rows.part(span, lane, rows.start);
                                block.rows::<I>(x, rows.len());
                            }
                        }
                    }
                }
                // SAFETY: the sums are written; nothing else has these places.
                unsafe { self.write(first * PAIR, rows, groups, sums) };
            }
        }
    }

    /// Turns a span of a group's weights into its lines of the panels; `strides` are lines from a lane to
    /// the next, and from an element of a lane to the next.
    ///
    /// # Safety
    /// There is room for them.
    #[inline(always)]
    unsafe fn turn<I: Isa>(&self, group: usize, span: usize, to: *mut Line, strides: [usize; 2]) {
        let (n, k) = (self.op.n, self.op.k);
        let first = group * LANES;
        let elements = SPAN.min(k - span * SPAN);
        let mut rows = [std::ptr::null(); LANES];
        for l in 0..LANES {
            // An output that is not there may be any other: nobody looks at it.
            let output = if first + l < n { first + l } else { first };
            rows[l] = self.op.weight[output * k + span * SPAN..][..elements].as_ptr();
        }
        // SAFETY: the caller's promise; 16 lanes of at most as many elements as a panel has.
        unsafe { E::turn::<I>(rows, elements, to, strides) };
    }
}

/// A panel, and where the sums of some rows by it go.
#[derive(Clone, Copy)]
struct Block {
    /// `[depth, groups]`
    panel: *mut Line,
    groups: usize,
    depth: usize,
    /// Elements from a row to the next.
    row: usize,
    /// `[rows, stride]`
    sums: *mut Line,
    stride: usize,
    /// Whether they are added to what is there.
    add: bool,
}

impl Block {
    /// Takes rows through the panel, in blocks of about the same height.
    ///
    /// # Safety
    /// A lane of each of so many rows, a panel, and room for the sums.
    #[inline(always)]
    unsafe fn rows<I: Isa>(self, x: *const f32, count: usize) {
        let blocks = count.div_ceil(I::ROWS);
        let (low, higher) = (count / blocks, count % blocks);
        let mut row = 0;
        for block in 0..blocks {
            let height = low + usize::from(block < higher);
            let to = Self {
                sums: self.sums.wrapping_add(row * self.stride),
                ..self
            };
            let x = x.wrapping_add(row * self.row);
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
                return match self.row {
                    DEPTH => self.multiply::<I, M, GROUPS, DEPTH>(x),
                    _ => self.multiply::<I, M, GROUPS, 0>(x),
                };
            }
            for g in 0..self.groups {
                let one = Self {
                    panel: self.panel.add(g),
                    sums: self.sums.add(g),
                    ..self
                };
                one.multiply::<I, M, 1, 0>(x);
            }
        }
    }

    /// `M` rows by `N` groups. `ROW` is 0 or as many elements as are from a row to the next: known
    /// beforehand, they are part of the instructions.
    #[inline(always)]
    unsafe fn multiply<I: Isa, const M: usize, const N: usize, const ROW: usize>(
        self,
        x: *const f32,
    ) {
        let row = if ROW == 0 { self.row } else { ROW };
        // SAFETY: the caller's promise.
        unsafe {
            let mut line = self.panel.cast_const();
            let mut x = x;
            let zero = I::splat(&0.0);
            let mut sums = [[zero; N]; M];
            for _ in 0..self.depth {
                let mut w = [zero; N];
                for g in 0..N {
                    w[g] = I::load(line.add(g));
                }
                for r in 0..M {
                    let x = I::splat(x.add(r * row));
                    for g in 0..N {
                        sums[r][g] = I::fma(x, w[g], sums[r][g]);
                    }
                }
                line = line.add(self.groups);
                x = x.add(1);
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
