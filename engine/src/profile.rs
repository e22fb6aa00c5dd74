//! Start-up profiling: the model runs on dummy data at the largest step that the engine will ever
//! make, the peak is measured, and the KV cache gets what is left of the budget.

use crate::executor::{Executor, StepInput};
use crate::memory;
use crate::merge::Overlay;
use crate::options::EngineOptions;
use crate::pipeline::{InputPipeline, ItemContent, Prepared};
use burn::tensor::Tensor;
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
    /// The peak of activations in bytes, as measured and a sixteenth more; `None` when the blocks
    /// were given and nothing was measured.
    pub activation_bytes: Option<usize>,
    /// Bytes of keys and values of one token.
    pub kv_bytes_per_token: usize,
    /// Bytes of encoder rows that may be kept for later requests.
    pub encoder_cache_bytes: usize,
    /// Bytes of decoded and mapped items that may be kept.
    pub processor_cache_bytes: usize,
    /// Items that go through the encoder at once, at most.
    pub encoder_batch: usize,
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

/// The part of what weights and activations leave that each of the caches beside the KV cache may
/// take: one in so many bytes.
const CACHE_SHARE: usize = 8;

/// Measures, and gives the executor its cache.
pub(crate) fn profile(
    executor: &mut Executor,
    pipeline: &InputPipeline,
    engine: &EngineOptions,
) -> Result<MemoryProfile> {
    let options = &engine.cache;
    let encoder_batch = encoder_batch(pipeline, engine);
    // A text model has no use for either.
    let (mut encoder_cache_bytes, mut processor_cache_bytes) =
        match pipeline.max_tokens().is_empty() {
            true => (0, 0),
            false => (engine.encoder_cache_bytes, engine.processor_cache_bytes),
        };
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
            // A sequence is no longer than the cache, and the cache is within the budget.
            let room = budget.saturating_sub(weight_bytes) / kv_bytes_per_token.max(1);
            let longest = longest.min(room).max(1);
            let activations = measure(executor, pipeline, engine, longest)?.ok_or_else(|| {
                Error::unsupported(
                    "measuring memory in this program or on this device: give --kv-blocks",
                )
            })?;
            let left = budget
                .saturating_sub(weight_bytes)
                .saturating_sub(activations);
            encoder_cache_bytes = encoder_cache_bytes.min(left / CACHE_SHARE);
            processor_cache_bytes = processor_cache_bytes.min(left / CACHE_SHARE);
            let left = left - encoder_cache_bytes - processor_cache_bytes;
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
        encoder_cache_bytes,
        processor_cache_bytes,
        encoder_batch,
        kv_blocks,
        block_size,
        max_model_len: longest.min(kv_blocks.saturating_mul(block_size)),
    })
}

/// Items at once beyond which a batch gains nothing.
const MAX_ENCODER_BATCH: usize = 8;
/// Tokens of context that the measured step has, at least where the model has so many. Attention
/// goes over keys in tiles, so that what a longer context adds is its block tables alone; to compute
/// over the longest would take as long as the longest prompt.
const CONTEXT: usize = 1024;
/// Bytes of a step for each block of a sequence: its number in the sequence's part, and in the table
/// that the model is given.
const TABLE_BYTES: usize = size_of::<u32>() + size_of::<i64>();

