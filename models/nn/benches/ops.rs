//! The operators at the shapes of real models: `cargo bench -p kiln-nn`. Throughput counts operations
//! (a multiplication with an addition is two) for what computes, bytes for what reads.

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kiln_nn::ops::{self, Activation};
use kiln_registry::{BatchLayout, SequenceSpan};

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(
        shape,
        Distribution::Normal(0.0, 1.0),
        (&Device::flex(), DType::F32),
    )
}

fn linear(c: &mut Criterion) {
    for (name, dtype) in [("f32", FloatDType::F32), ("bf16", FloatDType::BF16)] {
        let mut group = c.benchmark_group(format!("linear {name}"));
        for (k, n) in [(1024, 4096), (4096, 1024), (1024, 32_064)] {
            let weight = random([n, k]).cast(dtype);
            for m in [1, 8, 64, 576] {
                let x = random([m, k]);
                group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
                group.bench_function(BenchmarkId::new(format!("{k}x{n}"), m), |b| {
                    b.iter(|| ops::linear(x.clone(), weight.clone(), None));
                });
            }
        }
    }
}

/// A tower's: 577 tokens, 16 heads of 64.
fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    for pictures in [1, 5] {
        let [q, k, v] = [(); 3].map(|()| random([pictures, 577, 16, 64]));
        let pairs = (pictures * 577 * 577) as u64;
        group.throughput(Throughput::Elements(4 * pairs * 16 * 64));
        group.bench_function(BenchmarkId::from_parameter(pictures), |b| {
            b.iter(|| ops::attention(q.clone(), k.clone(), v.clone(), 0.125));
        });
    }
}

/// 16 query heads over 4 KV heads of 64.
fn paged_attention(c: &mut Criterion) {
    const BLOCK: usize = 16;
    let mut group = c.benchmark_group("paged attention");
    for (query, context) in [(1, 512), (1, 8192), (512, 512)] {
        let blocks = context / BLOCK;
        let span = SequenceSpan {
            query_len: query,
            context_len: context,
            prompt_len: context,
            blocks: (0..blocks as u32).collect(),
        };
        let layout = BatchLayout::new(vec![span], BLOCK, &Device::flex()).unwrap();
        let q = random([query, 16, 64]);
        let [keys, values] = [(); 2].map(|()| random([blocks, BLOCK, 4, 64]));
        group.throughput(Throughput::Bytes((2 * context * 4 * 64 * 4) as u64));
        let id = BenchmarkId::new(format!("{query} new"), context);
        group.bench_function(id, |b| {
            b.iter(|| {
                let (q, keys, values) = (q.clone(), keys.clone(), values.clone());
                ops::paged_attention(q, keys, values, &layout, 0.125, None)
            });
        });
    }
}

fn rows(c: &mut Criterion) {
    let mut group = c.benchmark_group("rows of 1024");
    for m in [1, 576] {
        let x = random([m, 1024]);
        let weight: Tensor<1> = random([1024]);
        group.throughput(Throughput::Bytes((8 * m * 1024) as u64));
        group.bench_function(BenchmarkId::new("rms_norm", m), |b| {
            b.iter(|| ops::rms_norm(x.clone(), weight.clone(), 1e-5));
        });
        group.bench_function(BenchmarkId::new("layer_norm", m), |b| {
            b.iter(|| ops::layer_norm(x.clone(), weight.clone(), weight.clone(), 1e-5));
        });
        group.bench_function(BenchmarkId::new("gated silu", m), |b| {
            b.iter(|| ops::gated(x.clone(), x.clone(), Activation::Silu));
        });
    }
}

criterion_group!(benches, linear, attention, paged_attention, rows);
criterion_main!(benches);
