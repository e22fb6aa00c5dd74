//! One block: attention over the paged cache, then the gated feed-forward part, each behind a norm
//! and beside a residual.

use super::DecoderConfig;
use crate::layers::{Linear, RmsNorm};
use crate::ops::{self, Activation};
use crate::weights::Scope;
use burn::tensor::Tensor;
use kiln_registry::{BatchLayout, KvLayer, Result};

pub(super) struct DecoderLayer {
    input_layernorm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: RmsNorm,
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
        let norm = |name: &str| RmsNorm::load(&scope.at(name), hidden, config.rms_norm_eps);
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
        let x = self.input_layernorm.forward(hidden.clone());
        let split = |x: Tensor<2>, heads: usize| x.reshape([tokens, heads, self.head_dim]);
        let rotate = |x: Tensor<3>| ops::rotary(x, rotary.0.clone(), rotary.1.clone());
        let q = rotate(split(self.q_proj.forward(x.clone()), self.heads));
        let k = rotate(split(self.k_proj.forward(x.clone()), self.kv_heads));
        let v = split(self.v_proj.forward(x), self.kv_heads);
        // The cache is written in place as long as nothing else holds it.
        let keys = ops::kv_write(kv.keys, k, layout.slots.clone());
        let values = ops::kv_write(kv.values, v, layout.slots.clone());
        let scale = (self.head_dim as f32).powf(-0.5);
        let attended =
            ops::paged_attention(q, keys.clone(), values.clone(), layout, scale, self.window);
        let attended = attended.reshape([tokens, self.heads * self.head_dim]);
        let hidden = hidden + self.o_proj.forward(attended);
        let x = self.post_attention_layernorm.forward(hidden.clone());
        let gated = ops::gated(
            self.gate_proj.forward(x.clone()),
            self.up_proj.forward(x),
            self.act,
        );
        let hidden = hidden + self.down_proj.forward(gated);
        (hidden, KvLayer { keys, values })
    }
}
