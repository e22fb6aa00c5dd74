//! Requests under way: from the engine's events to what an answer is made of. A text completion may
//! have several prompts, which run side by side; a chat has one.

use crate::metrics::{Metrics, Recorder};
use crate::openai::ApiError;
use futures_util::FutureExt;
use futures_util::stream::{BoxStream, SelectAll, StreamExt, select_all, unfold};
use kiln_engine::{Engine, Event, Generation, Request, Usage};
use kiln_registry::Result;
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// An event, and of which prompt it is.
pub(crate) type At = (usize, Event);

/// Generations that have been accepted. Dropping it cancels them.
pub(crate) struct Run {
    events: SelectAll<BoxStream<'static, (usize, Result<Event>)>>,
    /// Of each prompt.
    usages: Vec<Usage>,
    /// From acceptance to the last token.
    span: Span,
}

/// A generation with those who watch it.
struct Watched {
    generation: Generation,
    record: Recorder,
}

impl Watched {
    async fn next(&mut self) -> Option<Result<Event>> {
        let event = self.generation.next_event().await?;
        self.record.observe(&event);
        Some(event)
    }
}

impl Run {
    /// Hands requests to the engine, and waits until each is accepted or one is refused.
    ///
    /// # Errors
    /// The first refusal; the others are cancelled.
    pub(crate) async fn start(
        engine: &Engine,
        metrics: &Metrics,
        requests: Vec<Request>,
    ) -> Result<Self, ApiError> {
        let mut watched = Vec::with_capacity(requests.len());
        for request in requests {
            watched.push(Watched {
                generation: engine.generate(request)?,
                record: metrics.record(),
            });
        }
        let prepare = tracing::info_span!("prepare", prompts = watched.len());
        let mut usages = Vec::with_capacity(watched.len());
        let mut streams = Vec::with_capacity(watched.len());
        for (prompt, mut one) in watched.into_iter().enumerate() {
            let accepted = one.generation.next_event();
            match accepted.instrument(prepare.clone()).await {
                Some(Ok(Event::Accepted { usage })) => usages.push(usage),
                Some(Ok(_)) | None => return Err(ApiError::internal("no acceptance")),
                Some(Err(error)) => {
                    one.record.refused();
                    return Err(error.into());
                }
            }
            let events = unfold(one, move |mut one| async move {
                let event = one.next().await?;
                Some(((prompt, event), one))
            });
            streams.push(events.boxed());
        }
        drop(prepare);
        let span = tracing::info_span!(
            "generate",
            prompt_tokens = usages.iter().map(|u| u.prompt_tokens).sum::<usize>(),
            completion_tokens = Empty,
            cached_tokens = Empty,
            first_token = Empty,
        );
        Ok(Self {
            events: select_all(streams),
            usages,
            span,
        })
    }

    /// The next event; `None` when all prompts are done.
    pub(crate) async fn next(&mut self) -> Option<Result<At, ApiError>> {
        let (prompt, event) = self.events.next().await?;
        Some(self.note(prompt, event))
    }

    /// The next event, if it is there already.
    pub(crate) fn ready(&mut self) -> Option<Result<At, ApiError>> {
        let (prompt, event) = self.events.next().now_or_never()??;
        Some(self.note(prompt, event))
    }

    /// Tokens so far, of each prompt.
    pub(crate) fn usages(&self) -> &[Usage] {
        &self.usages
    }

    fn note(&mut self, prompt: usize, event: Result<Event>) -> Result<At, ApiError> {
        let event = event?;
        match &event {
            Event::Token { .. } => self.usages[prompt].completion_tokens += 1,
            Event::Done { usage, timing } => {
                self.usages[prompt] = usage.clone();
                let all = |count: fn(&Usage) -> usize| self.usages.iter().map(count).sum::<usize>();
                self.span
                    .record("completion_tokens", all(|u| u.completion_tokens))
                    .record("cached_tokens", all(|u| u.cached_tokens))
                    .record("first_token", timing.first_token.as_secs_f64());
            }
            Event::Accepted { .. } | Event::Finished { .. } => {}
        }
        Ok((prompt, event))
    }
}
