//! The layer that towers share: pre-norm full attention and a feed-forward part of two linear layers.

use crate::layers::{Linear, layer_norm};
use crate::ops::{self, Activation, fused::Norm};
use crate::weights::Scope;
use burn::tensor::{FloatDType, Tensor};
use kiln_registry::Result;

/// The sizes of a layer, and what differs between towers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncoderLayerConfig {
    /// Width of hidden states.
    pub(crate) width: usize,
    /// Width inside the feed-forward part.
    pub(crate) inner: usize,
    /// Heads.
    pub(crate) heads: usize,
    /// The feed-forward part's activation.
    pub(crate) act: Activation,
    /// Added under the root of every norm.
    pub(crate) eps: f64,
    /// Whether `k_proj` has a bias.
    pub(crate) k_bias: bool,
}

/// Where a tower keeps the parts of a layer.
pub(crate) struct EncoderLayerNames {
    /// The norm before attention.
    pub(crate) attention_norm: &'static str,
    /// The norm before the feed-forward part.
    pub(crate) mlp_norm: &'static str,
    /// The scope of `fc1` and `fc2`, where they have one.
    pub(crate) mlp: Option<&'static str>,
}

/// A loaded layer.
pub(crate) struct EncoderLayer {
    attention_norm: Norm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    mlp_norm: Norm,
    fc1: Linear,
    fc2: Linear,
    act: Activation,
    heads: usize,
}

impl EncoderLayer {
    pub(crate) fn load(
        config: EncoderLayerConfig,
        names: &EncoderLayerNames,
        scope: &Scope<'_>,
    ) -> Result<Self> {
        let (width, inner) = (config.width, config.inner);
        let attention = scope.at("self_attn");
        let mlp = names
            .mlp
            .map_or_else(|| scope.clone(), |name| scope.at(name));
        let square = |name: &str, bias| Linear::load(&attention.at(name), width, width, bias);
        let norm = |name: &str| layer_norm(&scope.at(name), width, config.eps);
        Ok(Self {
            attention_norm: norm(names.attention_norm)?,
            q_proj: square("q_proj", true)?,
            k_proj: square("k_proj", config.k_bias)?,
            v_proj: square("v_proj", true)?,
            out_proj: square("out_proj", true)?,
            mlp_norm: norm(names.mlp_norm)?,
            fc1: Linear::load(&mlp.at("fc1"), width, inner, true)?,
            fc2: Linear::load(&mlp.at("fc2"), inner, width, true)?,
            act: config.act,
            heads: config.heads,
        })
    }

    /// # Shapes
    /// `[items * tokens, width]` to the same.
    pub(crate) fn forward(&self, x: Tensor<2>, items: usize, tokens: usize) -> Tensor<2> {
        let [rows, width] = x.dims();
        let head_dim = width / self.heads;
        let split = |x: Tensor<2>| x.reshape([items, tokens, self.heads, head_dim]);
        let layers = [&self.q_proj, &self.k_proj, &self.v_proj];
        let [q, k, v] = Linear::forward_three(x.clone(), &self.attention_norm, layers);
        let stored = |layer: &Linear, y: Tensor<2>| match layer.precision() {
            FloatDType::F32 => split(y),
            other => ops::cast(split(y), other),
        };
        let attended = ops::attention(
            split(q),
            stored(&self.k_proj, k),
            stored(&self.v_proj, v),
            (head_dim as f32).powf(-0.5),
        );
        let attended = attended.reshape([rows, width]);
        let x = self.out_proj.forward_added(attended, x);
        let norm = Some(&self.mlp_norm);
        let y = self.fc1.forward_activated(x.clone(), norm, self.act);
        self.fc2.forward_added(y, x)
    }
}
