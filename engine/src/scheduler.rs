//! Which tokens of which sequences run in the next step: continuous batching with chunked prefill
//! beside decoding, preemption by recompute. Pure bookkeeping without tensors.
//!
//! Each step the sequences that wait for their next token come first, so that running streams go on.
//! What is left of the budget goes to prompts: at most one is left in the midst of its prompt, and
//! beside it only those start that the step can finish, so that few encoder rows are held over.
//!
//! *Source:* Orca (Yu et al., 2022) for iteration-level scheduling, vLLM (Kwon et al., 2023) for
//! preemption over paged blocks, Sarathi-Serve (Agrawal et al., 2024) for stall-free batching.

mod encoder;
#[cfg(test)]
mod tests;

use crate::{BlockAllocator, BlockHash, BlockTable, Policy};
use encoder::EncoderBudget;
pub use encoder::ItemSpan;
use kiln_registry::{ContentHash, Error, Result};
use std::collections::HashSet;
use std::sync::Arc;

/// Names a sequence; a later one has a higher number.
pub type SequenceId = u64;

/// Steps after which a waiting sequence goes before all that have not waited so long.
const PATIENCE: u64 = 512;
/// Waiting sequences that are looked at behind one that must wait.
const LOOK_AHEAD: usize = 64;

/// Bounds on a step and on the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Tokens that one step may run.
    pub max_batched_tokens: usize,
    /// Sequences that may hold KV blocks at a time.
    pub max_num_seqs: usize,
    /// Sequences that may wait.
    pub max_queue: usize,
    /// Tokens that those may have together; one sequence may always wait.
    pub max_queue_tokens: usize,
    /// Encoder rows that one step may make; one item is always allowed.
    pub max_encoder_tokens: usize,
    /// Who of those that wait is first.
    pub policy: Policy,
}

/// A sequence as it comes.
#[derive(Debug, Clone, Default)]
pub struct Arrival {
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Tokens that it may grow by.
    pub new: usize,
    /// A lower one is first, where the policy goes by it.
    pub priority: i32,
    /// The names of its full blocks; empty: it shares none.
    pub names: Vec<BlockHash>,
    /// The items of its prompt, in order.
    pub items: Arc<[ItemSpan]>,
}

/// What a step may take beside the sequences that have their next token in it.
#[derive(Clone, Copy)]
pub struct Room<'a> {
    /// Tokens of prompts in a step in which other sequences have their next token.
    pub prompt_tokens: usize,
    /// Whether the encoder is free. While it is not, prompts stop before items that it has not made.
    pub encoder: bool,
    /// Whether the rows of a sequence's item, given by its place and content, are there already.
    pub encoded: &'a dyn Fn(SequenceId, usize, &ContentHash) -> bool,
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
    names: Vec<BlockHash>,
    /// Blocks of the table that have their name, or had it when they were taken.
    named: usize,
    items: Arc<[ItemSpan]>,
    priority: i32,
    /// The step since which it waits, and whether that was ever too long.
    since: u64,
    overdue: bool,
    /// Whether it ran before and was preempted.
    preempted: bool,
}

impl Sequence {
    /// Who is first: the lowest.
    fn rank(&self, policy: Policy) -> (bool, i32, SequenceId) {
        match policy {
            Policy::Fcfs => (false, 0, self.id),
            Policy::Priority if self.overdue => (false, 0, self.id),
            Policy::Priority => (true, self.priority, self.id),
        }
    }

    /// Tokens that have not run.
    fn remaining(&self) -> usize {
        self.tokens - self.computed
    }

    fn chunk(&self, len: usize) -> Chunk {
        Chunk {
            id: self.id,
            start: self.computed,
            len,
            blocks: self.table.blocks().to_vec(),
            samples: len == self.remaining(),
        }
    }
}

