//! Linear layers with what stands before and behind them: a norm, an activation, a gate, a residual.
//!
//! Where the CPU has code for the whole, rows are normalised and packed once for all layers that
//! take them, and what follows is done to sums that are still in the cache. Elsewhere the same
//! operators run one after the other. The results have the same bits either way.

use super::{
    Activation, QuantizedWeight, activation, empty, flex, gated, layer_norm, linear,
    linear_quantized, rms_norm,
};
use burn::tensor::Tensor;

/// A normalisation of rows.
#[expect(
    clippy::large_enum_variant,
    reason = "two a layer, held for as long as the model is"
)]
pub enum Norm {
    /// [`rms_norm`]
    Rms {
        /// `[n]`
        weight: Tensor<1>,
        /// Added under the root.
        eps: f64,
    },
    /// [`layer_norm`]
    Layer {
        /// `[n]`
        weight: Tensor<1>,
        /// `[n]`
        bias: Tensor<1>,
        /// Added under the root.
        eps: f64,
    },
}

impl Norm {
    /// Normalises rows.
    ///
    /// # Shapes
    /// `[m, n]` to the same.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Rms { weight, eps } => rms_norm(x, weight.clone(), *eps),
            Self::Layer { weight, bias, eps } => layer_norm(x, weight.clone(), bias.clone(), *eps),
        }
    }
}

/// A weight, `[n, k]`.
#[expect(
    clippy::large_enum_variant,
    reason = "a few hundred layers, most of them of one kind"
)]
pub enum Weight {
    /// Numbers as they are.
    Float(Tensor<2>),
    /// Whole numbers and scales.
    Quantized(QuantizedWeight),
}

/// A weight, `[n, k]`, and a bias, `[n]`.
pub struct Affine {
    /// `[n, k]`
    pub weight: Weight,
    /// `[n]`
    pub bias: Option<Tensor<1>>,
}

impl Affine {
    /// [`linear`], or [`linear_quantized`].
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.weight {
            Weight::Float(weight) => linear(x, weight.clone(), self.bias.clone()),
            Weight::Quantized(weight) => linear_quantized(x, weight, self.bias.clone()),
        }
    }

    /// Outputs and elements of a row.
    pub fn dims(&self) -> [usize; 2] {
        match &self.weight {
            Weight::Float(weight) => weight.dims(),
            Weight::Quantized(weight) => weight.dims(),
        }
    }
}

/// What follows a layer.
#[derive(Clone, Copy)]
pub(super) enum Ends<'a> {
    Nothing,
    Activation(Activation),
    /// An activation, then the product with another layer's outputs.
    Gate(Activation, &'a Affine),
}

/// Several layers of the same rows, which are normalised first.
///
/// # Shapes
/// `x`: `[m, k]`; each result: `[m, n]` of its layer.
pub fn linear_each<const N: usize>(
    x: Tensor<2>,
    norm: &Norm,
    layers: [&Affine; N],
) -> [Tensor<2>; N] {
    if x.shape().num_elements() > 0 {
        let all = layers.map(|layer| (layer, Ends::Nothing));
        if let Some(out) = flex::fused::linear(&x, Some(norm), all) {
            return out;
        }
    }
    let x = norm.forward(x);
    layers.map(|layer| layer.forward(x.clone()))
}

/// `act(linear(norm(x)))`
///
/// # Shapes
/// `x`: `[m, k]`; the result: `[m, n]`.
pub fn linear_activated(
    x: Tensor<2>,
    norm: Option<&Norm>,
    layer: &Affine,
    act: Activation,
) -> Tensor<2> {
    if x.shape().num_elements() > 0 {
        let ends = [(layer, Ends::Activation(act))];
        if let Some([out]) = flex::fused::linear(&x, norm, ends) {
            return out;
        }
    }
    let x = norm.map_or_else(|| x.clone(), |norm| norm.forward(x.clone()));
    activation(layer.forward(x), act)
}

/// `act(gate(norm(x))) * up(norm(x))`, the first half of a gated feed-forward part.
///
/// # Shapes
/// `x`: `[m, k]`; the result: `[m, n]`.
pub fn linear_gated(
    x: Tensor<2>,
    norm: &Norm,
    gate: &Affine,
    up: &Affine,
    act: Activation,
) -> Tensor<2> {
    assert_eq!(gate.dims(), up.dims(), "a gate for each output");
    if x.shape().num_elements() > 0 {
        let ends = [(gate, Ends::Gate(act, up))];
        if let Some([out]) = flex::fused::linear(&x, Some(norm), ends) {
            return out;
        }
    }
    let x = norm.forward(x);
    gated(gate.forward(x.clone()), up.forward(x), act)
}

/// `to + linear(x)`: the end of a block, beside its residual. In place where nothing else has a hold
/// of `to`.
///
/// # Shapes
/// `x`: `[m, k]`; `to` and the result: `[m, n]`.
pub fn linear_added(x: Tensor<2>, layer: &Affine, to: Tensor<2>) -> Tensor<2> {
    let [m, _] = x.dims();
    let [n, _] = layer.dims();
    assert_eq!(to.dims(), [m, n], "a sum for each output");
    if m == 0 || n == 0 {
        return empty([m, n], &x);
    }
    let mut to = Some(to);
    match (flex::fused::linear_added(&x, layer, &mut to), to) {
        (Some(out), _) => out,
        (None, Some(to)) => to + layer.forward(x),
        (None, None) => unreachable!("operands are on one device"),
    }
}
