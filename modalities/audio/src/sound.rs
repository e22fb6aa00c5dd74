//! An audio item: samples of one channel, and how many of them make a second.

use crate::{FeatureExtractorConfig, MODALITY};
use kiln_registry::{Error, HostTensor, MediaItem, NamedTensors, Result};

/// The tensor of an item that says how many samples make a second: i64 `[1]`.
pub const SAMPLING_RATE: &str = "sampling_rate";

/// Sampling rates that make sense, in hertz.
pub(crate) const RATES: std::ops::RangeInclusive<u32> = 1_000..=384_000;

/// A sample lies between -1 and 1. Formats of floats may exceed that; by so much is a fault, and
/// sums of squares stay finite.
const LOUDEST: f32 = 1e6;

/// The samples of a decoded item.
#[derive(Debug, Clone, Copy)]
pub struct Sound<'a> {
    samples: &'a [f32],
    rate: Option<u32>,
}

impl<'a> Sound<'a> {
    /// The samples of an item. An item without a rate has the processor's.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when there is no sample, one is no number or out of range, or the rate
    /// makes no sense; [`Error::Internal`] when the content is no f32 `[samples]`.
    pub fn from_item(item: &'a MediaItem) -> Result<Self> {
        let content = item.content()?;
        let ([_], Some(samples)) = (content.shape(), content.as_f32()) else {
            return Err(Error::internal(format!(
                "an audio item holds {} {:?}, not f32 [samples]",
                content.data().dtype(),
                content.shape()
            )));
        };
        if samples.is_empty() {
            return Err(Error::invalid("the audio has no samples"));
        }
        check_samples(samples)?;
        let rate = match item.tensors().get(SAMPLING_RATE) {
            None => None,
            Some(_) => match item.tensors().require_i64::<1>(SAMPLING_RATE)? {
                (_, [rate]) => Some(check_rate(u32::try_from(*rate).unwrap_or(0))?),
                _ => {
                    return Err(Error::internal(format!(
                        "an audio item has one `{SAMPLING_RATE}`"
                    )));
                }
            },
        };
        Ok(Self { samples, rate })
    }

    /// An item of samples that are there already.
    ///
    /// # Shapes
    /// `samples`: f32 `[samples]`, between -1 and 1; `rate` in hertz.
    ///
    /// # Errors
    /// None in practice: the shape is made of the samples.
    pub fn item(samples: Vec<f32>, rate: u32) -> Result<MediaItem> {
        let tensors = NamedTensors::new()
            .with(
                MediaItem::CONTENT,
                HostTensor::f32([samples.len()], samples)?,
            )
            .with(SAMPLING_RATE, HostTensor::i64([1], vec![i64::from(rate)])?);
        Ok(MediaItem::raw_with(MODALITY, tensors))
    }

    /// Silence as long as a sound is padded or cut to.
    ///
    /// # Errors
    /// None in practice: see [`item`](Self::item).
    pub fn longest(config: &FeatureExtractorConfig) -> Result<MediaItem> {
        Self::item(vec![0.0; config.samples()], config.sampling_rate)
    }

    /// The samples, between -1 and 1.
    pub fn samples(&self) -> &'a [f32] {
        self.samples
    }

    /// Samples of a second; `None`: as many as the processor takes.
    pub fn rate(&self) -> Option<u32> {
        self.rate
    }
}

/// Refuses what would make every feature a NaN.
pub(crate) fn check_samples(samples: &[f32]) -> Result<()> {
    // NaN compares false.
    if samples.iter().all(|s| s.abs() <= LOUDEST) {
        return Ok(());
    }
    Err(Error::invalid(
        "the audio holds samples that are no numbers or out of range",
    ))
}

pub(crate) fn check_rate(rate: u32) -> Result<u32> {
    if RATES.contains(&rate) {
        return Ok(rate);
    }
    Err(Error::invalid(format!(
        "the audio has a sampling rate out of range: {} to {} hertz are accepted",
        RATES.start(),
        RATES.end()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_sound_is_an_error() {
        let error = |item: MediaItem| Sound::from_item(&item).unwrap_err();
        for bad in [f32::NAN, f32::INFINITY, -1e30] {
            let item = Sound::item(vec![0.0, bad], 16_000).unwrap();
            assert!(error(item).is_callers_fault());
        }
        assert!(error(Sound::item(vec![], 16_000).unwrap()).is_callers_fault());
        for rate in [0, 999, u32::MAX] {
            assert!(error(Sound::item(vec![0.0], rate).unwrap()).is_callers_fault());
        }
        let bytes = MediaItem::raw(MODALITY, HostTensor::u8([2], vec![0, 1]).unwrap());
        assert!(!error(bytes).is_callers_fault());
        let bare = MediaItem::raw(MODALITY, HostTensor::f32([1], vec![0.5]).unwrap());
        assert_eq!(Sound::from_item(&bare).unwrap().rate(), None);
    }

    #[test]
    fn the_rate_is_part_of_the_identity() {
        let hash = |rate| Sound::item(vec![0.5, 0.25], rate).unwrap().hash();
        assert_eq!(hash(16_000), hash(16_000));
        assert_ne!(hash(16_000), hash(8_000));
    }
}
