//! The one owner of model and KV cache: encodes items, runs a flat batch, gives logits.

use crate::merge::{Overlay, merge, overlays};
use crate::pipeline::{ItemContent, PreparedItem};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use kiln_registry::{
    BatchLayout, EncodeTask, Encoded, Error, ForwardBatch, HostTensor, KvCache, MultiModalModel,
    NamedTensors, PlaceholderRange, Result, SequenceSpan,
};
use std::sync::Arc;

/// One sequence's part of a step.
pub(crate) struct StepInput {
    /// The tokens at positions `start..`.
    pub(crate) token_ids: Vec<u32>,
    pub(crate) start: usize,
    pub(crate) prompt_len: usize,
    pub(crate) blocks: Vec<u32>,
    /// Sorted, in rows of this part.
    pub(crate) overlays: Vec<Overlay>,
    /// How many of the last rows the logits are wanted of: 0 for an inner chunk of a prompt, 1
    /// where the next token is sampled.
    pub(crate) logit_rows: usize,
}

impl StepInput {
    /// Lays the rows of an item over its positions in this part.
    pub(crate) fn lay(&mut self, range: &PlaceholderRange, features: &Tensor<2>) {
        let chunk = self.start..self.start + self.token_ids.len();
        self.overlays.extend(overlays(range, features, &chunk));
    }
}

/// Runs steps.
pub(crate) struct Executor {
    model: Box<dyn MultiModalModel>,
    cache: KvCache,
    device: Device,
}

impl Executor {
    /// An executor with a cache of `blocks` blocks.
    pub(crate) fn new(
        model: Box<dyn MultiModalModel>,
        device: Device,
        blocks: usize,
        block_size: usize,
    ) -> Self {
        let cache = KvCache::new(&model.kv_spec(), blocks, block_size, &device);
        Self {
            model,
            cache,
            device,
        }
    }

    pub(crate) fn model(&self) -> &dyn MultiModalModel {
        self.model.as_ref()
    }

    /// Whether tensors live in the host's memory, where allocations can be counted.
    pub(crate) fn on_host(&self) -> bool {
        self.device == Device::flex()
    }

    /// Another cache in place of this one, which is freed first.
    pub(crate) fn resize(&mut self, blocks: usize, block_size: usize) {
        let spec = self.model.kv_spec();
        self.cache = KvCache::new(&spec, 0, block_size, &self.device);
        self.cache = KvCache::new(&spec, blocks, block_size, &self.device);
    }

    /// A new cache of the same size: after a panic in the midst of a step, layers may be missing.
    pub(crate) fn reset(&mut self) {
        self.resize(self.cache.blocks(), self.cache.block_size());
    }

    /// The rows of one item; the placeholder law is checked here, item by item.
    pub(crate) fn encode(&self, item: &PreparedItem, range: &PlaceholderRange) -> Result<Encoded> {
        let encoded = match &item.content {
            ItemContent::Embeds(rows) => Encoded {
                features: self.upload(rows)?,
                tower: None,
            },
            ItemContent::Mapped(tensors) => self
                .encode_mapped(&item.modality, &[tensors.as_ref()])?
                .pop()
                .ok_or_else(|| Error::internal("the encoder gave no result for an item"))?,
        };
        self.check_rows(&encoded.features, range)?;
        Ok(encoded)
    }

    /// The results of mapped items of one modality, in one call of the encoder.
    pub(crate) fn encode_mapped(
        &self,
        modality: &str,
        items: &[&NamedTensors],
    ) -> Result<Vec<Encoded>> {
        one_each(self.model.encode(modality, items)?, items.len())
    }

    /// Mapped items of one modality on their way through the encoder.
    pub(crate) fn begin_encode(
        &self,
        modality: &str,
        items: &[Arc<NamedTensors>],
    ) -> Result<Box<dyn EncodeTask>> {
        self.model.begin_encode(modality, items)
    }

    /// The results of so many items that were on their way.
    pub(crate) fn finish_encode(
        &self,
        task: Box<dyn EncodeTask>,
        items: usize,
    ) -> Result<Vec<Encoded>> {
        one_each(task.finish()?, items)
    }

