//! One prompt through a loaded model with everything kept that a comparison with the reference
//! looks at. Not for serving: it runs alone, on a cache of its own, through [`Stages`](crate::Stages).

use crate::loaded::LoadedModel;
use crate::pipeline::{ItemContent, Prepared};
use crate::request::Request;
use crate::sampling::argmax;
use kiln_registry::{Error, HostTensor, NamedTensors, PlaceholderRange, Result};

/// Tokens that a step of a trace runs: bounds the logits that are held at once.
const CHUNK: usize = 512;
/// The most positions. The reference runs beyond those that a model was made for, and so does a
/// trace: that is where rotary scaling shows.
const LONGEST: usize = 1 << 20;

/// What a trace keeps.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The prompt after expansion.
    pub input_ids: Vec<u32>,
    /// The range of each item.
    pub placeholders: Vec<PlaceholderRange>,
    /// What the mapper made of each item.
    pub mapped: Vec<NamedTensors>,
    /// What the projector was given for each item, where the model has it: `[tiles, tokens, width]`.
    pub towers: Vec<Option<HostTensor>>,
    /// The rows of each item: `[rows, hidden]`.
    pub features: Vec<HostTensor>,
    /// Logits of every position: `[prompt, vocabulary]`.
    pub logits: HostTensor,
    /// Greedy tokens.
    pub greedy: Vec<u32>,
}

impl LoadedModel {
    /// Runs a request's prompt and then `new_tokens` greedy steps, past end-of-sequence tokens
    /// where `ignore_eos` says so.
    ///
    /// # Errors
    /// As a request's.
    pub fn trace(self, request: &Request, new_tokens: usize, ignore_eos: bool) -> Result<Trace> {
        let prepared = self.pipeline.prepare_any_length(request)?;
        let prompt = prepared.token_ids.len();
        let length = prompt.saturating_add(new_tokens);
        if prompt == 0 || length > LONGEST {
            return Err(Error::ContextLength {
                prompt,
                new: new_tokens,
                context: LONGEST,
            });
        }
        let eos = self.pipeline.generation.eos_token_ids().to_vec();
        let mut stages = self.stages(length, CHUNK)?;
        let mut staged = stages.encode(prepared)?;
        let logits = stages.logits_of(&staged)?;
        let vocabulary = stages.vocab_size();
        if new_tokens > 0 {
            let last = &logits[logits.len() - vocabulary..];
            staged.tokens.push(argmax(last) as u32);
        }
        while staged.tokens.len() < new_tokens {
            let ended = staged.tokens.last().is_some_and(|id| eos.contains(id));
            if ended && !ignore_eos {
                break;
            }
            stages.decode(&mut staged)?;
        }
        let encoded = staged.encoded;
        Ok(Trace {
            towers: encoded
                .iter()
                .map(|e| e.tower.clone().map(host).transpose())
                .collect::<Result<_>>()?,
            features: encoded
                .into_iter()
                .map(|e| host(e.features))
                .collect::<Result<_>>()?,
            mapped: mapped(&staged.prepared),
            logits: HostTensor::f32([prompt, vocabulary], logits)?,
            greedy: staged.tokens,
            input_ids: staged.prepared.token_ids,
            placeholders: staged.prepared.placeholders,
        })
    }
}

fn mapped(prepared: &Prepared) -> Vec<NamedTensors> {
    prepared
        .items
        .iter()
        .map(|item| match &item.content {
            ItemContent::Mapped(tensors) => tensors.as_ref().clone(),
            ItemContent::Embeds(rows) => NamedTensors::new().with("embeds", rows.clone()),
        })
        .collect()
}

fn host<const D: usize>(tensor: burn::tensor::Tensor<D>) -> Result<HostTensor> {
    let shape = tensor.dims().to_vec();
    let data = tensor
        .into_data()
        .try_into_vec::<f32>()
        .map_err(|e| Error::internal(format!("{e:?}")))?;
    HostTensor::f32(shape, data)
}
