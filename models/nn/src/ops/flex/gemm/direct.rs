//! Few rows: weights as they lie.

use super::{
    super::{
        element::Element,
        layers::PAIR,
        memory::lines,
        simd::{Isa, LANES, Line, blocks, height},
    },
    FEW, SPAN, Task,
};
use std::ops::Range;

/// Rows that go through weights together where registers are narrow.
const ROWS: usize = 6;
/// Outputs after which the one is that is asked for, in the order in which they go by: by then it has come
/// from memory. A multiple of those that go by together, as 16 is of it.
const AHEAD: usize = 4;
/// Bytes of rows that stay in the first-level cache while some outputs' weights go by.
const NEAR: usize = 16 << 10;

/// Of 16 outputs, a part of a span.
struct Piece {
    /// The first one.
    output: usize,
    elements: Range<usize>,
    /// Elements to where the piece begins that comes next: of these outputs, or of the 16 behind them.
    behind: usize,
}

impl<E: Element> Task<'_, E> {
    #[inline(always)]
    pub(super) fn direct<I: Isa>(&self) {
        let (count, n, k) = (self.part.rows.count, self.op.n, self.op.k);
        let spans = k.div_ceil(SPAN);
        // Of each span, the rows, and of each row the lanes of 16 outputs.
        let mut lanes = vec![Line([0.0; LANES]); spans * count * LANES];
        let lanes: *mut f32 = lanes.as_mut_ptr().cast();
        let mut sums = lines(count * size_of::<Line>());
        let sums: *mut f32 = sums.as_mut_ptr().cast();
        let most = if I::WIDE { FEW } else { ROWS };
        let near = (NEAR / size_of::<f32>() / count).clamp(LANES, SPAN);
        // Pieces of about the same length.
        let mut starts = Vec::new();
        for start in (0..k).step_by(SPAN) {
            let elements = SPAN.min(k - start);
            let piece = height(elements, near).next_multiple_of(LANES);
            starts.extend((start..start + elements).step_by(piece));
        }
        let outputs = self.part.pairs.start * PAIR..n.min(self.part.pairs.end * PAIR);
        for output in outputs.step_by(LANES) {
            // SAFETY: room for the lanes of these outputs, and for the sums of a group.
            unsafe {
                for (i, start) in starts.iter().enumerate() {
                    let piece = Piece {
                        output,
                        elements: *start..*starts.get(i + 1).unwrap_or(&k),
                        behind: match starts.get(i + 1) {
                            Some(next) => next - start,
                            None => (LANES * k).wrapping_sub(*start),
                        },
                    };
                    for (first, height) in blocks(count, most) {
                        self.height::<I>(&piece, (first, count), height, lanes);
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

    /// The lanes of so many rows, from the first of `rows` of them all on, and 16 outputs, of a piece.
    ///
    /// # Safety
    /// There is room for them; of a span's further pieces, they are there.
    #[inline(always)]
    unsafe fn height<I: Isa>(
        &self,
        piece: &Piece,
        rows: (usize, usize),
        height: usize,
        lanes: *mut f32,
    ) {
        // SAFETY: the caller's promise. Two outputs side by side, or four, are as many as registers hold
        // the sums of; 16 is a multiple of each.
        unsafe {
            if I::WIDE {
                match height {
                    1 => self.outputs::<I, 1, 4>(piece, rows, lanes),
                    2 => self.outputs::<I, 2, 4>(piece, rows, lanes),
                    3 => self.outputs::<I, 3, 4>(piece, rows, lanes),
                    4 => self.outputs::<I, 4, 4>(piece, rows, lanes),
                    5 => self.outputs::<I, 5, 4>(piece, rows, lanes),
                    6 => self.outputs::<I, 6, 4>(piece, rows, lanes),
                    7 => self.outputs::<I, 7, 2>(piece, rows, lanes),
                    8 => self.outputs::<I, 8, 2>(piece, rows, lanes),
                    9 => self.outputs::<I, 9, 2>(piece, rows, lanes),
                    10 => self.outputs::<I, 10, 2>(piece, rows, lanes),
                    11 => self.outputs::<I, 11, 2>(piece, rows, lanes),
                    _ => self.outputs::<I, FEW, 2>(piece, rows, lanes),
                }
            } else {
                match height {
                    1 => self.outputs::<I, 1, 2>(piece, rows, lanes),
                    2 => self.outputs::<I, 2, 2>(piece, rows, lanes),
                    3 => self.outputs::<I, 3, 2>(piece, rows, lanes),
                    4 => self.outputs::<I, 4, 1>(piece, rows, lanes),
                    5 => self.outputs::<I, 5, 1>(piece, rows, lanes),
                    _ => self.outputs::<I, ROWS, 1>(piece, rows, lanes),
                }
            }
        }
    }

    /// [`height`](Self::height) `M`, `N` outputs at a time.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn outputs<I: Isa, const M: usize, const N: usize>(
        &self,
        piece: &Piece,
        (first, count): (usize, usize),
        lanes: *mut f32,
    ) {
        let (apart, ahead, k) = (LANES / N, AHEAD / N, self.op.k);
        for at in 0..apart.min(self.op.n - piece.output) {
            let to = ((piece.elements.start / SPAN * count + first) * LANES + at) * LANES;
            let ahead = match at + ahead < apart {
                true => ahead * k,
                false => piece.behind.wrapping_sub((apart - ahead) * k),
            };
            let (output, elements) = (piece.output + at, piece.elements.clone());
            // SAFETY: the caller's promise.
            unsafe { self.piece::<I, M, N>(output, first, elements, ahead, lanes.add(to)) };
        }
    }

    /// The lanes of a piece of `M` rows, from `first` on, and up to `N` outputs, a row's 16 lines further on.
    /// What is so many elements behind each weight is asked for.
    ///
    /// # Safety
    /// There is such an output, and room for all.
    #[inline(always)]
    unsafe fn piece<I: Isa, const M: usize, const N: usize>(
        &self,
        output: usize,
        first: usize,
        piece: Range<usize>,
        ahead: usize,
        to: *mut f32,
    ) {
        let (n, k) = (self.op.n, self.op.k);
        let elements = piece.len();
        let mut weights = [std::ptr::null::<E>(); N];
        for o in 0..N {
            let further = output + o * (LANES / N);
            // An output that is not there may be any other: nobody looks at it.
            let output = if further < n { further } else { output };
            weights[o] = self.op.weight[output * k..][piece.clone()].as_ptr();
        }
        // SAFETY: the groups of these rows and outputs; what is fetched need not be there.
        unsafe {
            let zero = I::splat(&0.0);
            let mut x = self.part.rows.group(first, piece.start / LANES);
            let stride = self.part.rows.count * LANES;
            let mut sums = [[zero; N]; M];
            if !piece.start.is_multiple_of(SPAN) {
                for r in 0..M {
                    for o in 0..N {
                        sums[r][o] = I::load(to.add((r * LANES + o * (LANES / N)) * LANES));
                    }
                }
            }
            for g in 0..elements / LANES {
                let mut w = [zero; N];
                for o in 0..N {
                    let at = weights[o].add(g * LANES);
                    w[o] = E::load::<I>(at);
                    I::fetch_near(at.wrapping_add(ahead));
                }
                for r in 0..M {
                    let x = I::load(x.add(r * LANES));
                    for o in 0..N {
                        sums[r][o] = I::fma(x, w[o], sums[r][o]);
                    }
                }
                x = x.wrapping_add(stride);
            }
            if !elements.is_multiple_of(LANES) {
                let g = elements / LANES;
                for o in 0..N {
                    let mut rest = [E::zeroed(); LANES];
                    let from = weights[o].add(g * LANES);
                    from.copy_to_nonoverlapping(rest.as_mut_ptr(), elements % LANES);
                    let w = E::load::<I>(rest.as_ptr());
                    for r in 0..M {
                        sums[r][o] = I::fma(I::load(x.add(r * LANES)), w, sums[r][o]);
                    }
                }
            }
            for r in 0..M {
                for o in 0..N {
                    I::store(to.add((r * LANES + o * (LANES / N)) * LANES), sums[r][o]);
                }
            }
        }
    }
}
