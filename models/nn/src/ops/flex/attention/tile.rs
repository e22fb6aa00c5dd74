//! Some query rows and a tile of keys at a time, on vector registers.
#![expect(
    clippy::needless_range_loop,
    reason = "a loop of known length over registers unrolls, where an iterator may stay a call"
)]

use super::{
    super::{
        element::Element,
        math,
        simd::{self, Isa, Kernel, LANES, Lanes},
    },
    TILE, Task,
};
use std::ops::Range;

/// Bytes that are asked for at a time.
const LINE: usize = 64;
/// Lanes of a tile.
const GROUPS: usize = TILE / LANES;
/// Rows that registers hold the sums of beside their operands.
const ROWS: usize = 6;
/// Rows that are scored, weighed and added one after the other: with their numbers the keys of a tile,
/// then its values, stay in the first-level cache.
const BATCH: usize = 4 * ROWS;

/// A number for each row of a batch.
type Each = [f32; BATCH.next_multiple_of(LANES)];

/// Scores of one row over a tile, then its weights.
type Row = [Lanes; GROUPS];

/// The positions of a tile that a row sees.
type Part = (usize, usize);

/// Where a query row stands after the tiles so far.
#[derive(Clone, Copy)]
struct State {
    max: f32,
    sum: f32,
}

impl<E: Element> Kernel for Task<'_, E> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let op = self.op;
        let dim = op.head_dim;
        let width = dim.div_ceil(LANES);
        let group = self.group();
        let tokens = self.out.len();
        let rows = tokens * group;
        let heads = self.kv_heads.clone();
        let mut tile = Tile {
            keys: vec![[[0.0; LANES]; GROUPS]; width.next_multiple_of(2) * LANES],
            values: vec![[0.0; LANES]; TILE * width],
        };
        let start = State {
            max: f32::NEG_INFINITY,
            sum: 0.0,
        };
        let mut states = vec![start; heads.len() * rows];
        let mut acc = vec![[0.0; LANES]; heads.len() * rows * width];
        // Side by side: where they lie, the rows of many heads are so far apart that they drive each
        // other out of the cache.
        let mut queries = Vec::with_capacity(heads.len() * rows * dim);
        for head in heads.clone() {
            for row in 0..rows {
                queries.extend(self.query(head, row).iter().map(|q| q * op.scale));
            }
        }
        let seen: Vec<_> = (0..tokens)
            .flat_map(|token| std::iter::repeat_n(self.seen(token), group))
            .collect();

        // Positions only grow with the row, and so do both ends of what a row sees.
        let begin = seen[0].0;
        let end = seen[rows - 1].1;
        let of_tile = |base: usize| begin.max(base)..end.min(base + TILE);
        let mut next = self.places(of_tile(begin / TILE * TILE));
        for base in (begin / TILE * TILE..end).step_by(TILE) {
            let places = next;
            if base + TILE < end {
                next = self.places(of_tile(base + TILE));
            }
            let states = states.chunks_exact_mut(rows);
            let accs = acc.chunks_exact_mut(rows * width);
            let queries = queries.chunks_exact(rows * dim);
            let of_head = queries.zip(states).zip(accs);
            for (head, ((queries, states), acc)) in heads.clone().zip(of_head) {
                tile.load::<I, E>(&self, head, of_tile(base), [&places, &next]);
                let queries = queries.chunks(BATCH * dim);
                let states = states.chunks_mut(BATCH);
                let accs = acc.chunks_mut(BATCH * width);
                let seen = seen.chunks(BATCH);
                for (((queries, states), acc), seen) in queries.zip(states).zip(accs).zip(seen) {
                    let mut parts = [(0, 0); BATCH];
                    for (part, (begin, end)) in parts.iter_mut().zip(seen) {
                        let low = begin.saturating_sub(base).min(TILE);
                        let high = end.saturating_sub(base).min(TILE);
                        *part = (low, high.max(low));
                    }
                    // Of a task's last tiles, its first rows see nothing.
                    if parts.iter().any(|(low, high)| low < high) {
                        tile.attend::<I>(dim, queries, &parts[..seen.len()], states, acc);
                    }
                }
            }
        }
        for (i, (state, acc)) in states.iter().zip(acc.chunks_exact(width)).enumerate() {
            let (head, row) = (i / rows, i % rows);
            let at = head * group + row % group;
            let out = &mut self.out[row / group][at * dim..][..dim];
            for (out, acc) in out.iter_mut().zip(acc.as_flattened()) {
                *out = acc / state.sum;
            }
        }
    }
}

