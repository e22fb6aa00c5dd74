//! Attention over keys and values in blocks, each query row alone.
//!
//! Keys are taken in tiles of 64 that start at multiples of 64 in the sequence, with a running
//! maximum and sum. Where a tile starts, in which order a row adds its products and where it is
//! rescaled depend on the row's own positions only, so a row has the same bits in any batch and
//! any chunk. Rows are computed six at a time for the sake of speed: over the keys that all of
//! them see together, over the others one by one.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::{
    element::Element,
    math, pool,
    simd::{self, Isa, Kernel, LANES, Lanes, Level},
};
use half::bf16;
use std::ops::Range;

/// Keys of a tile.
pub(super) const TILE: usize = 64;
/// Lanes of a tile.
const GROUPS: usize = TILE / LANES;
/// Query rows of one KV head in a task, at most about: what a loaded tile is shared by.
const TASK_ROWS: usize = 256;
/// Query rows of one KV head below which a task takes several heads: loading tiles is most of its
/// work then, and what neighbouring heads load lies side by side.
const FEW_ROWS: usize = 16;

/// Queries, and the cache they attend to.
#[derive(Clone, Copy)]
pub(super) struct Attention<'a, E> {
    /// `[tokens, heads, head_dim]`
    pub(super) q: &'a [f32],
    /// `[blocks, block_size, kv_heads, head_dim]`
    pub(super) keys: &'a [E],
    /// `[blocks, block_size, kv_heads, head_dim]`
    pub(super) values: &'a [E],
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) block_size: usize,
    pub(super) scale: f32,
    /// Whether a token sees only itself and what is before it.
    pub(super) causal: bool,
    /// How many positions a token sees at most, itself among them.
    pub(super) window: Option<usize>,
}

/// One sequence of a batch, in the order of its rows.
pub(super) struct Sequence<'a> {
    /// Its rows.
    pub(super) queries: usize,
    /// Its positions in the cache; the rows are the last of them.
    pub(super) context: usize,
    /// Its blocks in order.
    pub(super) blocks: &'a [u32],
}

/// Computes `out`: `[tokens, heads, head_dim]`, one task for some KV heads of a range of tokens.
pub(super) fn attention<'a, E: Element>(
    op: Attention<'a, E>,
    sequences: &[Sequence<'a>],
    out: &'a mut [f32],
) {
    attention_at(simd::best(), op, sequences, out);
}

/// [`attention`] on keys and values of `bf16`: queries are rounded to `bf16` as well, and by a
/// matrix unit the weights of the values too.
pub(super) fn attention_bf16<'a>(
    op: Attention<'a, bf16>,
    sequences: &[Sequence<'a>],
    out: &'a mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if amx::available() {
        return tasks(op, sequences, out, amx::attention::attend);
    }
    let q = super::bf16::rounded(simd::best(), op.q);
    attention(Attention { q: &q, ..op }, sequences, out);
}

/// [`attention`] on one instruction set.
pub(super) fn attention_at<'a, E: Element>(
    level: Level,
    op: Attention<'a, E>,
    sequences: &[Sequence<'a>],
    out: &'a mut [f32],
) {
    tasks(op, sequences, out, |task| simd::run_at(level, task));
}

