//! A tokenizer for tests that load weights and no text.

use kiln_registry::{Result, Tokenizer};

pub(crate) struct NoTokenizer;

impl Tokenizer for NoTokenizer {
    fn encode(&self, _: &str, _: bool) -> Result<Vec<u32>> {
        Ok(vec![])
    }

    fn token_to_id(&self, _: &str) -> Option<u32> {
        None
    }

    fn id_to_token(&self, _: u32) -> Option<String> {
        None
    }
}
