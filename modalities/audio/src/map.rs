//! The mapper: an audio item to the tensors that a model's `encode` takes.

use crate::config::FeatureExtractorConfig;
use crate::features::log_mel;
use crate::resample::resample;
use crate::sound::Sound;
use kiln_registry::{HostTensor, InputContext, MediaItem, NamedTensors, Result};

/// The mapper of models that hear as Whisper does.
///
/// # Shapes
/// `input_features`: f32 `[1, feature_size, frames]`, padded or cut to `chunk_length`.
/// `feature_attention_mask`: i64 `[1, frames]`, 1 where the sound is and 0 where padding is.
///
/// # Errors
/// [`kiln_registry::Error::InvalidInput`] for a sound without samples, or with some that are no
/// numbers; [`kiln_registry::Error::Checkpoint`] or [`kiln_registry::Error::Unsupported`] for a
/// configuration that can't be followed.
pub fn map_audio(ctx: &InputContext, item: &MediaItem) -> Result<NamedTensors> {
    map_sound(
        &FeatureExtractorConfig::from_context(ctx)?,
        Sound::from_item(item)?,
    )
}

pub(crate) fn map_sound(config: &FeatureExtractorConfig, sound: Sound<'_>) -> Result<NamedTensors> {
    let samples = resample(config, sound.samples(), sound.rate())?;
    let features = log_mel(config, &samples)?;
    let frames = config.frames();
    let valid = config.valid_frames(sound.samples().len(), sound.rate());
    let mask = (0..frames).map(|at| i64::from(at < valid)).collect();
    Ok(NamedTensors::new()
        .with(
            "input_features",
            HostTensor::f32([1, config.feature_size, frames], features)?,
        )
        .with(
            "feature_attention_mask",
            HostTensor::i64([1, frames], mask)?,
        ))
}
