//! Normalisation of rows, in place. A row's sums take 16 lanes and are its own.

use super::{
    pool,
    simd::{self, Isa, Kernel, LANES, Lanes},
};

/// Elements of one task; fewer run on the calling thread.
const CHUNK: usize = 1 << 14;

/// `x = x / sqrt(mean(x^2) + eps) * weight`, row by row.
pub(super) fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    each_rows(x, weight.len(), |x| simd::run(Rms { x, weight, eps }));
}

/// `x = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, row by row.
pub(super) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    each_rows(x, weight.len(), |x| {
        simd::run(Layer {
            x,
            weight,
            bias,
            eps,
        });
    });
}

fn each_rows(x: &mut [f32], n: usize, f: impl Fn(&mut [f32]) + Sync) {
    if x.is_empty() {
        return;
    }
    if x.len() <= CHUNK {
        return f(x);
    }
    pool::chunks_mut(x, (CHUNK / n).max(1) * n, |_, x| f(x));
}

struct Rms<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Rms<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let n = self.weight.len();
        for row in self.x.chunks_exact_mut(n) {
            let inverse = 1.0 / (squares::<I>(row) / n as f32 + self.eps).sqrt();
            for (x, weight) in row.iter_mut().zip(self.weight) {
                *x = *x * inverse * weight;
            }
        }
    }
}

struct Layer<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl Kernel for Layer<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let n = self.weight.len();
        for row in self.x.chunks_exact_mut(n) {
            let mean = total(row) / n as f32;
            for x in row.iter_mut() {
                *x -= mean;
            }
            let inverse = 1.0 / (squares::<I>(row) / n as f32 + self.eps).sqrt();
            for ((x, weight), bias) in row.iter_mut().zip(self.weight).zip(self.bias) {
                *x = I::mul_add(*x * inverse, *weight, *bias);
            }
        }
    }
}

/// The sum of a row.
#[inline(always)]
fn total(row: &[f32]) -> f32 {
    let (groups, rest) = row.as_chunks::<LANES>();
    let mut lanes: Lanes = simd::padded(rest);
    for group in groups {
        for l in 0..LANES {
            lanes[l] += group[l];
        }
    }
    simd::sum(lanes)
}

/// The sum of a row's squares.
#[inline(always)]
fn squares<I: Isa>(row: &[f32]) -> f32 {
    let (groups, rest) = row.as_chunks::<LANES>();
    let rest = simd::padded(rest);
    let mut lanes: Lanes = [0.0; LANES];
    simd::fma::<I>(&mut lanes, &rest, &rest);
    for group in groups {
        simd::fma::<I>(&mut lanes, group, group);
    }
    simd::sum(lanes)
}
