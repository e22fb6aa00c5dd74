//! The `config.json` of a tiny test: a template's, or a real checkpoint's with small sizes.

use super::Like;
use super::name::Name;
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

const LLAVA: &str = include_str!("../../templates/tiny/llava.json");
const LLAVA_NEXT: &str = include_str!("../../templates/tiny/llava-next.json");
const TEXT: &str = include_str!("../../templates/tiny/text.json");

/// Side of the tiny tower's picture.
const SIDE: u64 = 28;
/// Layers of the tiny tower.
const TOWER_LAYERS: i64 = 3;
/// Resolutions that a tiny checkpoint keeps, and tiles on a side.
const PINPOINTS: usize = 6;
const TILES: u64 = 3;

/// A checkpoint's configuration.
///
/// # Errors
/// When the file is not a JSON object.
pub(super) fn read(path: &Path) -> Result<Value> {
    let at = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(at)?;
    let config: Value = serde_json::from_str(&text).with_context(at)?;
    ensure!(config.is_object(), "{}: is no JSON object", path.display());
    Ok(config)
}

/// The crate whose shape a configuration has.
pub(super) fn like(config: &Value) -> Like {
    match (
        config.get("vision_config"),
        config.get("image_grid_pinpoints"),
    ) {
        (None, _) => Like::Text,
        (Some(_), None) => Like::Llava,
        (Some(_), Some(_)) => Like::LlavaNext,
    }
}

/// The text of the tiny `config.json`.
///
/// # Errors
/// For a `model_type` that models/nn has no part for, and a config of another shape than `like`.
pub(super) fn tiny(root: &Path, name: &Name, like: Like, from: Option<&Value>) -> Result<String> {
    let template: Value = serde_json::from_str(match like {
        Like::Llava => LLAVA,
        Like::LlavaNext => LLAVA_NEXT,
        Like::Text => TEXT,
    })?;
    let mut config = match from {
        None => template.clone(),
        Some(from) => {
            known(root, like, from)?;
            shrunk(&template, from)?
        }
    };
    config["architectures"] = json!([name.architecture]);
    if like != Like::Text {
        config["model_type"] = name.snake().into();
    }
    Ok(serde_json::to_string_pretty(&config)? + "\n")
}

/// Refuses what no part of models/nn computes.
fn known(root: &Path, like: Like, from: &Value) -> Result<()> {
    let has_tower = from.get("vision_config").is_some();
    ensure!(
        has_tower == (like != Like::Text),
        "the config has {} tower, but the crate is to be like {}: give another `--like`, or none",
        if has_tower { "a" } else { "no" },
        like.folder()
    );
    let text = if has_tower {
        &from["text_config"]
    } else {
        from
    };
    part(root, "decoder", "DECODER_TYPES", text)?;
    if has_tower {
        part(root, "vision", "TOWER_TYPES", &from["vision_config"])?;
        part(root, "audio", "AUDIO_TYPES", &from["audio_config"])?;
    }
    Ok(())
}

/// The types are read where they are defined: xtask depends on no member.
fn part(root: &Path, module: &str, list: &str, config: &Value) -> Result<()> {
    let Some(kind) = config["model_type"].as_str() else {
        return Ok(());
    };
    let file = format!("models/nn/src/{module}/config.rs");
    let source = fs::read_to_string(root.join(&file)).with_context(|| file.clone())?;
    let types = source
        .split_once(&format!("const {list}:"))
        .and_then(|(_, rest)| rest.split_once("= [")?.1.split_once(']'))
        .with_context(|| format!("{file} has no list {list}"))?;
    let types: Vec<_> = types.0.split('"').skip(1).step_by(2).collect();
    ensure!(
        types.contains(&kind),
        "models/nn has no `{kind}` (its {module} knows: {}): add the part there, or scaffold \
         without `--from`",
        types.join(", ")
    );
    Ok(())
}

