//! A request while it runs, and its sequences: tokens, text, and when they end.

use crate::detokenize::Detokenizer;
use crate::event::{Event, FinishReason, Timing, Usage};
use crate::pipeline::{Prepared, PreparedItem};
use crate::prefix::PrefixHasher;
use crate::sampling::{Allowed, Matching};
use crate::stats::Held;
use crate::tokenizer::HfTokenizer;
use crate::{BlockHash, Sampler, SamplingParams, SequenceId, StopMatcher};
use burn::tensor::Tensor;
use kiln_registry::{Error, PlaceholderRange, Result};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// Where a request's events go.
pub(crate) type EventSender = UnboundedSender<Result<Event>>;

/// A request on its way to the owner thread.
pub(crate) struct Admitted {
    pub(crate) prepared: Prepared,
    pub(crate) sampling: SamplingParams,
    pub(crate) priority: i32,
    pub(crate) events: EventSender,
    pub(crate) arrival: Instant,
    /// When it was prepared.
    pub(crate) ready: Instant,
    /// Counts it until it has ended.
    pub(crate) active: Held,
    /// Counts it and its items among those in preparation.
    pub(crate) waiting: Option<[Held; 2]>,
}

/// A request with all that its sequences share.
pub(crate) struct Running {
    prepared: Prepared,
    sampling: SamplingParams,
    events: EventSender,
    /// Encoder rows by placeholder range, while a step or the next one needs them.
    features: Vec<Option<Tensor<2>>>,
    pub(crate) sequences: Vec<Sequence>,
    usage: Usage,
    arrival: Instant,
    timing: Timing,
    began: bool,
    _active: Held,
}

/// One of a request's sequences.
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    index: usize,
    generated: Vec<u32>,
    most: usize,
    sampler: Sampler,
    matching: Option<Matching>,
    /// Where blocks have names.
    hasher: Option<PrefixHasher>,
    text: Detokenizer,
    stops: StopMatcher,
}

impl Sequence {
    /// What was held back, in case more came: characters under way, then the start of a stop string.
    fn rest(&mut self) -> String {
        let mut rest = self.stops.push(&self.text.finish());
        rest.push_str(&self.stops.finish());
        rest
    }
}

/// What every sequence of a model ends by.
pub(crate) struct Endings<'a> {
    pub(crate) eos: &'a [u32],
}

/// What became of a sequence with its newest token.
pub(crate) enum Chosen {
    /// It goes on; the name of the block that the token fills.
    GoesOn(Option<BlockHash>),
    /// It has ended.
    Ended(FinishReason),
}

impl Running {
    /// A request whose sequences have the ids given, each of at most `most` new tokens. `hasher`
    /// stands behind the prompt.
    pub(crate) fn new(
        admitted: Admitted,
        ids: &[SequenceId],
        most: usize,
        drawn_seed: u64,
        tokenizer: &Arc<HfTokenizer>,
        hasher: Option<PrefixHasher>,
    ) -> Self {
        let Admitted {
            prepared,
            sampling,
            events,
            arrival,
            ready,
            active,
            ..
        } = admitted;
        let sequences = ids
            .iter()
            .enumerate()
            .map(|(index, id)| Sequence {
                id: *id,
                index,
                generated: Vec::new(),
                most,
                sampler: Sampler::new(&sampling, index, drawn_seed),
                matching: prepared.guide.as_ref().map(|guide| guide.start()),
                hasher: hasher.clone(),
                text: Detokenizer::new(tokenizer.clone(), true),
                stops: StopMatcher::new(&sampling.stop),
            })
            .collect();
        Self {
            features: vec![None; prepared.placeholders.len()],
            usage: prepared.usage(),
            prepared,
            sampling,
            events,
            sequences,
            arrival,
            timing: Timing {
                prepared: ready.saturating_duration_since(arrival),
                ..Timing::default()
            },
            began: false,
            _active: active,
        }
    }

    /// Tokens of the prompt.
    pub(crate) fn prompt_len(&self) -> usize {
        self.prepared.token_ids.len()
    }

    /// Whether nobody listens any more.
    pub(crate) fn cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Notes that a step has a part of it, which begins at a position.
    pub(crate) fn begin(&mut self, start: usize) {
        if !std::mem::replace(&mut self.began, true) {
            self.timing.queued = self.since_arrival();
            self.usage.cached_tokens = start.min(self.prompt_len());
        }
    }

    fn since_arrival(&self) -> Duration {
        self.arrival.elapsed()
    }

    /// The tokens of a sequence at some positions.
    pub(crate) fn tokens(&self, sequence: usize, positions: &Range<usize>) -> Vec<u32> {
        let (prompt, generated) = (
            &self.prepared.token_ids,
            &self.sequences[sequence].generated,
        );
        positions
            .clone()
            .filter_map(|p| match p.checked_sub(prompt.len()) {
                None => prompt.get(p),
                Some(g) => generated.get(g),
            })
            .copied()
            .collect()
    }

    /// The ranges that lie at some positions.
    pub(crate) fn ranges_at(&self, positions: &Range<usize>) -> Vec<usize> {
        let ranges = self.prepared.placeholders.iter().enumerate();
        ranges
            .filter(|(_, range)| {
                let span = range.range();
                span.start < positions.end && positions.start < span.end
            })
            .map(|(at, _)| at)
            .collect()
    }

