//! The owner thread: takes requests from a channel, runs one step after the other, answers by
//! channels.

mod encode;
mod encoding;
mod pace;

use crate::cache::EncoderCache;
use crate::event::{Event, FinishReason};
use crate::executor::{Executor, StepInput};
use crate::options::EngineOptions;
use crate::pipeline::InputPipeline;
use crate::prefix::PrefixHasher;
use crate::profile::MemoryProfile;
use crate::sequence::{Admitted, Chosen, Endings, Running};
use crate::stats::Stats;
use crate::{Arrival, Chunk, ItemSpan, Room, Scheduler, SequenceId, memory};
use encoding::Encoding;
use kiln_registry::{ContentHash, Error, Result};
use pace::{Allowance, Pace};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;

/// What the handle tells the thread without a request.
#[derive(Debug, Default)]
pub(crate) struct Shutdown {
    /// No more requests are taken.
    pub(crate) draining: AtomicBool,
    /// Those that were taken end at once.
    pub(crate) aborting: AtomicBool,
}

/// What the thread owns.
pub(crate) struct Worker {
    executor: Executor,
    scheduler: Scheduler,
    pipeline: Arc<InputPipeline>,
    profile: MemoryProfile,
    stats: Arc<Stats>,
    shutdown: Arc<Shutdown>,
    inbox: UnboundedReceiver<Vec<Admitted>>,
    /// Whether blocks have names.
    prefix_cache: bool,
    encoder_cache: EncoderCache,
    /// Items that are in the encoder beside running sequences.
    encoding: Option<Encoding>,
    /// Requests that steps left out for want of rows which the encoder makes, or has just made.
    held_back: BTreeSet<u64>,
    pace: Pace,
    /// What the step has for prompts.
    allowance: Allowance,
    /// Prompt tokens of a step beside running sequences, at most.
    prefill_tokens: usize,
    /// Whether the peak of each step is counted.
    measure: bool,
    requests: BTreeMap<u64, Running>,
    owner: HashMap<SequenceId, u64>,
    next: u64,
}

impl Worker {
    pub(crate) fn new(
        executor: Executor,
        scheduler: Scheduler,
        pipeline: Arc<InputPipeline>,
        profile: MemoryProfile,
        options: &EngineOptions,
        shutdown: Arc<Shutdown>,
        inbox: UnboundedReceiver<Vec<Admitted>>,
    ) -> Self {
        Self {
            executor,
            scheduler,
            stats: pipeline.stats.clone(),
            pipeline,
            profile,
            shutdown,
            inbox,
            prefix_cache: options.prefix_cache,
            encoder_cache: EncoderCache::new(profile.encoder_cache_bytes),
            encoding: None,
            held_back: BTreeSet::new(),
            pace: Pace::new(options.max_itl_ratio),
            allowance: Allowance::default(),
            prefill_tokens: options.prefill_tokens(),
            measure: options.measure_steps,
            requests: BTreeMap::new(),
            owner: HashMap::new(),
            next: 0,
        }
    }

    /// Runs until every sender is gone and every request has ended.
    pub(crate) fn run(mut self) {
        loop {
            if self.requests.is_empty() {
                self.encoding = None;
                // Nothing to do: sleep until something comes, or nothing ever will.
                match self.inbox.blocking_recv() {
                    Some(admitted) => self.admit_all(admitted),
                    None => return,
                }
            }
            while let Ok(admitted) = self.inbox.try_recv() {
                self.admit_all(admitted);
            }
            self.drop_cancelled();
            if self.shutdown.aborting.load(Relaxed) {
                self.abort_all();
            }
            self.step();
            self.observe();
        }
    }

    fn observe(&self) {
        self.stats.observe(&self.scheduler);
        let (queries, hits) = self.scheduler.prefix_lookups();
        self.stats.prefix_cache_queries.store(queries, Relaxed);
        self.stats.prefix_cache_hits.store(hits, Relaxed);
        let held = self.encoder_cache.held() as u64;
        self.stats.encoder_cache_bytes.store(held, Relaxed);
    }

