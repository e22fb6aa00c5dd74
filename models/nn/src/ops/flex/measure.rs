//! How near the kernels come to the machine's limits: not a test, but a measurement in the shape of
//! one, since kernels are private.
//!
//! ```text
//! cargo test --release --workspace --locked --lib -- --ignored --nocapture --test-threads 1 near_its_limits
//! ```
//!
//! Limits and kernels take turns and the best of many short runs counts, so that what else the
//! machine does falls out of the ratios. Weights are never the same twice in a row: they come from
//! memory, as a model's do.

use super::{
    attention::{Attention, Sequence, attention_bf16},
    bf16::{self, Unit},
    gemm::Affine,
    int8::{self, Quantized},
    layers::{self, Layer, Then},
    limits::{self, kernels, rate},
    simd,
};
use crate::ops::Quantization;
use crate::ops::quantized::{GROUP, Packing};
use half::bf16 as Bf16;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// `[m]`, `(k, n)`
const ROWS: [usize; 8] = [1, 4, 8, 32, 64, 256, 577, 2371];
const SHAPES: [(usize, usize); 4] = [(1024, 4096), (4096, 1024), (1024, 1024), (1024, 32064)];
/// Bytes of the weights that take turns.
const POOL: usize = 600 << 20;

/// Seconds of the shortest of some runs.
fn best(runs: usize, mut f: impl FnMut()) -> f64 {
    let runs = (0..runs).map(|_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    });
    runs.fold(f64::INFINITY, f64::min)
}

/// What an operation is measured by.
#[derive(Clone, Copy, Debug)]
enum Limit {
    Singles,
    Pairs,
    Fours,
    Tiles,
    TilesOfBytes,
}

impl Limit {
    const ALL: [Self; 5] = [
        Self::Singles,
        Self::Pairs,
        Self::Fours,
        Self::Tiles,
        Self::TilesOfBytes,
    ];

    /// The best for bytes.
    fn of_bytes() -> Self {
        let have = |limit: &Self| limit.burst().is_some();
        let of_bytes = [Self::TilesOfBytes, Self::Fours];
        of_bytes.into_iter().find(have).unwrap_or(Self::Singles)
    }

    /// The best for `bf16` in attention, whose kernels are for numbers and for tiles.
    fn of_attention() -> Self {
        match Self::Tiles.burst() {
            Some(_) => Self::Tiles,
            None => Self::Singles,
        }
    }

    fn burst(self) -> Option<limits::Burst> {
        match self {
            Self::Singles => Some(kernels::f32()),
            Self::Pairs => kernels::pairs(),
            Self::Fours => kernels::fours(),
            Self::Tiles => kernels::tiles(),
            Self::TilesOfBytes => kernels::tiles_of_bytes(),
        }
    }

    /// Multiply-adds a second, of all threads.
    fn measure(self) -> Option<f64> {
        Some(rate(self.burst()?) / 2.0)
    }
}

/// An operation on weights of `bytes` bytes.
struct Case<'a> {
    name: &'a str,
    limit: Limit,
    shape: (usize, usize, usize),
    bytes: usize,
    run: &'a dyn Fn(usize),
}

impl Case<'_> {
    fn measure(&self, pool: &[u8]) {
        let (m, k, n) = self.shape;
        let work = (m * k * n) as f64;
        let runs = if work > 1e9 { 3 } else { 10 };
        let (mut limit, mut bandwidth, mut seconds) = (0.0f64, 0.0f64, f64::INFINITY);
        let mut at = 0;
        for turn in 0..6 {
            limit = limit.max(self.limit.measure().unwrap_or(f64::NAN));
            let part = &pool[turn * (64 << 20)..][..64 << 20];
            let read = best(2, || {
                let words: &[u64] = bytemuck::cast_slice(part);
                let pieces = words.par_chunks((2 << 20) / 8).map(kernels::read);
                black_box(pieces.reduce(|| 0, u64::wrapping_add));
            });
            bandwidth = bandwidth.max(part.len() as f64 / read);
            let run = best(runs, || {
                if at + self.bytes > POOL {
                    at = 0;
                }
                (self.run)(at);
                at += self.bytes.next_multiple_of(64);
            });
            seconds = seconds.min(run);
        }
        println!(
            "{:8} m {m:4} k {k} n {n:5}: {:8.3} ms, {:6.0} Gop/s, {:5.1}% of the unit; {:5.1} GB/s, {:5.1}% of a read",
            self.name,
            seconds * 1e3,
            2.0 * work / seconds / 1e9,
            100.0 * work / seconds / limit,
            self.bytes as f64 / seconds / 1e9,
            100.0 * self.bytes as f64 / seconds / bandwidth,
        );
    }
}

