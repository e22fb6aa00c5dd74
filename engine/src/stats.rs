//! Counters that the engine's threads keep and anyone reads.

use crate::Scheduler;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters as they are kept.
        #[derive(Debug, Default)]
        pub(crate) struct Stats {
            /// Requests that are taken and have not ended.
            pub(crate) active: AtomicU64,
            $(pub(crate) $name: AtomicU64,)*
        }

        /// The counters at a moment. Those that only grow count since the start.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct EngineStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            pub(crate) fn read(&self) -> EngineStats {
                EngineStats {
                    $($name: self.$name.load(Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Requests that are prepared now.
    preparing,
    /// Their items.
    preparing_items,
    /// Sequences that hold KV blocks.
    running,
    /// Sequences that wait for blocks.
    waiting,
    /// Their tokens.
    waiting_tokens,
    /// KV blocks in all.
    kv_blocks,
    /// KV blocks that no sequence owns, those with cached content included.
    free_blocks,
    /// Of the free blocks, those whose content a later prompt may take.
    cached_blocks,
    /// Sequences that gave their blocks back and began anew.
    preemptions,
    /// Steps run.
    steps,
    /// Tokens of accepted prompts.
    prompt_tokens,
    /// Tokens chosen.
    generation_tokens,
    /// Requests that ended well.
    finished,
    /// Sequences that ended by an end-of-sequence token, a stop token or a stop string, or because
    /// their grammar allowed nothing more.
    finished_stop,
    /// Sequences that had as many tokens as they may have.
    finished_length,
    /// Requests that failed after they were taken, in preparation or in a step.
    failed,
    /// Requests whose receiver was dropped, or that [`Engine::abort`](crate::Engine::abort) ended.
    cancelled,
    /// Requests refused because too many waited.
    rejected_queue,
    /// Requests refused because those that waited had too many tokens.
    rejected_queue_tokens,
    /// Requests refused because too many items were in preparation.
    rejected_media_queue,
    /// Requests refused because the engine was shutting down.
    rejected_shutdown,
    /// Requests refused for what they ask.
    rejected_invalid,
    /// Prompt tokens that were looked up in the prefix cache.
    prefix_cache_queries,
    /// Of those, tokens found.
    prefix_cache_hits,
    /// Items whose encoder rows were needed.
    encoder_cache_queries,
    /// Of those, items whose rows were cached.
    encoder_cache_hits,
    /// Bytes of encoder rows that the encoder cache holds.
    encoder_cache_bytes,
    /// Items that were to be decoded and mapped.
    processor_cache_queries,
    /// Of those, items that were decoded and mapped before.
    processor_cache_hits,
    /// Bytes of items and mapped tensors that the processor cache holds.
    processor_cache_bytes,
    /// Items that went through the encoder.
    encoded_items,
    /// The most bytes that one step took, encoder rows of earlier steps included: what
    /// [`MemoryProfile::activation_bytes`](crate::MemoryProfile::activation_bytes) bounds. 0 unless
    /// [`EngineOptions::measure_steps`](crate::EngineOptions::measure_steps) is on.
    largest_step_bytes,
}

impl Stats {
    pub(crate) fn observe(&self, scheduler: &Scheduler) {
        let store = |counter: &AtomicU64, value: usize| counter.store(value as u64, Relaxed);
        store(&self.kv_blocks, scheduler.total_blocks());
        store(&self.free_blocks, scheduler.free_blocks());
        store(&self.cached_blocks, scheduler.cached_blocks());
        self.preemptions.store(scheduler.preemptions(), Relaxed);
        store(&self.waiting, scheduler.waiting());
        store(&self.waiting_tokens, scheduler.waiting_tokens());
        store(&self.running, scheduler.running());
    }
}

/// Adds to a counter until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    stats: Arc<Stats>,
    counter: fn(&Stats) -> &AtomicU64,
    amount: u64,
}

impl Held {
    pub(crate) fn new(stats: &Arc<Stats>, counter: fn(&Stats) -> &AtomicU64, amount: u64) -> Self {
        counter(stats).fetch_add(amount, Relaxed);
        Self {
            stats: stats.clone(),
            counter,
            amount,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.counter)(&self.stats).fetch_sub(self.amount, Relaxed);
    }
}
