//! `config.json` of a decoder as one struct: Llama, Mistral and Qwen2 are the same block with other
//! switches, and each `model_type` has its own defaults.
//!
//! *Source*: Hugging Face transformers, `LlamaConfig`, `MistralConfig`, `Qwen2Config`.

use super::rope::Rope;
use crate::ops::Activation;
use kiln_registry::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// The decoders that are known, by `model_type`.
pub const DECODER_TYPES: [&str; 3] = ["llama", "mistral", "qwen2"];

/// All that a decoder hangs on.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of hidden states.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The gate's activation.
    pub hidden_act: Activation,
    /// Added under the root of every norm.
    pub rms_norm_eps: f64,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward part has biases.
    pub mlp_bias: bool,
    /// Rotary embeddings.
    pub rope: Rope,
    /// Each layer's sliding window.
    pub windows: Vec<Option<usize>>,
}

#[derive(Deserialize)]
struct Raw {
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

impl DecoderConfig {
    /// The configuration in a JSON object that names its `model_type`; `default_type` where it
    /// names none.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown type or option; [`Error::Checkpoint`] for values that
    /// make no sense.
    pub fn from_value(value: &Value, default_type: &str) -> Result<Self> {
        let raw = Raw::deserialize(value).map_err(|e| fault(e.to_string()))?;
        let kind = value
            .get("model_type")
            .and_then(Value::as_str)
            .unwrap_or(default_type);
        if !DECODER_TYPES.contains(&kind) {
            return Err(Error::unsupported(format!(
                "the text model `{kind}` (known: {})",
                DECODER_TYPES.join(", ")
            )));
        }
        let (mistral, qwen2) = (kind == "mistral", kind == "qwen2");
        let pick = |given: Option<usize>, llama: usize, mistral_is: usize, qwen2_is: usize| {
            given.unwrap_or(if mistral {
                mistral_is
            } else if qwen2 {
                qwen2_is
            } else {
                llama
            })
        };
        let hidden_size = raw.hidden_size.unwrap_or(4096);
        let num_hidden_layers = raw.num_hidden_layers.unwrap_or(32);
        let num_attention_heads = raw.num_attention_heads.unwrap_or(32);
        let num_key_value_heads = match raw.num_key_value_heads {
            Some(n) => n,
            // A key that is null means as many as query heads; one that is absent, the default.
            None if value.get("num_key_value_heads").is_none() => {
                pick(None, num_attention_heads, 8, 32)
            }
            None => num_attention_heads,
        };
        within("num_hidden_layers", num_hidden_layers, 1, 1024)?;
        within("num_attention_heads", num_attention_heads, 1, 4096)?;
        within("num_key_value_heads", num_key_value_heads, 1, 4096)?;
        within("hidden_size", hidden_size, 1, 1 << 20)?;
        let head_dim = raw.head_dim.unwrap_or(hidden_size / num_attention_heads);
        within("head_dim", head_dim, 4, 4096)?;
        if !num_attention_heads.is_multiple_of(num_key_value_heads) || !head_dim.is_multiple_of(2) {
            return Err(fault(format!(
                "{num_attention_heads} query heads of width {head_dim} over {num_key_value_heads} \
                 key-value heads: the heads must divide evenly and the width be even"
            )));
        }
        let act = raw.hidden_act.as_deref().unwrap_or("silu");
        let max_position_embeddings = pick(raw.max_position_embeddings, 2048, 4096 * 32, 32_768);
        within(
            "max_position_embeddings",
            max_position_embeddings,
            1,
            1 << 31,
        )?;
        let rms_norm_eps = raw.rms_norm_eps.unwrap_or(1e-6);
        if !(0.0..1.0).contains(&rms_norm_eps) {
            return Err(fault(format!("`rms_norm_eps` is {rms_norm_eps}")));
        }
        let config = Self {
            vocab_size: pick(raw.vocab_size, 32_000, 32_000, 151_936),
            hidden_size,
            intermediate_size: pick(raw.intermediate_size, 11_008, 14_336, 22_016),
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            hidden_act: Activation::from_name(act)
                .ok_or_else(|| Error::unsupported(format!("`hidden_act` {act}")))?,
            rms_norm_eps,
            max_position_embeddings,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            qkv_bias: if mistral {
                false
            } else {
                qwen2 || raw.attention_bias.unwrap_or(false)
            },
            output_bias: !mistral && !qwen2 && raw.attention_bias.unwrap_or(false),
            mlp_bias: !mistral && !qwen2 && raw.mlp_bias.unwrap_or(false),
            rope: Rope::from_config(value, head_dim, max_position_embeddings)?,
            windows: windows(kind, value, &raw, num_hidden_layers)?,
        };
        within("vocab_size", config.vocab_size, 1, 1 << 28)?;
        within("intermediate_size", config.intermediate_size, 1, 1 << 24)?;
        Ok(config)
    }
}

fn windows(kind: &str, value: &Value, raw: &Raw, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match kind {
        // An absent key is Mistral's default, null means none.
        "mistral" if value.get("sliding_window").is_none() => Some(4096),
        "mistral" => raw.sliding_window,
        "qwen2" if raw.use_sliding_window == Some(true) => {
            if value.get("sliding_window").is_none() {
                Some(4096)
            } else {
                raw.sliding_window
            }
        }
        _ => None,
    };
    if window == Some(0) {
        return Err(fault("`sliding_window` is 0".to_owned()));
    }
    if let (Some(types), "qwen2") = (&raw.layer_types, kind) {
        if types.len() != layers {
            return Err(fault(format!(
                "`layer_types` names {} layers of {layers}",
                types.len()
            )));
        }
        return types
            .iter()
            .map(|t| match t.as_str() {
                "full_attention" => Ok(None),
                "sliding_attention" => Ok(window),
                other => Err(Error::unsupported(format!("a layer of type `{other}`"))),
            })
            .collect();
    }
    let first = if kind == "qwen2" {
        raw.max_window_layers.unwrap_or(28)
    } else {
        0
    };
    Ok((0..layers).map(|i| window.filter(|_| i >= first)).collect())
}

fn within(name: &str, value: usize, low: usize, high: usize) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(fault(format!(
        "`{name}` is {value}; it lies between {low} and {high}"
    )))
}

fn fault(message: String) -> Error {
    Error::checkpoint("config.json", message)
}
