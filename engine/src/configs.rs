//! What the engine itself reads of a checkpoint's JSON files: who the model is, the processor's
//! configuration, and how the checkpoint says that its model generates.

use crate::Checkpoint;
use crate::json_file::{malformed, object};
use crate::special_tokens::SpecialTokens;
use kiln_registry::{Error, Result, Tokenizer};
use serde_json::Value;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const VIDEO: &str = "video_preprocessor_config.json";
const PROCESSOR: &str = "processor_config.json";

/// The names that `architectures` of a `config.json` lists.
pub fn architectures(config: &Value) -> Vec<String> {
    config
        .get("architectures")
        .and_then(Value::as_array)
        .map(|names| {
            names
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect()
        })
        .unwrap_or_default()
}

/// The processor's configuration: `preprocessor_config.json` with `processor_config.json` laid
/// over it, and `overrides` (the caller's processor arguments) on top.
///
/// transformers 5 writes the image processor as an object inside `processor_config.json`; its keys
/// are lifted to the top level, where older checkpoints have them. The objects of other modalities
/// (`video_processor`, `feature_extractor`) stay as they are; older checkpoints have the first one in
/// `video_preprocessor_config.json`. All files absent: an empty object.
///
/// # Errors
/// [`Error::Checkpoint`] when a file, or its `image_processor`, is no JSON object;
/// [`Error::InvalidInput`] when the overrides are none.
pub fn processor_config(checkpoint: &Checkpoint, overrides: Option<&Value>) -> Result<Value> {
    let mut merged = object(checkpoint, PREPROCESSOR)?.unwrap_or_default();
    if let Some(video) = object(checkpoint, VIDEO)? {
        merged.insert("video_processor".to_owned(), Value::Object(video));
    }
    if let Some(mut processor) = object(checkpoint, PROCESSOR)? {
        match processor.remove("image_processor") {
            None | Some(Value::Null) => {}
            Some(Value::Object(image)) => merged.extend(image),
            Some(_) => return Err(malformed(PROCESSOR, "image_processor", "an object")),
        }
        merged.extend(processor);
    }
    match overrides {
        None | Some(Value::Null) => {}
        Some(Value::Object(overrides)) => merged.extend(overrides.clone()),
        Some(_) => {
            return Err(Error::invalid(
                "the processor arguments must be a JSON object",
            ));
        }
    }
    Ok(Value::Object(merged))
}

/// What a checkpoint says about how its model generates.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    eos_token_ids: Vec<u32>,
    sampling_defaults: SamplingDefaults,
}

