//! The logarithms of tokens' probabilities, in chat's form and in the older one.

use crate::openai::answer::{ChatLogprobs, TextLogprobs, TokenLogprob, TopLogprob};
use kiln_engine::{HfTokenizer, InputPipeline, SampledToken};
use std::sync::Arc;

/// What tokens are as text.
#[derive(Clone)]
pub(crate) struct TokenTexts(Arc<HfTokenizer>);

impl TokenTexts {
    pub(crate) fn new(pipeline: &InputPipeline) -> Self {
        Self(pipeline.tokenizer().clone())
    }

    /// A token by itself; a part of a character is a replacement character.
    pub(crate) fn text(&self, id: u32) -> String {
        self.0.decode(&[id], false).unwrap_or_default()
    }

    pub(crate) fn chat(&self, token: &SampledToken, into: &mut Option<ChatLogprobs>) {
        let text = self.text(token.id);
        let top_logprobs = token
            .top_logprobs
            .iter()
            .map(|(id, logprob)| {
                let text = self.text(*id);
                TopLogprob {
                    bytes: text.clone().into_bytes(),
                    token: text,
                    logprob: finite(*logprob),
                }
            })
            .collect();
        into.get_or_insert_default().content.push(TokenLogprob {
            bytes: text.clone().into_bytes(),
            token: text,
            logprob: finite(token.logprob),
            top_logprobs,
        });
    }

    /// `offset`: characters of the answer so far; moved on.
    pub(crate) fn completion(
        &self,
        token: &SampledToken,
        into: &mut Option<TextLogprobs>,
        offset: &mut usize,
    ) {
        let text = self.text(token.id);
        let out = into.get_or_insert_default();
        out.text_offset.push(*offset);
        *offset += text.chars().count();
        out.tokens.push(text);
        out.token_logprobs.push(finite(token.logprob));
        let top = token.top_logprobs.iter();
        out.top_logprobs
            .push(top.map(|(id, l)| (self.text(*id), finite(*l))).collect());
    }
}

/// JSON has no infinity; OpenAI's API tells impossible tokens so.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
