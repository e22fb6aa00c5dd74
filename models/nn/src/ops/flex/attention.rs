//! Attention over keys and values in blocks, each query row alone.
//!
//! Keys are taken in tiles of 64 that start at multiples of 64 in the sequence, with a running
//! maximum and sum. Where a tile starts, in which order a row adds its products and where it is
//! rescaled depend on the row's own positions only, so a row has the same bits in any batch and
//! any chunk. Rows are computed six at a time for the sake of speed: over the keys that all of
//! them see together, over the others one by one.

mod tile;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::{
    element::Element,
    pool,
    simd::{self, Level},
};
use half::bf16;
use std::ops::Range;

/// Keys of a tile.
pub(super) const TILE: usize = 64;
/// Query rows of one KV head in a task, at least and at most about: a loaded tile is shared by them.
const TASK_ROWS: [usize; 2] = [128, 512];
/// Tasks for each thread, so that one that is held up holds up little.
const TASKS: usize = 4;
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
        let all = sequence.queries * group;
        let share = (all * op.kv_heads).div_ceil(threads * TASKS);
        let chunks = all.div_ceil(share.clamp(TASK_ROWS[0], TASK_ROWS[1])).max(1);
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

impl<'a, E: Element> Task<'a, E> {
    /// Query heads of a KV head.
    #[inline(always)]
    pub(super) fn group(&self) -> usize {
        self.op.heads / self.op.kv_heads
    }

    /// Where keys and values of the tile's positions begin, those of the first KV head; of positions that
    /// are not in `seen`, those of one that is.
    ///
    /// # Panics
    /// When they are not in the cache.
    #[inline(always)]
    pub(super) fn places(&self, seen: Range<usize>) -> [usize; TILE] {
        let op = &self.op;
        let token = op.kv_heads * op.head_dim;
        let cached = op.keys.len().min(op.values.len());
        let mut places = [0; TILE];
        if seen.is_empty() {
            return places;
        }
        let mut position = seen.start;
        while position < seen.end {
            // A division for each block: one for each position took as long as its products.
            let (block, slot) = (position / op.block_size, position % op.block_size);
            let count = (op.block_size - slot).min(seen.end - position);
            let first = self.blocks[block] as usize * op.block_size + slot;
            assert!((first + count) * token <= cached, "a position of the cache");
            for (i, place) in places[position % TILE..][..count].iter_mut().enumerate() {
                *place = (first + i) * token;
            }
            position += count;
        }
        let (low, high) = (seen.start % TILE, (seen.end - 1) % TILE + 1);
        let one = places[low];
        places[..low].fill(one);
        places[high..].fill(one);
        places
    }

    /// The positions that a token of this task sees.
    #[inline(always)]
    pub(super) fn seen(&self, token: usize) -> (usize, usize) {
        let next = self.first_position + token + 1;
        let end = if self.op.causal { next } else { self.context };
        let begin = self.op.window.map_or(0, |w| next.saturating_sub(w.max(1)));
        (begin, end)
    }

    #[inline(always)]
    pub(super) fn query(&self, kv_head: usize, row: usize) -> &'a [f32] {
        let group = self.group();
        let head = kv_head * group + row % group;
        let token = self.first_row + row / group;
        &self.op.q[(token * self.op.heads + head) * self.op.head_dim..][..self.op.head_dim]
    }
}
