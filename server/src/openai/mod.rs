//! OpenAI's API: requests as they come over the wire, their way to the engine and back.
//!
//! In the order of a request: [`json`] reads it, [`chat`] and [`completion`] say what it may hold,
//! [`chat_plan`] makes it the engine's (fetching [`media`]), [`run`] follows it, [`chat_reply`] and
//! [`completion_reply`] write the answer, whole or over [`sse`].

pub(crate) mod answer;
pub(crate) mod api;
pub(crate) mod chat;
mod chat_plan;
pub(crate) mod chat_reply;
pub(crate) mod completion;
pub(crate) mod completion_reply;
mod constraint;
mod error;
pub(crate) mod json;
mod logprobs;
mod media;
pub(crate) mod message;
pub(crate) mod run;
mod sampling;
pub(crate) mod sse;
pub(crate) mod tokenize;
mod tools;

pub(crate) use api::Api;
pub(crate) use chat::ChatRequest;
pub(crate) use completion::CompletionRequest;
pub(crate) use error::{ApiError, ErrorBody, Rejection};
pub(crate) use tools::ToolFormat;

/// What every answer begins with.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Head {
    fn new(kind: &str, model: String) -> Self {
        Self {
            id: format!("{kind}-{}", uuid::Uuid::new_v4().simple()),
            created: api::now(),
            model,
        }
    }
}
