//! A checkpoint small enough to write in a test: `config.json` beside this file decides the shapes,
//! a seed the weights. Byte-level tokens; nothing is downloaded.

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use tempfile::TempDir;

const CONFIG: &str = include_str!("config.json");
const SPECIAL: [&str; 6] = ["<s>", "</s>", "<pad>", "<image>", "<video>", "<audio>"];

/// Writes the checkpoint of a seed. The folder goes when the result does.
pub(crate) fn write(seed: u64) -> TempDir {
    let config: Value = serde_json::from_str(CONFIG).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, value: &Value| {
        fs::write(folder.path().join(name), value.to_string()).unwrap();
    };
    save("config.json", &config);
    save("processor_config.json", &processor(&config));
    save("tokenizer.json", &tokenizer());
    save("tokenizer_config.json", &tokenizer_config());
    let mut weights = Weights::new(seed);
    if config.get("vision_config").is_some() {
        let (text, tower) = (&config["text_config"], &config["vision_config"]);
        weights.decoder("model.language_model.", text, &config);
        weights.tower("model.vision_tower.", tower);
        weights.projector("model.multi_modal_projector.", &config);
        if config.get("image_grid_pinpoints").is_some() {
            weights.add("image_newline", &[number(text, "hidden_size")]);
        }
        if let Some(audio) = config.get("audio_config") {
            weights.audio("model.audio_tower.", audio);
            let (seen, hidden) = (number(audio, "d_model"), number(text, "hidden_size"));
            weights.two_layers("model.audio_projector.", seen, hidden, &config);
        }
    } else {
        weights.decoder("model.", &config, &config);
    }
    let views = weights.tensors.iter().map(|(name, (shape, data))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), data).unwrap();
        (name, view)
    });
    serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

fn number(config: &Value, key: &str) -> usize {
    let value = config[key].as_u64();
    value.unwrap_or_else(|| panic!("config.json: `{key}` is no number")) as usize
}

fn flag(config: &Value, key: &str) -> bool {
    config[key].as_bool().unwrap_or(false)
}

/// Tensors by name, drawn one after the other.
struct Weights {
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
    state: u64,
}

impl Weights {
    fn new(seed: u64) -> Self {
        Self {
            tensors: BTreeMap::new(),
            state: seed,
        }
    }

    /// Uniform in -0.3..0.3: logits differ enough that no two tokens tie.
    fn draw(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32;
        0.6 * (unit - 0.5)
    }

    fn add(&mut self, name: &str, shape: &[usize]) {
        let len = shape.iter().product();
        let data: Vec<f32> = (0..len).map(|_| self.draw()).collect();
        let bytes = data.iter().flat_map(|value| value.to_le_bytes());
        let tensor = (shape.to_vec(), bytes.collect());
        assert!(self.tensors.insert(name.to_owned(), tensor).is_none());
    }

    fn linear(&mut self, name: &str, from: usize, to: usize, bias: bool) {
        self.add(&format!("{name}.weight"), &[to, from]);
        if bias {
            self.add(&format!("{name}.bias"), &[to]);
        }
    }

    fn decoder(&mut self, prefix: &str, text: &Value, root: &Value) {
        let kind = text["model_type"].as_str().unwrap_or("llama");
        let llama = kind == "llama";
        let qkv_bias = kind == "qwen2" || llama && flag(text, "attention_bias");
        let output_bias = llama && flag(text, "attention_bias");
        let mlp_bias = llama && flag(text, "mlp_bias");
        let [hidden, inner, vocab] =
            ["hidden_size", "intermediate_size", "vocab_size"].map(|key| number(text, key));
        let heads = number(text, "num_attention_heads");
        let kv_heads = number(text, "num_key_value_heads");
        let head_dim = text["head_dim"].as_u64();
        let head_dim = head_dim.map_or(hidden / heads, |n| n as usize);
        self.add(&format!("{prefix}embed_tokens.weight"), &[vocab, hidden]);
        for layer in 0..number(text, "num_hidden_layers") {
            let at = |name: &str| format!("{prefix}layers.{layer}.{name}");
            for (name, heads) in [("q", heads), ("k", kv_heads), ("v", kv_heads)] {
                let name = at(&format!("self_attn.{name}_proj"));
                self.linear(&name, hidden, heads * head_dim, qkv_bias);
            }
            self.linear(&at("self_attn.o_proj"), heads * head_dim, hidden, output_bias);
            self.linear(&at("mlp.gate_proj"), hidden, inner, mlp_bias);
            self.linear(&at("mlp.up_proj"), hidden, inner, mlp_bias);
            self.linear(&at("mlp.down_proj"), inner, hidden, mlp_bias);
            self.add(&at("input_layernorm.weight"), &[hidden]);
            self.add(&at("post_attention_layernorm.weight"), &[hidden]);
        }
        self.add(&format!("{prefix}norm.weight"), &[hidden]);
        if !flag(text, "tie_word_embeddings") && !flag(root, "tie_word_embeddings") {
            self.linear("lm_head", hidden, vocab, false);
        }
    }