/// A real configuration with a template's sizes. Every key stays, so that what the checkpoint
/// switches on is switched on in the test.
fn shrunk(template: &Value, from: &Value) -> Result<Value> {
    let mut config = from.clone();
    let object = config.as_object_mut().context("the config is no object")?;
    let Some(tower) = from.get("vision_config") else {
        shrink_text(object, template);
        return Ok(config);
    };
    let side = tower["image_size"].as_u64().unwrap_or(336).max(1);
    for (part, shrink) in [
        (
            "text_config",
            shrink_text as fn(&mut Map<String, Value>, &Value),
        ),
        ("vision_config", shrink_tower),
    ] {
        let part_object = object.entry(part).or_insert_with(|| json!({}));
        let part_object = part_object.as_object_mut();
        let part_object = part_object.with_context(|| format!("`{part}` is no object"))?;
        shrink(part_object, &template[part]);
    }
    object.remove("image_token_id");
    object.insert(
        "image_token_index".to_owned(),
        template["image_token_index"].clone(),
    );
    for key in [
        "image_seq_length",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "vocab_size",
    ] {
        object.remove(key);
    }
    // A layer that the tiny tower lacks becomes the one that most checkpoints use.
    let fits = |layer: &Value| {
        let layer = layer.as_i64();
        layer.is_some_and(|n| (-TOWER_LAYERS..=TOWER_LAYERS).contains(&n))
    };
    if let Some(layers) = object.get_mut("vision_feature_layer") {
        let all_fit = layers
            .as_array()
            .map_or(fits(layers), |l| l.iter().all(fits));
        if !all_fit {
            *layers = (-2).into();
        }
    }
    if let Some(pinpoints) = object.get_mut("image_grid_pinpoints") {
        *pinpoints = shrink_pinpoints(pinpoints, side);
    }
    Ok(config)
}

fn shrink_text(object: &mut Map<String, Value>, template: &Value) {
    let number = |object: &Map<String, Value>, key: &str| object.get(key).and_then(Value::as_u64);
    let heads = number(object, "num_attention_heads");
    let grouped = number(object, "num_key_value_heads").is_none_or(|kv| Some(kv) != heads);
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ] {
        object.insert(key.to_owned(), template[key].clone());
    }
    if !grouped {
        object.insert(
            "num_key_value_heads".to_owned(),
            template["num_attention_heads"].clone(),
        );
    }
    if number(object, "sliding_window").is_some() {
        object.insert("sliding_window".to_owned(), 16.into());
    }
    if object.contains_key("max_window_layers") {
        object.insert("max_window_layers".to_owned(), 1.into());
    }
    let layers = number(object, "num_hidden_layers").unwrap_or_default();
    if let Some(types) = object.get_mut("layer_types").and_then(Value::as_array_mut) {
        types.truncate(layers as usize);
    }
    for key in ["rope_scaling", "rope_parameters"] {
        let rope = object.get_mut(key).and_then(Value::as_object_mut);
        let original = rope.and_then(|rope| rope.get_mut("original_max_position_embeddings"));
        if let Some(original) = original {
            *original = 32.into();
        }
    }
}

fn shrink_tower(object: &mut Map<String, Value>, template: &Value) {
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
        "num_channels",
    ] {
        object.insert(key.to_owned(), template[key].clone());
    }
}

/// As many tiles as before, to a point: the tiny test runs on the largest.
fn shrink_pinpoints(pinpoints: &Value, side: u64) -> Value {
    let mut kept: Vec<[u64; 2]> = vec![];
    for point in pinpoints.as_array().into_iter().flatten() {
        let tiles = |at: usize| (point[at].as_u64().unwrap_or(side) / side).clamp(1, TILES) * SIDE;
        let point = [tiles(0), tiles(1)];
        if kept.len() < PINPOINTS && !kept.contains(&point) {
            kept.push(point);
        }
    }
    json!(kept)
}
