//! A model small enough to read at once, right but for one fault that a switch plants: each cell of
//! a picture is a row, one layer of attention is the decoder.

use crate::fault as f;
use burn::tensor::{Device, Int, Tensor};
use kiln_nn::ops;
use kiln_nn::weights::Weights;
use kiln_registry::{
    DecodeLimits, DummyInputs, EncodeTask, Encoded, Error, Expansion, ForwardBatch, HostTensor,
    InputContext, KvLayer, KvSpec, LoadContext, LoadModel, MaxTokens, MediaCounts, MediaItem,
    ModalitySupport, ModelEntry, MultiModalModel, NamedTensors, ProcessedInputs, Prompt,
    PromptInputs, Result, encode_at_once, expand_placeholders,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const VOCABULARY: usize = 320;
const HIDDEN: usize = 8;
const IMAGE: u32 = 3;
/// Cells on a side, and pixels of a cell.
const MOST: usize = 4;
const CELL: usize = 64;

/// The registration of the model with a fault.
pub(crate) fn entry<const F: u8>() -> ModelEntry {
    let support = ModalitySupport::new().max_tokens(MaxTokens::Computed(most::<F>));
    ModelEntry::new::<Planted<F>>("planted", &["PlantedForConditionalGeneration"])
        .image(support.mapper(map::<F>))
        .dummy_data(dummy::<F>)
        .input_processor(process::<F>)
}

fn most<const F: u8>(_: &InputContext) -> Result<usize> {
    Ok(match F {
        f::MAXIMUM_TOO_SMALL => MOST * MOST - 4,
        f::MAXIMUM_TOO_LARGE => MOST * MOST + 4,
        f::MAXIMUM_ZERO => 0,
        _ => MOST * MOST,
    })
}

fn dummy<const F: u8>(_: &InputContext, _: usize, counts: &MediaCounts) -> Result<DummyInputs> {
    let side = MOST * CELL;
    let height = if F == f::DUMMY_SHORT { 1 } else { side };
    let count = match (F, counts.get("image")) {
        (f::DUMMY_TOO_FEW, n @ 2..) => n - 1,
        (_, n) => n,
    };
    let picture = HostTensor::u8([height, side, 3], vec![0; height * side * 3])?;
    Ok(DummyInputs {
        prompt: Prompt::Tokens(vec![IMAGE; count]),
        items: vec![MediaItem::raw("image", picture); count],
    })
}

/// Cells down and across.
fn cells<const F: u8>(shape: &[usize]) -> Result<[usize; 2]> {
    match shape {
        // A size that a list of usual ones does not have.
        [height, 2501, 3] if F == f::RARE_SIZE_ABOVE_MAXIMUM && *height >= 40 => {
            Ok([MOST, MOST + 1])
        }
        [height, width, 3] => Ok([height, width].map(|n| n.div_ceil(CELL).min(MOST))),
        _ => Err(Error::invalid("no picture")),
    }
}

/// Another decoder of pictures: one that looks at nothing but the file's length.
pub(crate) fn decode(bytes: &[u8], _: &DecodeLimits) -> Result<MediaItem> {
    let side = 1 + bytes.len() % 2;
    let picture = HostTensor::u8([side, side, 3], vec![7; side * side * 3])?;
    Ok(MediaItem::raw("image", picture))
}

fn process<const F: u8>(_: &InputContext, mut inputs: PromptInputs<'_>) -> Result<ProcessedInputs> {
    let mut expansions = vec![];
    for item in inputs.of("image") {
        let shape = item.content()?.shape();
        let [down, across] = cells::<F>(shape)?;
        let rare = F == f::RARE_SIZE_OFF_BY_ONE && shape[0] % 64 == 51 && shape[1] > 3;
        let more = usize::from(F == f::PROCESSOR_OFF_BY_ONE || rare);
        expansions.push(Expansion::repeat(IMAGE, down * across + more));
    }
    if F == f::PLACEHOLDER_TYPED && expansions.is_empty() {
        inputs.token_ids.retain(|id| *id != IMAGE);
    }
    if F == f::PROCESSOR_PANICS && !inputs.token_ids.contains(&IMAGE) {
        panic!("planted");
    }
    if F == f::PROCESSOR_EATS_TEXT && expansions.len() > 1 {
        inputs.token_ids.remove(0);
    }
    let prompt = ProcessedInputs {
        token_ids: inputs.token_ids,
        placeholders: vec![],
    };
    let mut out = expand_placeholders(prompt, "image", IMAGE, "<image>", expansions)?;
    if F == f::PROCESSOR_LOSES_ITEM && out.placeholders.len() > 1 {
        out.placeholders.pop();
    }
    Ok(out)
}

/// The pixel in the middle of each cell.
fn map<const F: u8>(_: &InputContext, item: &MediaItem) -> Result<NamedTensors> {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let content = item.content()?;
    let [down, across] = cells::<F>(content.shape())?;
    let [height, width] = [content.shape()[0], content.shape()[1]];
    let pixels = content.as_u8().ok_or_else(|| Error::invalid("no bytes"))?;
    let mut values = vec![];
    for cell in 0..down * across {
        let [y, x] = [cell / across, cell % across];
        let y = (2 * y + 1) * height / (2 * down);
        let x = (2 * x + 1) * width / (2 * across);
        let at = (y * width + x) * 3;
        values.extend(
            pixels[at..at + 3]
                .iter()
                .map(|v| f32::from(*v) / 128.0 - 1.0),
        );
    }
    match F {
        f::MAPPER_IGNORES_PICTURE => values.fill(0.5),
        f::MAPPER_SCALED => values.iter_mut().for_each(|v| *v *= 1.001),
        f::MAPPER_REMEMBERS => values[0] = CALLS.fetch_add(1, Relaxed) as f32,
        _ => {}
    }
    let items = match F {
        f::MAPPER_DROPS_ITEM => 0,
        f::MAPPER_DUPLICATES_ITEM => 2,
        _ => 1,
    };
    let values = values.repeat(items);
    let values = HostTensor::f32([items, down * across, 3], values)?;
    Ok(NamedTensors::new().with("pixel_values", values))
}

struct Planted<const F: u8> {
    embed: Tensor<2>,
    vision: Tensor<2>,
    qkv: Tensor<2>,
    out: Tensor<2>,
    head: Tensor<2>,
    device: Device,
    calls: AtomicUsize,
}

impl<const F: u8> LoadModel for Planted<F> {
    fn load(ctx: &LoadContext<'_>) -> Result<Box<dyn MultiModalModel>> {
        let weights = Weights::open(ctx, &[])?;
        let root = weights.root();
        let square = [HIDDEN, HIDDEN];
        let out = match F {
            f::MISSING_IGNORED if !root.has("out.weight") => Tensor::zeros(square, ctx.device),
            f::LOADER_PANICS => root.weight("out.weight", square).expect("planted"),
            _ => root.weight("out.weight", square)?,
        };
        let mut vision = root.weight("vision.weight", [HIDDEN, 3]);
        if F == f::SHAPE_IGNORED && vision.is_err() {
            let turned = root.weight::<2>("vision.weight", [3, HIDDEN]);
            vision = turned.map(|t| t.reshape([HIDDEN, 3]));
        }
        let model = Self {
            embed: root.weight("embed.weight", [VOCABULARY, HIDDEN])?,
            vision: vision?,
            qkv: root.weight("qkv.weight", [3 * HIDDEN, HIDDEN])?,
            out,
            head: root.weight("head.weight", [VOCABULARY, HIDDEN])?,
            device: ctx.device.clone(),
            calls: AtomicUsize::new(0),
        };
        if F != f::SURPLUS_IGNORED {
            weights.finish(&[])?;
        }
        Ok(Box::new(model))
    }
}

impl<const F: u8> MultiModalModel for Planted<F> {
    fn kv_spec(&self) -> KvSpec {
        KvSpec {
            layers: 1,
            kv_heads: 2,
            head_dim: HIDDEN / 2,
            dtype: burn::tensor::DType::F32,
        }
    }

    fn vocab_size(&self) -> usize {
        VOCABULARY
    }

    fn hidden_size(&self) -> usize {
        HIDDEN
    }

    fn max_position_embeddings(&self) -> usize {
        256
    }

    fn weight_bytes(&self) -> usize {
        4 * HIDDEN * (2 * VOCABULARY + 3 + 4 * HIDDEN)
    }

    fn begin_encode(
        &self,
        modality: &str,
        items: &[Arc<NamedTensors>],
    ) -> Result<Box<dyn EncodeTask>> {
        let mut items = items.to_vec();
        if F == f::PIECES_IN_ANOTHER_ORDER {
            items.reverse();
        }
        let task = encode_at_once(self, modality, &items)?;
        match F {
            f::PIECES_WITHOUT_END => Ok(Box::new(Endless(task))),
            _ => Ok(task),
        }
    }

    fn encode(&self, modality: &str, items: &[&NamedTensors]) -> Result<Vec<Encoded>> {
        if modality != "image" {
            return Err(Error::unsupported(modality));
        }
        let mut all = vec![];
        for item in items {
            let ([_, rows, channels], values) = item.require_f32::<3>("pixel_values")?;
            let data = burn::tensor::TensorData::new(values.to_vec(), [rows, channels]);
            let mut pixels = Tensor::<2>::from_data(data, &self.device);
            if F == f::ENCODER_HUNGRY && values.iter().any(|v| *v > -1.0) {
                // What dummy data, all black, never takes.
                pixels = pixels.repeat_dim(0, 4000).slice([0..rows, 0..channels]);
            }
            let rows = ops::linear(pixels, self.vision.clone(), None);
            all.push(match F {
                f::PROJECTOR_SCALED => rows * 1.001,
                _ => rows,
            });
        }
        if F == f::ENCODER_MIXES_ITEMS {
            let mean = Tensor::cat(all.clone(), 0).mean_dim(0);
            all = all.into_iter().map(|rows| rows + mean.clone()).collect();
        }
        let encoded = all.into_iter().map(|rows| {
            let [count, _] = rows.dims();
            let short = usize::from(F == f::ENCODER_SHORT && count > 1);
            let features = match F {
                f::ENCODER_IGNORES_INPUT => rows.zeros_like(),
                _ => rows.slice([0..count - short, 0..HIDDEN]),
            };
            Encoded {
                features,
                tower: None,
            }
        });
        Ok(encoded.collect())
    }

    fn embed(&self, token_ids: Tensor<1, Int>) -> Result<Tensor<2>> {
        let embeds = self.embed.clone().select(0, token_ids);
        Ok(match F {
            f::EMBED_REMEMBERS => embeds + self.calls.fetch_add(1, Relaxed) as f32,
            _ => embeds,
        })
    }

    fn forward(&self, batch: ForwardBatch<'_>) -> Result<Tensor<2>> {
        let (x, layout) = (batch.embeds, batch.layout);
        let tokens = layout.tokens();
        let qkv = ops::linear(x.clone(), self.qkv.clone(), None).reshape([tokens, 6, HIDDEN / 2]);
        let part = |n: usize| {
            qkv.clone()
                .slice([0..tokens, 2 * n..2 * n + 2, 0..HIDDEN / 2])
        };
        let kv = batch.cache.take(0)?;
        // As long as it lives, a write is no write in place.
        let held = (F == f::CACHE_COPIED).then(|| kv.keys.clone());
        let keys = ops::kv_write(kv.keys, part(1), layout.slots.clone());
        let values = ops::kv_write(kv.values, part(2), layout.slots.clone());
        let later = layout.spans().iter().any(|s| s.query_len < s.context_len);
        let window = (F == f::CACHE_FORGOTTEN && later).then_some(1);
        let seen = ops::paged_attention(part(0), keys.clone(), values.clone(), layout, 0.5, window);
        batch.cache.put(0, KvLayer { keys, values });
        drop(held);
        let seen = seen.reshape([tokens, HIDDEN]);
        let x = x + ops::linear(seen, self.out.clone(), None);
        Ok(match F {
            f::ATTENTION_LEAKS => x.clone() + x.mean_dim(0),
            f::BATCH_SIZE_MATTERS => x * (1.0 + layout.spans().len() as f32 / 1024.0),
            f::DECODE_STEPS_DIFFER
                if layout.spans().len() > 1 && layout.spans().iter().all(|s| s.query_len == 1) =>
            {
                x * 1.001
            }
            f::NAN_HIDDEN => {
                let nan = x.clone().is_nan();
                x.mask_fill(nan, 0.0)
            }
            _ => x,
        })
    }

    fn logits(&self, hidden: Tensor<2>) -> Result<Tensor<2>> {
        let logits = ops::linear(hidden, self.head.clone(), None);
        Ok(match F {
            f::LOGITS_SCALED => logits * 1.001,
            _ => logits,
        })
    }
}

struct Endless(Box<dyn EncodeTask>);

impl EncodeTask for Endless {
    fn remaining(&self) -> usize {
        1
    }

    fn advance(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Encoded>> {
        self.0.finish()
    }
}
