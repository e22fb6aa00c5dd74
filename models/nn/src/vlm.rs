//! The LLaVA layout that several architectures share: a vision tower, a projector of two linear
//! layers, a text decoder.
//!
//! *Source*: Hugging Face transformers, `modeling_llava.py`, `modeling_llava_next.py`.

mod pictures;

pub use pictures::{Arrange, PictureEncoder, PictureTask, Pixels};

use crate::decoder::{Decoder, DecoderConfig, IGNORED_SUFFIXES};
use crate::layers::Projector;
use crate::ops::Activation;
use crate::placeholder::Placeholder;
use crate::vision::{FeatureSelection, LayerIndex, TowerConfig, VisionTower};
use crate::weights::{Rename, Scope, Weights};
use kiln_registry::{
    DummyInputs, EncodeTask, Encoded, Error, HostTensor, InputContext, MediaItem, NamedTensors,
    ProcessedInputs, Prompt, PromptInputs, Result,
};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// Names of today's modules, of transformers' files and of the hub's older files, brought to the
/// canonical ones: `language_model.*`, `lm_head.*`, `vision_tower.*`, `multi_modal_projector.*`.
pub const RENAMES: &[Rename] = &[
    ("model.", ""),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "language_model."),
    ("vision_tower.vision_model.", "vision_tower."),
];

/// `config.json` of the LLaVA layout, every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct VlmConfig {
    /// The tower.
    pub tower: TowerConfig,
    /// Which of its states the projector sees.
    pub selection: FeatureSelection,
    /// The decoder.
    pub text: DecoderConfig,
    /// The id of the placeholder token (`image_token_index`, today `image_token_id`).
    pub image_token_id: u32,
    /// The projector's activation.
    pub projector_hidden_act: Activation,
    /// Whether the projector has biases.
    pub projector_bias: bool,
}

#[derive(Deserialize)]
struct Raw {
    vision_config: Option<Value>,
    text_config: Option<Value>,
    #[serde(alias = "image_token_id")]
    image_token_index: Option<u32>,
    projector_hidden_act: Option<String>,
    vision_feature_select_strategy: Option<String>,
    vision_feature_layer: Option<LayerIndex>,
    multimodal_projector_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

impl VlmConfig {
    /// The configuration of a loaded checkpoint.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] or [`Error::Unsupported`] that names the key.
    pub fn from_context(ctx: &InputContext) -> Result<Self> {
        let raw: Raw = ctx.parse_config()?;
        let object = |value: Option<Value>| value.unwrap_or_else(|| serde_json::json!({}));
        let tower = TowerConfig::from_value(&object(raw.vision_config))?;
        let layer = raw.vision_feature_layer.unwrap_or(LayerIndex::One(-2));
        let strategy = raw.vision_feature_select_strategy;
        let selection =
            FeatureSelection::new(&layer, strategy.as_deref().unwrap_or("default"), &tower)?;
        let mut text = DecoderConfig::from_value(&object(raw.text_config), "llama")?;
        // Older files say it above, not in `text_config`.
        text.tie_word_embeddings |= raw.tie_word_embeddings.unwrap_or(false);
        let act = raw.projector_hidden_act.as_deref().unwrap_or("gelu");
        Ok(Self {
            tower,
            selection,
            text,
            image_token_id: raw.image_token_index.unwrap_or(32_000),
            projector_hidden_act: Activation::from_name(act)
                .ok_or_else(|| Error::unsupported(format!("`projector_hidden_act` {act}")))?,
            projector_bias: raw.multimodal_projector_bias.unwrap_or(true),
        })
    }

    /// Replaces each image's placeholder token by as many as it has rows: `rows` of a picture,
    /// given its height and width; of embeddings that the caller computed, their own.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when the prompt does not have one placeholder per image.
    pub fn expand_images(
        &self,
        ctx: &InputContext,
        inputs: PromptInputs<'_>,
        rows: impl Fn(usize, usize) -> Result<usize>,
    ) -> Result<ProcessedInputs> {
        let prompt = ProcessedInputs {
            token_ids: inputs.token_ids,
            placeholders: vec![],
        };
        self.image().expand(ctx, inputs.items, prompt, |item| {
            match item.content()?.shape() {
                [height, width, _] => rows(*height, *width),
                shape => Err(Error::invalid(format!("an image of shape {shape:?}"))),
            }
        })
    }

    /// What stands for an image in a prompt.
    pub fn image(&self) -> Placeholder {
        Placeholder {
            modality: "image",
            key: "image_token_index",
            token_id: self.image_token_id,
        }
    }

    /// Black pictures of one size, each with its placeholder.
    ///
    /// # Errors
    /// None in practice: the size always fits the data.
    pub fn dummy_images(&self, count: usize, height: usize, width: usize) -> Result<DummyInputs> {
        let picture = HostTensor::u8([height, width, 3], vec![0; height * width * 3])?;
        let none = DummyInputs {
            prompt: Prompt::Tokens(vec![]),
            items: vec![],
        };
        let item = MediaItem::raw("image", picture);
        Ok(self.image().more_dummies(none, &item, count))
    }
}

/// A loaded model of the LLaVA layout.
pub struct Vlm {
    /// Tower and projector.
    pub pictures: Arc<PictureEncoder>,
    /// The decoder with its head.
    pub decoder: Decoder,
    weight_bytes: usize,
}

impl Vlm {
    /// Loads all parts. `extra` may take further tensors of the root; what it does not take is
    /// surplus.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a missing, surplus or wrong-shaped tensor.
    pub fn load<T>(
        config: VlmConfig,
        weights: &Weights<'_>,
        extra: impl FnOnce(&Scope<'_>) -> Result<T>,
    ) -> Result<(Self, T)> {
        let (seen, text) = (
            config.selection.width(&config.tower),
            config.text.hidden_size,
        );
        let projector = Projector::load(
            &weights.at("multi_modal_projector"),
            seen,
            text,
            config.projector_bias,
            config.projector_hidden_act,
        )?;
        let tower = VisionTower::load(config.tower, config.selection, &weights.at("vision_tower"))?;
        let decoder = Decoder::load(config.text, weights)?;
        let extra = extra(&weights.root())?;
        weights.finish(IGNORED_SUFFIXES)?;
        let model = Self {
            pictures: Arc::new(PictureEncoder::new(tower, projector)),
            decoder,
            weight_bytes: weights.bytes(),
        };
        Ok((model, extra))
    }

    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// Pictures through tower and projector: see [`PictureEncoder::encode`].
    ///
    /// # Errors
    /// As there.
    pub fn encode_pictures(&self, shape: [usize; 4], pixels: &[f32]) -> Result<Encoded> {
        self.pictures.encode(shape, pixels)
    }

    /// Items whose pictures go through tower and projector in pieces; what a model makes of an
    /// item's rows is `arrange`.
    ///
    /// # Errors
    /// What `pixels` says of an item.
    pub fn begin_pictures(
        &self,
        items: &[Arc<NamedTensors>],
        pixels: Pixels,
        arrange: Arrange,
    ) -> Result<Box<dyn EncodeTask>> {
        let task = PictureTask::new(self.pictures.clone(), items, pixels, arrange)?;
        Ok(Box::new(task))
    }
}
