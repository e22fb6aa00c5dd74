//! Parity of a new crate: a tiny checkpoint with what transformers computes from it, under the
//! crate's own names, and the script that writes both anew.

use super::name::Name;
use super::{Files, Like};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::Path;

const SCRIPT: &str = include_str!("../../templates/parity.py");
/// The checkpoints that `cargo xtask fixtures` writes.
const CHECKPOINTS: &str = "xtask/templates/parity";

/// Files by path in the crate. `kiln`: from the crate's `tests` to Kiln's tree.
///
/// # Errors
/// When a checkpoint is not there.
pub(super) fn files(
    root: &Path,
    name: &Name,
    like: Like,
    from: Option<&Value>,
    kiln: &str,
) -> Result<Files> {
    let mut files = Files::new();
    super::read_all(
        &root.join(CHECKPOINTS).join(like.folder()),
        "tests/parity/",
        &mut files,
    )?;
    let config = files
        .get_mut("tests/parity/config.json")
        .with_context(|| format!("{CHECKPOINTS}/{}/config.json", like.folder()))?;
    let mut value: Value = serde_json::from_slice(config).context("config.json")?;
    value["architectures"] = json!([name.architecture]);
    if like != Like::Text {
        value["model_type"] = name.snake().into();
    }
    *config = (serde_json::to_string_pretty(&value)? + "\n").into_bytes();
    let script = script(like, from, kiln);
    files.insert("tests/parity.py".to_owned(), script.into_bytes());
    Ok(files)
}

fn script(like: Like, from: Option<&Value>, kiln: &str) -> String {
    let reference = match like {
        Like::Llava => "llava",
        Like::LlavaNext => "llava_next",
        Like::Text => "llama",
    };
    // A checkpoint's own name is what transformers knows it by, where it does.
    let given = from.and_then(|config| config["model_type"].as_str());
    let images = if like == Like::Text { "False" } else { "True" };
    SCRIPT
        .replace("<KILN>", kiln)
        .replace("<MODEL_TYPE>", given.unwrap_or(reference))
        .replace("<LIKE>", like.folder())
        .replace("<IMAGES>", images)
}