/// The peak of the largest step. `None` where memory is not the host's to measure.
fn measure(
    executor: &mut Executor,
    pipeline: &InputPipeline,
    engine: &EngineOptions,
    longest: usize,
) -> Result<Option<usize>> {
    let options = &engine.cache;
    if !executor.on_host() {
        return Ok(None);
    }
    let context = longest.min(CONTEXT.max(2 * options.max_batched_tokens));
    let largest = LargestStep::new(pipeline, engine, context);
    let dummy = dummy_inputs(pipeline, largest.tokens().min(longest))?;
    executor.resize(1, options.block_size);
    // Once without measuring: lazily made tables and thread-local buffers are no activations.
    LargestStep::default().run(executor, &dummy, options.block_size)?;
    let (result, peak) = memory::peak_of(|| largest.run(executor, &dummy, options.block_size));
    result?;
    let tables = (longest - context).div_ceil(options.block_size) * largest.new.len() * TABLE_BYTES;
    // How many threads hold their buffers at once is chance, and was so in the one run.
    Ok(peak.map(|bytes| bytes.saturating_add(bytes / 16).saturating_add(tables)))
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

/// How many items go through the encoder at once: as many of the largest as a step may make rows of.
fn encoder_batch(pipeline: &InputPipeline, engine: &EngineOptions) -> usize {
    let most = pipeline.max_tokens().values().copied().max().unwrap_or(0);
    (engine.encoder_tokens() / most.max(1)).clamp(1, MAX_ENCODER_BATCH)
}

/// The largest step that scheduler and worker can make.
struct LargestStep {
    /// New tokens of each sequence.
    new: Vec<usize>,
    /// Tokens that each sequence has when the step is over.
    longest: usize,
    /// Encoder rows that are held while more items are encoded.
    held: usize,
    /// Items that go through the encoder at once.
    batch: usize,
}

impl Default for LargestStep {
    /// The smallest step.
    fn default() -> Self {
        Self {
            new: vec![1],
            longest: 1,
            held: 0,
            batch: 1,
        }
    }
}

impl LargestStep {
    /// As many sequences as may run, each at its longest: block tables and context are widest. One
    /// new token each; the first ones take what the step has left.
    fn new(pipeline: &InputPipeline, engine: &EngineOptions, longest: usize) -> Self {
        let options = &engine.cache;
        let sequences = options.max_num_seqs.min(options.max_batched_tokens);
        let mut left = options.max_batched_tokens - sequences;
        let new: Vec<usize> = (0..sequences)
            .map(|_| {
                let more = left.min(longest - 1);
                left -= more;
                1 + more
            })
            .collect();
        // Rows are held of all items of the request that is in the midst of its prompt (they fit its
        // context), and of those that the step encodes. Others that it uses are in the cache, or
        // have just made room there for as many that it encoded.
        let limits = pipeline.context().limits();
        let of_a_request = pipeline
            .max_tokens()
            .iter()
            .map(|(modality, most)| limits.get(modality).saturating_mul(*most))
            .fold(0, usize::saturating_add)
            .min(longest);
        let of_an_item = pipeline.max_tokens().values().copied().max().unwrap_or(0);
        let held = match of_a_request {
            0 => 0,
            // Rows that prompts held back by the encoder took from the cache are no longer its own.
            rows => rows + engine.encoder_tokens().max(of_an_item) + options.max_batched_tokens,
        };
        Self {
            new,
            longest,
            held,
            batch: encoder_batch(pipeline, engine),
        }
    }

    fn tokens(&self) -> usize {
        self.new.iter().sum()
    }

    /// Encodes each dummy item, then runs the tokens, the last of each sequence for its logits.
    /// Every block is the first one: where keys lie costs no memory.
    fn run(&self, executor: &mut Executor, dummy: &Prepared, block_size: usize) -> Result<()> {
        let held = executor.zeros(self.held);
        let mut features = vec![];
        // Items may be on their way through the encoder while the step runs.
        let mut under_way = vec![];
        for (item, range) in dummy.items.iter().zip(&dummy.placeholders) {
            match &item.content {
                ItemContent::Mapped(tensors) => {
                    let items = vec![tensors.as_ref(); self.batch];
                    for encoded in executor.encode_mapped(&item.modality, &items)? {
                        executor.check_rows(&encoded.features, range)?;
                        features.push(encoded.features);
                    }
                    let items = vec![tensors.clone(); self.batch];
                    let mut task = executor.begin_encode(&item.modality, &items)?;
                    while task.remaining() > 1 {
                        task.advance()?;
                    }
                    under_way.push(task);
                }
                ItemContent::Embeds(_) => features.push(executor.encode(item, range)?.features),
            }
        }
        let mut ids = dummy.token_ids.iter().copied().cycle();
        let mut row = 0;
        let inputs = self.new.iter().map(|new| StepInput {
            // Placeholder ids may lie beyond the embedding: a step that lays rows never looks.
            token_ids: match self.held {
                0 => ids.by_ref().take(*new).collect(),
                _ => vec![0; *new],
            },
            start: self.longest - new,
            prompt_len: self.longest,
            blocks: vec![0; self.longest.div_ceil(block_size)],
            overlays: match self.held {
                0 => vec![],
                _ => single_rows(&held, &mut row, *new),
            },
            logit_rows: 1,
        });
        let inputs = inputs.collect();
        executor.run(inputs)?;
        drop((held, features, under_way));
        Ok(())
    }
}

/// Each token takes a row by itself: no step has more parts to lay.
fn single_rows(held: &Tensor<2>, row: &mut usize, count: usize) -> Vec<Overlay> {
    let [all, hidden] = held.dims();
    (0..count)
        .map(|at| {
            let rows = held.clone().slice([*row..*row + 1, 0..hidden]);
            *row = (*row + 1) % all;
            Overlay { at, rows }
        })
        .collect()
}