/// Keys and values of one tile, widened.
struct Tile {
    /// Element by element, up to whole groups of 32, the keys side by side.
    keys: Vec<Row>,
    /// Key by key, each of whole lanes.
    values: Vec<Lanes>,
}

impl Tile {
    /// Loads the positions `seen` of a KV head, and asks for those of the next tile. What is not loaded is
    /// stale, zero or another position's, and is never added to anything.
    #[inline(always)]
    fn load<I: Isa, E: Element>(
        &mut self,
        task: &Task<'_, E>,
        head: usize,
        seen: Range<usize>,
        [places, next]: [&[usize; TILE]; 2],
    ) {
        let op = &task.op;
        let dim = op.head_dim;
        let width = dim.div_ceil(LANES);
        let (low, high) = (seen.start % TILE, (seen.end - 1) % TILE + 1);
        for g in low / LANES..high.div_ceil(LANES) {
            let (places, next) = (&places[g * LANES..][..LANES], &next[g * LANES..][..LANES]);
            for next in next {
                let at = next + head * dim;
                for e in (0..dim).step_by(LINE / size_of::<E>()) {
                    I::fetch(op.keys.as_ptr().wrapping_add(at + e));
                    I::fetch(op.values.as_ptr().wrapping_add(at + e));
                }
            }
            // SAFETY: a kernel has this instruction set only where the machine has it; places are of the
            // cache. There are as many lines of keys as a turn writes, and of values as positions have.
            unsafe {
                let mut keys = [std::ptr::null(); LANES];
                for j in 0..LANES {
                    keys[j] = op.keys.as_ptr().add(places[j] + head * dim);
                }
                let to = self.keys.as_mut_ptr().cast::<Lanes>().add(g);
                E::turn::<I>(keys, dim, to.cast(), [GROUPS, LANES * GROUPS]);
                for j in 0..LANES {
                    let value = op.values.as_ptr().add(places[j] + head * dim);
                    let to = self.values.as_mut_ptr().add((g * LANES + j) * width);
                    for c in 0..dim / LANES {
                        I::store(to.add(c).cast(), E::load::<I>(value.add(c * LANES)));
                    }
                    if !dim.is_multiple_of(LANES) {
                        let value = std::slice::from_raw_parts(value, dim);
                        *to.add(width - 1) = E::lanes::<I>(value, width - 1);
                    }
                }
            }
        }
    }

    /// Takes rows of a KV head through the tile, each of which sees a part of it.
    #[inline(always)]
    fn attend<I: Isa>(
        &self,
        dim: usize,
        queries: &[f32],
        parts: &[Part],
        states: &mut [State],
        acc: &mut [Lanes],
    ) {
        let width = dim.div_ceil(LANES);
        let keys = &self.keys[..dim];
        let most = if I::WIDE { ROWS } else { 1 };
        let mut weights = [[[0.0; LANES]; GROUPS]; BATCH];
        let mut row = 0;
        while row < parts.len() {
            let height = most.min(parts.len() - row);
            let queries = &queries[row * dim..];
            let out = &mut weights[row..][..height];
            match height {
                6 => scores::<I, 6>(queries, keys, out),
                5 => scores::<I, 5>(queries, keys, out),
                4 => scores::<I, 4>(queries, keys, out),
                3 => scores::<I, 3>(queries, keys, out),
                2 => scores::<I, 2>(queries, keys, out),
                _ => scores::<I, 1>(queries, keys, out),
            }
            row += height;
        }
        let weights = &mut weights[..parts.len()];
        softmax::<I>(weights, parts, states, acc, width);
        let mut row = 0;
        while row < parts.len() {
            let height = most.min(parts.len() - row);
            let weights = &weights[row..][..height];
            let parts = &parts[row..][..height];
            let acc = &mut acc[row * width..][..height * width];
            match height {
                6 => self.add_rows::<I, 6>(weights, parts, acc, width),
                5 => self.add_rows::<I, 5>(weights, parts, acc, width),
                4 => self.add_rows::<I, 4>(weights, parts, acc, width),
                3 => self.add_rows::<I, 3>(weights, parts, acc, width),
                2 => self.add_rows::<I, 2>(weights, parts, acc, width),
                _ => self.add_rows::<I, 1>(weights, parts, acc, width),
            }
            row += height;
        }
    }

