//! Slaney's mel filters.
//!
//! *Source*: Hugging Face transformers, `audio_utils.mel_filter_bank` with `norm="slaney"` and
//! `mel_scale="slaney"`; Slaney, *Auditory Toolbox* (1998).

/// Where the filters end, in hertz, whatever the sampling rate: Whisper's.
const TOP: f64 = 8000.0;

/// Below this the scale is linear, above it logarithmic.
const KNEE_HERTZ: f64 = 1000.0;
const KNEE_MEL: f64 = 15.0;

/// One triangle over the bins of a spectrum.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    first: usize,
    weights: Vec<f64>,
}

impl Filter {
    /// The weighted sum of a spectrum's bins, lowest first.
    pub(crate) fn apply(&self, spectrum: &[f64]) -> f64 {
        let bins = spectrum.get(self.first..).unwrap_or(&[]);
        self.weights.iter().zip(bins).map(|(w, s)| w * s).sum()
    }
}

/// `count` filters over the `bins` of a spectrum whose last is half of `rate`.
pub(crate) fn filters(count: usize, bins: usize, rate: u32) -> Vec<Filter> {
    let (low, high) = (hertz_to_mel(0.0), hertz_to_mel(TOP));
    let step = (high - low) / (count + 1) as f64;
    let edges: Vec<f64> = (0..count + 2)
        .map(|i| mel_to_hertz(low + step * i as f64))
        .collect();
    let width = f64::from(rate / 2) / (bins - 1).max(1) as f64;
    edges
        .windows(3)
        .map(|edge| {
            // Constant energy, however wide the triangle is.
            let norm = 2.0 / (edge[2] - edge[0]);
            let all: Vec<f64> = (0..bins)
                .map(|bin| {
                    let hertz = bin as f64 * width;
                    let up = (hertz - edge[0]) / (edge[1] - edge[0]);
                    let down = (edge[2] - hertz) / (edge[2] - edge[1]);
                    up.min(down).max(0.0) * norm
                })
                .collect();
            let first = all.iter().position(|w| *w > 0.0).unwrap_or(0);
            let end = all.iter().rposition(|w| *w > 0.0).map_or(first, |i| i + 1);
            Filter {
                first,
                weights: all[first..end].to_vec(),
            }
        })
        .collect()
}

fn hertz_to_mel(hertz: f64) -> f64 {
    if hertz >= KNEE_HERTZ {
        KNEE_MEL + (hertz / KNEE_HERTZ).ln() * 27.0 / 6.4f64.ln()
    } else {
        3.0 * hertz / 200.0
    }
}

fn mel_to_hertz(mel: f64) -> f64 {
    if mel >= KNEE_MEL {
        KNEE_HERTZ * ((mel - KNEE_MEL) * 6.4f64.ln() / 27.0).exp()
    } else {
        200.0 * mel / 3.0
    }
}
