//! Activations, element by element and in place.

use super::{
    math, pool,
    simd::{self, Isa, Kernel},
};
use crate::ops::Activation;

/// Elements of one task; fewer run on the calling thread.
const CHUNK: usize = 1 << 14;

/// `values = act(values)`
pub(super) fn activation(kind: Activation, values: &mut [f32]) {
    if values.len() <= CHUNK {
        return simd::run(Apply { kind, values });
    }
    pool::chunks_mut(values, CHUNK, |_, values| {
        simd::run(Apply { kind, values });
    });
}

/// `gate = act(gate) * up`
pub(super) fn gated(kind: Activation, gate: &mut [f32], up: &[f32]) {
    if gate.len() <= CHUNK {
        return simd::run(Gate { kind, gate, up });
    }
    pool::chunks_mut(gate, CHUNK, |i, gate| {
        let up = &up[i * CHUNK..][..gate.len()];
        simd::run(Gate { kind, gate, up });
    });
}

/// `values = act(values)` on this thread.
pub(super) struct Apply<'a> {
    pub(super) kind: Activation,
    pub(super) values: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let values = self.values;
        match self.kind {
            Activation::Silu => apply(values, silu::<I>),
            Activation::Gelu => apply(values, gelu::<I>),
            Activation::GeluTanh => apply(values, gelu_tanh::<I>),
            Activation::QuickGelu => apply(values, quick_gelu::<I>),
            Activation::Relu => apply(values, relu),
        }
    }
}

/// `gate = act(gate) * up` on this thread.
pub(super) struct Gate<'a> {
    pub(super) kind: Activation,
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a [f32],
}

impl Kernel for Gate<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let (gate, up) = (self.gate, self.up);
        match self.kind {
            Activation::Silu => gate_by(gate, up, silu::<I>),
            Activation::Gelu => gate_by(gate, up, gelu::<I>),
            Activation::GeluTanh => gate_by(gate, up, gelu_tanh::<I>),
            Activation::QuickGelu => gate_by(gate, up, quick_gelu::<I>),
            Activation::Relu => gate_by(gate, up, relu),
        }
    }
}

#[inline(always)]
fn apply(values: &mut [f32], f: impl Fn(f32) -> f32) {
    for v in values {
        *v = f(*v);
    }
}

#[inline(always)]
fn gate_by(gate: &mut [f32], up: &[f32], f: impl Fn(f32) -> f32) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = f(*gate) * up;
    }
}

#[inline(always)]
fn silu<I: Isa>(x: f32) -> f32 {
    x * math::sigmoid::<I>(x)
}

#[inline(always)]
fn gelu<I: Isa>(x: f32) -> f32 {
    0.5 * x * (1.0 + math::erf::<I>(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `(1 + tanh u) / 2` is the sigmoid of `2u`, and the sigmoid does not cancel.
#[inline(always)]
fn gelu_tanh<I: Isa>(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let u = I::mul_add(0.044_715 * x * x, x, x);
    x * math::sigmoid::<I>(TWICE_SQRT_2_OVER_PI * u)
}

#[inline(always)]
fn quick_gelu<I: Isa>(x: f32) -> f32 {
    x * math::sigmoid::<I>(1.702 * x)
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    // Keeps NaN, as the reference does.
    if x < 0.0 { 0.0 } else { x }
}
