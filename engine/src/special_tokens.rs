//! The special tokens that a checkpoint's tokenizer configuration names, beside `tokenizer.json`.

use crate::Checkpoint;
use crate::json_file::{malformed, object};
use kiln_registry::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use tokenizers::AddedToken;

const TOKENIZER: &str = "tokenizer_config.json";
const TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// The names that every tokenizer may give.
const STANDARD: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// The special tokens that the tokenizer's configuration names, as transformers 5 reads them for
/// a tokenizer that has a `tokenizer.json`.
#[derive(Debug, Default)]
pub(crate) struct SpecialTokens {
    named: BTreeMap<String, AddedToken>,
    extra: Vec<AddedToken>,
    listed: Vec<AddedToken>,
}

impl SpecialTokens {
    /// Reads `tokenizer_config.json`. `special_tokens_map.json` and `added_tokens.json` count only
    /// where it has no `added_tokens_decoder`: newer checkpoints keep them as copies.
    pub(crate) fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let config = object(checkpoint, TOKENIZER)?.unwrap_or_default();
        let mut tokens = Self::default();
        tokens.read_named(TOKENIZER, &config)?;
        match config.get("added_tokens_decoder") {
            None | Some(Value::Null) => {
                if let Some(map) = object(checkpoint, TOKENS_MAP)? {
                    tokens.read_named(TOKENS_MAP, &map)?;
                }
                let added = object(checkpoint, ADDED_TOKENS)?.unwrap_or_default();
                tokens.listed = by_id(ADDED_TOKENS, added.iter().map(|(k, v)| (v, k)))?
                    .into_iter()
                    .map(|content| {
                        let special = tokens.is_named(content);
                        AddedToken::from(content.as_str(), special)
                    })
                    .collect();
            }
            Some(Value::Object(decoder)) => {
                let keys: Vec<_> = decoder
                    .iter()
                    .map(|(id, token)| (Value::from(id.parse::<u32>().ok()), token))
                    .collect();
                let sorted = by_id(TOKENIZER, keys.iter().map(|(id, token)| (id, *token)))?;
                for token in sorted {
                    let token = added_token(token, false)
                        .ok_or_else(|| malformed(TOKENIZER, "added_tokens_decoder", "tokens"))?;
                    tokens.listed.push(token);
                }
            }
            Some(_) => return Err(malformed(TOKENIZER, "added_tokens_decoder", "an object")),
        }
        Ok(tokens)
    }

    /// The literal token of a name such as `eos_token`.
    pub(crate) fn named(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(|token| token.content.as_str())
    }

    /// All names and their literal tokens.
    pub(crate) fn all_named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named
            .iter()
            .map(|(name, token)| (name.as_str(), token.content.as_str()))
    }

    /// The tokens listed with all their properties, in the order of their ids: they stand even
    /// where `tokenizer.json` says otherwise.
    pub(crate) fn listed(&self) -> impl Iterator<Item = AddedToken> {
        self.listed.iter().cloned().map(|token| {
            let special = token.special || self.is_named(&token.content);
            token.special(special)
        })
    }

    /// The named and extra tokens, for vocabularies that lack them: the standard names in
    /// transformers' order, then the checkpoint's own names sorted, then the extra ones.
    pub(crate) fn others(&self) -> impl Iterator<Item = &AddedToken> {
        let standard = STANDARD.iter().filter_map(|name| self.named.get(*name));
        let own = self
            .named
            .iter()
            .filter(|(name, _)| !STANDARD.contains(&name.as_str()))
            .map(|(_, token)| token);
        standard.chain(own).chain(&self.extra)
    }

    fn is_named(&self, content: &str) -> bool {
        self.others().any(|token| token.content == content)
    }

    fn read_named(&mut self, file: &str, config: &Map<String, Value>) -> Result<()> {
        for (key, value) in config {
            match (key.as_str(), value) {
                (_, Value::Null) => {}
                ("extra_special_tokens" | "additional_special_tokens", Value::Array(list)) => {
                    for token in list {
                        let token = added_token(token, true)
                            .ok_or_else(|| malformed(file, key, "a list of tokens"))?;
                        self.extra.push(token);
                    }
                }
                ("extra_special_tokens" | "additional_special_tokens", Value::Object(map)) => {
                    self.read_named(file, map)?;
                }
                (name, Value::String(_) | Value::Object(_)) if name.ends_with("_token") => {
                    let token =
                        added_token(value, true).ok_or_else(|| malformed(file, key, "a token"))?;
                    self.named.insert(key.clone(), token);
                }
                ("extra_special_tokens" | "additional_special_tokens", _) => {
                    return Err(malformed(file, key, "a list of tokens"));
                }
                (name, _) if STANDARD.contains(&name) => {
                    return Err(malformed(file, key, "a token"));
                }
                // Flags such as `add_bos_token`, and all that is no token.
                _ => {}
            }
        }
        Ok(())
    }
}

/// A token as a string, or as an object with its properties.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    let object = match value {
        Value::String(content) => return Some(AddedToken::from(content.as_str(), special)),
        Value::Object(object) => object,
        _ => return None,
    };
    let flag = |key: &str, default| object.get(key).map_or(Some(default), Value::as_bool);
    let special = flag("special", special)?;
    Some(
        AddedToken::from(object.get("content")?.as_str()?, special)
            .lstrip(flag("lstrip", false)?)
            .rstrip(flag("rstrip", false)?)
            .single_word(flag("single_word", false)?)
            .normalized(flag("normalized", !special)?),
    )
}

/// What stands beside each id, in the order of the ids.
fn by_id<'a, T>(file: &str, pairs: impl Iterator<Item = (&'a Value, T)>) -> Result<Vec<T>> {
    let mut sorted = BTreeMap::new();
    for (id, what) in pairs {
        let id = id
            .as_u64()
            .ok_or_else(|| Error::checkpoint(file, "a token's id must be a whole number"))?;
        sorted.insert(id, what);
    }
    Ok(sorted.into_values().collect())
}
