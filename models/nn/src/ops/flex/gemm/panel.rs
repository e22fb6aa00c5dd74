//! Many rows: parts of weights, turned round and widened, in the cache while rows go by.

use super::{
    super::{
        element::Element,
        layers::{PAIR, SIDE_BY_SIDE},
        memory::lines,
        simd::{Isa, LANES, Line, blocks},
    },
    DEPTH, SPAN, Task,
};

/// Groups of 16 outputs of a panel.
const GROUPS: usize = SIDE_BY_SIDE * PAIR / LANES;
/// Elements between which more is asked for.
const STEP: usize = 4;

impl<E: Element> Task<'_, E> {
    #[inline(always)]
    pub(super) fn panels<I: Isa>(&self) {
        let (n, k) = (self.op.n, self.op.k);
        let (rows, pass) = (self.part.rows, self.part.pass.clone());
        let spans = k.div_ceil(SPAN);
        // Of a lane, an even number, since `bf16` is turned round two by two.
        let lines_of_lane = rows.depth.next_multiple_of(2) * GROUPS;
        let mut panels = lines(LANES * lines_of_lane * size_of::<Line>());
        let mut sums = lines(pass.len() * GROUPS * size_of::<Line>());
        let panels: *mut f32 = panels.as_mut_ptr().cast();
        let sums: *mut f32 = sums.as_mut_ptr().cast();
        let pairs = self.part.pairs.clone();
        for first in pairs.clone().step_by(SIDE_BY_SIDE) {
            let outputs = first * PAIR..n.min(pairs.end.min(first + SIDE_BY_SIDE) * PAIR);
            let groups = outputs.len().div_ceil(LANES);
            let kept = Place {
                at: sums,
                stride: groups * LANES,
            };
            // Results that end in the middle of a register are copied from the sums.
            let whole = outputs.len().is_multiple_of(LANES);
            let results = match whole {
                true => Place {
                    at: self.out.at(pass.start, outputs.start),
                    stride: self.out.n,
                },
                false => kept,
            };
            let bias = self.out.bias.filter(|_| whole);
            for span in 0..spans {
                // SAFETY: room for the panels, and for the sums of these rows and groups; nothing
                // else has the outputs.
                unsafe {
                    for group in 0..groups {
                        let first = outputs.start + group * LANES;
                        let to = panels.add(group * LANES);
                        self.turn::<I>(first, span, to, [lines_of_lane, groups]);
                    }
                    for lane in 0..LANES {
                        let last = (span + 1, lane + 1) == (spans, LANES);
                        let block = Block {
                            panel: panels.add(lane * lines_of_lane * LANES),
                            groups,
                            depth: DEPTH.min((k - span * SPAN).div_ceil(LANES)),
                            row: rows.depth,
                            from: (span + lane > 0).then_some(kept),
                            to: if last { results } else { kept },
                            bias: bias
                                .filter(|_| last)
                                .map(|bias| bias[outputs.clone()].as_ptr()),
                        };
                        block.rows::<I>(rows.part(span, lane, pass.start), pass.len());
                    }
                }
            }
            if !whole {
                // SAFETY: the sums are written; nothing else has these places.
                unsafe { self.write(outputs.start, pass.clone(), groups, sums) };
            }
        }
    }

    /// Turns a span of 16 outputs' weights into their lines of the panels; `strides` are lines from a
    /// lane to the next, and from an element of a lane to the next.
    ///
    /// # Safety
    /// There is room for them.
    #[inline(always)]
    unsafe fn turn<I: Isa>(&self, first: usize, span: usize, to: *mut f32, strides: [usize; 2]) {
        let (n, k) = (self.op.n, self.op.k);
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

/// Sums of rows and groups.
#[derive(Clone, Copy)]
struct Place {
    at: *mut f32,
    /// Elements from a row to the next.
    stride: usize,
}

impl Place {
    #[inline(always)]
    fn row(self, row: usize) -> Self {
        let at = self.at.wrapping_add(row * self.stride);
        Self { at, ..self }
    }

    #[inline(always)]
    fn group(self, group: usize) -> Self {
        let at = self.at.wrapping_add(group * LANES);
        Self { at, ..self }
    }
}

/// A panel, and where the sums of some rows by it go.
#[derive(Clone, Copy)]
struct Block {
    /// `[depth, groups]` of 16.
    panel: *const f32,
    groups: usize,
    depth: usize,
    /// Elements from a row to the next.
    row: usize,
    /// The sums so far.
    from: Option<Place>,
    /// Where they go, with a bias if they are results.
    to: Place,
    bias: Option<*const f32>,
}

impl Block {
    /// Takes rows through the panel, in blocks of about the same height.
    ///
    /// # Safety
    /// A lane of each of so many rows, a panel, and room for the sums.
    #[inline(always)]
    unsafe fn rows<I: Isa>(self, x: *const f32, count: usize) {
        for (row, height) in blocks(count, I::ROWS) {
            let block = Self {
                from: self.from.map(|from| from.row(row)),
                to: self.to.row(row),
                ..self
            };
            let x = x.wrapping_add(row * self.row);
            // SAFETY: the caller's promise.
            unsafe {
                match height {
                    1 => block.groups::<I, 1>(x),
                    2 => block.groups::<I, 2>(x),
                    3 if I::ROWS > 2 => block.groups::<I, 3>(x),
                    4 if I::ROWS > 2 => block.groups::<I, 4>(x),
                    5 if I::ROWS > 2 => block.groups::<I, 5>(x),
                    6 if I::ROWS > 2 => block.groups::<I, 6>(x),
                    _ => unreachable!("a block has at most as many rows as registers hold"),
                }
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
                    panel: self.panel.add(g * LANES),
                    from: self.from.map(|from| from.group(g)),
                    to: self.to.group(g),
                    bias: self.bias.map(|bias| bias.add(g * LANES)),
                    ..self
                };
                one.multiply::<I, M, 1, 0>(x);
            }
        }
    }

    /// `M` rows by `N` groups. `ROW` is 0 or as many elements as are from a row to the next: known
    /// beforehand, they are part of the instructions.
    ///
    /// Rows and sums come from the second-level cache, and a product takes half a cycle: the rows
    /// behind these and the sums are asked for on the way.
    #[inline(always)]
    unsafe fn multiply<I: Isa, const M: usize, const N: usize, const ROW: usize>(
        self,
        x: *const f32,
    ) {
        let row = if ROW == 0 { self.row } else { ROW };
        let next = x.wrapping_add(M * row);
        let kept = self.from.unwrap_or(self.to);
        // SAFETY: the caller's promise; what is asked for need not be there.
        unsafe {
            let mut sums = [[I::splat(&0.0); N]; M];
            for step in 0..self.depth / STEP {
                for line in 0..(M * STEP).div_ceil(LANES) {
                    I::fetch_near(next.wrapping_add(step * M * STEP + line * LANES));
                }
                if step < M {
                    for g in 0..N {
                        I::fetch_near(kept.row(step).group(g).at);
                    }
                }
                for at in step * STEP..(step + 1) * STEP {
                    self.element::<I, M, N>(&mut sums, x, row, at);
                }
            }
            for at in self.depth / STEP * STEP..self.depth {
                self.element::<I, M, N>(&mut sums, x, row, at);
            }
            // Loops without a choice inside: else the sums would go to memory at each product.
            if self.from.is_some() {
                for r in 0..M {
                    for g in 0..N {
                        let kept = I::load(kept.row(r).group(g).at);
                        sums[r][g] = I::add(kept, sums[r][g]);
                    }
                }
            }
            if let Some(bias) = self.bias {
                for g in 0..N {
                    let bias = I::load(bias.add(g * LANES));
                    for r in 0..M {
                        sums[r][g] = I::add(sums[r][g], bias);
                    }
                }
            }
            for r in 0..M {
                for g in 0..N {
                    I::store(self.to.row(r).group(g).at, sums[r][g]);
                }
            }
        }
    }

    /// Adds the products of an element.
    #[inline(always)]
    unsafe fn element<I: Isa, const M: usize, const N: usize>(
        self,
        sums: &mut [[I::Vector; N]; M],
        x: *const f32,
        row: usize,
        at: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let lines = self.panel.add(at * self.groups * LANES);
            let mut w = [I::splat(&0.0); N];
            for g in 0..N {
                w[g] = I::load(lines.add(g * LANES));
            }
            for r in 0..M {
                let x = I::splat(x.add(r * row + at));
                for g in 0..N {
                    sums[r][g] = I::fma(x, w[g], sums[r][g]);
                }
            }
        }
    }
}