    fn admit_all(&mut self, admitted: Vec<Admitted>) {
        for admitted in admitted {
            self.admit(admitted);
        }
        // What left the preparation is among those that wait before anyone counts again.
        self.stats.observe(&self.scheduler);
    }

    fn admit(&mut self, mut admitted: Admitted) {
        let prepared = &admitted.prepared;
        let (prompt, asked) = (prepared.token_ids.len(), admitted.sampling.max_tokens);
        let room = self.profile.max_model_len.saturating_sub(prompt);
        let most = asked.unwrap_or(room).max(1);
        let (names, hasher) = match self.prefix_cache {
            false => (vec![], None),
            true => {
                let (names, hasher) = PrefixHasher::of_prompt(
                    self.profile.block_size,
                    self.executor.model().prefix_domain(prompt),
                    &prepared.token_ids,
                    &prepared.placeholders,
                    &prepared.items,
                );
                (names, Some(hasher))
            }
        };
        let ranges = prepared.placeholders.iter().zip(&prepared.items);
        let items: Arc<[ItemSpan]> = ranges
            .map(|(range, item)| ItemSpan {
                range: range.range(),
                rows: range.rows(),
                content: item.hash,
            })
            .collect();
        let mut ids = Vec::with_capacity(admitted.sampling.n);
        for _ in 0..admitted.sampling.n {
            let arrival = Arrival {
                prompt,
                new: most,
                priority: admitted.priority,
                names: names.clone(),
                items: items.clone(),
            };
            match self.scheduler.add(arrival) {
                Ok(id) => ids.push(id),
                Err(error) => {
                    for id in ids {
                        self.scheduler.remove(id);
                    }
                    self.count_refused(&error);
                    let _ = admitted.events.send(Err(error));
                    return;
                }
            }
        }
        let usage = admitted.prepared.usage();
        self.stats
            .prompt_tokens
            .fetch_add(usage.prompt_tokens as u64, Relaxed);
        let _ = admitted.events.send(Ok(Event::Accepted { usage }));
        let key = self.next;
        self.next += 1;
        self.owner.extend(ids.iter().map(|id| (*id, key)));
        self.stats.observe(&self.scheduler);
        drop(admitted.waiting.take());
        // The standard library's hasher keys are random: one draw where the request names no seed.
        let drawn = RandomState::new().build_hasher().finish();
        let tokenizer = self.pipeline.tokenizer();
        let running = Running::new(admitted, &ids, most, drawn, tokenizer, hasher);
        self.requests.insert(key, running);
    }

    fn count_refused(&self, error: &Error) {
        let counter = match error {
            Error::Overloaded(_) => &self.stats.rejected_queue,
            _ => &self.stats.rejected_invalid,
        };
        counter.fetch_add(1, Relaxed);
    }

    fn abort_all(&mut self) {
        let keys: Vec<u64> = self.requests.keys().copied().collect();
        for key in keys {
            self.stats.cancelled.fetch_add(1, Relaxed);
            if let Some(running) = self.drop_request(key) {
                running.fail(Error::ShuttingDown);
            }
        }
    }

