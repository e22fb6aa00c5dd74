//! Text-only decoders for Kiln: Llama, Mistral and Qwen2, with no modality at all.
//!
//! # Architecture
//! A decoder of Llama's family (see [`kiln_nn::decoder`]); `model_type` picks its defaults.
//! # Inputs
//! Text.
//! # Token layout
//! As tokenised.
//! # Weights
//! `model.*` and `lm_head.*`; the head is absent where embeddings are tied.
//! # Source
//! Hugging Face transformers, `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py`.

use burn::tensor::{Int, Tensor};
use kiln_nn::decoder::{Decoder, DecoderConfig, IGNORED_SUFFIXES};
use kiln_nn::weights::Weights;
use kiln_registry::{
    ForwardBatch, KvSpec, LoadContext, LoadModel, ModelEntry, MultiModalModel, Result, inventory,
};

inventory::submit! {
    ModelEntry::new::<CausalLm>(
        env!("CARGO_PKG_NAME"),
        &["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"],
    )
}

/// A loaded decoder as a model.
pub struct CausalLm {
    decoder: Decoder,
    weight_bytes: usize,
}

impl LoadModel for CausalLm {
    fn load(ctx: &LoadContext<'_>) -> Result<Box<dyn MultiModalModel>> {
        let config = DecoderConfig::from_value(ctx.input.config(), "llama")?;
        let weights = Weights::open(ctx, &[("model.", "language_model.")])?;
        let decoder = Decoder::load(config, &weights)?;
        weights.finish(IGNORED_SUFFIXES)?;
        Ok(Box::new(Self {
            decoder,
            weight_bytes: weights.bytes(),
        }))
    }
}

impl MultiModalModel for CausalLm {
    fn kv_spec(&self) -> KvSpec {
        self.decoder.kv_spec()
    }

    fn vocab_size(&self) -> usize {
        self.decoder.config().vocab_size
    }

    fn hidden_size(&self) -> usize {
        self.decoder.config().hidden_size
    }

    fn max_position_embeddings(&self) -> usize {
        self.decoder.config().max_position_embeddings
    }

    fn prefix_domain(&self, prompt_len: usize) -> u64 {
        self.decoder.prefix_domain(prompt_len)
    }

    fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    fn embed(&self, token_ids: Tensor<1, Int>) -> Result<Tensor<2>> {
        Ok(self.decoder.embed(token_ids))
    }

    fn forward(&self, batch: ForwardBatch<'_>) -> Result<Tensor<2>> {
        self.decoder.forward(batch)
    }

    fn logits(&self, hidden: Tensor<2>) -> Result<Tensor<2>> {
        Ok(self.decoder.logits(hidden))
    }
}
