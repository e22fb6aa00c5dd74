//! What every piece of a model crate is called with: the parsed configuration and the tokenizer.

use crate::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Text to token ids and back. The engine implements it over the checkpoint's tokenizer.
pub trait Tokenizer: Send + Sync {
    /// The ids of a text. Special tokens written in it become their ids.
    /// `add_special_tokens`: whether the tokenizer's template adds its own (such as BOS).
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when the tokenizer refuses the text.
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>>;

    /// The id of a token given literally, if the vocabulary has it.
    fn token_to_id(&self, token: &str) -> Option<u32>;

    /// The literal token of an id, if the vocabulary has it.
    fn id_to_token(&self, id: u32) -> Option<String>;
}

/// How many items a prompt has, or may have, of each modality.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MediaCounts(BTreeMap<String, usize>);

impl MediaCounts {
    /// None of any modality.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with another count for one modality.
    #[must_use]
    pub fn with(mut self, modality: impl Into<String>, count: usize) -> Self {
        self.set(modality, count);
        self
    }

    /// Sets the count of a modality.
    pub fn set(&mut self, modality: impl Into<String>, count: usize) {
        self.0.insert(modality.into(), count);
    }

    /// The count of a modality; 0 where none was set.
    pub fn get(&self, modality: &str) -> usize {
        self.0.get(modality).copied().unwrap_or(0)
    }

    /// Modalities and counts, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }
}

/// A loaded checkpoint as the pieces of a model crate see it. Cheap to clone.
#[derive(Clone)]
pub struct InputContext {
    config: Arc<Value>,
    processor: Arc<Value>,
    tokenizer: Arc<dyn Tokenizer>,
    limits: MediaCounts,
    max_model_len: usize,
}

impl InputContext {
    /// A context.
    ///
    /// `config`: `config.json`. `processor`: `preprocessor_config.json` with the keys of
    /// `processor_config.json` laid over it (its `image_processor` object included), with the
    /// caller's processor arguments (`--mm-processor-kwargs`) on top. `limits`: items per
    /// prompt. `max_model_len`: tokens of one sequence.
    pub fn new(
        config: Value,
        processor: Value,
        tokenizer: Arc<dyn Tokenizer>,
        limits: MediaCounts,
        max_model_len: usize,
    ) -> Self {
        Self {
            config: Arc::new(config),
            processor: Arc::new(processor),
            tokenizer,
            limits,
            max_model_len,
        }
    }

    /// The same with another bound on a sequence: known once the model is loaded.
    #[must_use]
    pub fn with_max_model_len(mut self, max_model_len: usize) -> Self {
        self.max_model_len = max_model_len;
        self
    }

    /// `config.json` as it stands.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// `config.json` as a model's typed struct.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] that names the key that does not fit.
    pub fn parse_config<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(self.config.as_ref()).map_err(|e| Error::checkpoint("config.json", e))
    }

    /// The processor's configuration as it stands.
    pub fn processor(&self) -> &Value {
        &self.processor
    }

    /// The processor's configuration as a typed struct.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] that names the key that does not fit.
    pub fn parse_processor<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(self.processor.as_ref())
            .map_err(|e| Error::checkpoint("preprocessor_config.json", e))
    }

    /// The checkpoint's tokenizer.
    pub fn tokenizer(&self) -> &dyn Tokenizer {
        self.tokenizer.as_ref()
    }

    /// Items that one prompt may have, by modality.
    pub fn limits(&self) -> &MediaCounts {
        &self.limits
    }

    /// Tokens that one sequence may have.
    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }
}
