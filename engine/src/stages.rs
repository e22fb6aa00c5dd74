//! Prompts through a loaded model, one stage at a time, for those who time each: it is the engine's
//! executor without its thread, its queue and its sampling. Not for serving.

use crate::executor::{Executor, StepInput};
use crate::loaded::LoadedModel;
use crate::pipeline::{InputPipeline, Prepared};
use crate::sampling::argmax;
use kiln_registry::{Encoded, Error, Result};
use std::sync::Arc;

const BLOCK: usize = 16;

/// A loaded model that waits to be led through the stages.
pub struct Stages {
    pipeline: Arc<InputPipeline>,
    executor: Executor,
    blocks: usize,
    max_batched_tokens: usize,
}

/// A prompt on its way.
pub struct Staged {
    pub(crate) prepared: Prepared,
    pub(crate) encoded: Vec<Encoded>,
    pub(crate) tokens: Vec<u32>,
}

impl Staged {
    /// The new tokens so far, the most likely one each time.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

impl LoadedModel {
    /// The stages, with a KV cache of so many positions; a step of a prompt runs at most
    /// `max_batched_tokens`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for 0.
    pub fn stages(self, positions: usize, max_batched_tokens: usize) -> Result<Stages> {
        if positions == 0 || max_batched_tokens == 0 {
            return Err(Error::invalid(
                "positions and tokens of a step must be above 0",
            ));
        }
        let blocks = positions.div_ceil(BLOCK);
        Ok(Stages {
            executor: Executor::new(self.model, self.device, blocks, BLOCK),
            pipeline: self.pipeline,
            blocks,
            max_batched_tokens,
        })
    }
}

impl Stages {
    /// The input side.
    pub fn pipeline(&self) -> &Arc<InputPipeline> {
        &self.pipeline
    }

    /// The first stage of a prepared prompt: its items through the encoder.
    ///
    /// # Errors
    /// What the model answers.
    pub fn encode(&self, prepared: Prepared) -> Result<Staged> {
        let pairs = prepared.items.iter().zip(&prepared.placeholders);
        let encoded = pairs
            .map(|(item, range)| self.executor.encode(item, range))
            .collect::<Result<_>>()?;
        Ok(Staged {
            prepared,
            encoded,
            tokens: vec![],
        })
    }

    /// The second: the prompt, to its first new token.
    ///
    /// # Errors
    /// [`Error::ContextLength`] when the cache can't hold it.
    pub fn prefill(&mut self, staged: &mut Staged) -> Result<()> {
        let prompt = staged.prepared.token_ids.len();
        self.ensure_fits(prompt, 1)?;
        let last = self.prompt(staged, |end, _| usize::from(end == prompt))?;
        staged.tokens.push(argmax(&last) as u32);
        Ok(())
    }

    /// Runs a prompt in steps. `rows`: of a step that ends at a position and has so many tokens, how
    /// many of its last rows the logits are wanted of.
    fn prompt(
        &mut self,
        staged: &Staged,
        rows: impl Fn(usize, usize) -> usize,
    ) -> Result<Vec<f32>> {
        let prompt = staged.prepared.token_ids.len();
        let mut logits = vec![];
        for start in (0..prompt).step_by(self.max_batched_tokens) {
            let end = (start + self.max_batched_tokens).min(prompt);
            let mut input = StepInput {
                token_ids: staged.prepared.token_ids[start..end].to_vec(),
                start,
                prompt_len: prompt,
                blocks: (0..end.div_ceil(BLOCK) as u32).collect(),
                overlays: vec![],
                logit_rows: rows(end, end - start),
            };
            for (range, encoded) in staged.prepared.placeholders.iter().zip(&staged.encoded) {
                input.lay(range, &encoded.features);
            }
            logits.extend(self.executor.run(vec![input])?.pop().unwrap_or_default());
        }
        Ok(logits)
    }

    /// The logits of every position of a prepared prompt, `[prompt * vocabulary]`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode) and [`prefill`](Self::prefill).
    pub fn logits(&mut self, prepared: Prepared) -> Result<Vec<f32>> {
        let staged = self.encode(prepared)?;
        self.logits_of(&staged)
    }

    /// The same of a prompt whose items are encoded.
    pub(crate) fn logits_of(&mut self, staged: &Staged) -> Result<Vec<f32>> {
        self.ensure_fits(staged.prepared.token_ids.len(), 0)?;
        self.prompt(staged, |_, tokens| tokens)
    }

    /// Columns of logits.
    pub(crate) fn vocab_size(&self) -> usize {
        self.executor.model().vocab_size()
    }

    /// One more token.
    ///
    /// # Errors
    /// [`Error::ContextLength`] when the cache is full; [`Error::InvalidInput`] before the prompt.
    pub fn decode(&mut self, staged: &mut Staged) -> Result<()> {
        let prompt = staged.prepared.token_ids.len();
        let last = *staged
            .tokens
            .last()
            .ok_or_else(|| Error::invalid("a prompt is run before its tokens are"))?;
        let start = prompt + staged.tokens.len() - 1;
        self.ensure_fits(start, 1)?;
        let input = self.single(last, start, prompt, 0..(start + 1).div_ceil(BLOCK) as u32);
        let logits = self.executor.run(vec![input])?.pop().unwrap_or_default();
        staged.tokens.push(argmax(&logits) as u32);
        Ok(())
    }

    /// A step of `batch` sequences at one new token each, behind `context - 1` positions of whatever
    /// the cache holds: what a step costs does not hang on the values.
    ///
    /// # Errors
    /// [`Error::ContextLength`] when the cache can't hold them.
    pub fn decode_batch(&mut self, batch: usize, context: usize) -> Result<()> {
        let each = context.div_ceil(BLOCK);
        self.ensure_fits(batch * each * BLOCK, 0)?;
        let inputs = (0..batch).map(|sequence| {
            let first = (sequence * each) as u32;
            self.single(
                0,
                context.saturating_sub(1),
                context,
                first..first + each as u32,
            )
        });
        let inputs = inputs.collect();
        self.executor.run(inputs).map(drop)
    }

    fn single(
        &self,
        token: u32,
        start: usize,
        prompt_len: usize,
        blocks: std::ops::Range<u32>,
    ) -> StepInput {
        StepInput {
            token_ids: vec![token],
            start,
            prompt_len,
            blocks: blocks.collect(),
            overlays: vec![],
            logit_rows: 1,
        }
    }

    fn ensure_fits(&self, prompt: usize, new: usize) -> Result<()> {
        let context = self.blocks * BLOCK;
        if prompt + new > context {
            return Err(Error::ContextLength {
                prompt,
                new,
                context,
            });
        }
        Ok(())
    }
}