/// The sampling parameters that `generation_config.json` recommends. What it leaves out is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Whether to sample; `false`: greedy, whatever the other fields say.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Only the most likely tokens whose probabilities add up to this.
    pub top_p: Option<f32>,
    /// Only the so many most likely tokens.
    pub top_k: Option<usize>,
    /// Divides positive and multiplies negative logits of tokens in prompt or output.
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`. The tokens that end a sequence are its `eos_token_id` (one
    /// or a list), else that of `config` (top level, then `text_config`), else the id of the
    /// tokenizer's `eos_token`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] that names file and key of a value of the wrong type.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &Value,
        tokenizer: &dyn Tokenizer,
    ) -> Result<Self> {
        let generation = Value::Object(object(checkpoint, GENERATION)?.unwrap_or_default());
        let text_config = config.get("text_config").unwrap_or(&Value::Null);
        let mut eos_token_ids = None;
        for (file, value) in [
            (GENERATION, &generation),
            (CONFIG, config),
            (CONFIG, text_config),
        ] {
            if eos_token_ids.is_none() {
                eos_token_ids = token_ids(file, value)?;
            }
        }
        if eos_token_ids.is_none() {
            eos_token_ids = SpecialTokens::load(checkpoint)?
                .named("eos_token")
                .and_then(|token| tokenizer.token_to_id(token))
                .map(|id| vec![id]);
        }
        let float = |key| number(&generation, key, "a number", Value::as_f64);
        Ok(Self {
            eos_token_ids: eos_token_ids.unwrap_or_default(),
            sampling_defaults: SamplingDefaults {
                do_sample: number(&generation, "do_sample", "true or false", Value::as_bool)?,
                temperature: float("temperature")?.map(|v| v as f32),
                top_p: float("top_p")?.map(|v| v as f32),
                top_k: number(&generation, "top_k", "a whole number", Value::as_u64)?
                    .map(|k| usize::try_from(k).unwrap_or(usize::MAX)),
                repetition_penalty: float("repetition_penalty")?.map(|v| v as f32),
            },
        })
    }

    /// The tokens that end a sequence; empty when the checkpoint names none.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    /// The sampling parameters that the checkpoint recommends.
    pub fn sampling_defaults(&self) -> SamplingDefaults {
        self.sampling_defaults
    }
}

/// `eos_token_id`: a number or a list of them. Negative ones, which some tools write for "none",
/// are passed over.
fn token_ids(file: &str, config: &Value) -> Result<Option<Vec<u32>>> {
    let list = match config.get("eos_token_id") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) => list.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    let mut ids = Vec::new();
    for id in list {
        match id.as_i64() {
            Some(id) if id < 0 => {}
            Some(id) if u32::try_from(id).is_ok() => ids.push(id as u32),
            _ => {
                return Err(malformed(
                    file,
                    "eos_token_id",
                    "a token id or a list of them",
                ));
            }
        }
    }
    Ok((!ids.is_empty()).then_some(ids))
}

fn number<T>(
    config: &Value,
    key: &str,
    kind: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read(value)
            .map(Some)
            .ok_or_else(|| malformed(GENERATION, key, kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    struct Words;

    impl Tokenizer for Words {
        fn encode(&self, _: &str, _: bool) -> Result<Vec<u32>> {
            Ok(vec![])
        }

        fn token_to_id(&self, token: &str) -> Option<u32> {
            (token == "</s>").then_some(42)
        }

        fn id_to_token(&self, _: u32) -> Option<String> {
            None
        }
    }

    fn checkpoint(files: &[(&str, Value)]) -> (tempfile::TempDir, Checkpoint) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        let opened = Checkpoint::open(folder.path()).unwrap();
        (folder, opened)
    }

    #[test]
    fn other_modalities_keep_their_objects() {
        let old = [
            (PREPROCESSOR, json!({"size": 28})),
            (VIDEO, json!({"size": 14, "num_frames": 8})),
        ];
        let new = [(
            PROCESSOR,
            json!({"image_processor": {"size": 28}, "video_processor": {"size": 14, "num_frames": 8}}),
        )];
        for files in [&old[..], &new[..]] {
            let (_folder, checkpoint) = checkpoint(files);
            let merged = processor_config(&checkpoint, None).unwrap();
            let expected = json!({"size": 28, "video_processor": {"size": 14, "num_frames": 8}});
            assert_eq!(merged, expected);
        }
    }

    #[test]
    fn both_layouts_of_the_processor_files_read_alike() {
        let old = [
            (
                PREPROCESSOR,
                json!({"size": {"shortest_edge": 28}, "resample": 2}),
            ),
            (PROCESSOR, json!({"patch_size": 7, "resample": 3})),
        ];
        let new = [(
            PROCESSOR,
            json!({"image_processor": {"size": {"shortest_edge": 28}, "resample": 3}, "patch_size": 7}),
        )];
        let expected = json!({"size": {"shortest_edge": 28}, "resample": 3, "patch_size": 7});
        for files in [&old[..], &new[..]] {
            let (_folder, checkpoint) = checkpoint(files);
            assert_eq!(processor_config(&checkpoint, None).unwrap(), expected);
            let over = json!({"resample": 0});
            let merged = processor_config(&checkpoint, Some(&over)).unwrap();
            assert_eq!(
                (&merged["resample"], &merged["patch_size"]),
                (&json!(0), &json!(7))
            );
        }
        let (_folder, none) = checkpoint(&[]);
        assert_eq!(processor_config(&none, None).unwrap(), json!({}));
        assert!(
            processor_config(&none, Some(&json!([])))
                .unwrap_err()
                .is_callers_fault()
        );
        let (_folder, bad) = checkpoint(&[(PROCESSOR, json!({"image_processor": 3}))]);
        let error = processor_config(&bad, None).unwrap_err().to_string();
        assert!(
            error.contains(PROCESSOR) && error.contains("image_processor"),
            "{error}"
        );
    }

    #[test]
    fn the_first_file_that_names_an_end_decides() {
        let tokens = (
            "tokenizer_config.json",
            json!({"eos_token": {"content": "</s>"}}),
        );
        let ids = |files: &[(&str, Value)], config: Value| {
            let (_folder, checkpoint) = checkpoint(files);
            let loaded = GenerationConfig::load(&checkpoint, &config, &Words)?;
            Ok::<_, Error>(loaded.eos_token_ids().to_vec())
        };
        let text = json!({"text_config": {"eos_token_id": 7}});
        let generation = (GENERATION, json!({"eos_token_id": [1, 2]}));
        assert_eq!(
            ids(&[generation, tokens.clone()], text.clone()).unwrap(),
            [1, 2]
        );
        let null = (GENERATION, json!({"eos_token_id": null}));
        assert_eq!(ids(&[null, tokens.clone()], text).unwrap(), [7]);
        assert_eq!(ids(&[tokens], json!({"eos_token_id": -1})).unwrap(), [42]);
        assert!(ids(&[], json!({})).unwrap().is_empty());
        for bad in [json!("2"), json!([true]), json!(1.5), json!(1u64 << 40)] {
            let error = ids(&[], json!({"eos_token_id": bad}))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(CONFIG) && error.contains("eos_token_id"),
                "{error}"
            );
        }
    }

    #[test]
    fn sampling_defaults_are_what_the_file_says() {
        let file = json!({"do_sample": true, "temperature": 0.5, "top_k": 20, "top_p": null});
        let (_folder, good) = checkpoint(&[(GENERATION, file)]);
        let defaults = GenerationConfig::load(&good, &json!({}), &Words)
            .unwrap()
            .sampling_defaults();
        let expected = SamplingDefaults {
            do_sample: Some(true),
            temperature: Some(0.5),
            top_k: Some(20),
            ..SamplingDefaults::default()
        };
        assert_eq!(defaults, expected);
        let (_folder, bad) = checkpoint(&[(GENERATION, json!({"top_k": "many"}))]);
        let error = GenerationConfig::load(&bad, &json!({}), &Words).unwrap_err();
        assert!(error.to_string().contains("top_k"), "{error}");
    }

    #[test]
    fn names_are_found_where_they_stand() {
        let config = json!({"architectures": ["A", 3, "B"]});
        assert_eq!(architectures(&config), ["A", "B"]);
        assert!(architectures(&json!({"architectures": "A"})).is_empty());
    }
}
