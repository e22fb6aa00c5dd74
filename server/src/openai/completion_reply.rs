//! The answer to a text completion: whole, or as chunks while it comes. The answers of the first
//! prompt come first, then those of the second.

use crate::openai::ApiError;
use crate::openai::answer::{TextChoice, TextCompletion, TextLogprobs, UsageBody, finish_name};
use crate::openai::completion::CompletionPlan;
use crate::openai::run::{At, Run};
use crate::openai::sse::{Chunks, Writer};
use kiln_engine::Event;

/// The whole answer.
///
/// # Errors
/// What fails the request while it runs.
pub(crate) async fn collect(
    mut run: Run,
    plan: CompletionPlan,
) -> Result<TextCompletion, ApiError> {
    let mut choices: Vec<TextChoice> = plan
        .echo
        .iter()
        .flat_map(|echo| std::iter::repeat_n(echo, plan.n))
        .enumerate()
        .map(|(index, echo)| TextChoice {
            index,
            text: echo.clone(),
            logprobs: plan.logprobs.then(TextLogprobs::default),
            finish_reason: None,
        })
        .collect();
    let mut offsets = vec![0; choices.len()];
    while let Some(event) = run.next().await {
        let (prompt, event) = event?;
        let (index, more, reason) = match event {
            Event::Token { index, token, text } => {
                let at = prompt * plan.n + index;
                if plan.logprobs
                    && let (Some(choice), Some(offset)) = (choices.get_mut(at), offsets.get_mut(at))
                {
                    plan.tokens.completion(&token, &mut choice.logprobs, offset);
                }
                (index, text, None)
            }
            Event::Finished {
                index,
                reason,
                text,
            } => (index, text, Some(finish_name(reason))),
            Event::Accepted { .. } | Event::Done { .. } => continue,
        };
        if let Some(choice) = choices.get_mut(prompt * plan.n + index) {
            choice.text.push_str(&more);
            choice.finish_reason = reason;
        }
    }
    Ok(TextCompletion {
        id: plan.head.id,
        object: "text_completion",
        created: plan.head.created,
        model: plan.head.model,
        choices,
        usage: Some(UsageBody::sum(run.usages())),
    })
}

/// Writes the chunks of an answer.
pub(crate) struct CompletionChunks {
    offsets: Vec<usize>,
    plan: CompletionPlan,
}

impl CompletionChunks {
    pub(crate) fn new(plan: CompletionPlan) -> Self {
        Self {
            offsets: vec![0; plan.echo.len().saturating_mul(plan.n)],
            plan,
        }
    }

    fn chunk(&self, choices: Vec<TextChoice>, usage: Option<UsageBody>, out: &mut Writer) {
        out.data(&TextCompletion {
            id: self.plan.head.id.clone(),
            object: "text_completion",
            created: self.plan.head.created,
            model: self.plan.head.model.clone(),
            choices,
            usage,
        });
    }

    fn choice(&self, choice: TextChoice, run: &Run, out: &mut Writer) {
        let every = self.plan.output.stream_options().every_usage();
        self.chunk(
            vec![choice],
            every.then(|| UsageBody::sum(run.usages())),
            out,
        );
    }
}

impl Chunks for CompletionChunks {
    fn start(&mut self, run: &Run, out: &mut Writer) {
        for (prompt, echo) in self.plan.echo.iter().enumerate() {
            for index in 0..self.plan.n {
                if echo.is_empty() {
                    continue;
                }
                let choice = TextChoice {
                    index: prompt * self.plan.n + index,
                    text: echo.clone(),
                    logprobs: None,
                    finish_reason: None,
                };
                self.choice(choice, run, out);
            }
        }
    }

    fn event(&mut self, (prompt, event): At, run: &Run, out: &mut Writer) {
        let at = |index: usize| prompt * self.plan.n + index;
        let choice = match event {
            Event::Token { index, token, text } => {
                let index = at(index);
                let mut logprobs = None;
                if self.plan.logprobs
                    && let Some(offset) = self.offsets.get_mut(index)
                {
                    self.plan.tokens.completion(&token, &mut logprobs, offset);
                }
                if text.is_empty() && logprobs.is_none() {
                    return;
                }
                TextChoice {
                    index,
                    text,
                    logprobs,
                    finish_reason: None,
                }
            }
            Event::Finished {
                index,
                reason,
                text,
            } => TextChoice {
                index: at(index),
                text,
                logprobs: None,
                finish_reason: Some(finish_name(reason)),
            },
            Event::Accepted { .. } | Event::Done { .. } => return,
        };
        self.choice(choice, run, out);
    }

    fn end(&mut self, run: &Run, out: &mut Writer) {
        let options = self.plan.output.stream_options();
        if options.last_usage() || options.every_usage() {
            self.chunk(vec![], Some(UsageBody::sum(run.usages())), out);
        }
    }
}