    /// Adds the weighted values that each of `M` rows sees: what all of them see is read once, between
    /// what only some see.
    #[inline(always)]
    fn add_rows<I: Isa, const M: usize>(
        &self,
        weights: &[Row],
        parts: &[Part],
        acc: &mut [Lanes],
        width: usize,
    ) {
        let mut low = 0;
        let mut high = TILE;
        for part in parts {
            low = low.max(part.0);
            high = high.min(part.1);
        }
        // Not a closure: it would be compiled for any machine.
        if low >= high {
            for (r, part) in parts.iter().enumerate() {
                self.add::<I, 1>(&weights[r..], *part, &mut acc[r * width..], width);
            }
            return;
        }
        for (r, part) in parts.iter().enumerate() {
            self.add::<I, 1>(&weights[r..], (part.0, low), &mut acc[r * width..], width);
        }
        self.add::<I, M>(weights, (low, high), acc, width);
        for (r, part) in parts.iter().enumerate() {
            self.add::<I, 1>(&weights[r..], (high, part.1), &mut acc[r * width..], width);
        }
    }

    /// Adds the values `low..high`, weighted, to the sums of `M` rows.
    #[inline(always)]
    fn add<I: Isa, const M: usize>(
        &self,
        weights: &[Row],
        part: Part,
        acc: &mut [Lanes],
        width: usize,
    ) {
        if part.0 >= part.1 {
            return;
        }
        let mut c = 0;
        while c < width {
            c += if width - c >= 4 {
                self.add_lanes::<I, M, 4>(weights, part, acc, (c, width))
            } else {
                self.add_lanes::<I, M, 1>(weights, part, acc, (c, width))
            };
        }
    }

    /// [`add`](Self::add) for `N` lanes of a value from `c` on; `N`.
    #[inline(always)]
    fn add_lanes<I: Isa, const M: usize, const N: usize>(
        &self,
        weights: &[Row],
        (low, high): Part,
        acc: &mut [Lanes],
        (c, width): (usize, usize),
    ) -> usize {
        let weights = &weights[..M];
        let acc = &mut acc[..(M - 1) * width + c + N];
        let values = &self.values[low * width..high * width];
        assert!(
            low < high && high <= TILE && c + N <= width,
            "a part of the tile"
        );
        // SAFETY: a kernel has this instruction set only where the machine has it; all is within the
        // slices, whose lengths are checked.
        unsafe {
            let mut from = [std::ptr::null::<f32>(); M];
            let mut to = [std::ptr::null_mut::<f32>(); M];
            let mut sums = [[I::splat(&0.0); N]; M];
            for r in 0..M {
                from[r] = weights.as_ptr().add(r).cast::<f32>().add(low);
                to[r] = acc.as_mut_ptr().add(r * width + c).cast();
                for n in 0..N {
                    sums[r][n] = I::load(to[r].add(n * LANES));
                }
            }
            let mut value: *const f32 = values.as_ptr().add(c).cast();
            for j in 0..high - low {
                let mut lanes = [I::splat(&0.0); N];
                for n in 0..N {
                    lanes[n] = I::load(value.add(n * LANES));
                }
                for r in 0..M {
                    let weight = I::splat(from[r].add(j));
                    for n in 0..N {
                        sums[r][n] = I::fma(weight, lanes[n], sums[r][n]);
                    }
                }
                value = value.wrapping_add(width * LANES);
            }
            for r in 0..M {
                for n in 0..N {
                    I::store(to[r].add(n * LANES), sums[r][n]);
                }
            }
        }
        N
    }
}

