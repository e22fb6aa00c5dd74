//! What the operators were asked to do, counted: multiply-adds by the type of the weights, bytes of
//! weights and caches that had to be read. A benchmark divides it by the machine's limits, and so
//! knows how near to them a phase came.
//!
//! The counters are the process's; they cost a few atomic additions an operator.

use burn::tensor::DType;
use kiln_registry::BatchLayout;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A count of work. A multiplication with an addition is two operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Operations of linear layers whose weights are f32 or f16, which is widened.
    pub f32_ops: u64,
    /// Operations of linear layers whose weights are bf16.
    pub bf16_ops: u64,
    /// Operations of linear layers whose weights are of eight or four bits.
    pub int8_ops: u64,
    /// Operations of attention: scores and weighted sums.
    pub attention_ops: u64,
    /// Bytes of weights and of cached keys and values.
    pub bytes: u64,
}

impl Work {
    /// All operations.
    pub fn operations(&self) -> u64 {
        self.f32_ops + self.bf16_ops + self.int8_ops + self.attention_ops
    }
}

static F32: AtomicU64 = AtomicU64::new(0);
static BF16: AtomicU64 = AtomicU64::new(0);
static INT8: AtomicU64 = AtomicU64::new(0);
static ATTENTION: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// The work since the last call.
pub fn take() -> Work {
    let take = |counter: &AtomicU64| counter.swap(0, Relaxed);
    Work {
        f32_ops: take(&F32),
        bf16_ops: take(&BF16),
        int8_ops: take(&INT8),
        attention_ops: take(&ATTENTION),
        bytes: take(&BYTES),
    }
}

/// `[m, k]` by `[n, k]`.
pub(crate) fn linear(m: usize, n: usize, k: usize, weight: DType) {
    let ops = 2 * (m * n * k) as u64;
    let counter = if weight == DType::BF16 { &BF16 } else { &F32 };
    counter.fetch_add(ops, Relaxed);
    BYTES.fetch_add((n * k * weight.size()) as u64, Relaxed);
}

/// `[m, k]` by a weight `[n, k]` that takes `bytes`.
pub(crate) fn quantized(m: usize, n: usize, k: usize, bytes: usize) {
    INT8.fetch_add(2 * (m * n * k) as u64, Relaxed);
    BYTES.fetch_add(bytes as u64, Relaxed);
}

/// Each of `queries` sees `keys`.
pub(crate) fn attention(queries: usize, keys: usize, heads: usize, head_dim: usize) {
    let ops = 4 * (queries * keys * heads * head_dim) as u64;
    ATTENTION.fetch_add(ops, Relaxed);
}

/// A step over the paged cache: `token` is the bytes of one position's key and value.
pub(crate) fn paged_attention(
    layout: &BatchLayout,
    heads: usize,
    head_dim: usize,
    token: usize,
    window: Option<usize>,
) {
    for span in layout.spans() {
        let window = window.unwrap_or(usize::MAX);
        let first = span.context_len - span.query_len;
        let seen = (first..span.context_len).map(|position| (position + 1).min(window));
        attention(1, seen.sum(), heads, head_dim);
        let read = span.context_len.min(window.saturating_add(span.query_len));
        BYTES.fetch_add((read * token) as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use burn::tensor::{Device, FloatDType, Tensor};

    /// Other tests of this process count, too: at least what these did.
    #[test]
    fn operators_are_counted() {
        let device = Device::flex();
        let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, (&device, DType::F32));
        take();
        ops::linear(zeros([3, 64]), zeros([5, 64]), None);
        let work = take();
        assert!(
            work.f32_ops >= 2 * 3 * 5 * 64 && work.bytes >= 5 * 64 * 4,
            "{work:?}"
        );
        ops::linear(zeros([3, 64]), zeros([5, 64]).cast(FloatDType::BF16), None);
        assert!(take().bf16_ops >= 2 * 3 * 5 * 64);
        let heads = || Tensor::<4>::zeros([2, 7, 4, 8], (&device, DType::F32));
        ops::attention(heads(), heads(), heads(), 1.0);
        assert!(take().attention_ops >= 4 * 2 * 7 * 7 * 4 * 8);
    }
}
