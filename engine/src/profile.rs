//! Start-up profiling: the model runs on dummy data at the largest step that the engine will ever
//! make, the peak is measured, and the KV cache gets what is left of the budget.

use crate::executor::{Executor, StepInput};
use crate::memory;
use crate::pipeline::{InputPipeline, Prepared};
use kiln_registry::{Error, MediaCounts, Result};

/// What bounds a step and the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheOptions {
    /// Tokens that one step may run.
    pub max_batched_tokens: usize,
    /// Sequences that may run at a time.
    pub max_num_seqs: usize,
    /// Tokens of a KV block.
    pub block_size: usize,
    /// Bytes for weights, activations and KV cache together; `None`: half of what is free.
    pub memory: Option<usize>,
    /// KV blocks; given, nothing is measured and `memory` is not looked at.
    pub kv_blocks: Option<usize>,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            max_batched_tokens: 512,
            max_num_seqs: 16,
            block_size: 16,
            memory: None,
            kv_blocks: None,
        }
    }
}

/// Where the memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryProfile {
    /// Bytes of weights.
    pub weight_bytes: usize,
    /// The peak of activations in bytes; `None` when the blocks were given and nothing was measured.
    pub activation_bytes: Option<usize>,
    /// Bytes of keys and values of one token.
    pub kv_bytes_per_token: usize,
    /// KV blocks.
    pub kv_blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Tokens that one sequence may have: no more than the cache holds.
    pub max_model_len: usize,
}

impl MemoryProfile {
    /// Tokens that fit into the cache.
    pub fn kv_tokens(&self) -> usize {
        self.kv_blocks * self.block_size
    }

    /// Bytes of the cache.
    pub fn kv_bytes(&self) -> usize {
        self.kv_tokens() * self.kv_bytes_per_token
    }
}

/// Measures, and gives the executor its cache.
pub(crate) fn profile(
    executor: &mut Executor,
    pipeline: &InputPipeline,
    options: &CacheOptions,
) -> Result<MemoryProfile> {
    let (block_size, longest) = (options.block_size, pipeline.context().max_model_len());
    if block_size == 0 || options.max_batched_tokens == 0 || options.max_num_seqs == 0 {
        return Err(Error::invalid(
            "the block size, the tokens of a step and the number of sequences must be above 0",
        ));
    }
    let weight_bytes = executor.model().weight_bytes();
    let kv_bytes_per_token = executor.model().kv_spec().bytes_per_token();
    // More than every sequence at its longest is of no use.
    let useful = longest
        .div_ceil(block_size)
        .saturating_mul(options.max_num_seqs);
    let (kv_blocks, activation_bytes) = match options.kv_blocks {
        Some(blocks) => (blocks, None),
        None => {
            let budget = options
                .memory
                .unwrap_or_else(|| weight_bytes.saturating_add(memory::available() / 2));
            let activations = measure(executor, pipeline, options)?.ok_or_else(|| {
                Error::unsupported(
                    "measuring memory in this program or on this device: give --kv-blocks",
                )
            })?;
            let left = budget
                .saturating_sub(weight_bytes)
                .saturating_sub(activations);
            let blocks = left / (kv_bytes_per_token * block_size).max(1);
            if blocks == 0 {
                return Err(Error::invalid(format!(
                    "a memory budget of {} MiB leaves nothing for the KV cache: weights take {} MiB, \
                     activations {} MiB. Raise --memory, or lower --max-batched-tokens",
                    budget >> 20,
                    weight_bytes >> 20,
                    activations >> 20
                )));
            }
            (blocks.min(useful), Some(activations))
        }
    };
    if kv_blocks == 0 {
        return Err(Error::invalid(
            "--kv-blocks is 0: the cache needs at least one",
        ));
    }
    executor.resize(kv_blocks, block_size);
    Ok(MemoryProfile {
        weight_bytes,
        activation_bytes,
        kv_bytes_per_token,
        kv_blocks,
        block_size,
        max_model_len: longest.min(kv_blocks.saturating_mul(block_size)),
    })
}

/// The peak of the largest step: a prompt of dummy data as long as a step may be, one item at its
/// maximum in the encoder, and as many rows of logits as sequences may run. `None` where memory is
/// not the host's to measure.
fn measure(
    executor: &mut Executor,
    pipeline: &InputPipeline,
    options: &CacheOptions,
) -> Result<Option<usize>> {
    if !executor.on_host() {
        return Ok(None);
    }
    let tokens = options
        .max_batched_tokens
        .min(pipeline.context().max_model_len());
    let dummy = dummy_inputs(pipeline, tokens)?;
    // Once without measuring: lazily made tables and thread-local buffers are no activations.
    executor.resize(1, options.block_size);
    step(executor, &dummy, 1, 1, options.block_size)?;
    let blocks = tokens.div_ceil(options.block_size);
    executor.resize(blocks, options.block_size);
    let (result, peak) = memory::peak_of(|| {
        step(
            executor,
            &dummy,
            tokens,
            options.max_num_seqs,
            options.block_size,
        )
    });
    result?;
    Ok(peak)
}

/// Dummy data through the real pipeline: one item of each modality that a prompt may have, since
/// the encoder takes one at a time.
pub(crate) fn dummy_inputs(pipeline: &InputPipeline, tokens: usize) -> Result<Prepared> {
    let context = pipeline.context();
    let counts = pipeline
        .entry()
        .modalities()
        .fold(MediaCounts::new(), |counts, m| {
            let limit = context.limits().get(m);
            counts.with(m, limit.min(1))
        });
    let dummy = pipeline.entry().make_dummy_data(context, tokens, &counts)?;
    let prepared = pipeline.prepare_items(dummy.prompt, &dummy.items, |_| Ok(()))?;
    for modality in pipeline.entry().modalities() {
        let reached = prepared
            .placeholders
            .iter()
            .filter(|p| p.modality == modality)
            .map(|p| p.rows())
            .max();
        let declared = pipeline.max_tokens().get(modality).copied();
        if counts.get(modality) > 0 && reached != declared {
            return Err(Error::PlaceholderLaw {
                modality: modality.to_owned(),
                item: 0,
                message: format!(
                    "dummy data reaches {} rows, the declared maximum is {}",
                    reached.unwrap_or(0),
                    declared.unwrap_or(0)
                ),
            });
        }
    }
    Ok(prepared)
}

/// Encodes each item, then runs `tokens` tokens of which `rows` are asked for logits.
fn step(
    executor: &mut Executor,
    dummy: &Prepared,
    tokens: usize,
    rows: usize,
    block_size: usize,
) -> Result<()> {
    let features = dummy
        .items
        .iter()
        .zip(&dummy.placeholders)
        .map(|(item, range)| Ok(executor.encode(item, range)?.features))
        .collect::<Result<Vec<_>>>()?;
    let mut token_ids = dummy.token_ids.clone();
    token_ids.resize(tokens, 0);
    let mut input = StepInput {
        token_ids,
        start: 0,
        prompt_len: tokens,
        blocks: (0..tokens.div_ceil(block_size) as u32).collect(),
        overlays: vec![],
        logit_rows: rows.min(tokens),
    };
    for (range, features) in dummy.placeholders.iter().zip(&features) {
        input.lay(range, features);
    }
    executor.run(vec![input])?;
    Ok(())
}
