//! Who answers: an engine in this process, or a server; and what an answer consists of.

use super::args::ChatArgs;
use super::conversation::Conversation;
use super::remote::Server;
use crate::load::{checkpoint, load};
use anyhow::{Result, ensure};
use kiln_engine::{Engine, Event, FinishReason, Generation, SamplingParams, Usage};
use kiln_registry::MediaCounts;
use std::fmt;
use std::path::Path;
use tokio::sync::mpsc::UnboundedReceiver;

pub(super) enum Partner {
    Engine {
        engine: Box<Engine>,
        sampling: Box<SamplingParams>,
        name: String,
    },
    Server(Server),
}

impl Partner {
    pub(super) fn new(args: &ChatArgs) -> Result<Self> {
        let sampling = args.sampling.params();
        ensure!(
            sampling.n == 1,
            "a conversation goes on from one answer: --n 1"
        );
        if args.model.starts_with("http://") || args.model.starts_with("https://") {
            return Ok(Self::Server(Server::connect(args, &sampling)?));
        }
        let options = args.load.options(&MediaCounts::new())?;
        let loaded = load(&checkpoint(Path::new(&args.model))?, &options)?;
        let engine = Engine::start(loaded, &args.cache.engine(options))?;
        Ok(Self::Engine {
            engine: Box::new(engine),
            sampling: Box::new(sampling),
            name: args.model.clone(),
        })
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Engine { name, .. } => name,
            Self::Server(server) => server.model(),
        }
    }

    /// Asks for the next answer. What is wrong with the question may show here or in the answer.
    pub(super) fn ask(&mut self, conversation: &Conversation) -> Result<Answer> {
        Ok(match self {
            Self::Engine {
                engine, sampling, ..
            } => Answer::Engine {
                events: engine.generate(conversation.request((**sampling).clone()))?,
                cut: false,
            },
            Self::Server(server) => Answer::Server(server.ask(conversation)?),
        })
    }
}

/// A piece of an answer.
pub(super) enum Piece {
    Text(String),
    /// The last one.
    End(Option<Figures>),
}

/// What an answer took.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) prompt_tokens: usize,
    /// Of the prompt: pictures, video, sound.
    pub(super) media_tokens: usize,
    /// Of the prompt: not computed again, where that is known.
    pub(super) cached_tokens: Option<usize>,
    pub(super) completion_tokens: usize,
    /// The answer ended for want of tokens.
    pub(super) cut: bool,
}

impl Figures {
    fn of(usage: &Usage, cut: bool) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            media_tokens: usage.media_tokens(),
            cached_tokens: Some(usage.cached_tokens),
            completion_tokens: usage.completion_tokens,
            cut,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            prompt_tokens,
            media_tokens,
            completion_tokens,
            ..
        } = self;
        write!(f, "{prompt_tokens} prompt tokens ({media_tokens} of media")?;
        if let Some(cached) = self.cached_tokens {
            write!(f, ", {cached} cached")?;
        }
        write!(f, "), {completion_tokens} new tokens")?;
        if self.cut {
            write!(f, " (cut off: --max-tokens, or the context is full)")?;
        }
        Ok(())
    }
}

/// An answer under way. Dropping it cancels it.
pub(super) enum Answer {
    Engine { events: Generation, cut: bool },
    Server(UnboundedReceiver<Result<Piece>>),
}

impl Answer {
    /// The next piece; none behind the last one.
    pub(super) async fn next(&mut self) -> Option<Result<Piece>> {
        let (events, cut) = match self {
            Self::Server(pieces) => return pieces.recv().await,
            Self::Engine { events, cut } => (events, cut),
        };
        loop {
            let event = match events.next_event().await? {
                Ok(event) => event,
                Err(error) => return Some(Err(error.into())),
            };
            return Some(Ok(match event {
                Event::Accepted { .. } => continue,
                Event::Token { text, .. } => Piece::Text(text),
                Event::Finished { reason, text, .. } => {
                    *cut |= reason == FinishReason::Length;
                    Piece::Text(text)
                }
                Event::Done { usage, .. } => Piece::End(Some(Figures::of(&usage, *cut))),
            }));
        }
    }
}
