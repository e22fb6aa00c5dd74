//! Whisper's encoder as an audio tower: two convolutions, positions, pre-norm blocks of full
//! attention, a norm.
//!
//! A sound is padded to the tower's length and attended to whole, padding included, as Whisper was
//! trained. What is in a batch beside it changes nothing: sounds are run one by one.
//!
//! *Source*: Hugging Face transformers, `modeling_whisper.py` (`WhisperEncoder`).

mod config;
#[cfg(test)]
mod tests;

pub use config::{AUDIO_TYPES, AudioTowerConfig};

use crate::encoder_layer::{EncoderLayer, EncoderLayerConfig, EncoderLayerNames};
use crate::layers::{Linear, layer_norm};
use crate::ops::fused::Norm;
use crate::ops::{self, Activation};
use crate::weights::Scope;
use burn::tensor::{DType, Device, Tensor, TensorData};
use kiln_registry::{Error, Result};

/// Taps of both convolutions.
const KERNEL: usize = 3;

/// Under the root of every norm; no configuration says it.
const EPS: f64 = 1e-5;

const LAYER: EncoderLayerNames = EncoderLayerNames {
    attention_norm: "self_attn_layer_norm",
    mlp_norm: "final_layer_norm",
    mlp: None,
};

/// A loaded tower.
pub struct AudioTower {
    config: AudioTowerConfig,
    conv1: Linear,
    conv2: Linear,
    embed_positions: Tensor<2>,
    layers: Vec<EncoderLayer>,
    layer_norm: Norm,
    device: Device,
}

impl AudioTower {
    /// Loads the tower of a scope (`encoder` of a Whisper checkpoint, `audio_tower` of others).
    ///
    /// # Errors
    /// [`Error::Tensor`] for a missing or wrong-shaped tensor.
    pub fn load(config: AudioTowerConfig, scope: &Scope<'_>) -> Result<Self> {
        let (width, bands) = (config.d_model, config.num_mel_bins);
        let conv1 = scope.at("conv1");
        let kernel: Tensor<3> = conv1.weight("weight", [width, bands, KERNEL])?;
        let conv1 = Linear::from_parts(
            kernel.reshape([width, bands * KERNEL]),
            Some(conv1.vector("bias", width)?),
        );
        let conv2 = scope.at("conv2");
        let kernel: Tensor<3> = conv2.weight("weight", [width, width, KERNEL])?;
        // A row of its input is three frames, one behind the other.
        let conv2 = Linear::from_parts(
            kernel.swap_dims(1, 2).reshape([width, KERNEL * width]),
            Some(conv2.vector("bias", width)?),
        );
        let layer = EncoderLayerConfig {
            width,
            inner: config.encoder_ffn_dim,
            heads: config.encoder_attention_heads,
            act: config.activation_function,
            eps: EPS,
            k_bias: false,
        };
        let layers = scope.at("layers");
        Ok(Self {
            conv1,
            conv2,
            embed_positions: scope
                .at("embed_positions")
                .table("weight", [config.max_source_positions, width])?,
            layers: (0..config.encoder_layers)
                .map(|i| EncoderLayer::load(layer, &LAYER, &layers.at(i)))
                .collect::<Result<_>>()?,
            layer_norm: layer_norm(&scope.at("layer_norm"), width, EPS)?,
            device: scope.device().clone(),
            config,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &AudioTowerConfig {
        &self.config
    }

    /// The states of one sound.
    ///
    /// # Shapes
    /// `features`: `[num_mel_bins, frames]`, [`AudioTowerConfig::frames`] of them; returns f32
    /// `[max_source_positions, d_model]`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the features have another size: the processor's configuration and
    /// the tower's do not fit.
    pub fn features(&self, shape: [usize; 2], features: &[f32]) -> Result<Tensor<2>> {
        let (bands, frames) = (self.config.num_mel_bins, self.config.frames());
        if shape != [bands, frames] || features.len() != bands * frames {
            return Err(Error::checkpoint(
                "preprocessor_config.json",
                format!(
                    "the processor makes {} frames of {} bands, the audio tower takes {frames} of \
                     {bands}",
                    shape[1], shape[0]
                ),
            ));
        }
        let positions = self.config.max_source_positions;
        let x = ops::activation(self.conv1.forward(self.taps(features)), Activation::Gelu);
        let x = ops::activation(self.conv2.forward(halved(x, positions)), Activation::Gelu);
        let mut x = x + self.embed_positions.clone();
        for layer in &self.layers {
            x = layer.forward(x, 1, positions);
        }
        Ok(self.layer_norm.forward(x))
    }

    /// Each frame with its neighbours, band by band: `[frames, num_mel_bins * 3]`.
    fn taps(&self, features: &[f32]) -> Tensor<2> {
        let (bands, frames) = (self.config.num_mel_bins, self.config.frames());
        let mut rows = Vec::with_capacity(frames * bands * KERNEL);
        for at in 0..frames {
            for band in features.chunks_exact(frames) {
                for tap in 0..KERNEL {
                    let frame = (at + tap).checked_sub(1).and_then(|i| band.get(i));
                    rows.push(frame.copied().unwrap_or(0.0));
                }
            }
        }
        let data = TensorData::new(rows, [frames, bands * KERNEL]);
        Tensor::from_data(data, (&self.device, DType::F32))
    }
}

/// Every other frame with its neighbours: `[2 * positions, width]` to `[positions, 3 * width]`.
fn halved(x: Tensor<2>, positions: usize) -> Tensor<2> {
    let width = x.dims()[1];
    // A row holds an even frame and the odd one behind it; the one before it is in the row above.
    let pairs = x.reshape([positions, 2 * width]);
    let odd = pairs.clone().slice([0..positions, width..2 * width]);
    let first = Tensor::<2>::zeros([1, width], (&odd.device(), DType::F32));
    let before = Tensor::cat(vec![first, odd], 0).slice([0..positions, 0..width]);
    Tensor::cat(vec![before, pairs], 1)
}
