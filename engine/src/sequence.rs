//! A request while it runs, and its sequences: tokens, text, and when they end.

use crate::detokenize::Detokenizer;
use crate::executor::Executor;
use crate::pipeline::Prepared;
use crate::request::{Event, FinishReason, Usage};
use crate::tokenizer::HfTokenizer;
use crate::{Sampler, SamplingParams, SequenceId, StopMatcher};
use burn::tensor::Tensor;
use kiln_registry::{Error, Result};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

/// Where a request's events go.
pub(crate) type EventSender = UnboundedSender<Result<Event>>;

/// A request on its way to the owner thread.
pub(crate) struct Admitted {
    pub(crate) prepared: Prepared,
    pub(crate) sampling: SamplingParams,
    pub(crate) events: EventSender,
}

/// A request with all that its sequences share.
pub(crate) struct Running {
    prepared: Prepared,
    sampling: SamplingParams,
    events: EventSender,
    /// Encoder rows by placeholder range, while a sequence needs them.
    features: Vec<Option<Tensor<2>>>,
    pub(crate) sequences: Vec<Sequence>,
    completion_tokens: usize,
}

/// One of a request's sequences.
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    index: usize,
    generated: Vec<u32>,
    /// Positions that have run; a preemption begins anew.
    computed: usize,
    most: usize,
    sampler: Sampler,
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

impl Running {
    /// A request whose sequences have the ids given, each of at most `most` new tokens.
    pub(crate) fn new(
        admitted: Admitted,
        ids: &[SequenceId],
        most: usize,
        drawn_seed: u64,
        tokenizer: &Arc<HfTokenizer>,
    ) -> Self {
        let Admitted {
            prepared,
            sampling,
            events,
        } = admitted;
        let sequences = ids
            .iter()
            .enumerate()
            .map(|(index, id)| Sequence {
                id: *id,
                index,
                generated: Vec::new(),
                computed: 0,
                most,
                sampler: Sampler::new(&sampling, index, drawn_seed),
                text: Detokenizer::new(tokenizer.clone(), true),
                stops: StopMatcher::new(&sampling.stop),
            })
            .collect();
        Self {
            features: vec![None; prepared.placeholders.len()],
            prepared,
            sampling,
            events,
            sequences,
            completion_tokens: 0,
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

    /// Ranges that lie at some positions, with their rows, which are encoded where they are not
    /// there.
    ///
    /// # Errors
    /// What the encoder answers, or a broken placeholder law: this request's error alone.
    pub(crate) fn features_at(
        &mut self,
        positions: &Range<usize>,
        executor: &Executor,
    ) -> Result<Vec<usize>> {
        let mut found = Vec::new();
        for (at, range) in self.prepared.placeholders.iter().enumerate() {
            let span = range.range();
            if span.start >= positions.end || positions.start >= span.end {
                continue;
            }
            if self.features[at].is_none() {
                let item = self
                    .prepared
                    .items
                    .get(at)
                    .ok_or_else(|| Error::internal("a placeholder range without an item"))?;
                self.features[at] = Some(executor.encode(item, range)?.features);
            }
            found.push(at);
        }
        Ok(found)
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
        let held = self.features.iter().flatten();
        held.map(|rows| rows.dims().iter().product::<usize>() * size_of::<f32>())
            .sum()
    }

    /// Lets go of all encoder rows: they are encoded again where they are needed.
    pub(crate) fn let_go_of_rows(&mut self) {
        self.features.fill(None);
    }

    /// Notes how far a sequence has run, and lets go of rows that no sequence needs any more.
    pub(crate) fn advance(&mut self, sequence: usize, computed: usize) {
        self.sequences[sequence].computed = computed;
        let all = self.sequences.iter().map(|s| s.computed).min().unwrap_or(0);
        for (range, features) in self.prepared.placeholders.iter().zip(&mut self.features) {
            if range.offset + range.length <= all {
                *features = None;
            }
        }
    }

    /// Chooses a sequence's next token and sends what is final. Returns whether it has ended.
    ///
    /// # Errors
    /// What the sampler answers: logits that are no numbers.
    pub(crate) fn choose(
        &mut self,
        sequence: usize,
        logits: &mut [f32],
        endings: &Endings<'_>,
    ) -> Result<bool> {
        let s = &mut self.sequences[sequence];
        let token = s
            .sampler
            .sample(logits, &self.prepared.token_ids, &s.generated)?;
        s.generated.push(token.id);
        self.completion_tokens += 1;
        let index = s.index;
        let sampling = &self.sampling;
        let ends = (endings.eos.contains(&token.id) && !sampling.ignore_eos)
            || sampling.stop_token_ids.contains(&token.id);
        let finish = |reason, text| {
            let _ = self.events.send(Ok(Event::Finished {
                index,
                reason,
                text,
            }));
        };
        if ends {
            finish(FinishReason::Stop, s.rest());
            return Ok(true);
        }
        let text = s.stops.push(&s.text.push(token.id)?);
        let stopped = s.stops.stopped();
        let _ = self.events.send(Ok(Event::Token { index, token, text }));
        if stopped {
            finish(FinishReason::Stop, String::new());
            return Ok(true);
        }
        if s.generated.len() >= s.most {
            finish(FinishReason::Length, s.rest());
            return Ok(true);
        }
        Ok(false)
    }

    /// Forgets a sequence that has ended; the last one ends the request. Returns whether it was.
    pub(crate) fn remove(&mut self, id: SequenceId) -> bool {
        self.sequences.retain(|s| s.id != id);
        let over = self.sequences.is_empty();
        if over {
            let usage = Usage {
                completion_tokens: self.completion_tokens,
                ..self.prepared.usage()
            };
            let _ = self.events.send(Ok(Event::Done { usage }));
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
