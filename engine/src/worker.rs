//! The owner thread: takes requests from a channel, runs one step after the other, answers by
//! channels.

use crate::executor::{Executor, StepInput};
use crate::pipeline::InputPipeline;
use crate::request::Event;
use crate::sequence::{Admitted, Endings, Running};
use crate::stats::Stats;
use crate::{Chunk, Scheduler, SequenceId, memory};
use kiln_registry::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::mpsc::UnboundedReceiver;

/// What the thread owns.
pub(crate) struct Worker {
    pub(crate) executor: Executor,
    pub(crate) scheduler: Scheduler,
    pub(crate) pipeline: Arc<InputPipeline>,
    pub(crate) context: usize,
    pub(crate) stats: Arc<Stats>,
    pub(crate) inbox: UnboundedReceiver<Vec<Admitted>>,
    /// Whether the peak of each step is counted.
    pub(crate) measure: bool,
    requests: BTreeMap<u64, Running>,
    owner: HashMap<SequenceId, u64>,
    next: u64,
}

impl Worker {
    pub(crate) fn new(
        executor: Executor,
        scheduler: Scheduler,
        pipeline: Arc<InputPipeline>,
        context: usize,
        stats: Arc<Stats>,
        inbox: UnboundedReceiver<Vec<Admitted>>,
        measure: bool,
    ) -> Self {
        Self {
            executor,
            scheduler,
            pipeline,
            context,
            stats,
            inbox,
            measure,
            requests: BTreeMap::new(),
            owner: HashMap::new(),
            next: 0,
        }
    }

    /// Runs until every sender is gone and every request has ended.
    pub(crate) fn run(mut self) {
        loop {
            if self.requests.is_empty() {
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
            self.step();
            self.stats.observe(&self.scheduler);
        }
    }

    fn admit_all(&mut self, admitted: Vec<Admitted>) {
        for admitted in admitted {
            self.admit(admitted);
        }
    }

    fn admit(&mut self, admitted: Admitted) {
        self.stats.preparing.fetch_sub(1, Relaxed);
        let (prompt, asked) = (
            admitted.prepared.token_ids.len(),
            admitted.sampling.max_tokens,
        );
        let most = asked.unwrap_or(self.context.saturating_sub(prompt)).max(1);
        let mut ids = Vec::with_capacity(admitted.sampling.n);
        for _ in 0..admitted.sampling.n {
            match self.scheduler.add(prompt, most) {
                Ok(id) => ids.push(id),
                Err(error) => {
                    for id in ids {
                        self.scheduler.remove(id);
                    }
                    let _ = admitted.events.send(Err(error));
                    return;
                }
            }
        }
        let usage = admitted.prepared.usage();
        let _ = admitted.events.send(Ok(Event::Accepted { usage }));
        let key = self.next;
        self.next += 1;
        self.owner.extend(ids.iter().map(|id| (*id, key)));
        // The standard library's hasher keys are random: one draw where the request names no seed.
        let drawn = RandomState::new().build_hasher().finish();
        let tokenizer = self.pipeline.tokenizer();
        let running = Running::new(admitted, &ids, most, drawn, tokenizer);
        self.requests.insert(key, running);
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
        for sequence in &running.sequences {
            self.scheduler.remove(sequence.id);
            self.owner.remove(&sequence.id);
        }
        Some(running)
    }

    fn fail(&mut self, key: u64, error: Error) {
        self.stats.failed.fetch_add(1, Relaxed);
        if let Some(running) = self.drop_request(key) {
            running.fail(error);
        }
    }

    fn step(&mut self) {
        let chunks = self.scheduler.schedule();
        if chunks.is_empty() {
            return;
        }
        self.stats.steps.fetch_add(1, Relaxed);
        self.let_go_of_rows(&chunks);
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
        self.executor.reset();
    }

    /// Only requests of this step hold encoder rows: what waits, preempted in the midst of an item,
    /// encodes it again. So the rows that are held have a bound, and the profile can count it.
    fn let_go_of_rows(&mut self, chunks: &[Chunk]) {
        let here: BTreeSet<u64> = chunks
            .iter()
            .filter_map(|chunk| self.owner.get(&chunk.id).copied())
            .collect();
        for (key, running) in &mut self.requests {
            if !here.contains(key) {
                running.let_go_of_rows();
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

    /// Runs the chunks of requests whose items encode; the others fail alone. Returns which chunks
    /// ran, with their logits.
    fn compute(&mut self, chunks: &[Chunk]) -> Result<(Vec<usize>, Vec<Vec<f32>>)> {
        let mut ran = Vec::with_capacity(chunks.len());
        let mut inputs = Vec::with_capacity(chunks.len());
        for (at, chunk) in chunks.iter().enumerate() {
            let Some((key, running)) = self
                .owner
                .get(&chunk.id)
                .and_then(|key| Some((*key, self.requests.get_mut(key)?)))
            else {
                continue; // Its request failed a moment ago.
            };
            let positions = chunk.start..chunk.start + chunk.len;
            match running.features_at(&positions, &self.executor) {
                Ok(ranges) => {
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
                Err(error) => self.fail(key, error),
            }
        }
        // A request with several sequences may have failed behind one of its own chunks.
        let alive = |at: &usize| self.owner.contains_key(&chunks[*at].id);
        let (ran, inputs): (Vec<_>, Vec<_>) = ran
            .into_iter()
            .zip(inputs)
            .filter(|(at, _)| alive(at))
            .unzip();
        if inputs.is_empty() {
            return Ok((ran, vec![]));
        }
        let logits = self.executor.run(inputs)?;
        Ok((ran, logits))
    }

    fn settle(&mut self, ran: &[Chunk], logits: Vec<Vec<f32>>) {
        self.scheduler.advance(ran);
        for (chunk, mut logits) in ran.iter().zip(logits) {
            let Some(key) = self.owner.get(&chunk.id).copied() else {
                continue;
            };
            let Some(running) = self.requests.get_mut(&key) else {
                continue;
            };
            let Some(sequence) = running.position_of(chunk.id) else {
                continue;
            };
            running.advance(sequence, chunk.start + chunk.len);
            if !chunk.samples {
                continue;
            }
            let endings = Endings {
                eos: self.pipeline.generation.eos_token_ids(),
            };
            self.stats.tokens.fetch_add(1, Relaxed);
            match running.choose(sequence, &mut logits, &endings) {
                Ok(false) => {
                    if let Err(error) = self.scheduler.append(chunk.id) {
                        self.fail(key, error);
                    }
                }
                Ok(true) => {
                    self.scheduler.remove(chunk.id);
                    self.owner.remove(&chunk.id);
                    if running.remove(chunk.id) {
                        self.requests.remove(&key);
                        self.stats.finished.fetch_add(1, Relaxed);
                    }
                }
                Err(error) => self.fail(key, error),
            }
        }
    }
}
