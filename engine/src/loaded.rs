//! A checkpoint, loaded: its registration found, its configuration and tokenizer parsed, its
//! weights placed. What the executor and every tool start from.

use crate::Checkpoint;
use crate::cache::ProcessorCache;
use crate::configs::{GenerationConfig, architectures, processor_config};
use crate::derived::DerivedFolder;
use crate::pipeline::{InputPipeline, ModelShape};
use crate::profile::dummy_inputs;
use crate::sampling::Guides;
use crate::template::ChatTemplate;
use crate::tokenizer::HfTokenizer;
use burn::tensor::Device;
use kiln_registry::{
    DecodeLimits, DerivedFiles, Error, InputContext, LoadContext, MediaCounts, MultiModalModel,
    Progress, Quantization, Registry, Result, WeightDType,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// How to load a checkpoint.
#[derive(Clone)]
pub struct ModelOptions {
    /// Where tensors live.
    pub device: Device,
    /// The type of weights.
    pub dtype: WeightDType,
    /// Narrower weights of linear layers, made as they are loaded.
    pub quantize: Option<Quantization>,
    /// A folder to keep narrowed weights in, so that the next start maps them instead of making them;
    /// `None`: they are made at each start.
    pub cache_dir: Option<PathBuf>,
    /// Items per prompt, where they differ from the modality's default.
    pub limit_mm_per_prompt: MediaCounts,
    /// Tokens of one sequence; `None`: as many as the model was made for.
    pub max_model_len: Option<usize>,
    /// Laid over the processor's configuration.
    pub mm_processor_kwargs: Option<Value>,
    /// Bounds on decoding.
    pub decode_limits: DecodeLimits,
    /// Whether a request may bring embeddings in place of media.
    pub enable_mm_embeds: bool,
    /// Threads that decode and map media.
    pub media_threads: usize,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            device: Device::flex(),
            dtype: WeightDType::Auto,
            quantize: None,
            cache_dir: None,
            limit_mm_per_prompt: MediaCounts::new(),
            max_model_len: None,
            mm_processor_kwargs: None,
            decode_limits: DecodeLimits::default(),
            enable_mm_embeds: false,
            media_threads: std::thread::available_parallelism().map_or(1, |n| n.get().min(8)),
        }
    }
}

/// A loaded model with its input side.
pub struct LoadedModel {
    pub(crate) pipeline: Arc<InputPipeline>,
    pub(crate) model: Box<dyn MultiModalModel>,
    pub(crate) device: Device,
}

impl LoadedModel {
    /// Loads a checkpoint with whichever linked model claims its architecture.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an architecture that is not linked, [`Error::Checkpoint`] and
    /// [`Error::Tensor`] for files that are missing, malformed, or don't fit each other.
    pub fn load(
        registry: Arc<Registry>,
        checkpoint: &Checkpoint,
        options: &ModelOptions,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let config = checkpoint
            .json("config.json")?
            .ok_or_else(|| Error::checkpoint("config.json", "missing"))?;
        let entry = *registry.find(&architectures(&config))?;
        let processor = processor_config(checkpoint, options.mm_processor_kwargs.as_ref())?;
        let tokenizer = Arc::new(HfTokenizer::load(checkpoint)?);
        let template = ChatTemplate::load(checkpoint)?;
        let generation = GenerationConfig::load(checkpoint, &config, tokenizer.as_ref())?;
        let limits = limits(&registry, &entry, &options.limit_mm_per_prompt)?;
        let unbounded = options.max_model_len.unwrap_or(usize::MAX);
        let context = InputContext::new(config, processor, tokenizer.clone(), limits, unbounded);
        let max_tokens = entry
            .modalities()
            .map(|m| Ok((m, entry.max_tokens(&context, m)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let derived = options
            .cache_dir
            .as_deref()
            .filter(|_| options.quantize.is_some())
            .and_then(|root| DerivedFolder::new(root, checkpoint));
        let model = entry.load(&LoadContext {
            input: &context,
            files: checkpoint,
            device: &options.device,
            dtype: options.dtype,
            quantize: options.quantize,
            derived: derived.as_ref().map(|d| d as &dyn DerivedFiles),
            progress,
        })?;
        let positions = model.max_position_embeddings();
        if options
            .max_model_len
            .is_some_and(|n| n > positions || n == 0)
        {
            return Err(Error::invalid(format!(
                "--max-model-len is {unbounded}; this model has {positions} positions"
            )));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.media_threads.max(1))
            .thread_name(|i| format!("kiln-media-{i}"))
            .build()
            .map_err(Error::internal)?;
        let vocabulary = model.vocab_size();
        let guides = Guides::new(tokenizer.clone(), vocabulary, generation.eos_token_ids());
        let pipeline = InputPipeline {
            guides,
            processor_cache: ProcessorCache::default(),
            stats: Arc::default(),
            registry,
            entry,
            context: context.with_max_model_len(unbounded.min(positions)),
            tokenizer,
            template,
            generation,
            shape: ModelShape {
                embedding_rows: model.embedding_rows(),
                hidden_size: model.hidden_size(),
                vocab_size: model.vocab_size(),
            },
            max_tokens,
            decode_limits: options.decode_limits.clone(),
            allow_embeds: options.enable_mm_embeds,
            pool,
        };
        // A processor's configuration that can't be followed shows now, not at the first picture.
        dummy_inputs(&pipeline, 1)?;
        Ok(Self {
            pipeline: Arc::new(pipeline),
            model,
            device: options.device.clone(),
        })
    }

    /// The input side.
    pub fn pipeline(&self) -> &Arc<InputPipeline> {
        &self.pipeline
    }

    /// Bytes of all weights on the device.
    pub fn weight_bytes(&self) -> usize {
        self.model.weight_bytes()
    }
}

/// The modality's defaults with the caller's numbers on top.
fn limits(
    registry: &Registry,
    entry: &kiln_registry::ModelEntry,
    given: &MediaCounts,
) -> Result<MediaCounts> {
    let mut limits = MediaCounts::new();
    for modality in entry.modalities() {
        let default = registry.modality(modality).map_or(1, |spec| spec.limit());
        limits.set(modality, default);
    }
    for (modality, limit) in given.iter() {
        // Asking for a modality that nothing links is a slip; one that is not wanted may be absent.
        if limit > 0 {
            registry.modality(modality)?;
        }
        if entry.supports(modality) {
            limits.set(modality, limit);
        }
    }
    Ok(limits)
}