    fn drop_cancelled(&mut self) {
        let gone: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, r)| r.cancelled())
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.drop_request(key);
            self.stats.cancelled.fetch_add(1, Relaxed);
        }
    }

    fn drop_request(&mut self, key: u64) -> Option<Running> {
        let running = self.requests.remove(&key)?;
        self.held_back.remove(&key);
        for sequence in &running.sequences {
            self.scheduler.remove(sequence.id);
            self.owner.remove(&sequence.id);
        }
        Some(running)
    }

    fn fail(&mut self, key: u64, error: Error) {
        // Another of its items may have failed before.
        if let Some(running) = self.requests.remove(&key) {
            self.stats.failed.fetch_add(1, Relaxed);
            self.held_back.remove(&key);
            for sequence in &running.sequences {
                // What it computed may be at fault: nobody else is to take it.
                self.scheduler.discard(sequence.id);
                self.owner.remove(&sequence.id);
            }
            self.stats.observe(&self.scheduler);
            running.fail(error);
        }
    }

    fn step(&mut self) {
        let prompts = self.scheduler.prompts();
        let streams = (self.scheduler.running() + self.scheduler.waiting()).saturating_sub(prompts);
        self.allowance = self.pace.next(streams, prompts);
        let (requests, owner, cache) = (&self.requests, &self.owner, &self.encoder_cache);
        let encoded = |id: SequenceId, at: usize, item: &ContentHash| {
            let running = owner.get(&id).and_then(|key| requests.get(key));
            running.is_some_and(|r| r.has_rows(at)) || cache.contains(item)
        };
        let chunks = self.scheduler.schedule(Room {
            prompt_tokens: self.allowance.prompt_tokens(self.prefill_tokens),
            encoder: self.encoding.is_none(),
            encoded: &encoded,
        });
        // A step may take long: who runs in it is not among those that wait meanwhile.
        self.stats.observe(&self.scheduler);
        for id in self.scheduler.take_preempted() {
            let key = self.owner.get(&id);
            if let Some(running) = key.and_then(|key| self.requests.get_mut(key)) {
                running.note_preemption();
            }
        }
        if chunks.is_empty() && self.encoding.is_none() {
            return;
        }
        self.stats.steps.fetch_add(1, Relaxed);
        // A panic in a kernel or a model crate must not take the process along.
        match catch_unwind(AssertUnwindSafe(|| self.measured(&chunks))) {
            Ok(Ok((ran, logits))) => {
                let ran: Vec<Chunk> = ran.into_iter().map(|at| chunks[at].clone()).collect();
                self.settle(&ran, logits);
            }
            Ok(Err(error)) => self.fail_all(&error),
            Err(panic) => {
                let what = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or(panic.downcast_ref::<&str>().copied())
                    .unwrap_or("a panic");
                self.fail_all(&Error::internal(format!("the step failed: {what}")));
            }
        }
        self.let_go_of_rows();
    }

    /// Everything that holds blocks has lost its cache; what waits has not.
    fn fail_all(&mut self, error: &Error) {
        let keys: BTreeSet<u64> = self
            .scheduler
            .running_ids()
            .filter_map(|id| self.owner.get(&id).copied())
            .collect();
        for key in keys {
            self.fail(key, error.clone());
        }
        self.scheduler.forget_cached();
        self.executor.reset();
    }

    /// Between steps, encoder rows are held by the request that is in the midst of its prompt, those
    /// that are still ahead of it, and by those that the encoder has held back; all others are the
    /// cache's. So the rows that are held have a bound, and the profile can count it.
    fn let_go_of_rows(&mut self) {
        let partial = self.scheduler.partial();
        let partial = partial.and_then(|(id, at)| Some((*self.owner.get(&id)?, at)));
        for (key, running) in &mut self.requests {
            match partial {
                _ if self.held_back.contains(key) => {}
                Some((partial, computed)) if partial == *key => running.let_go_of_rows(computed),
                _ => running.let_go_of_rows(usize::MAX),
            }
        }
    }

    /// [`compute`](Self::compute), with its peak counted where the options say so. Encoder rows
    /// that earlier steps left are part of what the step takes.
    fn measured(&mut self, chunks: &[Chunk]) -> Result<(Vec<usize>, Vec<Vec<f32>>)> {
        if !self.measure {
            return self.compute(chunks);
        }
        let held: usize = self.requests.values().map(Running::row_bytes).sum();
        let (out, peak) = memory::peak_of(|| self.compute(chunks));
        let bytes = peak.unwrap_or(0).saturating_add(held) as u64;
        self.stats.largest_step_bytes.fetch_max(bytes, Relaxed);
        out
    }

    /// Runs the chunks of requests whose items encode; the others fail alone, or wait for the encoder.
    /// Returns which chunks ran, with their logits.
    fn compute(&mut self, chunks: &[Chunk]) -> Result<(Vec<usize>, Vec<Vec<f32>>)> {
        self.encode_items(chunks);
        let began = Instant::now();
        let (mut streams, mut prompt_tokens) = (0, 0);
        let mut ran = Vec::with_capacity(chunks.len());
        let mut inputs = Vec::with_capacity(chunks.len());
        for (at, chunk) in chunks.iter().enumerate() {
            let key = self.owner.get(&chunk.id).copied();
            let Some((key, running)) =
                key.and_then(|key| Some((key, self.requests.get_mut(&key)?)))
            else {
                continue; // Its request failed a moment ago.
            };
            let positions = chunk.start..chunk.start + chunk.len;
            let ranges = running.ranges_at(&positions);
            if !ranges.iter().all(|at| running.has_rows(*at)) {
                self.held_back.insert(key);
                continue;
            }
            self.held_back.remove(&key);
            running.begin(chunk.start);
            match is_stream(chunk) {
                true => streams += 1,
                false => prompt_tokens += chunk.len,
            }
            let sequence = running.position_of(chunk.id).unwrap_or(0);
            let mut input = StepInput {
                token_ids: running.tokens(sequence, &positions),
                start: chunk.start,
                prompt_len: running.prompt_len(),
                blocks: chunk.blocks.clone(),
                overlays: vec![],
                logit_rows: usize::from(chunk.samples),
            };
            running.lay(&ranges, &mut input);
            inputs.push(input);
            ran.push(at);
        }
        if inputs.is_empty() {
            return Ok((ran, vec![]));
        }
        let logits = self.executor.run(inputs)?;
        self.pace.observe(streams, prompt_tokens, began.elapsed());
        Ok((ran, logits))
    }

    fn settle(&mut self, ran: &[Chunk], logits: Vec<Vec<f32>>) {
        self.scheduler.advance(ran);
        for (chunk, mut logits) in ran.iter().zip(logits) {
            if !chunk.samples {
                continue;
            }
            let Some(key) = self.owner.get(&chunk.id).copied() else {
                continue;
            };
            let Some(running) = self.requests.get_mut(&key) else {
                continue;
            };
            let Some(sequence) = running.position_of(chunk.id) else {
                continue;
            };
            let endings = Endings {
                eos: self.pipeline.generation.eos_token_ids(),
            };
            // A grammar's state machine is another's code.
            let chosen = catch_unwind(AssertUnwindSafe(|| {
                running.choose(sequence, &mut logits, &endings)
            }));
            let chosen =
                chosen.unwrap_or_else(|_| Err(Error::internal("choosing the next token failed")));
            match chosen {
                Ok(Chosen::GoesOn(name)) => {
                    self.stats.generation_tokens.fetch_add(1, Relaxed);
                    if let Err(error) = self.scheduler.append(chunk.id, name) {
                        self.fail(key, error);
                    }
                }
                Ok(Chosen::Ended(reason)) => {
                    self.stats.generation_tokens.fetch_add(1, Relaxed);
                    let counter = match reason {
                        FinishReason::Stop => &self.stats.finished_stop,
                        FinishReason::Length => &self.stats.finished_length,
                    };
                    counter.fetch_add(1, Relaxed);
                    self.scheduler.remove(chunk.id);
                    self.owner.remove(&chunk.id);
                    // Counted before it is told: who has the answer finds it among the counters.
                    let last = running.sequences.len() == 1;
                    self.stats.finished.fetch_add(last.into(), Relaxed);
                    self.stats.observe(&self.scheduler);
                    if running.remove(chunk.id) {
                        self.requests.remove(&key);
                        self.held_back.remove(&key);
                    }
                }
                Err(error) => self.fail(key, error),
            }
        }
    }
}

/// Whether a chunk is a sequence's next token and no part of its prompt. A prompt of one token, or the
/// last one of a prompt, counts among them: it costs a step the same.
fn is_stream(chunk: &Chunk) -> bool {
    chunk.samples && chunk.len == 1
}
