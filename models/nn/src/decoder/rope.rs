//! Rotary position embeddings: the frequencies of every scaling, and the cosines of a batch.
//!
//! Whatever depends on a sequence's length (the dynamic scaling) depends on its prompt's length and
//! the token's own position, never on the chunk or the batch.
//!
//! *Source*: RoFormer (Su et al., 2021), YaRN (Peng et al., 2023); Hugging Face transformers,
//! `modeling_rope_utils.py`.

use burn::tensor::{DType, Device, Tensor, TensorData};
use kiln_registry::{BatchLayout, Error, Result};
use serde_json::Value;
use std::f64::consts::PI;

/// How frequencies are stretched beyond the length that the model was trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// NTK-aware: the base grows with the length, beyond `max_position_embeddings`.
    Dynamic {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies by a factor, high ones not, a ramp between.
    Llama3 {
        /// The factor of low frequencies.
        factor: f64,
        /// Where low ends: context / wavelength.
        low_freq_factor: f64,
        /// Where high begins: context / wavelength.
        high_freq_factor: f64,
        /// The length trained on.
        original: f64,
    },
    /// YaRN: a ramp over dimensions, and a factor on cosine and sine.
    Yarn {
        /// The factor of interpolated dimensions.
        factor: f64,
        /// Rotations above which nothing is interpolated.
        beta_fast: f64,
        /// Rotations below which all is.
        beta_slow: f64,
        /// The length trained on.
        original: f64,
        /// Multiplies cosine and sine.
        attention_factor: f64,
        /// Whether the ramp's ends are whole dimensions.
        truncate: bool,
    },
}

/// Rotary embeddings of one decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    theta: f64,
    scaling: RopeScaling,
    head_dim: usize,
    max_positions: usize,
    inv_freq: Vec<f32>,
}

