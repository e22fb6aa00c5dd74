//! The paged KV cache and the layout of a flat batch over it. The engine owns both and lends them
//! to the model for one pass.

use crate::{Error, Result};
use burn::tensor::{Bytes, DType, Device, Int, Shape, Tensor, TensorData};

/// What a model needs of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSpec {
    /// Decoder layers.
    pub layers: usize,
    /// Key and value heads of each.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The type of keys and values.
    pub dtype: DType,
}

impl KvSpec {
    /// Bytes that one token takes over all layers, keys and values.
    pub fn bytes_per_token(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * self.dtype.size()
    }
}

/// Keys and values of one layer.
///
/// # Shapes
/// Both `[blocks, block_size, kv_heads, head_dim]`.
#[derive(Debug)]
pub struct KvLayer {
    /// Keys, rotated.
    pub keys: Tensor<4>,
    /// Values.
    pub values: Tensor<4>,
}

/// The paged KV cache of all layers. Writes are in place only while a tensor has one owner, so a
/// layer is taken out of its slot, written, and put back.
pub struct KvCache {
    layers: Vec<Option<KvLayer>>,
    blocks: usize,
    block_size: usize,
}

impl KvCache {
    /// A cache of zeros.
    pub fn new(spec: &KvSpec, blocks: usize, block_size: usize, device: &Device) -> Self {
        let shape = [blocks, block_size, spec.kv_heads, spec.head_dim];
        // Fresh zeros of the system: memory is taken as it is written, where `Tensor::zeros` copies
        // them and takes all of it at once.
        let count: usize = shape.iter().product();
        let zeros = || {
            let bytes = match spec.dtype.size() {
                2 => Bytes::from_elems(vec![0u16; count]),
                _ => Bytes::from_elems(vec![0u32; count]),
            };
            let data = TensorData::from_bytes(bytes, Shape::from(shape.to_vec()), spec.dtype);
            Tensor::<4>::from_data(data, (device, spec.dtype))
        };
        let layers = (0..spec.layers)
            .map(|_| {
                Some(KvLayer {
                    keys: zeros(),
                    values: zeros(),
                })
            })
            .collect();
        Self {
            layers,
            blocks,
            block_size,
        }
    }

    /// Takes a layer out for writing; [`put`](Self::put) it back.
    ///
    /// # Errors
    /// [`Error::Internal`] when the layer does not exist or is out already.
    pub fn take(&mut self, layer: usize) -> Result<KvLayer> {
        self.layers
            .get_mut(layer)
            .and_then(Option::take)
            .ok_or_else(|| Error::internal(format!("KV layer {layer} is not there to take")))
    }

    /// Puts a layer back.
    pub fn put(&mut self, layer: usize, kv: KvLayer) {
        if let Some(slot) = self.layers.get_mut(layer) {
            *slot = Some(kv);
        }
    }

    /// Blocks in all.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Tokens of one block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }
}

/// One sequence's part in a flat batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceSpan {
    /// Its new tokens in this batch.
    pub query_len: usize,
    /// Tokens it has in the cache after this batch: old ones and the new ones.
    pub context_len: usize,
    /// Tokens of its prompt, however it was chunked: position embeddings that depend on a length
    /// go by this one, so that a chunk gives what the whole prompt gives.
    pub prompt_len: usize,
    /// Its blocks, in order; enough for `context_len`.
    pub blocks: Vec<u32>,
}

/// Where each token of a flat batch stands, on the host and on the device.
///
/// Tokens of sequence `s` are rows `query_offsets[s]..query_offsets[s + 1]`; the last of them is
/// position `context_lens[s] - 1` of its sequence.
#[derive(Debug, Clone)]
pub struct BatchLayout {
    spans: Vec<SequenceSpan>,
    tokens: usize,
    /// Row at which each sequence starts, and the end: `[sequences + 1]`.
    pub query_offsets: Tensor<1, Int>,
    /// Tokens of each sequence after this batch: `[sequences]`.
    pub context_lens: Tensor<1, Int>,
    /// Blocks of each sequence, padded with 0: `[sequences, max_blocks]`.
    pub block_tables: Tensor<2, Int>,
    /// The cache slot of each new token (`block * block_size + offset`): `[tokens]`.
    pub slots: Tensor<1, Int>,
    /// The position of each new token in its sequence: `[tokens]`.
    pub positions: Tensor<1, Int>,
}

impl BatchLayout {
    /// The layout of sequences over a cache of `block_size`.
    ///
    /// # Errors
    /// [`Error::Internal`] when a sequence has no new token, more than its context, or too few
    /// blocks.
    pub fn new(spans: Vec<SequenceSpan>, block_size: usize, device: &Device) -> Result<Self> {
        let mut offsets = vec![0i64];
        let mut lens = Vec::with_capacity(spans.len());
        let mut slots = Vec::new();
        let mut positions = Vec::new();
        let width = spans
            .iter()
            .map(|s| s.blocks.len())
            .max()
            .unwrap_or(0)
            .max(1);
        let mut tables = vec![0i64; spans.len() * width];
        for (s, span) in spans.iter().enumerate() {
            if span.query_len == 0
                || span.query_len > span.context_len
                || span.blocks.len() * block_size < span.context_len
            {
                return Err(Error::internal(format!(
                    "sequence {s} of a batch: {} new of {} tokens in {} blocks of {block_size}",
                    span.query_len,
                    span.context_len,
                    span.blocks.len()
                )));
            }
            for position in span.context_len - span.query_len..span.context_len {
                let block = span.blocks[position / block_size] as usize;
                slots.push((block * block_size + position % block_size) as i64);
                positions.push(position as i64);
            }
            for (column, block) in span.blocks.iter().enumerate() {
                tables[s * width + column] = i64::from(*block);
            }
            offsets.push(slots.len() as i64);
            lens.push(span.context_len as i64);
        }
        let ints = |v: Vec<i64>| {
            let n = v.len();
            Tensor::<1, Int>::from_data(TensorData::new(v, [n]), (device, DType::I64))
        };
        Ok(Self {
            tokens: slots.len(),
            query_offsets: ints(offsets),
            context_lens: ints(lens),
            block_tables: Tensor::<2, Int>::from_data(
                TensorData::new(tables, [spans.len(), width]),
                (device, DType::I64),
            ),
            slots: ints(slots),
            positions: ints(positions),
            spans,
        })
    }

    /// The sequences.
    pub fn spans(&self) -> &[SequenceSpan] {
        &self.spans
    }

    /// New tokens in all.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// What one pass takes.
pub struct ForwardBatch<'a> {
    /// Embeddings of the new tokens, encoder rows merged in: `[tokens, hidden]`.
    pub embeds: Tensor<2>,
    /// Where each token stands.
    pub layout: &'a BatchLayout,
    /// The cache, lent for this pass.
    pub cache: &'a mut KvCache,
}