/// The queues and the blocks. Each step: [`schedule`](Self::schedule), run the chunks, then
/// [`advance`](Self::advance) with them, then [`append`](Self::append) or
/// [`remove`](Self::remove) for each chunk that samples.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    allocator: BlockAllocator,
    /// Sorted by rank when a step is planned.
    waiting: Vec<Sequence>,
    /// Sorted by rank always: the last one gives way.
    running: Vec<Sequence>,
    next_id: SequenceId,
    step: u64,
    preemptions: u64,
    /// Those that gave way since it was last asked.
    preempted: Vec<SequenceId>,
    prefix_queries: u64,
    prefix_hits: u64,
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
            waiting: Vec::new(),
            running: Vec::new(),
            next_id: 0,
            step: 0,
            preemptions: 0,
            preempted: Vec::new(),
            prefix_queries: 0,
            prefix_hits: 0,
        })
    }

    /// Queues a sequence.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for an empty prompt, [`Error::ContextLength`] when the whole cache
    /// could not hold it, [`Error::Overloaded`] when the queue is full.
    pub fn add(&mut self, arrival: Arrival) -> Result<SequenceId> {
        let Arrival { prompt, new, .. } = arrival;
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
        let (waiting, tokens) = (self.waiting.len(), self.waiting_tokens());
        let full = waiting >= self.config.max_queue
            || (waiting > 0 && tokens.saturating_add(prompt) > self.config.max_queue_tokens);
        if full {
            return Err(Error::Overloaded(format!(
                "{waiting} sequences of {tokens} tokens are waiting already: try again later"
            )));
        }
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.push(Sequence {
            id,
            tokens: prompt,
            max_tokens,
            computed: 0,
            table: BlockTable::default(),
            names: arrival.names,
            named: 0,
            items: arrival.items,
            priority: arrival.priority,
            since: self.step,
            overdue: false,
            preempted: false,
        });
        Ok(id)
    }

    /// Plans the next step; empty when there is nothing to do.
    pub fn schedule(&mut self, room: Room<'_>) -> Vec<Chunk> {
        self.step += 1;
        let mut chunks = Vec::new();
        let mut budget = self.config.max_batched_tokens;
        let preempted = self.continue_decoding(&mut budget, &mut chunks);
        let mut prompts = Prompts {
            budget: match chunks.is_empty() {
                true => budget,
                false => budget.min(room.prompt_tokens),
            },
            encoder: match room.encoder {
                true => EncoderBudget::new(self.config.max_encoder_tokens),
                false => EncoderBudget::closed(),
            },
            encoded: room.encoded,
            partial: false,
        };
        self.continue_prompts(&mut prompts, &mut chunks);
        // Blocks that were just taken back are not given to another at once.
        if !preempted {
            self.start_waiting(&mut prompts, &mut chunks);
        }
        chunks
    }

    /// Each sequence that lacks its newest token alone gets it. Returns whether one had to give way.
    fn continue_decoding(&mut self, budget: &mut usize, chunks: &mut Vec<Chunk>) -> bool {
        let mut preempted = false;
        let mut index = 0;
        while *budget > 0 && index < self.running.len() {
            let sequence = &mut self.running[index];
            if sequence.remaining() != 1 {
                index += 1;
                continue;
            }
            if !self.allocator.grow(&mut sequence.table, sequence.tokens) {
                // The last one gives way; if that is this one, the loop ends. Those before `index`
                // are never taken.
                self.preempt_last();
                preempted = true;
                continue;
            }
            *budget -= 1;
            chunks.push(self.running[index].chunk(1));
            index += 1;
        }
        preempted
    }

    /// Prompts that an earlier step left in their midst. All their blocks are theirs already.
    fn continue_prompts(&self, prompts: &mut Prompts<'_>, chunks: &mut Vec<Chunk>) {
        for sequence in self.running.iter().filter(|s| s.remaining() > 1) {
            let len = prompts.fit(sequence, sequence.computed);
            prompts.begin(sequence, sequence.computed, len);
            if len > 0 {
                chunks.push(sequence.chunk(len));
            }
        }
    }

    fn start_waiting(&mut self, prompts: &mut Prompts<'_>, chunks: &mut Vec<Chunk>) {
        let policy = self.config.policy;
        for sequence in &mut self.waiting {
            sequence.overdue |= self.step - sequence.since > PATIENCE;
        }
        self.waiting.sort_by_key(|s| s.rank(policy));
        let mut coming = self.names_to_come();
        let mut at = 0;
        while at < self.waiting.len().min(LOOK_AHEAD)
            && prompts.budget > 0
            && self.running.len() < self.config.max_num_seqs
        {
            let sequence = &self.waiting[at];
            let block_size = self.allocator.block_size();
            // The last token always runs: its logits are wanted.
            let most = ((sequence.tokens - 1) / block_size).min(sequence.names.len());
            let hits = self.allocator.find(&sequence.names[..most]);
            let start = hits * block_size;
            let len = prompts.fit(sequence, start);
            let whole = start + len == sequence.tokens;
            // What another sequence computes now is there to take soon.
            let soon = hits < most && coming.contains(&sequence.names[hits]);
            if soon || len == 0 || (prompts.partial && !whole) {
                at += 1;
                continue;
            }
            // All blocks of its present tokens, so that a prefill never runs dry midway.
            let names = &sequence.names[..hits];
            let Some(table) = self.allocator.take(names, sequence.tokens) else {
                break;
            };
            let mut sequence = self.waiting.remove(at);
            if !sequence.preempted {
                self.prefix_queries += sequence.tokens as u64;
                self.prefix_hits += start as u64;
            }
            sequence.table = table;
            (sequence.computed, sequence.named) = (start, hits);
            prompts.begin(&sequence, start, len);
            chunks.push(sequence.chunk(len));
            coming.extend(sequence.names.iter().skip(hits));
            let rank = sequence.rank(policy);
            let place = self.running.partition_point(|s| s.rank(policy) < rank);
            self.running.insert(place, sequence);
        }
    }

    /// Names of blocks that running sequences have not computed to the end.
    fn names_to_come(&self) -> HashSet<BlockHash> {
        let prompts = self.running.iter().filter(|s| s.remaining() > 1);
        prompts
            .flat_map(|s| s.names.iter().skip(s.named))
            .copied()
            .collect()
    }

    /// Notes that the chunks have run.
    pub fn advance(&mut self, chunks: &[Chunk]) {
        for chunk in chunks {
            let Some(sequence) = self.running.iter_mut().find(|s| s.id == chunk.id) else {
                continue;
            };
            sequence.computed = chunk.start + chunk.len;
            let full = sequence.computed / self.allocator.block_size();
            while sequence.named < full.min(sequence.names.len()) {
                let name = sequence.names[sequence.named];
                self.allocator.name(&sequence.table, sequence.named, name);
                sequence.named += 1;
            }
        }
    }

    /// Notes that a sequence has one token more, and the name of the block that it fills.
    ///
    /// # Errors
    /// [`Error::Internal`] when it does not run, or has all the tokens it may have.
    pub fn append(&mut self, id: SequenceId, name: Option<BlockHash>) -> Result<()> {
        match self.running.iter_mut().find(|s| s.id == id) {
            Some(sequence) if sequence.tokens < sequence.max_tokens => {
                sequence.tokens += 1;
                sequence.names.extend(name);
                Ok(())
            }
            Some(_) => Err(Error::internal(format!("sequence {id} is full"))),
            None => Err(Error::internal(format!("sequence {id} does not run"))),
        }
    }

    /// Forgets a sequence, finished or cancelled, and frees its blocks, whose content later prompts
    /// may take. Returns whether there was one.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        let sequence = self.take_out(id);
        let found = sequence.is_some();
        if let Some(sequence) = sequence {
            self.allocator.release(sequence.table);
        }
        found
    }

    /// Forgets a sequence that failed: nobody is to take what it computed.
    pub fn discard(&mut self, id: SequenceId) {
        if let Some(sequence) = self.take_out(id) {
            self.allocator.discard(sequence.table);
        }
    }

    /// Forgets what all blocks hold: the cache was made anew.
    pub fn forget_cached(&mut self) {
        self.allocator.forget_all();
    }

    fn take_out(&mut self, id: SequenceId) -> Option<Sequence> {
        for list in [&mut self.running, &mut self.waiting] {
            if let Some(at) = list.iter().position(|s| s.id == id) {
                return Some(list.remove(at));
            }
        }
        None
    }

    /// The sequences that hold blocks.
    pub fn running_ids(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.running.iter().map(|s| s.id)
    }

    /// The sequence that the last step left in the midst of its prompt, and how far it is.
    pub fn partial(&self) -> Option<(SequenceId, usize)> {
        let partial = self.running.iter().find(|s| s.remaining() > 1);
        partial.map(|s| (s.id, s.computed))
    }

    /// Sequences in the midst of their prompt, and those that wait.
    pub fn prompts(&self) -> usize {
        let partial = self.running.iter().filter(|s| s.remaining() > 1);
        partial.count() + self.waiting.len()
    }

    /// Sequences that hold blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Their tokens.
    pub fn waiting_tokens(&self) -> usize {
        self.waiting.iter().map(|s| s.tokens).sum()
    }

    /// Blocks in all.
    pub fn total_blocks(&self) -> usize {
        self.allocator.total_blocks()
    }

    /// Blocks that nobody owns.
    pub fn free_blocks(&self) -> usize {
        self.allocator.free_blocks()
    }

    /// Of those, blocks whose content can be taken.
    pub fn cached_blocks(&self) -> usize {
        self.allocator.cached_blocks()
    }

    /// How often a sequence had to give its blocks back and start anew.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// The sequences that had to since this was last called.
    pub fn take_preempted(&mut self) -> Vec<SequenceId> {
        std::mem::take(&mut self.preempted)
    }

    /// Tokens of prompts that were looked up in the cache, and those found there.
    pub fn prefix_lookups(&self) -> (u64, u64) {
        (self.prefix_queries, self.prefix_hits)
    }

    fn preempt_last(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.allocator.release(std::mem::take(&mut sequence.table));
            (sequence.computed, sequence.named) = (0, 0);
            sequence.preempted = true;
            sequence.since = self.step;
            self.preemptions += 1;
            self.preempted.push(sequence.id);
            self.waiting.push(sequence);
        }
    }
}

/// What a step has left for prompts.
struct Prompts<'a> {
    /// Tokens.
    budget: usize,
    encoder: EncoderBudget,
    encoded: &'a dyn Fn(SequenceId, usize, &ContentHash) -> bool,
    /// Whether one will be in the midst of its prompt when the step is over.
    partial: bool,
}

impl Prompts<'_> {
    /// How many tokens of a sequence from a position on fit.
    fn fit(&self, sequence: &Sequence, start: usize) -> usize {
        let len = (sequence.tokens - start).min(self.budget);
        let there = |at: usize, item: &ContentHash| (self.encoded)(sequence.id, at, item);
        self.encoder.fit(&sequence.items, start, len, there)
    }

    /// Takes so many.
    fn begin(&mut self, sequence: &Sequence, start: usize, len: usize) {
        self.budget -= len;
        self.partial |= start + len < sequence.tokens;
        if len == 0 {
            return;
        }
        let encoded = self.encoded;
        let there = |at: usize, item: &ContentHash| encoded(sequence.id, at, item);
        self.encoder.take(&sequence.items, start, len, there);
    }
}
