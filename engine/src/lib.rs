//! Kiln's engine: it takes requests and runs whatever model the registry finds. It names no
//! architecture.
//!
//! The parts so far: where a checkpoint's files come from ([`Checkpoint`]), how a token is chosen
//! ([`SamplingParams`], [`Sampler`]), where text ends ([`StopMatcher`]), who owns which block of
//! the KV cache ([`BlockAllocator`]), and what runs in the next step ([`Scheduler`]).

mod blocks;
mod checkpoint;
mod sampling;
mod scheduler;
mod stop;

pub use blocks::{BlockAllocator, BlockTable};
pub use checkpoint::{Checkpoint, EmbeddedFiles};
pub use sampling::{SampledToken, Sampler, SamplingParams};
pub use scheduler::{Chunk, Scheduler, SchedulerConfig, SequenceId};
pub use stop::StopMatcher;