/// Cuts the work into tasks and has each of them run.
fn tasks<'a, E: Element>(
    op: Attention<'a, E>,
    sequences: &[Sequence<'a>],
    out: &'a mut [f32],
    run: impl Fn(Task<'a, E>) + Send + Sync,
) {
    let group = op.heads / op.kv_heads;
    let threads = pool::threads();
    let mut tokens_out = out.chunks_exact_mut(op.heads * op.head_dim);
    let mut tasks = Vec::new();
    let mut row = 0;
    for sequence in sequences {
        let chunks = (sequence.queries * group).div_ceil(TASK_ROWS).max(1);
        let height = sequence.queries.div_ceil(chunks).max(1);
        // Whole registers of rows, where there are that many.
        let height = match height * group {
            ..FEW_ROWS => height,
            _ => height.next_multiple_of(FEW_ROWS),
        };
        for first in (0..sequence.queries).step_by(height) {
            let tokens = height.min(sequence.queries - first);
            let heads = match tokens * group {
                ..FEW_ROWS => op.kv_heads.div_ceil(threads),
                _ => 1,
            };
            let start = tasks.len();
            tasks.extend((0..op.kv_heads).step_by(heads).map(|head| Task {
                op,
                blocks: sequence.blocks,
                kv_heads: head..op.kv_heads.min(head + heads),
                first_row: row + first,
                // Without a causal mask there may be more queries than keys.
                first_position: (sequence.context + first).saturating_sub(sequence.queries),
                context: sequence.context,
                out: Vec::with_capacity(tokens),
            }));
            for token in tokens_out.by_ref().take(tokens) {
                let parts = token.chunks_mut(heads * group * op.head_dim);
                for (task, part) in tasks[start..].iter_mut().zip(parts) {
                    task.out.push(part);
                }
            }
        }
        row += sequence.queries;
    }
    pool::consume(tasks, run);
}

/// A range of tokens of one sequence, and the query heads of some KV heads.
pub(super) struct Task<'a, E> {
    pub(super) op: Attention<'a, E>,
    blocks: &'a [u32],
    pub(super) kv_heads: Range<usize>,
    first_row: usize,
    first_position: usize,
    context: usize,
    /// Of each token, the part of these heads.
    pub(super) out: Vec<&'a mut [f32]>,
}

/// Where a query row stands after the tiles so far.
#[derive(Clone, Copy)]
struct State {
    max: f32,
    sum: f32,
}

/// Scores of one row over a tile, then its weights.
type Row = [Lanes; GROUPS];

