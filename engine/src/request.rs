//! What goes into the engine and what comes out: requests, events, usage.

use crate::template::Message;
use crate::{SampledToken, SamplingParams};
use bytes::Bytes;
use kiln_registry::{Error, MediaItem, Result};
use tokio::sync::mpsc::UnboundedReceiver;

/// The text of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptInput {
    /// A conversation, for the checkpoint's chat template.
    Chat(Vec<Message>),
    /// Text as it is: special tokens written in it count, none is added.
    Text(String),
    /// Token ids, one placeholder id per item.
    Tokens(Vec<u32>),
}

/// An image, video or audio clip of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum MediaInput {
    /// Encoded bytes of a modality.
    Bytes {
        /// The modality's name, such as `image`.
        modality: String,
        /// The file's content; its format is found out from the bytes.
        bytes: Bytes,
    },
    /// An item that is decoded already, or embeddings that the caller computed.
    Item(MediaItem),
}

/// A request. Media stand in the order of their placeholders.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The text.
    pub prompt: PromptInput,
    /// The media.
    pub media: Vec<MediaInput>,
    /// How to choose tokens, and when to end.
    pub sampling: SamplingParams,
}

impl Request {
    /// One user message with items before the text, in this order, answered greedily. `media`: the
    /// modality and the file's content of each.
    pub fn about<M: Into<String>>(
        text: impl Into<String>,
        media: impl IntoIterator<Item = (M, Bytes)>,
    ) -> Self {
        let (modalities, media): (Vec<String>, Vec<MediaInput>) = media
            .into_iter()
            .map(|(modality, bytes)| {
                let modality = modality.into();
                (modality.clone(), MediaInput::Bytes { modality, bytes })
            })
            .unzip();
        let message = Message::user(text, modalities);
        Self {
            prompt: PromptInput::Chat(vec![message]),
            media,
            sampling: SamplingParams::default(),
        }
    }

    /// [`about`](Self::about) images alone.
    pub fn about_images(text: impl Into<String>, images: impl IntoIterator<Item = Bytes>) -> Self {
        Self::about(text, images.into_iter().map(|bytes| ("image", bytes)))
    }

    /// The same with other sampling parameters.
    #[must_use]
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence token, a stop token or a stop string.
    Stop,
    /// As many tokens as were asked for, or as the context holds.
    Length,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt after expansion.
    pub prompt_tokens: usize,
    /// Of those, placeholders of media.
    pub media_tokens: usize,
    /// Chosen, over all sequences, end-of-sequence tokens included.
    pub completion_tokens: usize,
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
