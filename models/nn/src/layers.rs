//! Linear layers, their weights kept `[out, in]` as checkpoints store them, and norms.

use crate::ops::{
    Activation,
    fused::{self, Affine, Norm, Weight},
};
use crate::weights::Scope;
use burn::tensor::{DType, FloatDType, Tensor};
use kiln_registry::Result;

/// `y = x · wᵀ + b`.
pub struct Linear(Affine);

impl Linear {
    /// `weight` and, where `bias` says so, `bias` of a scope.
    ///
    /// # Errors
    /// See [`Scope::weight`].
    pub fn load(scope: &Scope<'_>, input: usize, output: usize, bias: bool) -> Result<Self> {
        let bias = bias.then(|| scope.vector("bias", output)).transpose()?;
        let shape = [output, input];
        let weight = match scope.quantization() {
            None => Weight::Float(scope.weight("weight", shape)?),
            Some(kind) => Weight::Quantized(scope.quantized("weight", shape, kind)?),
        };
        Ok(Self(Affine { weight, bias }))
    }

    /// A layer of given parts, such as a convolution's kernel laid flat.
    pub fn from_parts(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        let weight = Weight::Float(weight);
        Self(Affine { weight, bias })
    }

    /// The precision of its products: what attention to its outputs may be computed in.
    pub fn precision(&self) -> FloatDType {
        match &self.0.weight {
            Weight::Float(weight) if weight.dtype() != DType::BF16 => FloatDType::F32,
            _ => FloatDType::BF16,
        }
    }

    /// # Shapes
    /// f32 `[rows, in]` to f32 `[rows, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.0.forward(x)
    }

    /// [`forward`](Self::forward) of three layers on the same rows, which are normalised first.
    ///
    /// # Shapes
    /// f32 `[rows, in]` to f32 `[rows, out]` of each.
    pub fn forward_three(x: Tensor<2>, norm: &Norm, layers: [&Self; 3]) -> [Tensor<2>; 3] {
        fused::linear_each(x, norm, layers.map(|layer| &layer.0))
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
        fused::linear_activated(x, norm, &self.0, act)
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
        fused::linear_gated(x, norm, &self.0, &up.0, act)
    }

    /// `to + forward(x)`: the end of a block, beside its residual.
    ///
    /// # Shapes
    /// `x`: f32 `[rows, in]`; `to` and the result: f32 `[rows, out]`.
    pub fn forward_added(&self, x: Tensor<2>, to: Tensor<2>) -> Tensor<2> {
        fused::linear_added(x, &self.0, to)
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
