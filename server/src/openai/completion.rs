//! `POST /v1/completions`: text goes on where a prompt ends, without a chat template.

use crate::openai::chat::OutputFields;
use crate::openai::constraint::GuidedFields;
use crate::openai::json::{At, FromJson, wire};
use crate::openai::logprobs::TokenTexts;
use crate::openai::run::Run;
use crate::openai::sampling::SamplingFields;
use crate::openai::{Api, ApiError, Head};
use kiln_engine::{PromptInput, Request};
use kiln_registry::Tokenizer;
use serde_json::{Value, json};
use std::time::Instant;

wire! {
    /// A text completion as the client asks for it.
    pub(crate) struct CompletionRequest {
        flatten sampling: SamplingFields,
        flatten guided: GuidedFields,
        flatten output: OutputFields,
        /// Which model: one of those that /v1/models lists. Default: the one that is served.
        model: String,
        /// Text, a list of texts, token ids, or a list of lists of token ids.
        prompt: Prompts,
        /// Whether the answer begins with the prompt.
        echo: bool,
        /// Tell the logarithm of each token's probability, and of how many likelier ones: 0 to 5.
        logprobs: usize,
        /// Whether the tokenizer adds its special tokens. Default: true.
        add_special_tokens: bool,
        /// Not supported.
        suffix: String,
        /// Answers to choose from; must be n.
        best_of: usize,
    }
}

/// One prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum OnePrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// All prompts of a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prompts(pub(crate) Vec<OnePrompt>);

/// Prompts that one request may bring: each is a request of its own to the engine.
const MAX_PROMPTS: usize = 128;

impl FromJson for Prompts {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        let wanted = "text, a list of texts, token ids, or lists of token ids";
        let list = match value {
            Value::String(text) => return Ok(Self(vec![OnePrompt::Text(text)])),
            Value::Array(list) => list,
            other => return Err(at.wanted(wanted, &other)),
        };
        match list.first() {
            None => return Err(ApiError::field(at, "it is empty")),
            Some(Value::Number(_)) => {
                let ids = Vec::from_json(Value::Array(list), at)?;
                return Ok(Self(vec![OnePrompt::Tokens(ids)]));
            }
            Some(_) => {}
        }
        if list.len() > MAX_PROMPTS {
            return Err(ApiError::field(
                at,
                format!("at most {MAX_PROMPTS} prompts"),
            ));
        }
        list.into_iter()
            .enumerate()
            .map(|(index, value)| match value {
                Value::String(text) => Ok(OnePrompt::Text(text)),
                list @ Value::Array(_) => {
                    Vec::from_json(list, &At::Index(at, index)).map(OnePrompt::Tokens)
                }
                other => Err(At::Index(at, index).wanted("text or token ids", &other)),
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn schema() -> Value {
        let ids = json!({"type": "array", "items": {"type": "integer"}});
        json!({"anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}},
            ids,
            {"type": "array", "items": ids},
        ]})
    }
}

/// What a text completion is answered by.
pub(crate) struct CompletionPlan {
    pub(crate) head: Head,
    pub(crate) output: OutputFields,
    /// Answers of each prompt.
    pub(crate) n: usize,
    pub(crate) logprobs: bool,
    pub(crate) tokens: TokenTexts,
    /// What each prompt's answers begin with.
    pub(crate) echo: Vec<String>,
}

impl Api {
    /// A text completion whose prompts the engine has accepted.
    ///
    /// # Errors
    /// The request's error.
    pub(crate) async fn start_completion(
        &self,
        request: CompletionRequest,
    ) -> Result<(Run, CompletionPlan), ApiError> {
        let head = Head::new("cmpl", self.model(request.model.as_deref())?);
        let (requests, plan) = request.into_requests(self, head).await?;
        let run = Run::start(&self.engine, &self.metrics, requests).await?;
        Ok((run, plan))
    }
}

impl CompletionRequest {
    async fn into_requests(
        self,
        api: &Api,
        head: Head,
    ) -> Result<(Vec<Request>, CompletionPlan), ApiError> {
        let arrival = Instant::now();
        let Some(prompts) = self.prompt else {
            return Err(ApiError::field("prompt", "it is missing"));
        };
        let echo = self.echo.unwrap_or(false);
        if echo && self.logprobs.is_some() {
            let message = "with logprobs, it would need those of the prompt, which are not kept";
            return Err(ApiError::field("echo", message));
        }
        if self.suffix.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::field("suffix", "text is not filled in here"));
        }
        let n = self.sampling.n.unwrap_or(1);
        if self.best_of.is_some_and(|best| best != n) {
            return Err(ApiError::field("best_of", "it must be n"));
        }
        let mut sampling = self.sampling.params(api.pipeline().sampling_defaults())?;
        sampling.guide = self.guided.constraint()?;
        sampling.logprobs = self.logprobs;
        let specials = self.add_special_tokens.unwrap_or(true);
        let tokenizer = api.pipeline().tokenizer().clone();
        // Long texts take a while.
        let encoded = tokio::task::spawn_blocking(move || {
            prompts
                .0
                .into_iter()
                .map(|prompt| {
                    Ok(match prompt {
                        OnePrompt::Text(text) => {
                            let ids = tokenizer.encode(&text, specials)?;
                            (ids, if echo { text } else { String::new() })
                        }
                        OnePrompt::Tokens(ids) => {
                            let text = if echo {
                                tokenizer.decode(&ids, true)?
                            } else {
                                String::new()
                            };
                            (ids, text)
                        }
                    })
                })
                .collect::<kiln_registry::Result<Vec<_>>>()
        });
        let encoded = encoded.await.map_err(ApiError::internal)??;
        let (prompts, echo): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
        let requests = prompts
            .into_iter()
            .map(|ids| Request {
                sampling: sampling.clone(),
                priority: self.output.priority.unwrap_or(0),
                cache_salt: self.output.cache_salt.clone(),
                mm_processor_kwargs: self.output.mm_processor_kwargs.clone(),
                arrival,
                ..Request::new(PromptInput::Tokens(ids), vec![])
            })
            .collect();
        let plan = CompletionPlan {
            head,
            n,
            logprobs: sampling.logprobs.is_some(),
            tokens: TokenTexts::new(api.pipeline()),
            echo,
            output: self.output,
        };
        Ok((requests, plan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::json::parse;

    #[test]
    fn prompts_in_all_four_forms() {
        let prompts = |body: Value| {
            parse::<CompletionRequest>(json!({"prompt": body}).to_string().as_bytes())
                .map(|request| request.prompt)
        };
        let (text, ids) = (OnePrompt::Text("a".into()), OnePrompt::Tokens(vec![1, 2]));
        for (body, expected) in [
            (json!("a"), vec![text.clone()]),
            (json!(["a", "a"]), vec![text.clone(), text]),
            (json!([1, 2]), vec![ids.clone()]),
            (json!([[1, 2], [1, 2]]), vec![ids.clone(), ids]),
        ] {
            assert_eq!(prompts(body).unwrap(), Some(Prompts(expected)));
        }
        for (body, param) in [
            (json!([]), "prompt"),
            (json!({}), "prompt"),
            (json!([1, "a"]), "prompt[1]"),
            (json!(["a", 3]), "prompt[1]"),
            (json!([[1], [-1]]), "prompt[1][0]"),
        ] {
            let error = prompts(body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}