    /// A range and its item.
    ///
    /// # Errors
    /// [`Error::Internal`] when there is none.
    pub(crate) fn item(&self, at: usize) -> Result<(&PreparedItem, &PlaceholderRange)> {
        let item = self.prepared.items.get(at);
        item.zip(self.prepared.placeholders.get(at))
            .ok_or_else(|| Error::internal("a placeholder range without an item"))
    }

    /// Whether the rows of a range are there.
    pub(crate) fn has_rows(&self, at: usize) -> bool {
        self.features.get(at).is_some_and(Option::is_some)
    }

    /// Gives a range its rows; `encoded`: whether they were made for it, and not cached.
    pub(crate) fn give_rows(&mut self, at: usize, rows: Tensor<2>, encoded: bool) {
        if let Some(features) = self.features.get_mut(at) {
            *features = Some(rows);
        }
        match encoded {
            true => self.timing.encoded_items += 1,
            false => self.timing.cached_items += 1,
        }
    }

    /// Lays the rows of ranges over a part of a step.
    pub(crate) fn lay(&self, ranges: &[usize], input: &mut crate::executor::StepInput) {
        for at in ranges {
            if let Some(features) = &self.features[*at] {
                input.lay(&self.prepared.placeholders[*at], features);
            }
        }
    }

    /// Bytes of the encoder rows that are held.
    pub(crate) fn row_bytes(&self) -> usize {
        self.features
            .iter()
            .flatten()
            .map(crate::cache::row_bytes)
            .sum()
    }

    /// Lets go of the encoder rows that end before a position: those that are needed again are cached
    /// or encoded again.
    pub(crate) fn let_go_of_rows(&mut self, before: usize) {
        for (range, features) in self.prepared.placeholders.iter().zip(&mut self.features) {
            if range.range().end <= before {
                *features = None;
            }
        }
    }

    /// Chooses a sequence's next token and sends what is final.
    ///
    /// # Errors
    /// What the sampler answers: logits that are no numbers; a grammar that is too costly to follow.
    pub(crate) fn choose(
        &mut self,
        sequence: usize,
        logits: &mut [f32],
        endings: &Endings<'_>,
    ) -> Result<Chosen> {
        if self.timing.first_token.is_zero() {
            self.timing.first_token = self.since_arrival();
        }
        let s = &mut self.sequences[sequence];
        let sampling = &self.sampling;
        let is_end = |id: &u32| {
            (endings.eos.contains(id) && !sampling.ignore_eos)
                || sampling.stop_token_ids.contains(id)
        };
        let early = s.generated.len() < sampling.min_tokens;
        let allowed = s.matching.as_mut().map(Matching::allowed).transpose()?;
        let restrict = |logits: &mut [f32]| restrict(logits, allowed.as_ref(), early, &is_end);
        let prompt = &self.prepared.token_ids;
        let token = s
            .sampler
            .sample_within(logits, prompt, &s.generated, restrict)?;
        s.generated.push(token.id);
        self.usage.completion_tokens += 1;
        let index = s.index;
        let finish = |reason, text| {
            let _ = self.events.send(Ok(Event::Finished {
                index,
                reason,
                text,
            }));
            Ok(Chosen::Ended(reason))
        };
        if is_end(&token.id) {
            return finish(FinishReason::Stop, s.rest());
        }
        let mut whole = false;
        if let Some(matching) = &mut s.matching {
            matching.push(token.id)?;
            whole = matching.is_over();
        }
        let name = s.hasher.as_mut().and_then(|hasher| hasher.push(token.id));
        let text = s.stops.push(&s.text.push(token.id)?);
        let stopped = s.stops.stopped();
        let _ = self.events.send(Ok(Event::Token { index, token, text }));
        if stopped {
            return finish(FinishReason::Stop, String::new());
        }
        if whole {
            return finish(FinishReason::Stop, s.rest());
        }
        if s.generated.len() >= s.most {
            return finish(FinishReason::Length, s.rest());
        }
        Ok(Chosen::GoesOn(name))
    }

    /// Notes that a sequence gave its blocks back.
    pub(crate) fn note_preemption(&mut self) {
        self.timing.preemptions += 1;
    }

    /// Forgets a sequence that has ended; the last one ends the request. Returns whether it was.
    pub(crate) fn remove(&mut self, id: SequenceId) -> bool {
        self.sequences.retain(|s| s.id != id);
        let over = self.sequences.is_empty();
        if over {
            self.timing.finished = self.since_arrival();
            let _ = self.events.send(Ok(Event::Done {
                usage: self.usage.clone(),
                timing: self.timing,
            }));
        }
        over
    }

    /// Ends the request with an error.
    pub(crate) fn fail(&self, error: Error) {
        let _ = self.events.send(Err(error));
    }

    /// The place of a sequence.
    pub(crate) fn position_of(&self, id: SequenceId) -> Option<usize> {
        self.sequences.iter().position(|s| s.id == id)
    }
}

/// Takes out of the choice what a grammar does not have, and while it is early what ends a text,
/// unless nothing else would be left.
fn restrict(
    logits: &mut [f32],
    allowed: Option<&Allowed>,
    early: bool,
    is_end: &impl Fn(&u32) -> bool,
) {
    if let Some(allowed) = allowed {
        allowed.restrict(logits);
    }
    let goes_on = |(id, logit): (usize, &f32)| *logit > f32::NEG_INFINITY && !is_end(&(id as u32));
    if !early || !logits.iter().enumerate().any(goes_on) {
        return;
    }
    for (id, logit) in logits.iter_mut().enumerate() {
        if is_end(&(id as u32)) {
            *logit = f32::NEG_INFINITY;
        }
    }
}
