//! Which tokens of which sequences run in the next step: continuous batching with chunked
//! prefill, first come first served, preemption by recompute. Pure bookkeeping without tensors.
//!
//! *Source:* Orca (Yu et al., 2022) for iteration-level scheduling, vLLM (Kwon et al., 2023) for
//! preemption over paged blocks.

use crate::{BlockAllocator, BlockTable};
use kiln_registry::{Error, Result};
use std::collections::VecDeque;

/// Names a sequence; a later one has a higher number.
pub type SequenceId = u64;

/// Bounds on a step and on the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Tokens that one step may run.
    pub max_batched_tokens: usize,
    /// Sequences that may hold KV blocks at a time.
    pub max_num_seqs: usize,
    /// Sequences that may wait.
    pub max_queue: usize,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The sequence.
    pub id: SequenceId,
    /// The first position to run.
    pub start: usize,
    /// Positions to run.
    pub len: usize,
    /// Its blocks, in order; enough for `start + len`.
    pub blocks: Vec<u32>,
    /// Whether the last position is the newest token, so that its logits are sampled.
    pub samples: bool,
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    tokens: usize,
    max_tokens: usize,
    computed: usize,
    table: BlockTable,
}

/// The queues and the blocks. Each step: [`schedule`](Self::schedule), run the chunks, then
/// [`advance`](Self::advance) with them, then [`append`](Self::append) or
/// [`remove`](Self::remove) for each chunk that samples.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    allocator: BlockAllocator,
    waiting: VecDeque<Sequence>,
    // In order of arrival, as is `waiting`, all of which arrived later.
    running: Vec<Sequence>,
    next_id: SequenceId,
    preemptions: u64,
}

impl Scheduler {
    /// A scheduler over free blocks.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when a step could run nothing.
    pub fn new(config: SchedulerConfig, allocator: BlockAllocator) -> Result<Self> {
        if config.max_batched_tokens == 0 || config.max_num_seqs == 0 {
            return Err(Error::invalid(
                "a step needs room for at least one token of one sequence",
            ));
        }
        Ok(Self {
            config,
            allocator,
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_id: 0,
            preemptions: 0,
        })
    }

    /// Queues a sequence of `prompt` tokens that may grow by `new` more.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for an empty prompt, [`Error::ContextLength`] when the whole cache
    /// could not hold it, [`Error::Overloaded`] when the queue is full.
    pub fn add(&mut self, prompt: usize, new: usize) -> Result<SequenceId> {
        if prompt == 0 {
            return Err(Error::invalid("the prompt has no tokens"));
        }
        // One sequence alone always fits: hence preemption can't go round in circles.
        let context = self
            .allocator
            .total_blocks()
            .saturating_mul(self.allocator.block_size());
        let max_tokens = prompt.saturating_add(new);
        if max_tokens > context {
            return Err(Error::ContextLength {
                prompt,
                new,
                context,
            });
        }
        if self.waiting.len() >= self.config.max_queue {
            return Err(Error::Overloaded(format!(
                "{} sequences are waiting already: try again later",
                self.waiting.len()
            )));
        }
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.push_back(Sequence {
            id,
            tokens: prompt,
            max_tokens,
            computed: 0,
            table: BlockTable::default(),
        });
        Ok(id)
    }

    /// Plans the next step; empty when there is nothing to do.
    pub fn schedule(&mut self) -> Vec<Chunk> {
        let mut budget = self.config.max_batched_tokens;
        let mut chunks = Vec::new();
        let mut preempted = false;
        let mut index = 0;
        while budget > 0 && index < self.running.len() {
            let sequence = &mut self.running[index];
            let len = (sequence.tokens - sequence.computed).min(budget);
            let needed = sequence.computed + len;
            if !self.allocator.grow(&mut sequence.table, needed) {
                // The newest gives way; if that is this one, the loop ends. Those before
                // `index` are in the step and older, so they are never taken.
                self.preempt_newest();
                preempted = true;
                continue;
            }
            if len > 0 {
                budget -= len;
                chunks.push(chunk(&self.running[index], len));
            }
            index += 1;
        }
        // Blocks that were just taken back are not given to another at once.
        while !preempted && budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(mut sequence) = self.waiting.pop_front() else {
                break;
            };
            // All blocks of its present tokens, so that a prefill never runs dry midway.
            if !self.allocator.grow(&mut sequence.table, sequence.tokens) {
                self.waiting.push_front(sequence);
                break;
            }
            let len = sequence.tokens.min(budget);
            budget -= len;
            chunks.push(chunk(&sequence, len));
            self.running.push(sequence);
        }
        chunks
    }

    /// Notes that the chunks have run.
    pub fn advance(&mut self, chunks: &[Chunk]) {
        for chunk in chunks {
            if let Some(sequence) = self.running.iter_mut().find(|s| s.id == chunk.id) {
                sequence.computed = chunk.start + chunk.len;
            }
        }
    }

    /// Notes that a sequence has one token more.
    ///
    /// # Errors
    /// [`Error::Internal`] when it does not run, or has all the tokens it may have.
    pub fn append(&mut self, id: SequenceId) -> Result<()> {
        match self.running.iter_mut().find(|s| s.id == id) {
            Some(sequence) if sequence.tokens < sequence.max_tokens => {
                sequence.tokens += 1;
                Ok(())
            }
            Some(_) => Err(Error::internal(format!("sequence {id} is full"))),
            None => Err(Error::internal(format!("sequence {id} does not run"))),
        }
    }

    /// Forgets a sequence, finished or cancelled, and frees its blocks. Returns whether there was
    /// one.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        let sequence = if let Some(at) = self.running.iter().position(|s| s.id == id) {
            Some(self.running.remove(at))
        } else if let Some(at) = self.waiting.iter().position(|s| s.id == id) {
            self.waiting.remove(at)
        } else {
            None
        };
        let found = sequence.is_some();
        if let Some(sequence) = sequence {
            self.allocator.release(sequence.table);
        }
        found
    }

    /// The sequences that hold blocks, in order of arrival.
    pub fn running_ids(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.running.iter().map(|s| s.id)
    }

    /// Sequences that hold blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Blocks that nobody owns.
    pub fn free_blocks(&self) -> usize {
        self.allocator.free_blocks()
    }

    /// How often a sequence had to give its blocks back and start anew.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    fn preempt_newest(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.allocator.release(std::mem::take(&mut sequence.table));
            sequence.computed = 0;
            self.preemptions += 1;
            self.waiting.push_front(sequence);
        }
    }
}

