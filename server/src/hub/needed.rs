//! Which files of a repository a model is loaded from.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Configuration, tokenizer and template, `config.json` first. Only what lies in the repository's
/// own folder; no index of weights in another format, no record of a training.
pub(super) fn small(all: &BTreeSet<String>) -> Vec<&str> {
    let wanted = |name: &str| {
        let json = name.ends_with(".json")
            && !name.starts_with("trainer_state")
            && (!name.ends_with(".index.json") || name == INDEX);
        !name.contains('/') && (json || name.ends_with(".jinja")) && name != "config.json"
    };
    let rest = all.iter().map(String::as_str).filter(|name| wanted(name));
    ["config.json"].into_iter().chain(rest).collect()
}

/// The files of weights: one, or those that the index names. `snapshot`: where the index lies.
///
/// # Errors
/// When the index is damaged, or names what the repository does not have.
pub(super) fn weights(all: &BTreeSet<String>, snapshot: &Path) -> Result<Vec<String>> {
    if all.contains(SINGLE) {
        return Ok(vec![SINGLE.to_owned()]);
    }
    if !all.contains(INDEX) {
        return Ok(vec![]);
    }
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read(snapshot.join(INDEX)).context(INDEX)?;
    let index: Index = serde_json::from_slice(&text).context(INDEX)?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    // A name that is not in the repository's own list is never asked for, nor one in a folder.
    match files.iter().find(|f| !all.contains(*f) || f.contains('/')) {
        Some(file) => bail!("{INDEX} names {file}, which is not in the repository"),
        None => Ok(files.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_what_a_model_is_loaded_from_is_fetched() {
        let all = names(&[
            ".gitattributes",
            "README.md",
            "added_tokens.json",
            "chat_template.jinja",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/config.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "trainer_state.json",
        ]);
        let small = small(&all);
        let expected = [
            "config.json",
            "added_tokens.json",
            "chat_template.jinja",
            "model.safetensors.index.json",
            "tokenizer.json",
        ];
        assert_eq!(small, expected);
        let folder = tempfile::tempdir().unwrap();
        let index = |text: &str| std::fs::write(folder.path().join(INDEX), text).unwrap();
        let weights = || weights(&all, folder.path());
        index(
            r#"{"weight_map": {"a": "model-00001-of-00002.safetensors",
                "b": "model-00002-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"}}"#,
        );
        assert_eq!(weights().unwrap().len(), 2);
        for bad in ["../x.safetensors", "absent.safetensors", "onnx/config.json"] {
            index(&format!(r#"{{"weight_map": {{"a": "{bad}"}}}}"#));
            assert!(weights().unwrap_err().to_string().contains(bad), "{bad}");
        }
        index("{");
        assert!(format!("{:#}", weights().unwrap_err()).contains(INDEX));
    }

    #[test]
    fn one_file_of_weights_goes_before_an_index() {
        let all = names(&["model.safetensors", "model.safetensors.index.json"]);
        assert_eq!(weights(&all, Path::new("absent")).unwrap(), [SINGLE]);
        assert!(
            weights(&names(&["x.bin"]), Path::new("absent"))
                .unwrap()
                .is_empty()
        );
    }
}
