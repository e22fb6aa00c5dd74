//! From a line to its answer in OpenAI's form, whatever comes of it.

use super::input::{Endpoint, Line};
use crate::openai::json::{At, FromJson};
use crate::openai::{Api, ApiError, ChatRequest, CompletionRequest, completion_reply};
use anyhow::Result;
use serde_json::{Value, json};
use std::ops::AddAssign;

/// What came of requests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    answered: u64,
    failed: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Counted {
    pub(super) fn lines(&self) -> u64 {
        self.answered + self.failed
    }

    /// The summary.
    pub(super) fn words(&self, before: u64, seconds: f64) -> String {
        format!(
            "{} answered, {} failed, {before} had been answered before; {} prompt tokens and {} new \
             ones in {seconds:.1} s",
            self.answered, self.failed, self.prompt_tokens, self.completion_tokens
        )
    }
}

impl AddAssign for Counted {
    fn add_assign(&mut self, more: Self) {
        self.answered += more.answered;
        self.failed += more.failed;
        self.prompt_tokens += more.prompt_tokens;
        self.completion_tokens += more.completion_tokens;
    }
}

/// The line to write.
///
/// # Errors
/// When the input could not be read: then nothing more comes.
pub(super) async fn reply(api: &Api, line: Result<Line>) -> Result<(Value, Counted)> {
    let id = format!("batch_req_{}", uuid::Uuid::new_v4().simple());
    let (custom_id, endpoint, body) = match line? {
        Line::Request {
            custom_id,
            endpoint,
            body,
        } => (custom_id, endpoint, body),
        Line::Bad {
            custom_id,
            code,
            message,
        } => {
            let error = json!({ "code": code, "message": message });
            let line = json!({
                "id": id, "custom_id": custom_id, "response": null, "error": error,
            });
            return Ok((line, failure()));
        }
    };
    let (status, body, counted) = match answer(api, endpoint, body).await {
        Ok(body) => {
            let tokens = |key: &str| body["usage"][key].as_u64().unwrap_or(0);
            let counted = Counted {
                answered: 1,
                failed: 0,
                prompt_tokens: tokens("prompt_tokens"),
                completion_tokens: tokens("completion_tokens"),
            };
            (200, body, counted)
        }
        Err(error) => (
            error.status.as_u16(),
            serde_json::to_value(error.body())?,
            failure(),
        ),
    };
    let request_id = format!("req_{}", uuid::Uuid::new_v4().simple());
    let response = json!({ "status_code": status, "request_id": request_id, "body": body });
    let line = json!({ "id": id, "custom_id": custom_id, "response": response, "error": null });
    Ok((line, counted))
}

fn failure() -> Counted {
    Counted {
        failed: 1,
        ..Counted::default()
    }
}

async fn answer(api: &Api, endpoint: Endpoint, body: Value) -> Result<Value, ApiError> {
    let answer = match endpoint {
        Endpoint::Chat => {
            let request = ChatRequest::from_json(body, &At::Root)?;
            serde_json::to_value(api.chat(request).await?)
        }
        Endpoint::Completions => {
            let request = CompletionRequest::from_json(body, &At::Root)?;
            let (run, plan) = api.start_completion(request).await?;
            serde_json::to_value(completion_reply::collect(run, plan).await?)
        }
    };
    answer.map_err(ApiError::internal)
}
