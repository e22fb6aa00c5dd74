//! Normalisation of rows, in place. A row's sums take 16 lanes and are its own.

use super::{
    pool,
    simd::{self, Isa, Kernel, LANES, Lanes},
};

/// Elements of one task; fewer run on the calling thread.
const CHUNK: usize = 1 << 14;

/// A normalisation of rows.
#[derive(Clone, Copy)]
pub(super) enum Norm<'a> {
    /// `x / sqrt(mean(x^2) + eps) * weight`
    Rms { weight: &'a [f32], eps: f32 },
    /// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`
    Layer {
        weight: &'a [f32],
        bias: &'a [f32],
        eps: f32,
    },
}

impl Norm<'_> {
    /// Normalises whole rows on this thread.
    pub(super) fn apply(self, x: &mut [f32]) {
        match self {
            Self::Rms { weight, eps } => simd::run(Rms { x, weight, eps }),
            Self::Layer { weight, bias, eps } => simd::run(Layer {
                x,
                weight,
                bias,
                eps,
            }),
        }
    }

    /// Normalises whole rows on all threads.
    pub(super) fn apply_all(self, x: &mut [f32]) {
        let (Self::Rms { weight, .. } | Self::Layer { weight, .. }) = self;
        let rows = match x.len() {
            ..=CHUNK => x.len(),
            _ => (CHUNK / weight.len()).max(1) * weight.len(),
        };
        pool::chunks_mut(x, rows.max(1), |_, x| self.apply(x));
    }
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
            let mean = total::<I>(row) / n as f32;
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
fn total<I: Isa>(row: &[f32]) -> f32 {
    let (groups, rest) = row.as_chunks::<LANES>();
    let mut lanes: Lanes = simd::padded(rest);
    for group in groups {
        for l in 0..LANES {
            lanes[l] += group[l];
        }
    }
    I::sum(lanes)
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
    I::sum(lanes)
}