/// The products of `M` queries with all keys of a tile, each summed in the order of elements.
#[inline(always)]
fn scores<I: Isa, const M: usize>(queries: &[f32], keys: &[Row], out: &mut [Row]) {
    let dim = keys.len();
    let queries = &queries[..M * dim];
    let out = &mut out[..M];
    // SAFETY: a kernel has this instruction set only where the machine has it; all is within the slices,
    // whose lengths are checked.
    unsafe {
        let mut from = [std::ptr::null(); M];
        for r in 0..M {
            from[r] = queries.as_ptr().add(r * dim);
        }
        let mut sums = [[I::splat(&0.0); GROUPS]; M];
        for (e, key) in keys.iter().enumerate() {
            let mut lanes = [I::splat(&0.0); GROUPS];
            for g in 0..GROUPS {
                lanes[g] = I::load(key[g].as_ptr());
            }
            for r in 0..M {
                let q = I::splat(from[r].add(e));
                for g in 0..GROUPS {
                    sums[r][g] = I::fma(q, lanes[g], sums[r][g]);
                }
            }
        }
        for r in 0..M {
            for g in 0..GROUPS {
                I::store(out[r][g].as_mut_ptr(), sums[r][g]);
            }
        }
    }
}

/// Turns the scores of rows into weights against their new maxima, and sums so far into such. A row
/// that sees nothing of the tile stays as it is.
///
/// Row after row for one thing after the other: the steps of a row wait for each other, those of
/// several do not.
#[inline(always)]
fn softmax<I: Isa>(
    rows: &mut [Row],
    parts: &[Part],
    states: &mut [State],
    acc: &mut [Lanes],
    width: usize,
) {
    let mut before: Each = [f32::NEG_INFINITY; _];
    let mut max = before;
    for (r, (row, (low, high))) in rows.iter_mut().zip(parts).enumerate() {
        // Whole: a mask beside each number would keep the loops from vectorising.
        if *low > 0 || *high < TILE {
            let scores = row.as_flattened_mut();
            scores[..*low].fill(f32::NEG_INFINITY);
            scores[*high..].fill(f32::NEG_INFINITY);
        }
        let mut maxima = row[0];
        for scores in &row[1..] {
            for l in 0..LANES {
                maxima[l] = simd::greater(scores[l], maxima[l]);
            }
        }
        before[r] = states[r].max;
        max[r] = simd::greater(I::max(maxima), before[r]);
    }
    let mut rescale = before;
    for r in 0..rescale.len() {
        let factor = math::exp_down::<I>(before[r] - max[r]);
        // Where nothing was seen yet, the difference is no number.
        rescale[r] = if max[r] == before[r] { 1.0 } else { factor };
    }
    for (r, row) in rows.iter_mut().enumerate() {
        let against = if max[r] == f32::NEG_INFINITY {
            0.0
        } else {
            max[r]
        };
        let mut sums = [0.0; LANES];
        for scores in row {
            for l in 0..LANES {
                scores[l] = math::exp_down::<I>(scores[l] - against);
                sums[l] += scores[l];
            }
        }
        states[r] = State {
            max: max[r],
            sum: I::mul_add(states[r].sum, rescale[r], I::sum(sums)),
        };
    }
    for (acc, rescale) in acc.chunks_exact_mut(width).zip(rescale) {
        // Of most rows the maximum stays.
        if rescale != 1.0 {
            for v in acc.as_flattened_mut() {
                *v *= rescale;
            }
        }
    }
}
