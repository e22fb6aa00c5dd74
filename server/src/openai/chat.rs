//! `POST /v1/chat/completions`: the request.

use crate::openai::ApiError;
use crate::openai::constraint::GuidedFields;
use crate::openai::json::{At, Fields, FromJson, wire};
use crate::openai::message::ChatMessage;
use crate::openai::sampling::SamplingFields;
use crate::openai::tools::{Tool, ToolChoice, ToolUse};
use kiln_engine::Grammar;
use serde_json::{Map, Value, json};

wire! {
    /// A chat completion as the client asks for it.
    pub(crate) struct ChatRequest {
        flatten sampling: SamplingFields,
        flatten guided: GuidedFields,
        flatten output: OutputFields,
        /// Which model: one of those that /v1/models lists. Default: the one that is served.
        model: String,
        /// The conversation.
        messages: Vec<ChatMessage>,
        /// New tokens at most; goes before max_tokens.
        max_completion_tokens: usize,
        /// Whether to tell the logarithm of each token's probability.
        logprobs: bool,
        /// Of how many more likely tokens at each place to tell it, too: 0 to 20.
        top_logprobs: usize,
        /// Functions that the model may call.
        tools: Vec<Tool>,
        /// auto, none, required, or an object that names a function.
        tool_choice: ToolChoice,
        /// false: at most one call an answer.
        parallel_tool_calls: bool,
        /// More variables of the chat template.
        chat_template_kwargs: Map<String, Value>,
        /// Whether the prompt ends with the start of the assistant's answer. Default: true.
        add_generation_prompt: bool,
        /// Go on writing the last message. Default: false.
        continue_final_message: bool,
    }
}

wire! {
    /// What chat and text completions share, beside sampling.
    pub(crate) struct OutputFields {
        /// Send tokens as they come, as server-sent events.
        stream: bool,
        /// What else a stream tells.
        stream_options: StreamOptions,
        /// Laid over the processor's configuration, for this request.
        mm_processor_kwargs: Map<String, Value>,
        /// Requests of a lower number run first. Default: 0.
        priority: i32,
        /// Share cached prompts only with requests of the same salt: how fast an answer comes then
        /// tells nobody without it whether the prompt was asked before. Not empty.
        cache_salt: String,
    }
}

wire! {
    /// What a stream tells beside text.
    pub(crate) struct StreamOptions {
        /// A last chunk with the usage and no choices.
        include_usage: bool,
        /// Every chunk with the usage so far.
        continuous_usage_stats: bool,
    }
}

/// The most alternatives that OpenAI's API tells.
pub(crate) const MAX_TOP_LOGPROBS: usize = 20;

impl ChatRequest {
    /// How many alternatives to tell at each token; `None`: nothing at all.
    ///
    /// # Errors
    /// 400 for too many, or for alternatives without `logprobs`.
    pub(crate) fn top_logprobs(&self) -> Result<Option<usize>, ApiError> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (_, Some(k)) if k > MAX_TOP_LOGPROBS => Err(ApiError::field(
                "top_logprobs",
                format!("at most {MAX_TOP_LOGPROBS}"),
            )),
            (false, Some(k)) if k > 0 => Err(ApiError::field(
                "top_logprobs",
                "it needs \"logprobs\": true",
            )),
            (true, k) => Ok(Some(k.unwrap_or(0))),
            (false, _) => Ok(None),
        }
    }

    /// What the answer must look like, and how tools come into it.
    ///
    /// # Errors
    /// 400 for constraints that contradict each other, and for a choice without its tool.
    pub(crate) fn constraint(&mut self) -> Result<(Option<Grammar>, ToolUse), ApiError> {
        let tools = self.tools.take().unwrap_or_default();
        let choice = self.tool_choice.take();
        let one = !self.parallel_tool_calls.unwrap_or(true);
        let tools = ToolUse::new(tools, choice, one)?;
        let guided = std::mem::take(&mut self.guided).constraint()?;
        match (guided, tools.constraint()) {
            (Some(_), Some(_)) => Err(ApiError::field(
                "tool_choice",
                "a call that is required leaves no room for another response format",
            )),
            (guided, called) => Ok((guided.or(called), tools)),
        }
    }
}

impl OutputFields {
    pub(crate) fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub(crate) fn stream_options(&self) -> StreamOptions {
        self.stream_options.clone().unwrap_or_default()
    }
}

impl StreamOptions {
    pub(crate) fn last_usage(&self) -> bool {
        self.include_usage.unwrap_or(false)
    }

    pub(crate) fn every_usage(&self) -> bool {
        self.continuous_usage_stats.unwrap_or(false)
    }
}

/// A function that a tool or a call names.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Named(pub(crate) String);

impl FromJson for Named {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        Fields::of(value, at)?.need("name", at).map(Self)
    }

    fn schema() -> Value {
        json!({"type": "object", "properties": {"name": {"type": "string"}}})
    }
}
