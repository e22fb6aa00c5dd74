//! The vision towers CLIP and SigLIP: patches, positions, pre-norm blocks of full attention.
//!
//! A picture's states do not depend on what else is in the batch. Layers behind the last state that
//! is taken are neither loaded nor run.
//!
//! *Source*: Hugging Face transformers, `modeling_clip.py`, `modeling_siglip.py`.

mod config;
mod pass;

pub use config::{FeatureSelection, LayerIndex, TOWER_TYPES, TowerConfig, TowerKind};
pub use pass::TowerPass;

use crate::encoder_layer::{EncoderLayer, EncoderLayerConfig, EncoderLayerNames};
use crate::layers::{Linear, layer_norm};
use crate::ops::fused::Norm;
use crate::weights::Scope;
use burn::tensor::{DType, Device, Tensor, TensorData};
use kiln_registry::Result;

const LAYER: EncoderLayerNames = EncoderLayerNames {
    attention_norm: "layer_norm1",
    mlp_norm: "layer_norm2",
    mlp: Some("mlp"),
};

fn layer(config: &TowerConfig) -> EncoderLayerConfig {
    EncoderLayerConfig {
        width: config.hidden_size,
        inner: config.intermediate_size,
        heads: config.num_attention_heads,
        act: config.hidden_act,
        eps: config.layer_norm_eps,
        k_bias: true,
    }
}

/// A loaded tower that gives the selected features.
pub struct VisionTower {
    config: TowerConfig,
    selection: FeatureSelection,
    class_embedding: Option<Tensor<1>>,
    patches: Linear,
    position_embedding: Tensor<2>,
    pre_layernorm: Option<Norm>,
    layers: Vec<EncoderLayer>,
    device: Device,
}

impl VisionTower {
    /// Loads the tower of a scope, up to the last layer that the selection needs.
    ///
    /// # Errors
    /// [`kiln_registry::Error::Tensor`] for a missing or wrong-shaped tensor.
    pub fn load(
        config: TowerConfig,
        selection: FeatureSelection,
        scope: &Scope<'_>,
    ) -> Result<Self> {
        let (width, clip) = (config.hidden_size, config.kind == TowerKind::Clip);
        let embeddings = scope.at("embeddings");
        let patch = embeddings.at("patch_embedding");
        let side = config.patch_size;
        let kernel: Tensor<4> = patch.weight("weight", [width, config.num_channels, side, side])?;
        let bias = (!clip).then(|| patch.vector("bias", width)).transpose()?;
        let needed = selection.layers.iter().copied().max().unwrap_or(0);
        let encoder = scope.at("encoder").at("layers");
        for unused in needed..config.num_hidden_layers {
            encoder.at(unused).skip();
        }
        // Parts of the whole model that no feature passes through.
        scope.at("post_layernorm").skip();
        scope.at("head").skip();
        Ok(Self {
            class_embedding: clip
                .then(|| embeddings.vector("class_embedding", width))
                .transpose()?,
            patches: Linear::from_parts(
                kernel.reshape([width, config.num_channels * side * side]),
                bias,
            ),
            position_embedding: embeddings
                .at("position_embedding")
                .table("weight", [config.tokens(), width])?,
            // The reference's own spelling.
            pre_layernorm: clip
                .then(|| layer_norm(&scope.at("pre_layrnorm"), width, config.layer_norm_eps))
                .transpose()?,
            layers: (0..needed)
                .map(|i| EncoderLayer::load(layer(&config), &LAYER, &encoder.at(i)))
                .collect::<Result<_>>()?,
            device: scope.device().clone(),
            selection,
            config,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &TowerConfig {
        &self.config
    }

    /// What it gives.
    pub fn selection(&self) -> &FeatureSelection {
        &self.selection
    }

    /// The selected features of pictures.
    ///
    /// # Shapes
    /// `pixels`: `[pictures, 3, image_size, image_size]`; returns f32 `[pictures, tokens, width]`
    /// with the selection's tokens and width.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn features(&self, shape: [usize; 4], pixels: &[f32]) -> Result<Tensor<3>> {
        let [pictures, planes @ ..] = shape;
        let size: usize = planes.iter().product();
        if pictures < 2 || size == 0 {
            return Ok(self.begin(shape, pixels)?.finish(self));
        }
        // One after the other: what is between two layers then stays in the cache, and all of a
        // weight is read from memory in a small part of the time that its products take.
        let mut all = Vec::with_capacity(pictures);
        for picture in pixels.chunks_exact(size) {
            let [channels, height, width] = planes;
            let shape = [1, channels, height, width];
            all.push(self.begin(shape, picture)?.finish(self));
        }
        Ok(Tensor::cat(all, 0))
    }

    /// Patches, class token, positions: `[pictures * tokens, width]`.
    fn embed(&self, pictures: usize, pixels: &[f32]) -> Tensor<2> {
        let (grid, patch) = (self.config.grid(), self.config.patch_size);
        let (side, width) = (self.config.image_size, self.config.hidden_size);
        let count = grid * grid;
        let inner = self.config.num_channels * patch * patch;
        // A convolution whose stride is its kernel: each patch is a row of the product.
        let mut rows = Vec::with_capacity(pictures * count * inner);
        for picture in pixels.chunks_exact(self.config.num_channels * side * side) {
            for cell in 0..count {
                let (top, left) = (cell / grid * patch, cell % grid * patch);
                for plane in picture.chunks_exact(side * side) {
                    for y in top..top + patch {
                        rows.extend_from_slice(&plane[y * side + left..y * side + left + patch]);
                    }
                }
            }
        }
        let rows = Tensor::<2>::from_data(
            TensorData::new(rows, [pictures * count, inner]),
            (&self.device, DType::F32),
        );
        let mut x = self.patches.forward(rows).reshape([pictures, count, width]);
        if let Some(class) = &self.class_embedding {
            let class = class.clone().reshape([1, 1, width]).repeat_dim(0, pictures);
            x = Tensor::cat(vec![class, x], 1);
        }
        let tokens = self.config.tokens();
        let x = x + self.position_embedding.clone().reshape([1, tokens, width]);
        let x = x.reshape([pictures * tokens, width]);
        match &self.pre_layernorm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }
}
