//! How to run a model: what a program says when it starts an engine.

use crate::loaded::ModelOptions;
use crate::profile::CacheOptions;

/// Which of the sequences that wait runs first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// First come, first served.
    #[default]
    Fcfs,
    /// The lowest [`Request::priority`](crate::Request::priority) first; of equals the one that came
    /// first. What has waited very long goes before all.
    Priority,
}

impl std::str::FromStr for Policy {
    type Err = kiln_registry::Error;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "fcfs" => Ok(Self::Fcfs),
            "priority" => Ok(Self::Priority),
            _ => Err(kiln_registry::Error::invalid(format!(
                "no policy `{s}`: fcfs or priority"
            ))),
        }
    }
}

/// Well below two, which users are promised at the 99th percentile: steps vary by themselves.
pub const MAX_ITL_RATIO: f64 = 1.5;

/// How to run a model.
#[derive(Clone)]
pub struct EngineOptions {
    /// How to load the checkpoint.
    pub model: ModelOptions,
    /// What bounds a step and the KV cache.
    pub cache: CacheOptions,
    /// Requests that may wait, those in preparation included.
    pub max_queue: usize,
    /// Tokens that the waiting sequences may have together.
    pub max_queue_tokens: usize,
    /// Items that may be in preparation. A request alone may have more.
    pub media_queue: usize,
    /// Which of the sequences that wait runs first.
    pub policy: Policy,
    /// Whether prompts take the blocks of equal beginnings from earlier ones.
    pub prefix_cache: bool,
    /// Bytes of encoder rows that are kept; of a measured memory budget at most an eighth of what
    /// weights and activations leave.
    pub encoder_cache_bytes: usize,
    /// Bytes of decoded and mapped items that are kept; bounded likewise.
    pub processor_cache_bytes: usize,
    /// Encoder rows that one step may make; one item is always allowed. `None`: as many as the step
    /// may have tokens.
    pub max_num_batched_encoder_tokens: Option<usize>,
    /// Tokens of prompts in a step that other sequences wait for with a token each, at most. `None`: a
    /// quarter of what the step may have.
    pub long_prefill_token_threshold: Option<usize>,
    /// How many times as long as a step of running sequences alone a step may take that has parts of
    /// prompts, or of their items' encoding, beside them: what bounds the inter-token latency while
    /// prompts come, at the cost of their time to first token. It goes by how long earlier steps took,
    /// and gives way where more prompts wait than sequences run. `None`: whatever it takes.
    pub max_itl_ratio: Option<f64>,
    /// Whether the memory of each step is counted, for
    /// [`EngineStats::largest_step_bytes`](crate::EngineStats::largest_step_bytes). The whole process
    /// is counted, and counted anew from each step on: for a program that has one engine and does
    /// nothing else meanwhile.
    pub measure_steps: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            model: ModelOptions::default(),
            cache: CacheOptions::default(),
            max_queue: 256,
            max_queue_tokens: 1 << 20,
            media_queue: 256,
            policy: Policy::default(),
            prefix_cache: true,
            encoder_cache_bytes: 256 << 20,
            processor_cache_bytes: 256 << 20,
            max_num_batched_encoder_tokens: None,
            long_prefill_token_threshold: None,
            max_itl_ratio: Some(MAX_ITL_RATIO),
            measure_steps: false,
        }
    }
}

impl EngineOptions {
    /// Encoder rows that one step may make.
    pub(crate) fn encoder_tokens(&self) -> usize {
        self.max_num_batched_encoder_tokens
            .unwrap_or(self.cache.max_batched_tokens)
    }

    /// Tokens of prompts beside sequences that have one token each.
    pub(crate) fn prefill_tokens(&self) -> usize {
        let given = self.long_prefill_token_threshold;
        given.unwrap_or(self.cache.max_batched_tokens / 4).max(1)
    }
}
