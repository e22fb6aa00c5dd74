//! A model driven step by step, as the engine drives it, with the bits of all logits kept.

use crate::fault::{Fault, Of, guard};
use crate::report::Piece;
use crate::subject::{Prepared, Subject};
use burn::tensor::{DType, Int, Tensor, TensorData};
use kiln_registry::{
    BatchLayout, Error, ForwardBatch, KvCache, MediaItem, MultiModalModel, Result, SequenceSpan,
};
use std::ops::Range;

/// Tokens of a block: short, so that short prompts take several.
pub(crate) const BLOCK: usize = 4;

/// Encoder rows on the host: `[rows, width]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Features {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) bits: Vec<u32>,
}

impl Features {
    pub(crate) fn of(tensor: Tensor<2>) -> Result<Self> {
        let [rows, width] = tensor.dims();
        let bits = bits(tensor)?;
        Ok(Self { rows, width, bits })
    }
}

/// A tensor's floats as bits: equal only when nothing was computed otherwise.
pub(crate) fn bits<const D: usize>(tensor: Tensor<D>) -> Result<Vec<u32>> {
    let floats: Vec<f32> = tensor
        .into_data()
        .try_into_vec()
        .map_err(|e| Error::internal(format!("activations must be f32: {e:?}")))?;
    Ok(floats.into_iter().map(f32::to_bits).collect())
}

/// A prompt whose items are encoded.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub(crate) ids: Vec<u32>,
    /// Positions that an encoder row replaces, with the row.
    laid: Vec<(usize, Vec<u32>)>,
}

impl Ready {
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }
}

/// A part of a prompt in a step, and the blocks of its sequence.
pub(crate) struct Part<'a> {
    pub(crate) ready: &'a Ready,
    pub(crate) range: Range<usize>,
    pub(crate) blocks: Vec<u32>,
}

/// The logits of one part: bits by row.
pub(crate) type Rows = Vec<Vec<u32>>;

impl Subject {
    /// A prompt with items, ready to run.
    pub(crate) fn ready(&self, ids: Vec<u32>, items: &[MediaItem]) -> Result<Ready, Fault> {
        self.fill(self.model.as_ref(), &self.prepare(ids, items)?)
    }

    /// The same from the processor's and the mapper's results, by any model.
    pub(crate) fn fill(
        &self,
        model: &dyn MultiModalModel,
        prepared: &Prepared,
    ) -> Result<Ready, Fault> {
        let mut laid = vec![];
        let ranges = &prepared.processed.placeholders;
        for (range, (modality, tensors)) in ranges.iter().zip(&prepared.mapped) {
            let features = self.encode(model, modality, &[tensors])?;
            let rows = features
                .iter()
                .flat_map(|f| f.bits.chunks(f.width.max(1)).map(<[u32]>::to_vec));
            let taken = range.range().filter(|position| {
                let mask = range.embed_mask.as_ref();
                mask.is_none_or(|mask| mask[position - range.offset])
            });
            laid.extend(taken.zip(rows));
        }
        Ok(Ready {
            ids: prepared.processed.token_ids.clone(),
            laid,
        })
    }

    /// A cache with room for so many tokens in blocks of [`BLOCK`].
    pub(crate) fn cache(&self, model: &dyn MultiModalModel, tokens: usize) -> KvCache {
        let blocks = tokens.div_ceil(BLOCK);
        KvCache::new(&model.kv_spec(), blocks, BLOCK, &self.device)
    }

    /// One step: all parts in one flat batch. Returns the logits of each part.
    pub(crate) fn step(
        &self,
        model: &dyn MultiModalModel,
        cache: &mut KvCache,
        parts: &[Part<'_>],
    ) -> Result<Vec<Rows>, Fault> {
        let mut ids = vec![];
        let mut laid = vec![];
        let mut spans = vec![];
        for part in parts {
            let first = ids.len();
            ids.extend(part.ready.ids[part.range.clone()].iter().copied());
            let here = part.ready.laid.iter();
            for (position, row) in here.filter(|(position, _)| part.range.contains(position)) {
                let at = first + position - part.range.start;
                // Placeholder ids may lie beyond the embedding; they are never seen.
                ids[at] = 0;
                laid.push((at, row));
            }
            spans.push(SequenceSpan {
                query_len: part.range.len(),
                context_len: part.range.end,
                prompt_len: part.ready.len(),
                blocks: part.blocks.clone(),
            });
        }
        let embeds = self.embed(model, &ids)?;
        let [tokens, hidden] = [ids.len(), model.hidden_size()];
        let mut embeds: Vec<f32> = embeds.into_iter().map(f32::from_bits).collect();
        for (at, row) in laid {
            for (to, from) in embeds[at * hidden..].iter_mut().zip(row) {
                *to = f32::from_bits(*from);
            }
        }
        let data = TensorData::new(embeds, [tokens, hidden]);
        let logits = guard(|| {
            let layout = BatchLayout::new(spans, BLOCK, &self.device)?;
            let embeds = Tensor::from_data(data, (&self.device, DType::F32));
            let hidden = model.forward(ForwardBatch {
                embeds,
                layout: &layout,
                cache,
            })?;
            bits(model.logits(hidden)?)
        })
        .of(Piece::Forward)?;
        let vocabulary = model.vocab_size();
        if logits.len() != tokens * vocabulary {
            let values = logits.len();
            let message = format!("{values} logits for {tokens} tokens of {vocabulary} entries");
            return Err(Error::internal(message)).of(Piece::Shape);
        }
        let mut rows = logits.chunks(vocabulary).map(<[u32]>::to_vec);
        let take = |part: &Part<'_>| rows.by_ref().take(part.range.len()).collect();
        Ok(parts.iter().map(take).collect())
    }

    /// Embeddings of ids, as bits: `[tokens * hidden]`.
    pub(crate) fn embed(
        &self,
        model: &dyn MultiModalModel,
        ids: &[u32],
    ) -> Result<Vec<u32>, Fault> {
        guard(|| {
            let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
            let wanted = [ids.len(), model.hidden_size()];
            let data = TensorData::new(ids, [wanted[0]]);
            let ids = Tensor::<1, Int>::from_data(data, (&self.device, DType::I64));
            let embeds = model.embed(ids)?;
            if embeds.dims() != wanted {
                let dims = embeds.dims();
                return Err(Error::internal(format!("{dims:?}, not {wanted:?}")));
            }
            bits(embeds)
        })
        .of(Piece::Embed)
    }

    /// Prompts in one step, on a cache of their own whose blocks are dealt out in turn from the
    /// end, so that no sequence's blocks lie side by side.
    pub(crate) fn together(
        &self,
        model: &dyn MultiModalModel,
        prompts: &[&Ready],
    ) -> Result<Vec<Rows>, Fault> {
        let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0);
        let each = longest.div_ceil(BLOCK);
        let mut cache = self.cache(model, each * BLOCK * prompts.len());
        let last = (each * prompts.len()) as u32;
        let parts: Vec<_> = prompts
            .iter()
            .zip(1u32..)
            .map(|(ready, turn)| Part {
                ready,
                range: 0..ready.len(),
                blocks: (0..each as u32)
                    .map(|block| last - turn - block * prompts.len() as u32)
                    .collect(),
            })
            .collect();
        self.step(model, &mut cache, &parts)
    }

    /// One prompt alone.
    pub(crate) fn alone(&self, model: &dyn MultiModalModel, prompt: &Ready) -> Result<Rows, Fault> {
        Ok(self.together(model, &[prompt])?.swap_remove(0))
    }
}
