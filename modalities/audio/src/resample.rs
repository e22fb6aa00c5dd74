//! From a file's sampling rate to the model's.

use crate::config::FeatureExtractorConfig;
use kiln_registry::{Error, Result};
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler, WindowFunction};
use std::borrow::Cow;

/// Samples of a block, at least: long enough that the filter falls steeply at half the lower rate.
const BLOCK: usize = 4096;

/// Samples of a block: as many as have a whole number of samples at the other rate. An even number of
/// such units, because a block of odd length is centred half a sample off.
fn block(from: usize, to: usize) -> usize {
    let (mut a, mut b) = (from, to);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    let unit = from / a.max(1);
    unit * BLOCK.div_ceil(unit).next_multiple_of(2)
}

/// Seconds behind the chunk that are looked at: what is cut off later must not change what stays.
const MARGIN: usize = 1;

/// A sound at the configuration's rate, cut to its chunk.
///
/// # Shapes
/// As many samples as [`FeatureExtractorConfig::valid_frames`] counts by.
pub(crate) fn resample<'a>(
    config: &FeatureExtractorConfig,
    samples: &'a [f32],
    rate: Option<u32>,
) -> Result<Cow<'a, [f32]>> {
    let from = rate.unwrap_or(config.sampling_rate) as usize;
    let to = config.sampling_rate as usize;
    let wanted = config.resampled(samples.len(), rate).min(config.samples());
    if from == to {
        return Ok(Cow::Borrowed(&samples[..wanted.min(samples.len())]));
    }
    let seen = samples.len().min((config.chunk_length + MARGIN) * from);
    let input: Vec<f64> = samples[..seen].iter().map(|s| f64::from(*s)).collect();
    let window = WindowFunction::BlackmanHarris2;
    let mut fft = Fft::<f64>::new_custom(from, to, block(from, to), 1, 1, window, FixedSync::Both)
        .map_err(Error::internal)?;
    let adapter = InterleavedSlice::new(&input, 1, seen).map_err(Error::internal)?;
    let output = fft
        .process_all(&adapter, seen, None)
        .map_err(Error::internal)?;
    let mut output: Vec<f32> = output.take_data().into_iter().map(|s| s as f32).collect();
    // The resampler rounds a ratio of floats; the count is one of whole numbers.
    output.resize(wanted, 0.0);
    Ok(Cow::Owned(output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    fn sine(hertz: f64, rate: u32, samples: usize) -> Vec<f32> {
        (0..samples)
            .map(|i| (0.5 * (TAU * hertz * i as f64 / f64::from(rate)).sin()) as f32)
            .collect()
    }

    #[test]
    fn a_tone_stays_the_tone_that_it_is() {
        let config = FeatureExtractorConfig::default();
        for rate in [8_000, 11_025, 22_050, 44_100, 44_101, 48_000, 96_000] {
            let length = rate as usize / 2;
            let input = sine(440.0, rate, length);
            let output = resample(&config, &input, Some(rate)).unwrap();
            assert_eq!(output.len(), config.resampled(length, Some(rate)));
            let expected = sine(440.0, 16_000, output.len());
            // The ends see silence beyond them.
            let inner = 1000..output.len() - 1000;
            let worst = output[inner.clone()]
                .iter()
                .zip(&expected[inner])
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst < 1e-4, "{rate}: {worst}");
        }
    }

    #[test]
    fn what_the_model_could_not_hear_is_gone() {
        let config = FeatureExtractorConfig::default();
        let input = sine(12_000.0, 48_000, 24_000);
        let output = resample(&config, &input, Some(48_000)).unwrap();
        let worst = output[1000..7000]
            .iter()
            .fold(0.0f32, |w, s| w.max(s.abs()));
        assert!(worst < 1e-3, "{worst}");
    }

    #[test]
    fn what_is_cut_off_changes_nothing() {
        let config = FeatureExtractorConfig {
            chunk_length: 1,
            ..FeatureExtractorConfig::default()
        };
        let long = sine(300.0, 48_000, 5 * 48_000);
        let whole = resample(&config, &long, Some(48_000)).unwrap();
        let short = resample(&config, &long[..2 * 48_000], Some(48_000)).unwrap();
        assert_eq!((whole.len(), &whole), (16_000, &short));
    }
}
