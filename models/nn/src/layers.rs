//! Linear layers, their weights kept `[out, in]` as checkpoints store them, and norms.

use crate::ops::{
    self, Activation, QuantizedWeight,
    fused::{Affine, Norm},
};
use crate::weights::Scope;
use burn::tensor::{DType, FloatDType, Tensor};
use kiln_registry::Result;

/// `y = x · wᵀ + b`.
pub struct Linear(Weight);

#[expect(
    clippy::large_enum_variant,
    reason = "a few hundred layers, most of them of one kind"
)]
enum Weight {
    Float(Affine),
    Quantized(QuantizedWeight, Option<Tensor<1>>),
}

impl Linear {
    /// `weight` and, where `bias` says so, `bias` of a scope.
    ///
    /// # Errors
    /// See [`Scope::weight`].
    pub fn load(scope: &Scope<'_>, input: usize, output: usize, bias: bool) -> Result<Self> {
        let bias = bias.then(|| scope.vector("bias", output)).transpose()?;
        let shape = [output, input];
        Ok(Self(match scope.quantization() {
            None => Weight::Float(Affine {
                weight: scope.weight("weight", shape)?,
                bias,
            }),
            Some(kind) => Weight::Quantized(scope.quantized("weight", shape, kind)?, bias),
        }))
    }

    /// A layer of given parts, such as a convolution's kernel laid flat.
    pub fn from_parts(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self(Weight::Float(Affine { weight, bias }))
    }

    /// The precision of its products: what attention to its outputs may be computed in.
    pub fn precision(&self) -> FloatDType {
        match &self.0 {
            Weight::Float(affine) if affine.weight.dtype() != DType::BF16 => FloatDType::F32,
            _ => FloatDType::BF16,
        }
    }

    /// # Shapes
    /// f32 `[rows, in]` to f32 `[rows, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.0 {
            Weight::Float(affine) => affine.forward(x),
            Weight::Quantized(weight, bias) => ops::linear_quantized(x, weight, bias.clone()),
        }
    }

    fn float(&self) -> Option<&Affine> {
        match &self.0 {
            Weight::Float(affine) => Some(affine),
            Weight::Quantized(..) => None,
        }
    }

    /// [`forward`](Self::forward) of three layers on the same rows, which are normalised first.
    ///
    /// # Shapes
    /// f32 `[rows, in]` to f32 `[rows, out]` of each.
    pub fn forward_three(x: Tensor<2>, norm: &Norm, layers: [&Self; 3]) -> [Tensor<2>; 3] {
        if let [Some(a), Some(b), Some(c)] = layers.map(Self::float) {
            return ops::fused::linear_each(x, norm, [a, b, c]);
        }
        let x = norm.forward(x);
        layers.map(|layer| layer.forward(x.clone()))
    }

    /// `act(forward(norm(x)))`
    ///
    /// # Shapes
    /// f32 `[rows, in]` to f32 `[rows, out]`.
    pub fn forward_activated(
        &self,
        x: Tensor<2>,
        norm: Option<&Norm>,
        act: Activation,
    ) -> Tensor<2> {
        if let Some(affine) = self.float() {
            return ops::fused::linear_activated(x, norm, affine, act);
        }
        let x = norm.map_or_else(|| x.clone(), |norm| norm.forward(x.clone()));
        ops::activation(self.forward(x), act)
    }

    /// `act(self(norm(x))) * up(norm(x))`: this layer is a gate.
    ///
    /// # Shapes
    /// f32 `[rows, in]` to f32 `[rows, out]`.
    pub fn forward_gating(
        &self,
        x: Tensor<2>,
        norm: &Norm,
        up: &Self,
        act: Activation,
    ) -> Tensor<2> {
        if let (Some(gate), Some(up)) = (self.float(), up.float()) {
            return ops::fused::linear_gated(x, norm, gate, up, act);
        }
        let x = norm.forward(x);
        ops::gated(self.forward(x.clone()), up.forward(x), act)
    }

    /// `to + forward(x)`: the end of a block, beside its residual.
    ///
    /// # Shapes
    /// `x`: f32 `[rows, in]`; `to` and the result: f32 `[rows, out]`.
    pub fn forward_added(&self, x: Tensor<2>, to: Tensor<2>) -> Tensor<2> {
        match self.float() {
            Some(affine) => ops::fused::linear_added(x, affine, to),
            None => to + self.forward(x),
        }
    }
}

/// A projector of two linear layers with an activation between: a tower's width to the text's.
pub struct Projector {
    linear_1: Linear,
    linear_2: Linear,
    act: Activation,
}

impl Projector {
    /// `linear_1` and `linear_2` of a scope.
    ///
    /// # Errors
    /// See [`Scope::weight`].
    pub fn load(
        scope: &Scope<'_>,
        input: usize,
        output: usize,
        bias: bool,
        act: Activation,
    ) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(&scope.at("linear_1"), input, output, bias)?,
            linear_2: Linear::load(&scope.at("linear_2"), output, output, bias)?,
            act,
        })
    }

    /// # Shapes
    /// f32 `[rows, in]` to f32 `[rows, out]`.
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        let x = self.linear_1.forward_activated(features, None, self.act);
        self.linear_2.forward(x)
    }
}

/// Layer normalisation with `weight` and `bias` of a scope.
///
/// # Errors
/// See [`Scope::vector`].
pub fn layer_norm(scope: &Scope<'_>, width: usize, eps: f64) -> Result<Norm> {
    Ok(Norm::Layer {
        weight: scope.vector("weight", width)?,
        bias: scope.vector("bias", width)?,
        eps,
    })
}

/// Root-mean-square normalisation with `weight` of a scope.
///
/// # Errors
/// See [`Scope::vector`].
pub fn rms_norm(scope: &Scope<'_>, width: usize, eps: f64) -> Result<Norm> {
    Ok(Norm::Rms {
        weight: scope.vector("weight", width)?,
        eps,
    })
}
