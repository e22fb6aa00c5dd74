//! What the engine runs: a loaded model, and how a crate loads one.

use crate::{
    DerivedFiles, EncodeTask, Error, ForwardBatch, InputContext, KvSpec, NamedTensors, Result,
    encode_at_once,
};
use burn::tensor::{Device, Int, Tensor};
use bytes::Bytes;
use std::sync::Arc;

/// The files of a checkpoint. The engine implements it over a folder (by mmap) and over files
/// embedded in the binary.
pub trait CheckpointFiles: Send + Sync {
    /// The content of a file, `None` when there is none of that name. Names are plain file names:
    /// no separators, no `..`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the file can't be read or its name is no plain name.
    fn read(&self, name: &str) -> Result<Option<Bytes>>;

    /// All file names, sorted.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when they can't be listed.
    fn list(&self) -> Result<Vec<String>>;
}

/// The type that weights are kept and computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WeightDType {
    /// As stored in the checkpoint.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    BF16,
    /// 16-bit IEEE floats.
    F16,
}

impl std::str::FromStr for WeightDType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::BF16),
            "f16" | "float16" | "half" => Ok(Self::F16),
            _ => Err(Error::invalid(format!(
                "no dtype `{s}`: one of auto, f32, bf16, f16"
            ))),
        }
    }
}

/// To how many bits the weights of linear layers are narrowed as they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// Eight bits, and a scale for each output and 128 of its elements: 8.25 bits a weight.
    Q8,
    /// Four bits: a number of eight bits for which one of 16 steps, from one of 16 zeros, stands;
    /// step and zero for each 32 elements, a scale for each output: 4.25 bits a weight.
    Q4,
}

impl std::str::FromStr for Quantization {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "q8" | "int8" => Ok(Self::Q8),
            "q4" | "int4" => Ok(Self::Q4),
            _ => Err(Error::invalid(format!("no quantization `{s}`: q8 or q4"))),
        }
    }
}

/// Reports how far a load is: tensors done and tensors in all.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// What a model is loaded from.
pub struct LoadContext<'a> {
    /// Configuration and tokenizer.
    pub input: &'a InputContext,
    /// The checkpoint's files.
    pub files: &'a dyn CheckpointFiles,
    /// Where tensors live.
    pub device: &'a Device,
    /// The type of weights.
    pub dtype: WeightDType,
    /// Whether the weights of linear layers are narrowed, and to what; `dtype` holds for the others.
    pub quantize: Option<Quantization>,
    /// Where to keep what is made of the weights, for the next start.
    pub derived: Option<&'a dyn DerivedFiles>,
    /// Told after each tensor.
    pub progress: Progress<'a>,
}

/// A model as a type: what `ModelEntry::new::<M>` takes.
pub trait LoadModel {
    /// Builds the model from a checkpoint.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a configuration that does not fit, [`Error::Tensor`] for a
    /// missing, surplus or wrong-shaped tensor, [`Error::Unsupported`] for an option that the
    /// model does not implement. Nothing in a checkpoint may panic.
    fn load(ctx: &LoadContext<'_>) -> Result<Box<dyn MultiModalModel>>;
}

/// One item through tower and projector.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// The rows that replace the item's placeholders.
    ///
    /// # Shapes
    /// `[rows, hidden]`
    pub features: Tensor<2>,
    /// What the projector was given, for comparison with the reference.
    ///
    /// # Shapes
    /// `[tiles, tokens, width]`
    pub tower: Option<Tensor<3>>,
}

/// A loaded model. Object-safe; the executor thread owns it and is the only caller.
///
/// Call order: for each step, [`encode`](Self::encode) the items that are not cached;
/// [`embed`](Self::embed) the step's token ids; the engine overwrites the placeholder rows with
/// encoder rows; [`forward`](Self::forward) over the paged KV cache, which the engine owns and
/// lends; [`logits`](Self::logits) of the rows that are sampled or asked for. No method keeps
/// state between calls: what a request has is in the KV cache.
pub trait MultiModalModel: Send {
    /// What the KV cache must hold.
    fn kv_spec(&self) -> KvSpec;

    /// Entries of the output vocabulary: columns of [`logits`](Self::logits).
    fn vocab_size(&self) -> usize;

    /// The width of embeddings.
    fn hidden_size(&self) -> usize;

    /// Positions that the model was made for: the longest context unless the caller asks for less.
    fn max_position_embeddings(&self) -> usize;

    /// What keys and values of a prompt hang on beside the tokens and items at or before them. Two
    /// prompts share cached blocks only where this is equal. A model whose rotary frequencies go by
    /// the prompt's length gives a number for each length that changes them.
    fn prefix_domain(&self, prompt_len: usize) -> u64 {
        let _ = prompt_len;
        0
    }

    /// Bytes of all weights on the device.
    fn weight_bytes(&self) -> usize;

    /// Items of one modality through tower and projector, one result per item in order. An
    /// item's result does not depend on what else is in the batch.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a modality that the model does not have; [`Error::Internal`]
    /// for tensors that its own mapper would not make.
    fn encode(&self, modality: &str, items: &[&NamedTensors]) -> Result<Vec<Encoded>> {
        let _ = items;
        Err(Error::unsupported(format!(
            "{modality} input: this is a text-only model"
        )))
    }

    /// [`encode`](Self::encode) in pieces, for a step in which other sequences want their next
    /// tokens: the same rows, bit for bit. A model that does not cut it runs it whole, here, and those
    /// sequences wait meanwhile.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), which some tasks first tell as they run.
    fn begin_encode(
        &self,
        modality: &str,
        items: &[Arc<NamedTensors>],
    ) -> Result<Box<dyn EncodeTask>> {
        encode_at_once(self, modality, items)
    }

    /// Token embeddings.
    ///
    /// # Shapes
    /// `token_ids`: `[tokens]`, each below the embedding's rows; returns `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`Error::Internal`] when the operation fails on the device.
    fn embed(&self, token_ids: Tensor<1, Int>) -> Result<Tensor<2>>;

    /// The number of ids that [`embed`](Self::embed) accepts. An id at or above it is refused at
    /// the boundary.
    fn embedding_rows(&self) -> usize {
        self.vocab_size()
    }

    /// One pass of a flat batch over the paged KV cache, which it reads and extends.
    ///
    /// # Shapes
    /// Returns the last hidden states after the final norm: `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`Error::Internal`] when the operation fails on the device.
    fn forward(&self, batch: ForwardBatch<'_>) -> Result<Tensor<2>>;

    /// The output head.
    ///
    /// # Shapes
    /// `hidden`: `[rows, hidden]`; returns f32 `[rows, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Internal`] when the operation fails on the device.
    fn logits(&self, hidden: Tensor<2>) -> Result<Tensor<2>>;
}
