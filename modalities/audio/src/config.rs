//! A feature extractor's configuration as a typed struct, with Hugging Face's defaults.
//!
//! *Source*: Hugging Face transformers, `WhisperFeatureExtractor`.

use crate::sound::RATES;
use kiln_registry::{Error, InputContext, Result};
use serde::Deserialize;
use serde_json::Value;

const FILE: &str = "preprocessor_config.json";
const WHISPER: &str = "WhisperFeatureExtractor";

/// The configuration of `WhisperFeatureExtractor`, every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureExtractorConfig {
    /// Mel bands.
    pub feature_size: usize,
    /// Samples of a second.
    pub sampling_rate: u32,
    /// Samples from one frame to the next.
    pub hop_length: usize,
    /// Seconds that a sound is padded or cut to.
    pub chunk_length: usize,
    /// Samples of a frame.
    pub n_fft: usize,
    /// What a short sound is padded with.
    pub padding_value: f32,
}

impl Default for FeatureExtractorConfig {
    fn default() -> Self {
        Self {
            feature_size: 80,
            sampling_rate: 16_000,
            hop_length: 160,
            chunk_length: 30,
            n_fft: 400,
            padding_value: 0.0,
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    feature_extractor_type: Option<String>,
    feature_size: Option<usize>,
    sampling_rate: Option<u32>,
    hop_length: Option<usize>,
    chunk_length: Option<usize>,
    n_fft: Option<usize>,
    padding_value: Option<f32>,
    dither: Option<f64>,
}

impl FeatureExtractorConfig {
    /// The configuration of a loaded checkpoint: the object `feature_extractor` where there is one,
    /// else the processor's own keys where it names `WhisperFeatureExtractor`, else the defaults.
    ///
    /// # Errors
    /// As [`from_value`](Self::from_value).
    pub fn from_context(ctx: &InputContext) -> Result<Self> {
        let processor = ctx.processor();
        match processor.get("feature_extractor") {
            None | Some(Value::Null) => {}
            Some(own) => return Self::from_value(own),
        }
        let named = processor
            .get("feature_extractor_type")
            .and_then(Value::as_str);
        if named == Some(WHISPER) {
            return Self::from_value(processor);
        }
        Ok(Self::default())
    }

    /// The configuration in a JSON object. No type is Whisper's.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another type, or one that adds noise; [`Error::Checkpoint`] for a
    /// value that makes no sense.
    pub fn from_value(value: &Value) -> Result<Self> {
        let wrong = |message: String| Error::checkpoint(FILE, message);
        let raw = Raw::deserialize(value).map_err(|e| wrong(e.to_string()))?;
        if let Some(other) = raw.feature_extractor_type.filter(|name| name != WHISPER) {
            return Err(Error::unsupported(format!(
                "the feature extractor `{other}` (known: {WHISPER})"
            )));
        }
        if raw.dither.is_some_and(|d| d != 0.0) {
            return Err(Error::unsupported(
                "a feature extractor with `dither`: noise would change an answer from run to run",
            ));
        }
        let default = Self::default();
        let config = Self {
            feature_size: raw.feature_size.unwrap_or(default.feature_size),
            sampling_rate: raw.sampling_rate.unwrap_or(default.sampling_rate),
            hop_length: raw.hop_length.unwrap_or(default.hop_length),
            chunk_length: raw.chunk_length.unwrap_or(default.chunk_length),
            n_fft: raw.n_fft.unwrap_or(default.n_fft),
            padding_value: raw.padding_value.unwrap_or(default.padding_value),
        };
        let rate = config.sampling_rate as usize;
        for (name, given, most) in [
            ("feature_size", config.feature_size, 1024),
            ("hop_length", config.hop_length, rate),
            ("chunk_length", config.chunk_length, 3600),
            ("n_fft", config.n_fft, rate),
        ] {
            if !(1..=most).contains(&given) {
                return Err(wrong(format!(
                    "`{name}` is {given}; it lies between 1 and {most}"
                )));
            }
        }
        if !RATES.contains(&config.sampling_rate) || config.n_fft < 2 {
            return Err(wrong("`sampling_rate` or `n_fft` makes no sense".into()));
        }
        if !(-1.0..=1.0).contains(&config.padding_value) {
            return Err(wrong("`padding_value` lies between -1 and 1".into()));
        }
        Ok(config)
    }

    /// Samples that every sound is padded or cut to.
    pub fn samples(&self) -> usize {
        self.chunk_length * self.sampling_rate as usize
    }

    /// Frames of every sound, padding included.
    pub fn frames(&self) -> usize {
        self.samples() / self.hop_length
    }

    /// Frames that a sound of so many samples fills, at its own rate; the others are padding. What
    /// exceeds [`chunk_length`](Self::chunk_length) is cut off, as in the reference.
    pub fn valid_frames(&self, samples: usize, rate: Option<u32>) -> usize {
        let samples = self.resampled(samples, rate).min(self.samples());
        samples.div_ceil(self.hop_length).min(self.frames())
    }

    /// How many samples so many of another rate become.
    pub(crate) fn resampled(&self, samples: usize, rate: Option<u32>) -> usize {
        let (to, from) = (
            u128::from(self.sampling_rate),
            u128::from(rate.unwrap_or(self.sampling_rate)),
        );
        let samples = (samples as u128 * to).div_ceil(from.max(1));
        usize::try_from(samples).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_whispers() {
        let config = FeatureExtractorConfig::from_value(&json!({})).unwrap();
        assert_eq!((config.frames(), config.samples()), (3000, 480_000));
        let large = json!({"feature_extractor_type": WHISPER, "feature_size": 128, "dither": 0.0});
        assert_eq!(
            FeatureExtractorConfig::from_value(&large)
                .unwrap()
                .feature_size,
            128
        );
    }

    #[test]
    fn frames_are_counted_as_the_reference_masks_them() {
        let config = FeatureExtractorConfig::default();
        for (samples, rate, frames) in [
            (1, None, 1),
            (160, None, 1),
            (161, None, 2),
            (160, Some(48_000), 1),
            (481, Some(48_000), 2),
            (480_000, None, 3000),
            (10_000_000, None, 3000),
            (usize::MAX, Some(8000), 3000),
        ] {
            assert_eq!(
                config.valid_frames(samples, rate),
                frames,
                "{samples} at {rate:?}"
            );
        }
    }

    #[test]
    fn what_can_not_be_followed_is_named() {
        for value in [
            json!({"feature_size": 0}),
            json!({"hop_length": 0}),
            json!({"n_fft": 1}),
            json!({"n_fft": 1_000_000}),
            json!({"chunk_length": 100_000}),
            json!({"sampling_rate": 10}),
            json!({"sampling_rate": -1}),
            json!({"feature_extractor_type": "SeamlessM4TFeatureExtractor"}),
            json!({"dither": 0.1}),
            json!({"padding_value": 1e30}),
        ] {
            assert!(
                FeatureExtractorConfig::from_value(&value).is_err(),
                "{value}"
            );
        }
    }
}
