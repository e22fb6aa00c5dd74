//! One block: attention over the paged cache, then the gated feed-forward part, each behind a norm
//! and beside a residual.

use super::DecoderConfig;
use crate::layers::{Linear, rms_norm};
use crate::ops::{self, Activation, fused::Norm};
use crate::weights::Scope;
use burn::tensor::Tensor;
use kiln_registry::{BatchLayout, KvLayer, Result};

pub(super) struct DecoderLayer {
    input_layernorm: Norm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: Norm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    act: Activation,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

impl DecoderLayer {
    pub(super) fn load(config: &DecoderConfig, index: usize, scope: &Scope<'_>) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let head_dim = config.head_dim;
        let (attention, mlp) = (scope.at("self_attn"), scope.at("mlp"));
        let qkv = |name: &str, heads: usize| {
            Linear::load(
                &attention.at(name),
                hidden,
                heads * head_dim,
                config.qkv_bias,
            )
        };
        let norm = |name: &str| rms_norm(&scope.at(name), hidden, config.rms_norm_eps);
        let feed = |name: &str, from: usize, to: usize| {
            Linear::load(&mlp.at(name), from, to, config.mlp_bias)
        };
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            q_proj: qkv("q_proj", heads)?,
            k_proj: qkv("k_proj", kv_heads)?,
            v_proj: qkv("v_proj", kv_heads)?,
            o_proj: Linear::load(
                &attention.at("o_proj"),
                heads * head_dim,
                hidden,
                config.output_bias,
            )?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            gate_proj: feed("gate_proj", hidden, inner)?,
            up_proj: feed("up_proj", hidden, inner)?,
            down_proj: feed("down_proj", inner, hidden)?,
            act: config.hidden_act,
            heads,
            kv_heads,
            head_dim,
            window: config.windows.get(index).copied().flatten(),
        })
    }

    /// # Shapes
    /// `hidden`: `[tokens, hidden]`, and so the result; `rotary`: both `[tokens, head_dim / 2]`.
    pub(super) fn forward(
        &self,
        hidden: Tensor<2>,
        kv: KvLayer,
        layout: &BatchLayout,
        rotary: &(Tensor<2>, Tensor<2>),
    ) -> (Tensor<2>, KvLayer) {
        let tokens = layout.tokens();
        let layers = [&self.q_proj, &self.k_proj, &self.v_proj];
        let [q, k, v] = Linear::forward_three(hidden.clone(), &self.input_layernorm, layers);
        let split = |x: Tensor<2>, heads: usize| x.reshape([tokens, heads, self.head_dim]);
        let rotate = |x: Tensor<3>| ops::rotary(x, rotary.0.clone(), rotary.1.clone());
        let q = rotate(split(q, self.heads));
        let k = rotate(split(k, self.kv_heads));
        let v = split(v, self.kv_heads);
        // The cache is written in place as long as nothing else holds it.
        let keys = ops::kv_write(kv.keys, k, layout.slots.clone());
        let values = ops::kv_write(kv.values, v, layout.slots.clone());
        let scale = (self.head_dim as f32).powf(-0.5);
        let attended =
            ops::paged_attention(q, keys.clone(), values.clone(), layout, scale, self.window);
        let attended = attended.reshape([tokens, self.heads * self.head_dim]);
        let hidden = self.o_proj.forward_added(attended, hidden);
        let norm = &self.post_attention_layernorm;
        let gated = self
            .gate_proj
            .forward_gating(hidden.clone(), norm, &self.up_proj, self.act);
        let hidden = self.down_proj.forward_added(gated, hidden);
        (hidden, KvLayer { keys, values })
    }
}
