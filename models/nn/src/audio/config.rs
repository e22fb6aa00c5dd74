//! `audio_config` of a tower as one struct.
//!
//! *Source*: Hugging Face transformers, `WhisperConfig`, `Qwen2AudioEncoderConfig`,
//! `VoxtralEncoderConfig`.

use crate::ops::Activation;
use kiln_registry::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// The towers that are known, by `model_type`: all are Whisper's encoder. (Qwen2-Audio and Voxtral
/// pool or stack its output; that is their models' to do.)
pub const AUDIO_TYPES: [&str; 3] = ["whisper", "qwen2_audio_encoder", "voxtral_encoder"];

/// All that a tower hangs on.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioTowerConfig {
    /// Width of hidden states.
    pub d_model: usize,
    /// Width inside the feed-forward part.
    pub encoder_ffn_dim: usize,
    /// Layers.
    pub encoder_layers: usize,
    /// Heads.
    pub encoder_attention_heads: usize,
    /// Bands of the features.
    pub num_mel_bins: usize,
    /// Positions: half as many as frames, because the second convolution takes every other one.
    pub max_source_positions: usize,
    /// The activation of the feed-forward part. Convolutions have GELU, whatever it is.
    pub activation_function: Activation,
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    #[serde(alias = "hidden_size")]
    d_model: Option<usize>,
    #[serde(alias = "intermediate_size")]
    encoder_ffn_dim: Option<usize>,
    #[serde(alias = "num_hidden_layers")]
    encoder_layers: Option<usize>,
    #[serde(alias = "num_attention_heads")]
    encoder_attention_heads: Option<usize>,
    num_mel_bins: Option<usize>,
    max_source_positions: Option<usize>,
    activation_function: Option<String>,
}

impl AudioTowerConfig {
    /// The configuration in a model's `audio_config`. An absent `model_type` is Whisper's.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown type or activation; [`Error::Checkpoint`] for values
    /// that make no sense.
    pub fn from_value(value: &Value) -> Result<Self> {
        let fault = |m: String| Error::checkpoint("config.json", format!("`audio_config`: {m}"));
        let raw = Raw::deserialize(value).map_err(|e| fault(e.to_string()))?;
        let kind = raw.model_type.as_deref().unwrap_or("whisper");
        if !AUDIO_TYPES.contains(&kind) {
            return Err(Error::unsupported(format!(
                "the audio tower `{kind}` (known: {})",
                AUDIO_TYPES.join(", ")
            )));
        }
        // Whisper's configuration is that of its smallest model, the others' that of the largest.
        let or = |given: Option<usize>, whisper: usize, large: usize| {
            given.unwrap_or(if kind == "whisper" { whisper } else { large })
        };
        let act = raw.activation_function.as_deref().unwrap_or("gelu");
        let config = Self {
            d_model: or(raw.d_model, 384, 1280),
            encoder_ffn_dim: or(raw.encoder_ffn_dim, 1536, 5120),
            encoder_layers: or(raw.encoder_layers, 4, 32),
            encoder_attention_heads: or(raw.encoder_attention_heads, 6, 20),
            num_mel_bins: or(raw.num_mel_bins, 80, 128),
            max_source_positions: raw.max_source_positions.unwrap_or(1500),
            activation_function: Activation::from_name(act).ok_or_else(|| {
                Error::unsupported(format!("the audio tower's `activation_function` {act}"))
            })?,
        };
        for (name, value, most) in [
            ("d_model", config.d_model, 1 << 20),
            ("encoder_ffn_dim", config.encoder_ffn_dim, 1 << 24),
            ("encoder_layers", config.encoder_layers, 1024),
            (
                "encoder_attention_heads",
                config.encoder_attention_heads,
                4096,
            ),
            ("num_mel_bins", config.num_mel_bins, 1024),
            ("max_source_positions", config.max_source_positions, 1 << 20),
        ] {
            if !(1..=most).contains(&value) {
                return Err(fault(format!(
                    "`{name}` is {value}; it lies between 1 and {most}"
                )));
            }
        }
        if !config
            .d_model
            .is_multiple_of(config.encoder_attention_heads)
        {
            return Err(fault(format!(
                "{} heads do not divide a width of {}",
                config.encoder_attention_heads, config.d_model
            )));
        }
        Ok(config)
    }

    /// Frames that the tower takes.
    pub fn frames(&self) -> usize {
        2 * self.max_source_positions
    }

    /// Positions that so many frames of sound fill; the others are padding.
    pub fn positions(&self, frames: usize) -> usize {
        frames.div_ceil(2).min(self.max_source_positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_hang_on_the_type() {
        let tiny = AudioTowerConfig::from_value(&json!({})).unwrap();
        assert_eq!(
            (tiny.d_model, tiny.num_mel_bins, tiny.frames()),
            (384, 80, 3000)
        );
        let large = json!({"model_type": "qwen2_audio_encoder"});
        let large = AudioTowerConfig::from_value(&large).unwrap();
        assert_eq!((large.d_model, large.encoder_layers), (1280, 32));
        let voxtral = json!({"model_type": "voxtral_encoder", "hidden_size": 640});
        assert_eq!(AudioTowerConfig::from_value(&voxtral).unwrap().d_model, 640);
    }

    #[test]
    fn what_can_not_be_followed_is_named() {
        for value in [
            json!({"model_type": "wav2vec2"}),
            json!({"activation_function": "tan"}),
            json!({"d_model": 0}),
            json!({"encoder_attention_heads": 7}),
            json!({"max_source_positions": -1}),
        ] {
            assert!(AudioTowerConfig::from_value(&value).is_err(), "{value}");
        }
    }
}
