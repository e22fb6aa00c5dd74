//! What the text of an answer must be, as a request says it.

use serde_json::Value;

/// A constraint on the text of an answer: every token is chosen among those that keep it possible.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// A JSON object.
    JsonObject,
    /// JSON that a JSON schema describes.
    JsonSchema(Value),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a context-free grammar, in llguidance's dialect of Lark.
    Lark(String),
}
