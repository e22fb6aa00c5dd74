//! The contract of Kiln: what a model crate and a modality crate submit, and what the engine
//! does with it. No I/O, no architecture, no modality.
//!
//! # The protocol
//! Who calls what, in order. The engine is the only caller; a model crate never calls it.
//!
//! 1. **Start-up.** [`Registry::collect`] gathers every [`ModelEntry`] and [`ModalitySpec`] that
//!    the linker brought and refuses contradictions. [`Registry::find`] picks the entry by the
//!    checkpoint's `architectures`; [`ModelEntry::load`] builds the [`MultiModalModel`].
//! 2. **Profiling.** [`ModelEntry::max_tokens`] of each modality, then
//!    [`ModelEntry::make_dummy_data`]; the result takes the same path as a request.
//! 3. **A request.** [`ModalitySpec::decode`] turns bytes into [`MediaItem`]s; the prompt is
//!    tokenised; [`ModelEntry::process`] expands placeholders; the mapper
//!    ([`Registry::mapper`]: the entry's own, or the modality's default) makes
//!    [`NamedTensors`], on a pool.
//! 4. **A step.** [`MultiModalModel::encode`] (or, beside sequences that run, pieces of
//!    [`MultiModalModel::begin_encode`]), `embed`, merge at the placeholder ranges (the
//!    engine), `forward`, `logits`, in that order, on the one thread that owns the model.
//!
//! The placeholder law: for every item, rows of its [`PlaceholderRange`] = rows of its
//! [`Encoded::features`] <= [`ModelEntry::max_tokens`]. The engine checks it item by item.

mod context;
mod derived;
mod encode;
mod entry;
mod error;
mod kv;
mod lookup;
mod media;
mod modality;
mod model;
mod prompt;
mod tensors;

pub use context::{InputContext, MediaCounts, Tokenizer};
pub use derived::DerivedFiles;
pub use encode::{EncodeTask, encode_at_once};
pub use entry::{
    DummyData, DummyInputs, InputProcessor, MAX_MODALITIES, MaxTokens, ModalitySupport, ModelEntry,
};
pub use error::{Error, Result};
pub use kv::{BatchLayout, ForwardBatch, KvCache, KvLayer, KvSpec, SequenceSpan};
pub use lookup::{KnownFeature, Registry};
pub use media::{ContentHash, MediaItem, MediaKind};
pub use modality::{DecodeLimits, Decoder, InputMapper, MODALITIES, ModalitySpec};
pub use model::{
    CheckpointFiles, Encoded, LoadContext, LoadModel, MultiModalModel, Progress, Quantization,
    WeightDType,
};
pub use prompt::{
    Expansion, PlaceholderRange, ProcessedInputs, Prompt, PromptInputs, expand_placeholders,
};
pub use tensors::{HostData, HostTensor, NamedTensors};

/// Model crates submit through this re-export, so that all link one version.
pub use inventory;
/// Modality crates submit through this re-export, so that all link one version.
pub use linkme;
