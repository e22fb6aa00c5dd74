//! The checkpoint's tokenizer: Hugging Face's `tokenizer.json`, as transformers would load it.

use crate::Checkpoint;
use crate::special_tokens::SpecialTokens;
use kiln_registry::{CheckpointFiles, Error, Result, Tokenizer};
use std::panic::{AssertUnwindSafe, catch_unwind};

const FILE: &str = "tokenizer.json";

/// A tokenizer over `tokenizer.json`.
///
/// As in transformers 5, the file's own post-processor says which special tokens are added; the
/// flags `add_bos_token` and `add_eos_token` of `tokenizer_config.json`, which older checkpoints
/// carry, do not count beside it. Tokens that `tokenizer_config.json` names and the file lacks are
/// appended to the vocabulary, and its `added_tokens_decoder` overrides the file's properties of a
/// token. Truncation and padding that the file may ask for are switched off.
#[derive(Debug)]
pub struct HfTokenizer {
    tokenizer: tokenizers::Tokenizer,
}

impl HfTokenizer {
    /// Loads a checkpoint's tokenizer.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when there is no `tokenizer.json`, or a file of the tokenizer is
    /// malformed.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let bytes = checkpoint.read(FILE)?.ok_or_else(|| {
            Error::checkpoint(
                FILE,
                "there is none in the checkpoint: save the tokenizer in this format, with \
                 `AutoTokenizer.from_pretrained(..).save_pretrained(..)` of transformers",
            )
        })?;
        let special = SpecialTokens::load(checkpoint)?;
        let build = || build(&bytes, &special);
        let tokenizer = no_panic(build).map_err(|e| Error::checkpoint(FILE, e))?;
        Ok(Self { tokenizer })
    }

    /// The text of token ids. Ids that the vocabulary does not have are passed over.
    ///
    /// # Errors
    /// [`Error::Internal`] when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        no_panic(|| {
            self.tokenizer
                .decode(ids, skip_special_tokens)
                .map_err(|e| e.to_string())
        })
        .map_err(|e| Error::internal(format!("{FILE}: tokens can't be decoded: {e}")))
    }

    pub(crate) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.tokenizer
    }

    /// Whether [`decode`](Self::decode) takes an id into account.
    pub(crate) fn is_decoded(&self, id: u32, skip_special_tokens: bool) -> bool {
        let added = self.tokenizer.get_added_vocabulary();
        added
            .simple_id_to_token(id)
            .or_else(|| self.tokenizer.id_to_token(id))
            .is_some_and(|token| !skip_special_tokens || !added.is_special_token(&token))
    }
}

impl Tokenizer for HfTokenizer {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        no_panic(|| {
            self.tokenizer
                .encode_fast(text, add_special_tokens)
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|e| e.to_string())
        })
        .map_err(|e| Error::invalid(format!("the text can't be tokenised: {e}")))
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }
}

fn build(bytes: &[u8], special: &SpecialTokens) -> Result<tokenizers::Tokenizer, String> {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| e.to_string())?;
    tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
    tokenizer.with_padding(None);
    tokenizer
        .add_tokens(special.listed())
        .map_err(|e| e.to_string())?;
    let known = tokenizer.get_added_vocabulary().get_vocab();
    let missing: Vec<_> = special
        .others()
        .filter(|token| !known.contains_key(&token.content))
        .cloned()
        .collect();
    tokenizer.add_tokens(missing).map_err(|e| e.to_string())?;
    Ok(tokenizer)
}