    fn tower(&mut self, prefix: &str, tower: &Value) {
        let clip = tower["model_type"].as_str() != Some("siglip_vision_model");
        let [width, inner, channels, image, patch] = [
            "hidden_size",
            "intermediate_size",
            "num_channels",
            "image_size",
            "patch_size",
        ]
        .map(|key| number(tower, key));
        let grid = image / patch;
        let positions = grid * grid + usize::from(clip);
        let embeddings = format!("{prefix}embeddings.");
        let patches = [width, channels, patch, patch];
        self.add(&format!("{embeddings}patch_embedding.weight"), &patches);
        let table = format!("{embeddings}position_embedding.weight");
        self.add(&table, &[positions, width]);
        if clip {
            self.add(&format!("{embeddings}class_embedding"), &[width]);
            // The reference's own spelling.
            self.norm(&format!("{prefix}pre_layrnorm"), width);
        } else {
            self.add(&format!("{embeddings}patch_embedding.bias"), &[width]);
        }
        for layer in 0..number(tower, "num_hidden_layers") {
            let at = |name: &str| format!("{prefix}encoder.layers.{layer}.{name}");
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.linear(&at(&format!("self_attn.{name}")), width, width, true);
            }
            self.linear(&at("mlp.fc1"), width, inner, true);
            self.linear(&at("mlp.fc2"), inner, width, true);
            self.norm(&at("layer_norm1"), width);
            self.norm(&at("layer_norm2"), width);
        }
        self.norm(&format!("{prefix}post_layernorm"), width);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.add(&format!("{name}.weight"), &[width]);
        self.add(&format!("{name}.bias"), &[width]);
    }

    fn projector(&mut self, prefix: &str, config: &Value) {
        let layers = config["vision_feature_layer"].as_array();
        let states = layers.map_or(1, Vec::len);
        let seen = states * number(&config["vision_config"], "hidden_size");
        let hidden = number(&config["text_config"], "hidden_size");
        self.two_layers(prefix, seen, hidden, config);
    }

    fn audio(&mut self, prefix: &str, tower: &Value) {
        let [width, inner, bands, positions] = [
            "d_model",
            "encoder_ffn_dim",
            "num_mel_bins",
            "max_source_positions",
        ]
        .map(|key| number(tower, key));
        for (name, from) in [("conv1", bands), ("conv2", width)] {
            self.add(&format!("{prefix}{name}.weight"), &[width, from, 3]);
            self.add(&format!("{prefix}{name}.bias"), &[width]);
        }
        self.add(&format!("{prefix}embed_positions.weight"), &[positions, width]);
        for layer in 0..number(tower, "encoder_layers") {
            let at = |name: &str| format!("{prefix}layers.{layer}.{name}");
            for (name, bias) in [
                ("q_proj", true),
                ("k_proj", false),
                ("v_proj", true),
                ("out_proj", true),
            ] {
                self.linear(&at(&format!("self_attn.{name}")), width, width, bias);
            }
            self.linear(&at("fc1"), width, inner, true);
            self.linear(&at("fc2"), inner, width, true);
            self.norm(&at("self_attn_layer_norm"), width);
            self.norm(&at("final_layer_norm"), width);
        }
        self.norm(&format!("{prefix}layer_norm"), width);
    }

    fn two_layers(&mut self, prefix: &str, seen: usize, hidden: usize, config: &Value) {
        let bias = config["multimodal_projector_bias"].as_bool();
        let bias = bias.unwrap_or(true);
        self.linear(&format!("{prefix}linear_1"), seen, hidden, bias);
        self.linear(&format!("{prefix}linear_2"), hidden, hidden, bias);
    }
}

fn processor(config: &Value) -> Value {
    let tower = &config["vision_config"];
    let side = tower["image_size"].as_u64().unwrap_or(28);
    let anyres = config.get("image_grid_pinpoints");
    let mut image = json!({
        "crop_size": {"height": side, "width": side},
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1.0 / 255.0,
        "size": {"shortest_edge": side},
    });
    if let Some(pinpoints) = anyres {
        image["image_processor_type"] = "LlavaNextImageProcessor".into();
        image["image_grid_pinpoints"] = pinpoints.clone();
        image["do_pad"] = true.into();
    }
    let mut processor = json!({"image_processor": image, "image_token": "<image>"});
    if config.get("video_token_index").is_some() {
        processor["video_processor"] = json!({"do_sample_frames": true, "num_frames": 4});
        processor["video_token"] = "<video>".into();
    }
    if let Some(audio) = config.get("audio_config") {
        processor["feature_extractor"] = json!({
            "chunk_length": 1,
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": audio["num_mel_bins"],
            "hop_length": 160,
            "n_fft": 400,
            "sampling_rate": 16_000,
        });
        processor["audio_token"] = "<audio>".into();
    }
    processor
}

fn tokenizer_config() -> Value {
    json!({
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[2],
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}

/// A token per byte, after the special ones.
fn tokenizer() -> Value {
    let mut vocab = serde_json::Map::new();
    let letters = byte_letters().into_iter().map(String::from);
    let tokens = SPECIAL.map(str::to_owned).into_iter().chain(letters);
    for (id, token) in tokens.enumerate() {
        vocab.insert(token, id.into());
    }
    let special = SPECIAL.iter().enumerate().map(|(id, content)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        })
    });
    json!({
        "version": "1.0",
        "added_tokens": special.collect::<Vec<_>>(),
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// The letter that byte-level tokenizers write for each byte: itself where it is visible, the next
/// free one from U+0100 on where it is not.
fn byte_letters() -> Vec<char> {
    let mut free = 0x100u32..;
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    (0..=255u8)
        .map(|byte| {
            if visible(byte) {
                char::from(byte)
            } else {
                free.next().and_then(char::from_u32).unwrap()
            }
        })
        .collect()
}