fn chunk(sequence: &Sequence, len: usize) -> Chunk {
    Chunk {
        id: sequence.id,
        start: sequence.computed,
        len,
        blocks: sequence.table.blocks().to_vec(),
        samples: sequence.computed + len == sequence.tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn scheduler(tokens: usize, seqs: usize, queue: usize, blocks: usize) -> Scheduler {
        let config = SchedulerConfig {
            max_batched_tokens: tokens,
            max_num_seqs: seqs,
            max_queue: queue,
        };
        Scheduler::new(config, BlockAllocator::new(blocks, 4).unwrap()).unwrap()
    }

    #[test]
    fn a_long_prompt_runs_in_chunks_and_samples_once() {
        let mut s = scheduler(4, 2, 8, 8);
        s.add(10, 1).unwrap();
        let mut seen = Vec::new();
        loop {
            let step = s.schedule();
            s.advance(&step);
            seen.extend(step.iter().map(|c| (c.start, c.len, c.samples)));
            if step[0].samples {
                break;
            }
        }
        assert_eq!(seen, [(0, 4, false), (4, 4, false), (8, 2, true)]);
    }

    #[test]
    fn the_newest_gives_way_and_starts_anew() {
        let mut s = scheduler(64, 4, 8, 2);
        let old = s.add(4, 4).unwrap();
        let new = s.add(4, 4).unwrap();
        let step = s.schedule();
        assert_eq!(step.len(), 2);
        s.advance(&step);
        s.append(old).unwrap();
        s.append(new).unwrap();
        let step = s.schedule();
        assert_eq!(step.iter().map(|c| c.id).collect::<Vec<_>>(), [old]);
        assert_eq!((s.preemptions(), s.waiting()), (1, 1));
        assert!(s.remove(old));
        let step = s.schedule();
        assert_eq!((step[0].id, step[0].start, step[0].len), (new, 0, 5));
    }

    #[test]
    fn what_can_never_run_and_what_is_too_much_is_refused() {
        let mut s = scheduler(8, 1, 1, 2);
        assert!(s.add(0, 1).is_err());
        assert!(matches!(s.add(5, 4), Err(Error::ContextLength { .. })));
        assert!(s.add(usize::MAX, 4).is_err());
        let id = s.add(4, 4).unwrap();
        assert!(matches!(s.add(4, 4), Err(Error::Overloaded(_))));
        assert!(s.append(id).is_err(), "it waits");
        assert!(s.remove(id) && !s.remove(id));
    }

    proptest! {
        /// Every sequence finishes, each chunk finds its whole history in its own blocks, and
        /// no bound is passed, whatever the arrivals, cancellations and sizes.
        #[test]
        fn every_history_is_whole_and_every_block_comes_back(
            budget in 1usize..12,
            seqs in 1usize..5,
            work in prop::collection::vec((1usize..20, 1usize..12, 0usize..6, any::<bool>()), 1..10),
        ) {
            let mut s = scheduler(budget, seqs, 100, 8);
            let mut arrivals: VecDeque<_> = work.into();
            let mut slots = vec![None; 8 * 4];
            let mut left = BTreeMap::new();
            let mut steps = 0;
            while !arrivals.is_empty() || !left.is_empty() {
                if let Some((prompt, new, delay, cancel)) = arrivals.front_mut() {
                    if *delay > 0 {
                        *delay -= 1;
                    } else {
                        left.insert(s.add(*prompt, *new).unwrap(), (*new, *cancel));
                        arrivals.pop_front();
                    }
                }
                let step = s.schedule();
                prop_assert!(step.iter().map(|c| c.len).sum::<usize>() <= budget);
                prop_assert!(s.running() <= seqs);
                for c in &step {
                    for position in c.start..c.start + c.len {
                        slots[c.blocks[position / 4] as usize * 4 + position % 4] = Some((c.id, position));
                    }
                }
                for c in &step {
                    for position in 0..c.start + c.len {
                        let slot = c.blocks[position / 4] as usize * 4 + position % 4;
                        prop_assert_eq!(slots[slot], Some((c.id, position)));
                    }
                }
                s.advance(&step);
                for c in step.iter().filter(|c| c.samples) {
                    let (new, cancel) = left[&c.id];
                    if new == 1 || (cancel && new == 3) {
                        left.remove(&c.id);
                        prop_assert!(s.remove(c.id));
                    } else {
                        left.insert(c.id, (new - 1, cancel));
                        s.append(c.id).unwrap();
                    }
                }
                steps += 1;
                prop_assert!(steps < 20_000, "it does not come to an end");
            }
            prop_assert_eq!(s.free_blocks(), 8);
        }
    }
}