impl<E: Element> Kernel for Task<'_, E> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let op = self.op;
        let dim = op.head_dim;
        let width = dim.div_ceil(LANES);
        let group = op.heads / op.kv_heads;
        let rows = self.out.len() * group;
        let mut tile = Tile {
            keys: vec![[[0.0; LANES]; GROUPS]; dim],
            values: vec![[0.0; LANES]; TILE * width],
        };
        let heads = self.kv_heads.clone();
        let start = State {
            max: f32::NEG_INFINITY,
            sum: 0.0,
        };
        let mut states = vec![start; heads.len() * rows];
        let mut acc = vec![[0.0; LANES]; heads.len() * rows * width];

        // Positions only grow with the row, and so do both ends of what a row sees.
        let begin = self.seen(0).0;
        let end = self.seen(self.out.len() - 1).1;
        for base in (begin / TILE * TILE..end).step_by(TILE) {
            let seen = begin.max(base)..end.min(base + TILE);
            let states = states.chunks_exact_mut(rows);
            let accs = acc.chunks_exact_mut(rows * width);
            for ((head, states), acc) in heads.clone().zip(states).zip(accs) {
                tile.load::<I, E>(&self, head, seen.clone(), base);
                let mut row = 0;
                while row < rows {
                    let span = (head, row, base);
                    row += match rows - row {
                        6.. if I::WIDE => self.rows::<I, 6>(span, &tile, states, acc),
                        4.. if I::WIDE => self.rows::<I, 4>(span, &tile, states, acc),
                        3 if I::WIDE => self.rows::<I, 3>(span, &tile, states, acc),
                        2 if I::WIDE => self.rows::<I, 2>(span, &tile, states, acc),
                        _ => self.rows::<I, 1>(span, &tile, states, acc),
                    };
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

impl<'a, E: Element> Task<'a, E> {
    /// Query heads of a KV head.
    #[inline(always)]
    pub(super) fn group(&self) -> usize {
        self.op.heads / self.op.kv_heads
    }

    /// Where the key and the value of a position begin.
    #[inline(always)]
    pub(super) fn place(&self, position: usize, kv_head: usize) -> usize {
        let op = &self.op;
        let block = self.blocks[position / op.block_size] as usize;
        let slot = block * op.block_size + position % op.block_size;
        (slot * op.kv_heads + kv_head) * op.head_dim
    }

    /// The positions that a token of this task sees.
    #[inline(always)]
    pub(super) fn seen(&self, token: usize) -> (usize, usize) {
        let next = self.first_position + token + 1;
        let end = if self.op.causal { next } else { self.context };
        let begin = self.op.window.map_or(0, |w| next.saturating_sub(w.max(1)));
        (begin, end)
    }

    /// Of a tile, the part that a row sees.
    #[inline(always)]
    fn part(&self, row: usize, base: usize) -> (usize, usize) {
        let (begin, end) = self.seen(row / self.group());
        let low = begin.saturating_sub(base).min(TILE);
        let high = end.saturating_sub(base).min(TILE);
        (low, high.max(low))
    }

    #[inline(always)]
    pub(super) fn query(&self, kv_head: usize, row: usize) -> &'a [f32] {
        let group = self.group();
        let head = kv_head * group + row % group;
        let token = self.first_row + row / group;
        &self.op.q[(token * self.op.heads + head) * self.op.head_dim..][..self.op.head_dim]
    }

    /// Takes `M` rows of a KV head through a tile; `M`.
    #[inline(always)]
    fn rows<I: Isa, const M: usize>(
        &self,
        (kv_head, row, base): (usize, usize, usize),
        tile: &Tile,
        states: &mut [State],
        acc: &mut [Lanes],
    ) -> usize {
        let width = self.op.head_dim.div_ceil(LANES);
        let mut parts = [(0, 0); M];
        for (r, part) in parts.iter_mut().enumerate() {
            *part = self.part(row + r, base);
        }
        let mut queries: [&[f32]; M] = [&[]; M];
        for (r, query) in queries.iter_mut().enumerate() {
            *query = self.query(kv_head, row + r);
        }
        let mut weights = [[[0.0; LANES]; GROUPS]; M];
        scores::<I, M>(queries, &tile.keys, &mut weights);
        for r in 0..M {
            if parts[r].0 == parts[r].1 {
                continue;
            }
            let scale = softmax::<I>(
                &mut weights[r],
                parts[r],
                self.op.scale,
                &mut states[row + r],
            );
            if scale != 1.0 {
                for lanes in &mut acc[(row + r) * width..][..width] {
                    for v in lanes {
                        *v *= scale;
                    }
                }
            }
        }
        // What all rows see, between what only some see.
        let mut low = parts[0].0;
        let mut high = parts[0].1;
        for part in &parts {
            low = low.max(part.0);
            high = high.min(part.1);
        }
        let acc = &mut acc[row * width..];
        if low < high {
            let one = |r: usize| -> [&Row; 1] { [&weights[r]] };
            for (r, part) in parts.iter().enumerate() {
                add::<I, 1>(one(r), tile, (part.0, low), &mut acc[r * width..], width);
            }
            let mut all: [&Row; M] = [&weights[0]; M];
            for r in 0..M {
                all[r] = &weights[r];
            }
            add::<I, M>(all, tile, (low, high), acc, width);
            for (r, part) in parts.iter().enumerate() {
                add::<I, 1>(one(r), tile, (high, part.1), &mut acc[r * width..], width);
            }
        } else {
            for (r, part) in parts.iter().enumerate() {
                add::<I, 1>([&weights[r]], tile, *part, &mut acc[r * width..], width);
            }
        }
        M
    }
}

/// Keys and values of one tile, widened.
struct Tile {
    /// Element by element, the keys side by side.
    keys: Vec<Row>,
    /// Key by key, each of whole lanes.
    values: Vec<Lanes>,
}

impl Tile {
    /// Loads some positions of a KV head, of the tile that starts at `base`. What is not loaded is stale or
    /// zero, and is never added to anything.
    #[inline(always)]
    fn load<I: Isa, E: Element>(
        &mut self,
        task: &Task<'_, E>,
        kv_head: usize,
        range: Range<usize>,
        base: usize,
    ) {
        let op = &task.op;
        let dim = op.head_dim;
        let width = dim.div_ceil(LANES);
        let mut at = [0; TILE];
        for position in range.clone() {
            at[position - base] = task.place(position, kv_head);
        }
        let (low, high) = (range.start - base, range.end - base);
        for (j, at) in at.iter().enumerate().take(high).skip(low) {
            let value = &op.values[*at..][..dim];
            for c in 0..width {
                self.values[j * width + c] = E::lanes::<I>(value, c);
            }
        }
        for g in low / LANES..high.div_ceil(LANES) {
            for c in 0..width {
                // SAFETY: a kernel has this instruction set only where the machine has it; 16
                // numbers are read and written each time.
                unsafe {
                    let mut rows = [I::splat(&0.0); LANES];
                    for j in low.max(g * LANES)..high.min(g * LANES + LANES) {
                        let row = E::lanes::<I>(&op.keys[at[j]..][..dim], c);
                        rows[j % LANES] = I::load(row.as_ptr());
                    }
                    let columns = I::transpose(rows);
                    for (element, column) in self.keys[c * LANES..].iter_mut().zip(columns) {
                        I::store(element[g].as_mut_ptr(), column);
                    }
                }
            }
        }
    }
}

/// The products of `M` queries with all keys of a tile, each summed in the order of elements.
#[inline(always)]
fn scores<I: Isa, const M: usize>(q: [&[f32]; M], keys: &[Row], out: &mut [Row; M]) {
    let mut queries: [&[f32]; M] = [&[]; M];
    for r in 0..M {
        queries[r] = &q[r][..keys.len()];
    }
    let mut acc = [[[0.0; LANES]; GROUPS]; M];
    for (e, key) in keys.iter().enumerate() {
        for r in 0..M {
            let q = [queries[r][e]; LANES];
            for g in 0..GROUPS {
                simd::fma::<I>(&mut acc[r][g], &q, &key[g]);
            }
        }
    }
    *out = acc;
}

/// Turns a row's scores into weights against its new maximum; by what it has so far is to be
/// multiplied.
#[inline(always)]
fn softmax<I: Isa>(
    row: &mut Row,
    (low, high): (usize, usize),
    scale: f32,
    state: &mut State,
) -> f32 {
    for scores in row.iter_mut() {
        for score in scores {
            *score *= scale;
        }
    }
    // Afterwards, and whole: a mask beside each number would keep the loops from vectorising.
    if low > 0 || high < TILE {
        let scores = row.as_flattened_mut();
        scores[..low].fill(f32::NEG_INFINITY);
        scores[high..].fill(f32::NEG_INFINITY);
    }
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for scores in row.iter() {
        for l in 0..LANES {
            maxima[l] = simd::greater(scores[l], maxima[l]);
        }
    }
    let max = I::max(maxima);
    let max = simd::greater(max, state.max);
    // Of most tiles the maximum stays, and the factor of 1 need not be computed.
    let rescale = match max == state.max {
        true => 1.0,
        false => math::exp::<I>(state.max - max),
    };
    let mut sums = [0.0; LANES];
    for scores in row {
        for l in 0..LANES {
            scores[l] = math::exp::<I>(scores[l] - max);
            sums[l] += scores[l];
        }
    }
    state.sum = I::mul_add(state.sum, rescale, I::sum(sums));
    state.max = max;
    rescale
}

/// Adds the values `low..high` of a tile, weighted, to the sums of `M` rows.
#[inline(always)]
fn add<I: Isa, const M: usize>(
    weights: [&Row; M],
    tile: &Tile,
    (low, high): (usize, usize),
    acc: &mut [Lanes],
    width: usize,
) {
    if low >= high {
        return;
    }
    let mut c = 0;
    while c < width {
        c += if width - c >= 4 {
            add_lanes::<I, M, 4>(weights, tile, (low, high), acc, (c, width))
        } else {
            add_lanes::<I, M, 1>(weights, tile, (low, high), acc, (c, width))
        };
    }
}

/// [`add`] for `N` lanes of a value from `c` on; `N`.
#[inline(always)]
fn add_lanes<I: Isa, const M: usize, const N: usize>(
    weights: [&Row; M],
    tile: &Tile,
    (low, high): (usize, usize),
    acc: &mut [Lanes],
    (c, width): (usize, usize),
) -> usize {
    let mut sums = [[[0.0; LANES]; N]; M];
    for r in 0..M {
        sums[r].copy_from_slice(&acc[r * width + c..][..N]);
    }
    for j in low..high {
        let value: &[Lanes] = &tile.values[j * width + c..][..N];
        for r in 0..M {
            let weight = [weights[r].as_flattened()[j]; LANES];
            for n in 0..N {
                simd::fma::<I>(&mut sums[r][n], &weight, &value[n]);
            }
        }
    }
    for r in 0..M {
        acc[r * width + c..][..N].copy_from_slice(&sums[r]);
    }
    N
}
