//! The answer to a chat: whole, or as chunks while it comes.

use crate::openai::ApiError;
use crate::openai::answer::{
    AnswerMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, DeltaBody,
    FunctionCall, FunctionDelta, ToolCall, ToolCallDelta, UsageBody,
};
use crate::openai::chat_plan::ChatPlan;
use crate::openai::run::{At, Run};
use crate::openai::sse::{Chunks, Writer};
use crate::openai::tools::Delta;
use kiln_engine::Event;

/// The whole answer.
///
/// # Errors
/// What fails the request while it runs.
pub(crate) async fn collect(mut run: Run, mut plan: ChatPlan) -> Result<ChatCompletion, ApiError> {
    let mut choices: Vec<ChatChoice> = (0..plan.answers())
        .map(|index| ChatChoice {
            index,
            message: AnswerMessage {
                role: "assistant",
                ..AnswerMessage::default()
            },
            logprobs: plan.logprobs.then(ChatLogprobs::default),
            finish_reason: "stop",
        })
        .collect();
    while let Some(event) = run.next().await {
        match event?.1 {
            Event::Token { index, token, text } => {
                let deltas = plan.deltas(index, text);
                if let Some(choice) = choices.get_mut(index) {
                    if plan.logprobs {
                        plan.tokens.chat(&token, &mut choice.logprobs);
                    }
                    add(&mut choice.message, deltas);
                }
            }
            Event::Finished {
                index,
                reason,
                text,
            } => {
                let mut deltas = plan.deltas(index, text);
                deltas.extend(plan.rest(index));
                if let Some(choice) = choices.get_mut(index) {
                    add(&mut choice.message, deltas);
                    choice.finish_reason = plan.finish_reason(index, reason);
                }
            }
            Event::Accepted { .. } | Event::Done { .. } => {}
        }
    }
    for choice in &mut choices {
        if choice.message.tool_calls.is_empty() {
            choice.message.content.get_or_insert_default();
        }
    }
    let head = plan.head;
    Ok(ChatCompletion {
        id: head.id,
        object: "chat.completion",
        created: head.created,
        model: head.model,
        choices,
        usage: UsageBody::sum(run.usages()),
    })
}

fn add(message: &mut AnswerMessage, deltas: Vec<Delta>) {
    for delta in deltas {
        match delta {
            Delta::Text(text) => message.content.get_or_insert_default().push_str(&text),
            Delta::Call { id, name, .. } => message.tool_calls.push(ToolCall {
                id,
                r#type: "function",
                function: FunctionCall {
                    name,
                    arguments: String::new(),
                },
            }),
            Delta::Arguments { index, text } => {
                if let Some(call) = message.tool_calls.get_mut(index) {
                    call.function.arguments.push_str(&text);
                }
            }
        }
    }
}

/// Writes the chunks of an answer.
pub(crate) struct ChatChunks {
    plan: ChatPlan,
    /// Logprobs of tokens whose text is held back.
    logprobs: Vec<Option<ChatLogprobs>>,
}

impl ChatChunks {
    pub(crate) fn new(plan: ChatPlan) -> Self {
        Self {
            logprobs: (0..plan.answers()).map(|_| None).collect(),
            plan,
        }
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<UsageBody>, out: &mut Writer) {
        out.data(&ChatChunk {
            id: &self.plan.head.id,
            object: "chat.completion.chunk",
            created: self.plan.head.created,
            model: &self.plan.head.model,
            choices,
            usage,
        });
    }

    fn delta(
        &mut self,
        index: usize,
        delta: DeltaBody,
        finish_reason: Option<&'static str>,
        run: &Run,
        out: &mut Writer,
    ) {
        let logprobs = self.logprobs.get_mut(index).and_then(Option::take);
        let choice = ChatChunkChoice {
            index,
            delta,
            logprobs,
            finish_reason,
        };
        let every = self.plan.output.stream_options().every_usage();
        let usage = every.then(|| UsageBody::sum(run.usages()));
        self.chunk(vec![choice], usage, out);
    }
}

impl Chunks for ChatChunks {
    fn start(&mut self, run: &Run, out: &mut Writer) {
        for index in 0..self.plan.answers() {
            let delta = DeltaBody {
                role: Some("assistant"),
                content: Some(String::new()),
                ..DeltaBody::default()
            };
            self.delta(index, delta, None, run, out);
        }
    }

    fn event(&mut self, (_, event): At, run: &Run, out: &mut Writer) {
        match event {
            Event::Token { index, token, text } => {
                if self.plan.logprobs
                    && let Some(logprobs) = self.logprobs.get_mut(index)
                {
                    self.plan.tokens.chat(&token, logprobs);
                }
                for delta in self.plan.deltas(index, text) {
                    self.delta(index, body(delta), None, run, out);
                }
            }
            Event::Finished {
                index,
                reason,
                text,
            } => {
                let mut deltas = self.plan.deltas(index, text);
                deltas.extend(self.plan.rest(index));
                for delta in deltas {
                    self.delta(index, body(delta), None, run, out);
                }
                let reason = self.plan.finish_reason(index, reason);
                self.delta(index, DeltaBody::default(), Some(reason), run, out);
            }
            Event::Accepted { .. } | Event::Done { .. } => {}
        }
    }

    fn end(&mut self, run: &Run, out: &mut Writer) {
        let options = self.plan.output.stream_options();
        if options.last_usage() || options.every_usage() {
            self.chunk(vec![], Some(UsageBody::sum(run.usages())), out);
        }
    }
}

fn body(delta: Delta) -> DeltaBody {
    let call = |index, id, name, arguments| DeltaBody {
        tool_calls: vec![ToolCallDelta {
            index,
            r#type: Option::is_some(&id).then_some("function"),
            id,
            function: FunctionDelta { name, arguments },
        }],
        ..DeltaBody::default()
    };
    match delta {
        Delta::Text(text) => DeltaBody {
            content: Some(text),
            ..DeltaBody::default()
        },
        Delta::Call { index, id, name } => call(index, Some(id), Some(name), String::new()),
        Delta::Arguments { index, text } => call(index, None, None, text),
    }
}