    /// The placeholder law: as many rows as the range has places, as wide as the model.
    pub(crate) fn check_rows(&self, features: &Tensor<2>, range: &PlaceholderRange) -> Result<()> {
        let [rows, hidden] = features.dims();
        if rows == range.rows() && hidden == self.model.hidden_size() {
            return Ok(());
        }
        Err(Error::PlaceholderLaw {
            modality: range.modality.clone(),
            item: range.item,
            message: format!(
                "the processor made {} placeholder rows of width {}, the encoder {rows} of width \
                 {hidden}",
                range.rows(),
                self.model.hidden_size()
            ),
        })
    }

    /// Rows as wide as the model's: `[rows, hidden]`.
    pub(crate) fn zeros(&self, rows: usize) -> Tensor<2> {
        let shape = [rows, self.model.hidden_size()];
        Tensor::zeros(shape, (&self.device, DType::F32))
    }

    /// Embeddings that a client computed.
    pub(crate) fn upload(&self, rows: &HostTensor) -> Result<Tensor<2>> {
        match (rows.shape(), rows.as_f32()) {
            ([n, hidden], Some(data)) => Ok(Tensor::from_data(
                TensorData::new(data.to_vec(), [*n, *hidden]),
                (&self.device, DType::F32),
            )),
            _ => Err(Error::internal("embeddings are not f32 [rows, hidden]")),
        }
    }

    /// Runs a step. Returns, for each input in order, its wanted rows of logits, one behind the
    /// other: `[rows * vocabulary]`.
    pub(crate) fn run(&mut self, inputs: Vec<StepInput>) -> Result<Vec<Vec<f32>>> {
        let vocabulary = self.model.vocab_size();
        let mut spans = Vec::with_capacity(inputs.len());
        let mut ids = Vec::new();
        let mut laid = Vec::new();
        let mut wanted = Vec::new();
        let mut counts = Vec::with_capacity(inputs.len());
        for input in inputs {
            let (first, len) = (ids.len(), input.token_ids.len());
            spans.push(SequenceSpan {
                query_len: len,
                context_len: input.start + len,
                prompt_len: input.prompt_len,
                blocks: input.blocks,
            });
            ids.extend(input.token_ids.iter().map(|id| i64::from(*id)));
            for overlay in input.overlays {
                let at = first + overlay.at;
                // Some checkpoints' placeholder ids lie beyond the embedding; they are never seen.
                ids[at..at + overlay.rows.dims()[0]].fill(0);
                laid.push(Overlay { at, ..overlay });
            }
            let rows = input.logit_rows.min(len);
            wanted.extend((first + len - rows..first + len).map(|row| row as i64));
            counts.push(rows);
        }
        let layout = BatchLayout::new(spans, self.cache.block_size(), &self.device)?;
        let embeds = merge(self.model.embed(self.ints(ids))?, laid);
        let hidden = self.model.forward(ForwardBatch {
            embeds,
            layout: &layout,
            cache: &mut self.cache,
        })?;
        if wanted.is_empty() {
            return Ok(vec![Vec::new(); counts.len()]);
        }
        let logits = self.model.logits(hidden.select(0, self.ints(wanted)))?;
        let mut logits: Vec<f32> = logits
            .into_data()
            .try_into_vec()
            .map_err(|e| Error::internal(format!("logits: {e:?}")))?;
        let mut out = Vec::with_capacity(counts.len());
        for rows in counts.into_iter().rev() {
            let at = logits.len().checked_sub(rows * vocabulary);
            let at = at.ok_or_else(|| Error::internal("the model gave too few logits"))?;
            out.push(logits.split_off(at));
        }
        out.reverse();
        Ok(out)
    }

    fn ints(&self, values: Vec<i64>) -> Tensor<1, Int> {
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), (&self.device, DType::I64))
    }
}

fn one_each(encoded: Vec<Encoded>, items: usize) -> Result<Vec<Encoded>> {
    match encoded.len() == items {
        true => Ok(encoded),
        false => Err(Error::internal(format!(
            "the encoder gave {} results for {items} items",
            encoded.len()
        ))),
    }
}
