//! Audio: Whisper's tower, and a projector of its own.

use kiln_audio::{FeatureExtractorConfig, MODALITY, Sound};
use kiln_nn::audio::{AudioTower, AudioTowerConfig};
use kiln_nn::layers::Projector;
use kiln_nn::placeholder::Placeholder;
use kiln_nn::vlm::VlmConfig;
use kiln_nn::weights::Scope;
use kiln_registry::{
    DummyInputs, Encoded, InputContext, MaxTokens, MediaItem, ModalitySupport, NamedTensors,
    ProcessedInputs, Result,
};
use serde::Deserialize;
use serde_json::Value;

/// How the model takes a sound.
pub(crate) const SUPPORT: ModalitySupport =
    ModalitySupport::new().max_tokens(MaxTokens::Computed(max_tokens));

#[derive(Deserialize)]
struct Keys {
    #[serde(alias = "audio_token_id")]
    audio_token_index: u32,
    audio_config: Value,
}

fn placeholder(ctx: &InputContext) -> Result<Placeholder> {
    let keys: Keys = ctx.parse_config()?;
    Ok(Placeholder {
        modality: MODALITY,
        key: "audio_token_index",
        token_id: keys.audio_token_index,
    })
}

fn tower(ctx: &InputContext) -> Result<AudioTowerConfig> {
    let keys: Keys = ctx.parse_config()?;
    AudioTowerConfig::from_value(&keys.audio_config)
}

fn max_tokens(ctx: &InputContext) -> Result<usize> {
    let frames = FeatureExtractorConfig::from_context(ctx)?.frames();
    Ok(tower(ctx)?.positions(frames))
}

/// With sounds as long as the features are.
pub(crate) fn dummies(ctx: &InputContext, count: usize, inputs: DummyInputs) -> Result<DummyInputs> {
    let longest = Sound::longest(&FeatureExtractorConfig::from_context(ctx)?)?;
    Ok(placeholder(ctx)?.more_dummies(inputs, &longest, count))
}

/// With a sound's placeholder as often as it has positions; padding has none.
pub(crate) fn expand(
    ctx: &InputContext,
    items: &[MediaItem],
    prompt: ProcessedInputs,
) -> Result<ProcessedInputs> {
    let extractor = FeatureExtractorConfig::from_context(ctx)?;
    let tower = tower(ctx)?;
    placeholder(ctx)?.expand(ctx, items, prompt, |item| {
        let sound = Sound::from_item(item)?;
        let frames = extractor.valid_frames(sound.samples().len(), sound.rate());
        Ok(tower.positions(frames))
    })
}

/// The tower and the projector.
pub(crate) struct AudioPart {
    tower: AudioTower,
    projector: Projector,
}

impl AudioPart {
    pub(crate) fn load(ctx: &InputContext, root: &Scope<'_>) -> Result<Self> {
        let config = tower(ctx)?;
        let vlm = VlmConfig::from_context(ctx)?;
        Ok(Self {
            projector: Projector::load(
                &root.at("audio_projector"),
                config.d_model,
                vlm.text.hidden_size,
                vlm.projector_bias,
                vlm.projector_hidden_act,
            )?,
            tower: AudioTower::load(config, &root.at("audio_tower"))?,
        })
    }

    /// # Shapes
    /// `input_features`: f32 `[1, num_mel_bins, frames]`, `feature_attention_mask`: i64
    /// `[1, frames]`; the features: f32 `[positions, hidden]`.
    pub(crate) fn encode(&self, item: &NamedTensors) -> Result<Encoded> {
        let ([_, bands, frames], features) = item.require_f32::<3>("input_features")?;
        let (_, mask) = item.require_i64::<2>("feature_attention_mask")?;
        let states = self.tower.features([bands, frames], features)?;
        let config = self.tower.config();
        let positions = config.positions(mask.iter().filter(|m| **m != 0).count());
        let states = states.slice([0..positions, 0..config.d_model]);
        Ok(Encoded {
            features: self.projector.forward(states.clone()),
            tower: Some(states.reshape([1, positions, config.d_model])),
        })
    }
}