#[test]
#[ignore = "a measurement of some minutes"]
fn near_its_limits() {
    println!("{} threads", rayon::current_num_threads());
    for limit in Limit::ALL {
        if let Some(rate) = limit.measure() {
            println!("{limit:?}: {:.0} Gop/s", 2.0 * rate / 1e9);
        }
    }
    // Numbers in -2..2 whether they are read as bf16 or as bytes.
    let mut pool = vec![0u64; POOL / 8];
    pool.par_iter_mut().enumerate().for_each(|(i, v)| {
        let number = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *v = number & 0x80ff_80ff_80ff_80ff | 0x3f00_3f00_3f00_3f00;
    });
    let pool: &[u8] = bytemuck::cast_slice(&pool);
    for m in ROWS {
        for (k, n) in SHAPES {
            if m * n > 300 * 32064 {
                continue;
            }
            let x: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let shape = (m, k, n);
            for unit in Unit::available() {
                let (name, limit) = match unit {
                    Unit::Widened(level) if level == simd::best() => ("bf16 w", Limit::Singles),
                    Unit::Widened(_) => continue,
                    Unit::Pairs => ("bf16 p", Limit::Pairs),
                    Unit::Tiles => ("bf16 t", Limit::Tiles),
                };
                let bytes = 2 * k * n;
                let run = |at: usize| {
                    let weight = bytemuck::cast_slice(&pool[at..at + bytes]);
                    let op = Affine {
                        weight,
                        bias: None,
                        k,
                        n,
                    };
                    black_box(bf16::linear_at(unit, &x, op).len());
                };
                Case {
                    name,
                    limit,
                    shape,
                    bytes,
                    run: &run,
                }
                .measure(pool);
            }
            for kind in [Quantization::Q8, Quantization::Q4] {
                let packing = Packing { kind, n, k };
                let data = packing.groups() * packing.group_bytes();
                let scales = vec![0.01; packing.groups() * GROUP];
                let bytes = data + scales.len() * 4;
                let name = if kind == Quantization::Q8 { "q8" } else { "q4" };
                let run = |at: usize| {
                    let op = Quantized {
                        data: &pool[at..at + data],
                        scales: &scales,
                        bias: None,
                        packing,
                    };
                    let rows = int8::Rows::new(&x, k, None);
                    let then = Then::Write;
                    black_box(layers::each(int8::Unit::best(m), &rows, [Layer { op, then }]).len());
                };
                Case {
                    name,
                    limit: Limit::of_bytes(),
                    shape,
                    bytes,
                    run: &run,
                }
                .measure(pool);
            }
        }
    }
}

/// `[queries, context, heads, kv_heads, head_dim]` and whether it is causal: a tower, prefills, and a
/// token.
const ATTENTIONS: [([usize; 5], bool); 5] = [
    ([577, 577, 16, 16, 64], false),
    ([608, 608, 16, 8, 64], true),
    ([2371, 2371, 16, 8, 64], true),
    ([1, 608, 16, 8, 64], true),
    ([1, 32768, 16, 8, 64], true),
];

#[test]
#[ignore = "a measurement of some seconds"]
fn attends_near_its_limits() {
    let limit = Limit::of_attention();
    for (shape, causal) in ATTENTIONS {
        let [queries, context, heads, kv_heads, head_dim] = shape;
        let q: Vec<f32> = (0..queries * heads * head_dim)
            .map(|i| (i as f32 * 0.37).sin() * 2.0)
            .collect();
        let cache: Vec<Bf16> = (0..context * kv_heads * head_dim)
            .map(|i| Bf16::from_f32((i as f32 * 0.73).sin() * 2.0))
            .collect();
        let mut out = vec![0.0; q.len()];
        let (mut rate, mut seconds) = (0.0f64, f64::INFINITY);
        for _ in 0..6 {
            rate = rate.max(limit.measure().unwrap_or(f64::NAN));
            let run = best(5, || {
                let op = Attention {
                    q: &q,
                    keys: &cache,
                    values: &cache,
                    heads,
                    kv_heads,
                    head_dim,
                    block_size: context,
                    scale: 0.125,
                    causal,
                    window: None,
                };
                let sequence = Sequence {
                    queries,
                    context,
                    blocks: &[0],
                };
                attention_bf16(op, &[sequence], &mut out);
                black_box(&out);
            });
            seconds = seconds.min(run);
        }
        let keys = match causal {
            true => (0..queries).map(|i| context - i).sum(),
            false => queries * context,
        };
        let work = 2.0 * (keys * heads * head_dim) as f64;
        println!(
            "attention {shape:?} causal {causal:5}: {:8.3} ms, {:6.0} Gop/s, {:5.1}% of {limit:?}; {:5.1} GB/s",
            seconds * 1e3,
            2.0 * work / seconds / 1e9,
            100.0 * work / seconds / rate,
            4.0 * cache.len() as f64 / seconds / 1e9,
        );
    }
}
