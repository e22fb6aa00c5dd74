//! From a chat as it was sent to the engine's request, and what is kept for the answer.

use crate::openai::ApiError;
use crate::openai::Head;
use crate::openai::api::Api;
use crate::openai::chat::{ChatRequest, OutputFields};
use crate::openai::logprobs::TokenTexts;
use crate::openai::media;
use crate::openai::message::Part;
use crate::openai::tools::{Delta, ToolFormat, ToolParser, ToolUse};
use kiln_engine::{ContentPart, FinishReason, Message, PromptInput, Request, TemplateArgs};
use std::time::Instant;

/// What an answer is made by.
pub(crate) struct ChatPlan {
    pub(crate) head: Head,
    pub(crate) output: OutputFields,
    /// Whether logprobs are told.
    pub(crate) logprobs: bool,
    pub(crate) tokens: TokenTexts,
    tools: ToolUse,
    /// One a sequence, where calls are read out of the answer.
    parsers: Vec<Option<ToolParser>>,
}

impl ChatRequest {
    /// The engine's request, its media fetched.
    ///
    /// # Errors
    /// 400 that names what can't be served as it was sent.
    pub(crate) async fn into_request(
        mut self,
        api: &Api,
        head: Head,
    ) -> Result<(Request, ChatPlan), ApiError> {
        let arrival = Instant::now();
        let logprobs = self.top_logprobs()?;
        let (guide, tools) = self.constraint()?;
        let mut fields = self.sampling;
        fields.max_tokens = self.max_completion_tokens.or(fields.max_tokens);
        let mut sampling = fields.params(api.pipeline().sampling_defaults())?;
        sampling.guide = guide;
        sampling.logprobs = logprobs;
        let n = sampling.n;

        let Some(messages) = self.messages.filter(|list| !list.is_empty()) else {
            return Err(ApiError::field("messages", "at least one is needed"));
        };
        let mut parts = Vec::new();
        let conversation = messages
            .into_iter()
            .map(|message| Message {
                role: message.role,
                content: message
                    .content
                    .into_iter()
                    .map(|part| match part {
                        Part::Text(text) => ContentPart::Text(text),
                        Part::Media(media) => {
                            let modality = media.modality.to_owned();
                            parts.push(media);
                            ContentPart::Media { modality }
                        }
                    })
                    .collect(),
                extra: message.extra,
            })
            .collect();
        let media = media::fetch(parts, api).await?;

        let continues = self.continue_final_message.unwrap_or(false);
        let request = Request {
            sampling,
            priority: self.output.priority.unwrap_or(0),
            cache_salt: self.output.cache_salt.clone(),
            template: TemplateArgs {
                tools: tools.shown(),
                kwargs: self.chat_template_kwargs.unwrap_or_default(),
                add_generation_prompt: self.add_generation_prompt.unwrap_or(!continues),
                continue_final_message: continues,
            },
            mm_processor_kwargs: self.output.mm_processor_kwargs.clone(),
            arrival,
            ..Request::new(PromptInput::Chat(conversation), media)
        };
        let plan = ChatPlan {
            head,
            output: self.output,
            logprobs: logprobs.is_some(),
            tokens: TokenTexts::new(api.pipeline()),
            // The engine bounds n; an answer that never comes needs no parser.
            parsers: (0..n.min(64))
                .map(|_| parser(&tools, api.tool_format))
                .collect(),
            tools,
        };
        Ok((request, plan))
    }
}

/// What reads the calls of one answer.
fn parser(tools: &ToolUse, format: Option<ToolFormat>) -> Option<ToolParser> {
    if let Some(name) = tools.named() {
        return Some(ToolParser::named(name));
    }
    if tools.required() {
        return Some(ToolParser::new(ToolFormat::List, tools.one));
    }
    if tools.reads_calls() {
        return format.map(|format| ToolParser::new(format, tools.one).knowing(tools.names()));
    }
    None
}

impl ChatPlan {
    /// How many answers there are.
    pub(crate) fn answers(&self) -> usize {
        self.parsers.len()
    }

    /// What more text of an answer is.
    pub(crate) fn deltas(&mut self, index: usize, text: String) -> Vec<Delta> {
        match self.parsers.get_mut(index) {
            Some(Some(parser)) => parser.push(&text),
            _ if text.is_empty() => vec![],
            _ => vec![Delta::Text(text)],
        }
    }

    /// What was held back until an answer's end.
    pub(crate) fn rest(&mut self, index: usize) -> Vec<Delta> {
        match self.parsers.get_mut(index) {
            Some(Some(parser)) => parser.finish(),
            _ => vec![],
        }
    }

    /// The name of an answer's end. As OpenAI has it, a call that was asked for by name is no reason
    /// to stop of its own.
    pub(crate) fn finish_reason(&self, index: usize, reason: FinishReason) -> &'static str {
        let called = self
            .parsers
            .get(index)
            .and_then(Option::as_ref)
            .is_some_and(|parser| parser.calls() > 0);
        match reason {
            FinishReason::Stop if called && self.tools.named().is_none() => "tool_calls",
            reason => super::answer::finish_name(reason),
        }
    }
}
