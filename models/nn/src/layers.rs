//! Linear layers, their weights kept `[out, in]` as checkpoints store them, and norms.

use crate::ops::{self, Activation, QuantizedWeight};
use crate::weights::Scope;
use burn::tensor::{DType, FloatDType, Tensor};
use kiln_registry::Result;

/// `y = x · wᵀ + b`.
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor<1>>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "a few hundred layers, most of them of one kind"
)]
enum Weight {
    Float(Tensor<2>),
    Quantized(QuantizedWeight),
}

impl Linear {
    /// `weight` and, where `bias` says so, `bias` of a scope.
    ///
    /// # Errors
    /// See [`Scope::weight`].
    pub fn load(scope: &Scope<'_>, input: usize, output: usize, bias: bool) -> Result<Self> {
        Ok(Self {
            weight: match scope.quantization() {
                None => Weight::Float(scope.weight("weight", [output, input])?),
                Some(kind) => {
                    let weight = scope.quantized("weight", [output, input], kind)?;
                    Weight::Quantized(weight)
                }
            },
            bias: bias.then(|| scope.vector("bias", output)).transpose()?,
        })
    }

    /// A layer of given parts, such as a convolution's kernel laid flat.
    pub fn from_parts(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self {
            weight: Weight::Float(weight),
            bias,
        }
    }

    /// The precision of its products: what attention to its outputs may be computed in.
    pub fn precision(&self) -> FloatDType {
        match &self.weight {
            Weight::Float(weight) if weight.dtype() != DType::BF16 => FloatDType::F32,
            _ => FloatDType::BF16,
        }
    }

    /// # Shapes
    /// f32 `[rows, in]` to f32 `[rows, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.weight {
            Weight::Float(weight) => ops::linear(x, weight.clone(), self.bias.clone()),
            Weight::Quantized(weight) => ops::linear_quantized(x, weight, self.bias.clone()),
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
        let x = ops::activation(self.linear_1.forward(features), self.act);
        self.linear_2.forward(x)
    }
}

/// Layer normalisation with weight and bias.
pub struct LayerNorm {
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
}

impl LayerNorm {
    /// `weight` and `bias` of a scope.
    ///
    /// # Errors
    /// See [`Scope::vector`].
    pub fn load(scope: &Scope<'_>, width: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: scope.vector("weight", width)?,
            bias: scope.vector("bias", width)?,
            eps,
        })
    }

    /// # Shapes
    /// f32 `[rows, width]` to the same.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::layer_norm(x, self.weight.clone(), self.bias.clone(), self.eps)
    }
}

/// Root-mean-square normalisation.
pub struct RmsNorm {
    weight: Tensor<1>,
    eps: f64,
}

impl RmsNorm {
    /// `weight` of a scope.
    ///
    /// # Errors
    /// See [`Scope::vector`].
    pub fn load(scope: &Scope<'_>, width: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: scope.vector("weight", width)?,
            eps,
        })
    }

    /// # Shapes
    /// f32 `[rows, width]` to the same.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::rms_norm(x, self.weight.clone(), self.eps)
    }
}
