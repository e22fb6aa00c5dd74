//! Counters that the owner thread keeps and anyone reads.

use crate::Scheduler;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// The counters as they are kept.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) preparing: AtomicU64,
    pub(crate) running: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) free_blocks: AtomicU64,
    pub(crate) preemptions: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) tokens: AtomicU64,
    pub(crate) finished: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) largest_step_bytes: AtomicU64,
}

/// The counters at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests whose media are decoded and mapped now.
    pub preparing: u64,
    /// Sequences that hold KV blocks.
    pub running: u64,
    /// Sequences that wait for blocks.
    pub waiting: u64,
    /// KV blocks that nobody owns.
    pub free_blocks: u64,
    /// Sequences that gave their blocks back and began anew.
    pub preemptions: u64,
    /// Steps run.
    pub steps: u64,
    /// Tokens chosen.
    pub tokens: u64,
    /// Requests that ended well.
    pub finished: u64,
    /// Requests that failed after they were accepted.
    pub failed: u64,
    /// Requests whose receiver was dropped.
    pub cancelled: u64,
    /// The most bytes that one step took, encoder rows of earlier steps included: what
    /// [`MemoryProfile::activation_bytes`](crate::MemoryProfile::activation_bytes) bounds. 0 unless
    /// [`EngineOptions::measure_steps`](crate::EngineOptions::measure_steps) is on.
    pub largest_step_bytes: u64,
}

impl Stats {
    pub(crate) fn observe(&self, scheduler: &Scheduler) {
        self.running.store(scheduler.running() as u64, Relaxed);
        self.waiting.store(scheduler.waiting() as u64, Relaxed);
        self.free_blocks
            .store(scheduler.free_blocks() as u64, Relaxed);
        self.preemptions.store(scheduler.preemptions(), Relaxed);
    }

    pub(crate) fn read(&self) -> EngineStats {
        EngineStats {
            preparing: self.preparing.load(Relaxed),
            running: self.running.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            free_blocks: self.free_blocks.load(Relaxed),
            preemptions: self.preemptions.load(Relaxed),
            steps: self.steps.load(Relaxed),
            tokens: self.tokens.load(Relaxed),
            finished: self.finished.load(Relaxed),
            failed: self.failed.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            largest_step_bytes: self.largest_step_bytes.load(Relaxed),
        }
    }
}
