//! Kiln's engine: it takes requests and runs whatever model the registry finds. It names no
//! architecture.
//!
//! A program holds an [`Engine`]: it loads a checkpoint, profiles it, and takes [`Request`]s from
//! any thread; each answers with [`Event`]s as a [`Generation`]. Tools that look inside start from
//! a [`LoadedModel`].
//!
//! Inside, in the order of a request: [`InputPipeline`] (decode, template, tokenise, expand, map,
//! compile the grammar; on a pool), the owner thread with the [`Scheduler`] over the
//! [`BlockAllocator`], the executor with model and KV cache, [`Sampler`], detokenising and
//! [`StopMatcher`].
//!
//! Three caches outlive a request, each by content and under a budget: mapped items, encoder rows,
//! and the KV blocks of prompts and answers. None of them changes a bit of an answer.

mod blocks;
mod cache;
mod checkpoint;
mod configs;
mod derived;
mod detokenize;
mod device;
mod engine;
mod event;
mod executor;
mod json_file;
mod loaded;
mod memory;
mod merge;
mod options;
mod pipeline;
mod prefix;
mod profile;
mod request;
mod sampling;
mod scheduler;
mod sequence;
mod special_tokens;
mod stages;
mod stats;
mod stop;
mod template;
mod token_bytes;
mod tokenizer;
mod trace;
mod worker;

pub use blocks::{BlockAllocator, BlockTable};
pub use checkpoint::{Checkpoint, EmbeddedFiles};
pub use configs::{GenerationConfig, SamplingDefaults, architectures, processor_config};
pub use detokenize::Detokenizer;
pub use device::open_device;
pub use engine::Engine;
pub use event::{Event, FinishReason, Generation, Timing, Usage};
pub use loaded::{LoadedModel, ModelOptions};
pub use options::{EngineOptions, MAX_ITL_RATIO, Policy};
pub use pipeline::{InputPipeline, ItemContent, Prepared, PreparedItem, PreparedItems};
pub use prefix::BlockHash;
pub use profile::{CacheOptions, MemoryProfile};
pub use request::{MediaInput, PromptInput, Request, TemplateArgs};
pub use sampling::{Grammar, SampledToken, Sampler, SamplingParams};
pub use scheduler::{Arrival, Chunk, ItemSpan, Room, Scheduler, SchedulerConfig, SequenceId};
pub use stages::{Staged, Stages};
pub use stats::EngineStats;
pub use stop::StopMatcher;
pub use template::{ChatTemplate, ContentPart, Message};
pub use tokenizer::HfTokenizer;
pub use trace::Trace;
