//! What comes out of the engine: tokens as they are chosen, ends, usage and timing.

use crate::SampledToken;
use kiln_registry::{Error, Result};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence token, a stop token or a stop string.
    Stop,
    /// As many tokens as were asked for, or as the context holds.
    Length,
}

/// Tokens of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt after expansion.
    pub prompt_tokens: usize,
    /// Of those, taken from the prefix cache when the request first ran; of several sequences, the
    /// first one's.
    pub cached_tokens: usize,
    /// Of the prompt's tokens, placeholders of media, by modality.
    pub media: BTreeMap<String, usize>,
    /// Chosen, over all sequences, end-of-sequence tokens included.
    pub completion_tokens: usize,
}

impl Usage {
    /// Placeholders of media of all modalities.
    pub fn media_tokens(&self) -> usize {
        self.media.values().sum()
    }
}

/// What a request took. All durations count from [`Request::arrival`](crate::Request::arrival), so
/// that each is at least the one before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// Its media were mapped and its prompt tokenised.
    pub prepared: Duration,
    /// Its first step began: it waited no more.
    pub queued: Duration,
    /// Its first token was chosen.
    pub first_token: Duration,
    /// Its last sequence had ended.
    pub finished: Duration,
    /// How often one of its sequences gave its blocks back and was computed anew.
    pub preemptions: u32,
    /// Items that went through the encoder for it.
    pub encoded_items: usize,
    /// Items whose encoder rows were cached. Those that the prefix cache covers are in neither.
    pub cached_items: usize,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It was tokenised, its media mapped, and it is in the queue.
    Accepted {
        /// Tokens of the prompt.
        usage: Usage,
    },
    /// A sequence has a token more.
    Token {
        /// Which of the `n` sequences.
        index: usize,
        /// The token.
        token: SampledToken,
        /// Text that is final now; empty while a character or a stop string may be under way.
        text: String,
    },
    /// A sequence has ended.
    Finished {
        /// Which of the `n` sequences.
        index: usize,
        /// Why.
        reason: FinishReason,
        /// Text that had been held back.
        text: String,
    },
    /// All sequences have ended; the last event.
    Done {
        /// Tokens in all.
        usage: Usage,
        /// What it took.
        timing: Timing,
    },
}

/// The events of a request, as they happen. Dropping it cancels the request.
#[derive(Debug)]
pub struct Generation {
    events: UnboundedReceiver<Result<Event>>,
    over: bool,
}

impl Generation {
    pub(crate) fn new(events: UnboundedReceiver<Result<Event>>) -> Self {
        Self {
            events,
            over: false,
        }
    }

    /// The next event, awaited; `None` after the last one.
    pub async fn next_event(&mut self) -> Option<Result<Event>> {
        let event = if self.over {
            None
        } else {
            self.events.recv().await
        };
        self.note(event)
    }

    /// The whole text of the first sequence.
    ///
    /// # Errors
    /// The request's error, if it has one.
    pub fn text(self) -> Result<String> {
        let mut whole = String::new();
        for event in self {
            match event? {
                Event::Token { index: 0, text, .. } | Event::Finished { index: 0, text, .. } => {
                    whole.push_str(&text);
                }
                _ => {}
            }
        }
        Ok(whole)
    }

    /// An engine that is gone in the midst of a request is an error, not an end.
    fn note(&mut self, event: Option<Result<Event>>) -> Option<Result<Event>> {
        if self.over {
            return None;
        }
        let event = event.unwrap_or_else(|| Err(Error::internal("the engine has stopped")));
        self.over = !matches!(
            event,
            Ok(Event::Accepted { .. } | Event::Token { .. } | Event::Finished { .. })
        );
        Some(event)
    }
}

/// Blocks the thread until the next event; not for async threads.
impl Iterator for Generation {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        let event = if self.over {
            None
        } else {
            self.events.blocking_recv()
        };
        self.note(event)
    }
}