impl Rope {
    /// From a decoder's `config.json`: `rope_parameters` of today, or `rope_theta` and
    /// `rope_scaling` of older files.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a missing or senseless value, [`Error::Unsupported`] for an unknown
    /// `rope_type`.
    pub fn from_config(config: &Value, head_dim: usize, max_positions: usize) -> Result<Self> {
        let empty = Value::Null;
        let given = |key: &str| config.get(key).filter(|v| !v.is_null());
        let parameters = given("rope_parameters")
            .or(given("rope_scaling"))
            .unwrap_or(&empty);
        let number = |key: &str| match parameters.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .map(Some)
                .ok_or_else(|| fault(format!("`{key}` of the rotary parameters is {value}"))),
        };
        let require = |key: &str| {
            number(key)?.ok_or_else(|| fault(format!("the rotary parameters lack `{key}`")))
        };
        let theta = match number("rope_theta")? {
            Some(theta) => theta,
            None => given("rope_theta")
                .map_or(Some(10_000.0), Value::as_f64)
                .filter(|x| x.is_finite() && *x > 1.0)
                .ok_or_else(|| fault("`rope_theta` is no number above 1".to_owned()))?,
        };
        let kind = parameters
            .get("rope_type")
            .or(parameters.get("type"))
            .and_then(Value::as_str)
            .unwrap_or("default");
        if number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
            return Err(Error::unsupported("`partial_rotary_factor` other than 1"));
        }
        let original = number("original_max_position_embeddings")?.unwrap_or(max_positions as f64);
        let scaling = match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear {
                factor: require("factor")?,
            },
            "dynamic" => RopeScaling::Dynamic {
                factor: require("factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: require("factor")?,
                low_freq_factor: require("low_freq_factor")?,
                high_freq_factor: require("high_freq_factor")?,
                original,
            },
            "yarn" => {
                let factor = number("factor")?.unwrap_or(max_positions as f64 / original);
                let mscale = |m: f64| {
                    if factor <= 1.0 {
                        1.0
                    } else {
                        0.1 * m * factor.ln() + 1.0
                    }
                };
                let attention_factor = match (
                    number("attention_factor")?,
                    number("mscale")?,
                    number("mscale_all_dim")?,
                ) {
                    (Some(given), _, _) => given,
                    (None, Some(m), Some(all)) => mscale(m) / mscale(all),
                    _ => mscale(1.0),
                };
                RopeScaling::Yarn {
                    factor,
                    beta_fast: number("beta_fast")?.unwrap_or(32.0),
                    beta_slow: number("beta_slow")?.unwrap_or(1.0),
                    original,
                    attention_factor,
                    truncate: parameters
                        .get("truncate")
                        .and_then(Value::as_bool)
                        .unwrap_or(true),
                }
            }
            other => {
                return Err(Error::unsupported(format!(
                    "rope_type `{other}` (known: default, linear, dynamic, llama3, yarn)"
                )));
            }
        };
        let mut rope = Self {
            theta,
            scaling,
            head_dim,
            max_positions,
            inv_freq: vec![],
        };
        rope.inv_freq = rope.frequencies(theta);
        Ok(rope)
    }

    /// Prompts with the same number here have the same frequencies at the same positions: all but
    /// those of dynamic scaling that are longer than the model was made for.
    pub fn prefix_domain(&self, prompt_len: usize) -> u64 {
        match self.scaling {
            RopeScaling::Dynamic { .. } if prompt_len > self.max_positions => prompt_len as u64,
            _ => 0,
        }
    }

    /// Cosines and sines of each token of a batch.
    ///
    /// # Shapes
    /// Both f32 `[tokens, head_dim / 2]`.
    pub fn tables(&self, layout: &BatchLayout, device: &Device) -> (Tensor<2>, Tensor<2>) {
        let half = self.head_dim / 2;
        let scale = match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            } => attention_factor as f32,
            _ => 1.0,
        };
        let mut cos = Vec::with_capacity(layout.tokens() * half);
        let mut sin = Vec::with_capacity(layout.tokens() * half);
        for span in layout.spans() {
            // Frequencies of the length before: they change at most once a token.
            let mut stretched: Option<(usize, Vec<f32>)> = None;
            for position in span.context_len - span.query_len..span.context_len {
                let length = span.prompt_len.max(position + 1);
                let inv_freq = match self.scaling {
                    RopeScaling::Dynamic { factor } if length > self.max_positions => {
                        if stretched.as_ref().is_none_or(|(of, _)| *of != length) {
                            stretched = Some((length, self.dynamic(factor, length)));
                        }
                        stretched.as_ref().map_or(&self.inv_freq, |(_, f)| f)
                    }
                    _ => &self.inv_freq,
                };
                for frequency in inv_freq {
                    // The product in f32, as in the reference; its cosine as exact as it gets.
                    let angle = f64::from(position as f32 * frequency);
                    cos.push(angle.cos() as f32 * scale);
                    sin.push(angle.sin() as f32 * scale);
                }
            }
        }
        let place = |v: Vec<f32>| {
            Tensor::from_data(
                TensorData::new(v, [layout.tokens(), half]),
                (device, DType::F32),
            )
        };
        (place(cos), place(sin))
    }

    fn dynamic(&self, factor: f64, length: usize) -> Vec<f32> {
        let dim = self.head_dim as f64;
        let grown = factor * length as f64 / self.max_positions as f64 - (factor - 1.0);
        plain(self.theta * grown.powf(dim / (dim - 2.0)), self.head_dim)
    }

    fn frequencies(&self, theta: f64) -> Vec<f32> {
        let inv_freq = plain(theta, self.head_dim);
        match self.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => inv_freq,
            RopeScaling::Linear { factor } => {
                inv_freq.into_iter().map(|f| f / factor as f32).collect()
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original,
            } => inv_freq
                .into_iter()
                .map(|f| {
                    let wavelength = 2.0 * PI / f64::from(f);
                    if wavelength < original / high_freq_factor {
                        return f;
                    }
                    let slow = f64::from(f) / factor;
                    if wavelength > original / low_freq_factor {
                        return slow as f32;
                    }
                    let smooth = (original / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    ((1.0 - smooth) * slow + smooth * f64::from(f)) as f32
                })
                .collect(),
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original,
                truncate,
                ..
            } => {
                let dim = self.head_dim as f64;
                let correction = |rotations: f64| {
                    dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
                };
                let (mut low, mut high) = (correction(beta_fast), correction(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                inv_freq
                    .into_iter()
                    .enumerate()
                    .map(|(i, f)| {
                        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        let f = f64::from(f);
                        (f / factor * ramp + f * (1.0 - ramp)) as f32
                    })
                    .collect()
            }
        }
    }
}

/// `theta^(-2i / head_dim)`.
fn plain(theta: f64, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| (1.0 / theta.powf((2 * i) as f64 / head_dim as f64)) as f32)
        .collect()
}

fn fault(message: String) -> Error {
    Error::checkpoint("config.json", message)
}
