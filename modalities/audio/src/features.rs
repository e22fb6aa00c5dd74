//! Log-mel features as Whisper takes them.
//!
//! Spectra and sums are computed in 64 bits, as the reference's own (NumPy) path does.

use crate::config::FeatureExtractorConfig;
use crate::mel;
use kiln_registry::{Error, Result};
use realfft::RealFftPlanner;
use std::f64::consts::TAU;

/// The least power of a band.
const FLOOR: f64 = 1e-10;
/// How far below the loudest band a band counts, in powers of ten.
const RANGE: f64 = 8.0;

/// The features of samples at the configuration's rate.
///
/// # Shapes
/// Returns f32 `[feature_size, frames]`.
pub(crate) fn log_mel(config: &FeatureExtractorConfig, samples: &[f32]) -> Result<Vec<f32>> {
    let (n_fft, hop, frames) = (config.n_fft, config.hop_length, config.frames());
    let filters = mel::filters(config.feature_size, n_fft / 2 + 1, config.sampling_rate);
    let window: Vec<f64> = (0..n_fft)
        .map(|i| 0.5 - 0.5 * (TAU * i as f64 / n_fft as f64).cos())
        .collect();
    let fft = RealFftPlanner::<f64>::new().plan_fft_forward(n_fft);
    let (mut frame, mut bins, mut scratch) = (
        fft.make_input_vec(),
        fft.make_output_vec(),
        fft.make_scratch_vec(),
    );
    let sound = Padded::new(samples, config);
    let mut power = vec![0.0; n_fft / 2 + 1];
    let mut features = vec![FLOOR.log10(); filters.len() * frames];
    for at in 0..frames {
        let start = (at * hop) as i64 - (n_fft / 2) as i64;
        if sound.is_silent_from(start) {
            continue;
        }
        for (i, (value, weight)) in frame.iter_mut().zip(&window).enumerate() {
            *value = sound.at(start + i as i64) * weight;
        }
        fft.process_with_scratch(&mut frame, &mut bins, &mut scratch)
            .map_err(Error::internal)?;
        for (power, bin) in power.iter_mut().zip(&bins) {
            *power = bin.re * bin.re + bin.im * bin.im;
        }
        for (band, filter) in filters.iter().enumerate() {
            features[band * frames + at] = filter.apply(&power).max(FLOOR).log10();
        }
    }
    let loudest = features.iter().copied().fold(f64::MIN, f64::max);
    let scaled = features
        .iter()
        .map(|f| (f.max(loudest - RANGE) + 4.0) / 4.0);
    Ok(scaled.map(|f| f as f32).collect())
}

/// Samples filled up to the chunk, and mirrored beyond both ends.
struct Padded<'a> {
    samples: &'a [f32],
    len: i64,
    n_fft: i64,
    padding: f64,
}

impl<'a> Padded<'a> {
    fn new(samples: &'a [f32], config: &FeatureExtractorConfig) -> Self {
        let len = config.samples();
        Self {
            samples: &samples[..samples.len().min(len)],
            len: len as i64,
            n_fft: config.n_fft as i64,
            padding: f64::from(config.padding_value),
        }
    }

    fn at(&self, index: i64) -> f64 {
        // A frame is no longer than a second and the chunk no shorter: it is mirrored once at most.
        let index = index.abs();
        let index = index.min(2 * (self.len - 1) - index);
        let sample = usize::try_from(index)
            .ok()
            .and_then(|i| self.samples.get(i));
        sample.map_or(self.padding, |s| f64::from(*s))
    }

    /// Whether a frame from here on sees zeros alone.
    fn is_silent_from(&self, start: i64) -> bool {
        let sounding = self.samples.len() as i64;
        // What is mirrored at the far end is padding, too, unless the sound comes near it.
        self.padding == 0.0 && start >= sounding && sounding + self.n_fft <= self.len
    }
}
