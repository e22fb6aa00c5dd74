//! The text decoder of Llama's family: pre-norm blocks of rotary attention over a paged cache and a
//! gated feed-forward part.
//!
//! Activations are f32 whatever the weights are. Tokens are flat, so one pass serves any mix of
//! prompts, chunks and single tokens.
//!
//! *Source*: Hugging Face transformers, `modeling_llama.py`, `modeling_mistral.py`,
//! `modeling_qwen2.py`.

mod config;
mod layer;
mod rope;

pub use config::{DECODER_TYPES, DecoderConfig};
pub use rope::{Rope, RopeScaling};

use crate::layers::{Linear, rms_norm};
use crate::ops::fused::Norm;
use crate::weights::{Scope, Weights};
use burn::tensor::{Device, FloatDType, Int, Tensor};
use kiln_registry::{ForwardBatch, KvSpec, Result};
use layer::DecoderLayer;

/// Names that old files carry and no decoder needs: buffers that are computed.
pub const IGNORED_SUFFIXES: &[&str] = &["rotary_emb.inv_freq", "position_ids"];

/// A loaded decoder with its output head.
pub struct Decoder {
    config: DecoderConfig,
    embed_tokens: Tensor<2>,
    layers: Vec<DecoderLayer>,
    norm: Norm,
    lm_head: Linear,
    device: Device,
}

impl Decoder {
    /// Loads `language_model.*` and `lm_head.*` (the canonical names). With tied embeddings a head
    /// in the file is passed over, as the reference does.
    ///
    /// # Errors
    /// [`kiln_registry::Error::Tensor`] for a missing or wrong-shaped tensor.
    pub fn load(config: DecoderConfig, weights: &Weights<'_>) -> Result<Self> {
        let text = weights.at("language_model");
        let shape = [config.vocab_size, config.hidden_size];
        let embed_tokens: Tensor<2> = text.at("embed_tokens").weight("weight", shape)?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| DecoderLayer::load(&config, i, &text.at("layers").at(i)))
            .collect::<Result<_>>()?;
        let head: Scope<'_> = weights.at("lm_head");
        let lm_head = if config.tie_word_embeddings {
            head.skip();
            Linear::from_parts(embed_tokens.clone(), None)
        } else {
            Linear::load(&head, config.hidden_size, config.vocab_size, false)?
        };
        Ok(Self {
            norm: rms_norm(&text.at("norm"), config.hidden_size, config.rms_norm_eps)?,
            device: text.device().clone(),
            embed_tokens,
            layers,
            lm_head,
            config,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where its tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the cache must hold: keys and values in the precision of the products.
    pub fn kv_spec(&self) -> KvSpec {
        KvSpec {
            layers: self.config.num_hidden_layers,
            kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
            dtype: self.lm_head.precision().into(),
        }
    }

    /// See [`kiln_registry::MultiModalModel::prefix_domain`].
    pub fn prefix_domain(&self, prompt_len: usize) -> u64 {
        self.config.rope.prefix_domain(prompt_len)
    }

    /// Token embeddings.
    ///
    /// # Shapes
    /// `[tokens]` to f32 `[tokens, hidden]`.
    pub fn embed(&self, token_ids: Tensor<1, Int>) -> Tensor<2> {
        self.embed_tokens
            .clone()
            .select(0, token_ids)
            .cast(FloatDType::F32)
    }

    /// One pass; see [`kiln_registry::MultiModalModel::forward`].
    ///
    /// # Errors
    /// [`kiln_registry::Error::Internal`] when the cache lacks a layer.
    pub fn forward(&self, batch: ForwardBatch<'_>) -> Result<Tensor<2>> {
        let ForwardBatch {
            embeds,
            layout,
            cache,
        } = batch;
        let rotary = self.config.rope.tables(layout, &self.device);
        let mut hidden = embeds;
        for (index, layer) in self.layers.iter().enumerate() {
            let kv = cache.take(index)?;
            let (next, kv) = layer.forward(hidden, kv, layout, &rotary);
            cache.put(index, kv);
            hidden = next;
        }
        Ok(self.norm.forward(hidden))
    }

    /// The output head.
    ///
    /// # Shapes
    /// f32 `[rows, hidden]` to f32 `[rows, vocabulary]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.lm_head.forward(hidden)
    }
}
