//! What the server makes of what strangers send, without a model and without serving it: for
//! programs that check requests before they send them, and for the tests that send everything.

use crate::openai::ChatRequest;
use crate::openai::json::parse;
use bytes::Bytes;

/// Whether a body is a chat completion request by its form. What depends on the model, such as how
/// many pictures it takes, is not looked at.
///
/// # Errors
/// The words that the server would answer with status 400.
pub fn chat_request(body: &[u8]) -> Result<(), String> {
    match parse::<ChatRequest>(body) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.message),
    }
}

/// The content of a data URL of at most so many bytes.
///
/// # Errors
/// The words that the server would answer with status 400.
pub fn data_url(url: &str, max_bytes: usize) -> Result<Bytes, String> {
    crate::fetch::data_url(url, max_bytes).map_err(|error| error.message)
}
