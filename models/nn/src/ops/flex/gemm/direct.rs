//! Few rows: weights as they lie.

use super::{
    super::{
        element::Element,
        layers::PAIR,
        memory::lines,
        simd::{Isa, LANES, Line, blocks},
    },
    DEPTH, SPAN, Task,
};

/// Rows that go through weights together: of the others' they are in the cache.
const ROWS: usize = 6;

impl<E: Element> Task<'_, E> {
    #[inline(always)]
    pub(super) fn direct<I: Isa>(&self) {
        let (count, n) = (self.part.rows.count, self.op.n);
        let spans = self.op.k.div_ceil(SPAN);
        // Of each span, the rows, and of each row the lanes of 16 outputs.
        let mut lanes = vec![Line([0.0; LANES]); spans * count * LANES];
        let lanes: *mut f32 = lanes.as_mut_ptr().cast();
        let mut sums = lines(count * size_of::<Line>());
        let sums: *mut f32 = sums.as_mut_ptr().cast();
        for output in
            (self.part.pairs.start * PAIR..n.min(self.part.pairs.end * PAIR)).step_by(LANES)
        {
            // SAFETY: room for the lanes of these outputs, and for the sums of a group.
            unsafe {
                for (first, height) in blocks(count, ROWS) {
                    let rows = (first, count);
                    match height {
                        1 => self.outputs::<I, 1>(output, rows, lanes),
                        2 => self.outputs::<I, 2>(output, rows, lanes),
                        3 => self.outputs::<I, 3>(output, rows, lanes),
                        4 => self.outputs::<I, 4>(output, rows, lanes),
                        5 => self.outputs::<I, 5>(output, rows, lanes),
                        _ => self.outputs::<I, ROWS>(output, rows, lanes),
                    }
                }
                for row in 0..count {
                    let mut sum = I::splat(&0.0);
                    for span in 0..spans {
                        let from = lanes.add((span * count + row) * LANES * LANES);
                        let mut square = [sum; LANES];
                        for o in 0..LANES {
                            square[o] = I::load(from.add(o * LANES));
                        }
                        let columns = I::transpose(square);
                        for l in 0..LANES {
                            sum = match span + l {
                                0 => columns[0],
                                _ => I::add(sum, columns[l]),
                            };
                        }
                    }
                    I::store(sums.add(row * LANES), sum);
                }
                self.write(output, 0..count, 1, sums);
            }
        }
    }

    /// The lanes of `M` rows, from `first` of `count` on, and 16 outputs, of all spans.
    ///
    /// # Safety
    /// There is room for them.
    #[inline(always)]
    unsafe fn outputs<I: Isa, const M: usize>(
        &self,
        output: usize,
        (first, count): (usize, usize),
        lanes: *mut f32,
    ) {
        let spans = self.op.k.div_ceil(SPAN);
        // As many as registers hold the sums of.
        let side = match M {
            _ if I::WIDE => 4,
            ..=3 => 2,
            _ => 1,
        };
        for at in (0..LANES.min(self.op.n - output)).step_by(side) {
            for span in 0..spans {
                // SAFETY: the caller's promise; 16 is a multiple of each of these.
                unsafe {
                    let to = lanes.add(((span * count + first) * LANES + at) * LANES);
                    match side {
                        4 => self.span::<I, M, 4>(output + at, first, span, to),
                        2 => self.span::<I, M, 2>(output + at, first, span, to),
                        _ => self.span::<I, M, 1>(output + at, first, span, to),
                    }
                }
            }
        }
    }

    /// The lanes of a span of `M` rows, from `first` on, and up to `N` outputs, a row's 16 lines further on.
    ///
    /// # Safety
    /// There is such an output, and room for all.
    #[inline(always)]
    unsafe fn span<I: Isa, const M: usize, const N: usize>(
        &self,
        output: usize,
        first: usize,
        span: usize,
        to: *mut f32,
    ) {
        let (n, k) = (self.op.n, self.op.k);
        let start = span * SPAN;
        let elements = SPAN.min(k - start);
        let mut weights = [std::ptr::null::<E>(); N];
        for o in 0..N {
            // An output that is not there may be any other: nobody looks at it.
            let output = if output + o < n { output + o } else { output };
            weights[o] = self.op.weight[output * k + start..][..elements].as_ptr();
        }
        // SAFETY: the groups of these rows and outputs; what is fetched need not be there.
        unsafe {
            let zero = I::splat(&0.0);
            let mut x = [std::ptr::null(); M];
            for r in 0..M {
                x[r] = self.part.rows.group(first + r, span * DEPTH);
            }
            let mut sums = [[zero; N]; M];
            for g in 0..elements / LANES {
                let mut w = [zero; N];
                for o in 0..N {
                    let at = weights[o].add(g * LANES);
                    w[o] = E::load::<I>(at);
                    // The next outputs lie behind these.
                    I::fetch(at.wrapping_add(N * k));
                }
                for r in 0..M {
                    let x = I::load(x[r].add(g * LANES));
                    for o in 0..N {
                        sums[r][o] = I::fma(x, w[o], sums[r][o]);
                    }
                }
            }
            if !elements.is_multiple_of(LANES) {
                let g = elements / LANES;
                for o in 0..N {
                    let mut rest = [E::zeroed(); LANES];
                    let from = weights[o].add(g * LANES);
                    from.copy_to_nonoverlapping(rest.as_mut_ptr(), elements % LANES);
                    let w = E::load::<I>(rest.as_ptr());
                    for r in 0..M {
                        sums[r][o] = I::fma(I::load(x[r].add(g * LANES)), w, sums[r][o]);
                    }
                }
            }
            for r in 0..M {
                for o in 0..N {
                    I::store(to.add((r * LANES + o) * LANES), sums[r][o]);
                }
            }
        }
    }
}
