//! LLaVA 1.5 for Kiln.
//!
//! # Architecture
//! A CLIP or SigLIP tower, two linear layers, a decoder of Llama's family; each picked by its
//! `model_type`. The tower's features are one hidden state or several side by side
//! (`vision_feature_layer`), with or without the first token (`vision_feature_select_strategy`).
//! # Inputs
//! Images, resized and cropped to the tower's size: `pixel_values` f32 `[1, 3, side, side]`.
//! # Token layout
//! Every image takes the same number of placeholder tokens, whatever its size.
//! # Weights
//! The three name layouts of [`kiln_nn::vlm::RENAMES`].
//! # Source
//! *Improved Baselines with Visual Instruction Tuning* (Liu et al., 2023); Hugging Face
//! transformers, `modeling_llava.py`, `processing_llava.py`.

use burn::tensor::{Int, Tensor};
use kiln_nn::vlm::{RENAMES, Vlm, VlmConfig};
use kiln_nn::weights::Weights;
use kiln_registry::{
    DummyInputs, EncodeTask, Encoded, Error, ForwardBatch, InputContext, KvSpec, LoadContext,
    LoadModel, MaxTokens, MediaCounts, ModalitySupport, ModelEntry, MultiModalModel, NamedTensors,
    ProcessedInputs, PromptInputs, Result, encode_at_once, inventory,
};
use std::sync::Arc;

inventory::submit! {
    ModelEntry::new::<Llava>(env!("CARGO_PKG_NAME"), &["LlavaForConditionalGeneration"])
        .image(ModalitySupport::new().max_tokens(MaxTokens::Computed(max_image_tokens)))
        .dummy_data(dummy_data)
        .input_processor(expand_placeholders)
}

fn max_image_tokens(ctx: &InputContext) -> Result<usize> {
    let config = VlmConfig::from_context(ctx)?;
    Ok(config.selection.tokens(&config.tower))
}

fn dummy_data(ctx: &InputContext, _seq_len: usize, counts: &MediaCounts) -> Result<DummyInputs> {
    let config = VlmConfig::from_context(ctx)?;
    let side = config.tower.image_size;
    config.dummy_images(counts.get(kiln_image::MODALITY), side, side)
}

fn expand_placeholders(ctx: &InputContext, inputs: PromptInputs<'_>) -> Result<ProcessedInputs> {
    let config = VlmConfig::from_context(ctx)?;
    let rows = config.selection.tokens(&config.tower);
    config.expand_images(ctx, inputs, |_, _| Ok(rows))
}

fn pixels(item: &NamedTensors) -> Result<([usize; 4], &[f32])> {
    item.require_f32::<4>("pixel_values")
}

/// A loaded model.
pub struct Llava(Vlm);

impl LoadModel for Llava {
    fn load(ctx: &LoadContext<'_>) -> Result<Box<dyn MultiModalModel>> {
        let config = VlmConfig::from_context(ctx.input)?;
        let weights = Weights::open(ctx, RENAMES)?;
        let (vlm, ()) = Vlm::load(config, &weights, |_| Ok(()))?;
        Ok(Box::new(Self(vlm)))
    }
}

impl MultiModalModel for Llava {
    fn kv_spec(&self) -> KvSpec {
        self.0.decoder.kv_spec()
    }

    fn vocab_size(&self) -> usize {
        self.0.decoder.config().vocab_size
    }

    fn hidden_size(&self) -> usize {
        self.0.decoder.config().hidden_size
    }

    fn max_position_embeddings(&self) -> usize {
        self.0.decoder.config().max_position_embeddings
    }

    fn prefix_domain(&self, prompt_len: usize) -> u64 {
        self.0.decoder.prefix_domain(prompt_len)
    }

    fn weight_bytes(&self) -> usize {
        self.0.weight_bytes()
    }

    fn encode(&self, modality: &str, items: &[&NamedTensors]) -> Result<Vec<Encoded>> {
        if modality != kiln_image::MODALITY {
            return Err(Error::unsupported(format!("{modality} input by LLaVA")));
        }
        items
            .iter()
            .map(|item| {
                let (shape, pixels) = item.require_f32::<4>("pixel_values")?;
                self.0.encode_pictures(shape, pixels)
            })
            .collect()
    }

    fn begin_encode(
        &self,
        modality: &str,
        items: &[Arc<NamedTensors>],
    ) -> Result<Box<dyn EncodeTask>> {
        match modality == kiln_image::MODALITY {
            true => self
                .0
                .begin_pictures(items, pixels, Box::new(|_, encoded| Ok(encoded))),
            false => encode_at_once(self, modality, items),
        }
    }

    fn embed(&self, token_ids: Tensor<1, Int>) -> Result<Tensor<2>> {
        Ok(self.0.decoder.embed(token_ids))
    }

    fn forward(&self, batch: ForwardBatch<'_>) -> Result<Tensor<2>> {
        self.0.decoder.forward(batch)
    }

    fn logits(&self, hidden: Tensor<2>) -> Result<Tensor<2>> {
        Ok(self.0.decoder.logits(hidden))
    }
}
