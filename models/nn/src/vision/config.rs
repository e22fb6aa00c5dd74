//! `vision_config` of a tower as one struct, and which of its states a model takes.
//!
//! *Source*: Hugging Face transformers, `CLIPVisionConfig`, `SiglipVisionConfig`.

use crate::ops::Activation;
use kiln_registry::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// The towers that are known, by `model_type`.
pub const TOWER_TYPES: [&str; 2] = ["clip_vision_model", "siglip_vision_model"];

/// Which tower it is: what differs between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TowerKind {
    /// A class token first, no bias on the patches, a norm before the layers.
    Clip,
    /// Patches alone, with a bias.
    Siglip,
}

/// All that a tower hangs on.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerConfig {
    /// CLIP or SigLIP.
    pub kind: TowerKind,
    /// Width of hidden states.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Channels of a picture.
    pub num_channels: usize,
    /// Side of a picture in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// The feed-forward part's activation.
    pub hidden_act: Activation,
    /// Added under the root of every norm.
    pub layer_norm_eps: f64,
}

#[derive(Deserialize)]
struct Raw {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_channels: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
}

impl TowerConfig {
    /// The configuration in a model's `vision_config`. An absent `model_type` is CLIP, as LLaVA's
    /// own configuration has it, with the sizes of its ViT-L/14 at 336 pixels.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown type or activation; [`Error::Checkpoint`] for values
    /// that make no sense.
    pub fn from_value(value: &Value) -> Result<Self> {
        let raw = Raw::deserialize(value)
            .map_err(|e| Error::checkpoint("config.json", format!("`vision_config`: {e}")))?;
        let named = value.get("model_type").and_then(Value::as_str);
        let kind = match named {
            None | Some("clip_vision_model") => TowerKind::Clip,
            Some("siglip_vision_model") => TowerKind::Siglip,
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "the vision tower `{other}` (known: {})",
                    TOWER_TYPES.join(", ")
                )));
            }
        };
        let siglip = kind == TowerKind::Siglip;
        let or = |given: Option<usize>, unnamed: usize, named_default: usize| {
            given.unwrap_or(if named.is_none() {
                unnamed
            } else {
                named_default
            })
        };
        let act = raw.hidden_act.as_deref();
        let act = act.unwrap_or(if siglip {
            "gelu_pytorch_tanh"
        } else {
            "quick_gelu"
        });
        let config = Self {
            kind,
            hidden_size: or(raw.hidden_size, 1024, 768),
            intermediate_size: or(raw.intermediate_size, 4096, 3072),
            num_hidden_layers: or(raw.num_hidden_layers, 24, 12),
            num_attention_heads: or(raw.num_attention_heads, 16, 12),
            num_channels: raw.num_channels.unwrap_or(3),
            image_size: or(raw.image_size, 336, 224),
            patch_size: or(raw.patch_size, 14, if siglip { 16 } else { 32 }),
            hidden_act: Activation::from_name(act).ok_or_else(|| {
                Error::unsupported(format!("the vision tower's `hidden_act` {act}"))
            })?,
            layer_norm_eps: raw
                .layer_norm_eps
                .unwrap_or(if siglip { 1e-6 } else { 1e-5 }),
        };
        config.check()?;
        Ok(config)
    }

    /// Patches on a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens of one picture, the class token included.
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid() + usize::from(self.kind == TowerKind::Clip)
    }

    fn check(&self) -> Result<()> {
        let fault = |m: String| {
            Err(Error::checkpoint(
                "config.json",
                format!("`vision_config`: {m}"),
            ))
        };
        for (name, value, most) in [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 24),
            ("num_hidden_layers", self.num_hidden_layers, 1024),
            ("num_attention_heads", self.num_attention_heads, 4096),
            ("image_size", self.image_size, 1 << 14),
            ("patch_size", self.patch_size, self.image_size),
        ] {
            if !(1..=most).contains(&value) {
                return fault(format!("`{name}` is {value}; it lies between 1 and {most}"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return fault(format!(
                "{} heads do not divide a width of {}",
                self.num_attention_heads, self.hidden_size
            ));
        }
        if self.num_channels != 3 {
            return Err(Error::unsupported(
                "a vision tower of other than 3 channels",
            ));
        }
        if !(0.0..1.0).contains(&self.layer_norm_eps) {
            return fault(format!("`layer_norm_eps` is {}", self.layer_norm_eps));
        }
        Ok(())
    }
}

/// `vision_feature_layer` and `vision_feature_select_strategy`: which hidden states the projector
/// sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureSelection {
    /// Indices of hidden states, 0 before the first layer; their features lie side by side.
    pub layers: Vec<usize>,
    /// Whether the first token is left out (strategy `default`).
    pub drop_first: bool,
}

impl FeatureSelection {
    /// From the two keys of a model's configuration.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a layer that the tower does not have, or an unknown strategy.
    pub fn new(layer: &LayerIndex, strategy: &str, tower: &TowerConfig) -> Result<Self> {
        let states = tower.num_hidden_layers as i64 + 1;
        let given = match layer {
            LayerIndex::One(i) => std::slice::from_ref(i),
            LayerIndex::Many(list) => list,
        };
        let layers = given
            .iter()
            .map(|i| {
                let index = if *i < 0 {
                    states.saturating_add(*i)
                } else {
                    *i
                };
                usize::try_from(index)
                    .ok()
                    .filter(|_| index < states)
                    .ok_or_else(|| {
                        Error::checkpoint(
                            "config.json",
                            format!(
                                "`vision_feature_layer` {i}: the tower has {states} hidden states"
                            ),
                        )
                    })
            })
            .collect::<Result<Vec<_>>>()?;
        if layers.is_empty() || layers.len() > states as usize {
            return Err(Error::checkpoint(
                "config.json",
                format!("`vision_feature_layer` names {} layers", layers.len()),
            ));
        }
        let drop_first = match strategy {
            "default" => true,
            "full" => false,
            other => {
                return Err(Error::checkpoint(
                    "config.json",
                    format!("`vision_feature_select_strategy` is `{other}`: default or full"),
                ));
            }
        };
        Ok(Self { layers, drop_first })
    }

    /// Tokens of one picture that are left.
    pub fn tokens(&self, tower: &TowerConfig) -> usize {
        tower.tokens() - usize::from(self.drop_first)
    }

    /// Width of the features: that of the tower, once for each layer.
    pub fn width(&self, tower: &TowerConfig) -> usize {
        tower.hidden_size * self.layers.len()
    }
}

/// `vision_feature_layer`: one index or several; negative ones count from the end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum LayerIndex {
    /// One.
    One(i64),
    /// Several, side by side.
    Many(Vec<i64>),
}