/// The tokenizers crate panics on some malformed files, when they are read and when they are used.
/// A panic leaves nothing half done that later calls see: its caches are behind locks that they
/// only try to take.
fn no_panic<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("the tokenizers library can't use this file".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::fs;

    const FIXTURE: &[u8] =
        include_bytes!("../../tests/fixtures/checkpoints/llava-clip-llama/tokenizer.json");

    fn load(files: &[(&str, Value)]) -> Result<HfTokenizer> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        fs::write(folder.path().join(FILE), FIXTURE).unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        HfTokenizer::load(&Checkpoint::open(folder.path()).unwrap())
    }

    fn fixture() -> Value {
        serde_json::from_slice(FIXTURE).unwrap()
    }

    /// Expected: ids of `AutoTokenizer` of transformers 5.23 over the same files.
    #[test]
    fn special_tokens_are_those_of_transformers() {
        const CONFIG: &str = "tokenizer_config.json";
        let text = "a<new>b<x>c<y>";
        let plain = vec![0, 68, 31, 81, 72, 90, 33, 69, 31, 91, 33, 70, 31, 92, 33];
        for (files, expected) in [
            (vec![], plain.clone()),
            // The flags do not count beside a tokenizer.json.
            (
                vec![(
                    CONFIG,
                    json!({"bos_token": "<s>", "add_bos_token": false, "add_eos_token": true}),
                )],
                plain.clone(),
            ),
            (
                vec![(
                    CONFIG,
                    json!({"added_tokens_decoder": {
                        "900": {"content": "<new>", "special": true},
                        "5": {"content": "<x>", "special": false},
                    }}),
                )],
                vec![0, 68, 309, 69, 308, 70, 31, 92, 33],
            ),
            (
                vec![(
                    CONFIG,
                    json!({"pad_token": "<new>", "image_token": "<x>", "extra_special_tokens": ["<y>"]}),
                )],
                vec![0, 68, 308, 69, 309, 70, 310],
            ),
            (
                vec![
                    (
                        "special_tokens_map.json",
                        json!({"pad_token": "<new>", "additional_special_tokens": ["<x>"]}),
                    ),
                    ("added_tokens.json", json!({"<y>": 777})),
                ],
                vec![0, 68, 309, 69, 310, 70, 308],
            ),
            (
                vec![
                    (CONFIG, json!({"added_tokens_decoder": {}})),
                    ("special_tokens_map.json", json!({"pad_token": "<new>"})),
                ],
                plain,
            ),
        ] {
            let tokenizer = load(&files).unwrap();
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids, expected, "{files:?}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), expected[1..]);
        }
    }

    #[test]
    fn no_prompt_is_cut_or_padded() {
        let mut file = fixture();
        file["truncation"] =
            json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        file["padding"] = json!({"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"});
        let tokenizer = load(&[(FILE, file)]).unwrap();
        let ids = tokenizer.encode("<image>abcdef", true).unwrap();
        assert_eq!(
            ids,
            load(&[]).unwrap().encode("<image>abcdef", true).unwrap()
        );
        assert_eq!(ids[..2], [0, 3]);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "abcdef");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<s><image>abcdef");
        assert_eq!(tokenizer.token_to_id("<image>"), Some(3));
        assert_eq!(tokenizer.id_to_token(3).as_deref(), Some("<image>"));
    }

    #[test]
    fn no_file_and_a_broken_file_are_errors_that_name_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let error = HfTokenizer::load(&checkpoint).unwrap_err().to_string();
        assert!(
            error.starts_with("tokenizer.json: ") && error.contains("save_pretrained"),
            "{error}"
        );

        for cut in [0, 1, 100, 1000, FIXTURE.len() - 2] {
            fs::write(folder.path().join(FILE), &FIXTURE[..cut]).unwrap();
            assert!(HfTokenizer::load(&checkpoint).is_err(), "{cut}");
        }
        for (key, value) in [
            (
                "normalizer",
                json!({"type": "Precompiled", "precompiled_charsmap": "AA=="}),
            ),
            (
                "normalizer",
                json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
            ),
            (
                "pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            ),
            (
                "post_processor",
                json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "?", "type_id": 0}}],
                "pair": [], "special_tokens": {}}),
            ),
            (
                "model",
                json!({"type": "Unigram", "unk_id": 9, "vocab": []}),
            ),
            (
                "model",
                json!({"type": "BPE", "vocab": {}, "merges": ["a b"]}),
            ),
            ("added_tokens", json!([{"id": -1}])),
            ("version", json!(7)),
        ] {
            let mut file = fixture();
            file[key] = value.clone();
            // Some of them load and fail when they are used; none may panic.
            if let Ok(tokenizer) = load(&[(FILE, file)]) {
                let _ = tokenizer.encode("a é\u{10FFFF}", true);
                let _ = tokenizer.decode(&[0, 70, 9999], false);
            }
        }
        let file = (
            "tokenizer_config.json",
            json!({"added_tokens_decoder": {"x": {}}}),
        );
        assert!(
            load(&[file])
                .unwrap_err()
                .to_string()
                .starts_with("tokenizer_config.json: ")
        );
        let file = ("tokenizer_config.json", json!({"eos_token": 2}));
        assert!(load(&[file]).unwrap_err().to_string().contains("eos_token"));
    }
}
