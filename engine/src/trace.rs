//! One prompt through a loaded model with everything kept that a comparison with the reference
//! looks at. Not for serving: it runs alone, on a cache of its own.

use crate::executor::{Executor, StepInput};
use crate::loaded::LoadedModel;
use crate::pipeline::{ItemContent, Prepared};
use crate::request::Request;
use crate::sampling::argmax;
use kiln_registry::{Error, HostTensor, NamedTensors, PlaceholderRange, Result};

/// Tokens that a step of a trace runs: bounds the logits that are held at once.
const CHUNK: usize = 512;
const BLOCK: usize = 16;
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
        let blocks = length.div_ceil(BLOCK);
        let mut executor = Executor::new(self.model, self.device, blocks, BLOCK);
        let encoded = prepared
            .items
            .iter()
            .zip(&prepared.placeholders)
            .map(|(item, range)| executor.encode(item, range))
            .collect::<Result<Vec<_>>>()?;

        let mut logits = Vec::new();
        for start in (0..prompt).step_by(CHUNK) {
            let end = (start + CHUNK).min(prompt);
            let mut input = part(
                prepared.token_ids[start..end].to_vec(),
                start,
                prompt,
                blocks,
            );
            input.logit_rows = end - start;
            for (range, encoded) in prepared.placeholders.iter().zip(&encoded) {
                input.lay(range, &encoded.features);
            }
            logits.extend(executor.run(vec![input])?.pop().unwrap_or_default());
        }
        let vocabulary = executor.model().vocab_size();
        let mut greedy = Vec::with_capacity(new_tokens);
        let mut last = logits[logits.len() - vocabulary..].to_vec();
        while greedy.len() < new_tokens {
            let next = argmax(&last) as u32;
            greedy.push(next);
            if (eos.contains(&next) && !ignore_eos) || greedy.len() == new_tokens {
                break;
            }
            let mut input = part(vec![next], prompt + greedy.len() - 1, prompt, blocks);
            input.logit_rows = 1;
            last = executor.run(vec![input])?.pop().unwrap_or_default();
        }
        Ok(Trace {
            towers: encoded
                .iter()
                .map(|e| e.tower.clone().map(host).transpose())
                .collect::<Result<_>>()?,
            features: encoded
                .into_iter()
                .map(|e| host(e.features))
                .collect::<Result<_>>()?,
            mapped: mapped(&prepared),
            logits: HostTensor::f32([prompt, vocabulary], logits)?,
            greedy,
            input_ids: prepared.token_ids,
            placeholders: prepared.placeholders,
        })
    }
}

fn part(token_ids: Vec<u32>, start: usize, prompt_len: usize, blocks: usize) -> StepInput {
    StepInput {
        token_ids,
        start,
        prompt_len,
        blocks: (0..blocks as u32).collect(),
        overlays: vec![],
        logit_rows: 0,
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
