//! LLaVA-NeXT (LLaVA 1.6) for Kiln.
//!
//! # Architecture
//! As LLaVA, but the tower sees the whole picture and tiles of it ("anyres"); a learnt newline
//! vector ends each row of the tiles' features.
//! # Inputs
//! Images: `pixel_values` f32 `[1, tiles, 3, side, side]`, the whole picture first, and
//! `image_sizes` i64 `[1, 2]`, the picture's own height and width.
//! # Token layout
//! The whole picture's features, then those of the tiles as one grid, row by row, without the
//! padding that fitted the picture into its resolution, each row ended by the newline. All of them
//! are placeholder tokens: the newline is an encoder row, too.
//! # Weights
//! As LLaVA, and `image_newline`.
//! # Source
//! *LLaVA-NeXT* (Liu et al., 2024); Hugging Face transformers, `modeling_llava_next.py`,
//! `processing_llava_next.py`.

mod layout;

use burn::tensor::{Int, Tensor};
use kiln_image::{Size, map_anyres};
use kiln_nn::vlm::{RENAMES, Vlm, VlmConfig};
use kiln_nn::weights::Weights;
use kiln_registry::{
    DummyInputs, EncodeTask, Encoded, Error, ForwardBatch, InputContext, KvSpec, LoadContext,
    LoadModel, MaxTokens, MediaCounts, ModalitySupport, ModelEntry, MultiModalModel, NamedTensors,
    ProcessedInputs, PromptInputs, Result, encode_at_once, inventory,
};
use layout::AnyresLayout;
use std::sync::Arc;

inventory::submit! {
    ModelEntry::new::<LlavaNext>(env!("CARGO_PKG_NAME"), &["LlavaNextForConditionalGeneration"])
        .image(
            ModalitySupport::new()
                .max_tokens(MaxTokens::Computed(max_image_tokens))
                .mapper(map_anyres),
        )
        .dummy_data(dummy_data)
        .input_processor(expand_placeholders)
}

fn max_image_tokens(ctx: &InputContext) -> Result<usize> {
    let (_, layout) = parse(ctx)?;
    Ok(layout.largest().1)
}

fn dummy_data(ctx: &InputContext, _seq_len: usize, counts: &MediaCounts) -> Result<DummyInputs> {
    let (config, layout) = parse(ctx)?;
    let (size, _) = layout.largest();
    config.dummy_images(counts.get(kiln_image::MODALITY), size.height, size.width)
}

fn expand_placeholders(ctx: &InputContext, inputs: PromptInputs<'_>) -> Result<ProcessedInputs> {
    let (config, layout) = parse(ctx)?;
    config.expand_images(ctx, inputs, |height, width| {
        layout.rows(Size::new(width, height))
    })
}

fn parse(ctx: &InputContext) -> Result<(VlmConfig, AnyresLayout)> {
    let config = VlmConfig::from_context(ctx)?;
    let layout = AnyresLayout::from_context(ctx, &config)?;
    Ok((config, layout))
}

/// A loaded model.
pub struct LlavaNext {
    vlm: Vlm,
    packer: Arc<Packer>,
}

/// What makes a picture's rows of the features of its tiles.
struct Packer {
    layout: AnyresLayout,
    /// `[1, hidden]`
    image_newline: Tensor<2>,
}

impl LoadModel for LlavaNext {
    fn load(ctx: &LoadContext<'_>) -> Result<Box<dyn MultiModalModel>> {
        let (config, layout) = parse(ctx.input)?;
        let weights = Weights::open(ctx, RENAMES)?;
        let hidden = config.text.hidden_size;
        let (vlm, newline) = Vlm::load(config, &weights, |root| {
            root.vector("image_newline", hidden)
        })?;
        let packer = Arc::new(Packer {
            layout,
            image_newline: newline.reshape([1, hidden]),
        });
        Ok(Box::new(Self { vlm, packer }))
    }
}

/// The pixels of all tiles, the whole picture first.
fn pixels(item: &NamedTensors) -> Result<([usize; 4], &[f32])> {
    let ([items, views, channels, height, width], pixels) =
        item.require_f32::<5>("pixel_values")?;
    Ok(([items * views, channels, height, width], pixels))
}

impl Packer {
    /// The rows of one picture.
    ///
    /// # Shapes
    /// `encoded.features`: `[tiles * tokens, hidden]`, the whole picture first; those that are
    /// returned: `[rows, hidden]`.
    fn pack(&self, item: &NamedTensors, encoded: Encoded) -> Result<Encoded> {
        let (_, sizes) = item.require_i64::<2>("image_sizes")?;
        let picture = match *sizes {
            [h, w] if h > 0 && w > 0 => Size::new(w as usize, h as usize),
            _ => return Err(Error::internal(format!("`image_sizes` is {sizes:?}"))),
        };
        let features = self.rows(encoded.features, picture)?;
        Ok(Encoded {
            features,
            ..encoded
        })
    }

    fn rows(&self, features: Tensor<2>, picture: Size) -> Result<Tensor<2>> {
        let [rows, hidden] = features.dims();
        let side = self.layout.grid();
        let tokens = side * side;
        let tiles = self.layout.tiles(picture)?;
        if rows != tokens * (1 + tiles.width * tiles.height) {
            return Err(Error::internal(format!(
                "{rows} features for {}x{} tiles of {tokens}",
                tiles.width, tiles.height
            )));
        }
        let kept = self.layout.kept(picture, tiles);
        let whole = features.clone().slice([0..tokens, 0..hidden]);
        // Tiles to one grid: [down, across, y, x] to [down, y, across, x].
        let grid = features
            .slice([tokens..rows, 0..hidden])
            .reshape([tiles.height, tiles.width, side, side * hidden])
            .swap_dims(1, 2)
            .reshape([tiles.height * side, tiles.width * side, hidden]);
        let (top, left) = (kept.y as usize, kept.x as usize);
        let grid = grid.slice([top..top + kept.height, left..left + kept.width, 0..hidden]);
        let newline = self
            .image_newline
            .clone()
            .reshape([1, 1, hidden])
            .repeat_dim(0, kept.height);
        let grid = Tensor::cat(vec![grid, newline], 1);
        let grid = grid.reshape([kept.height * (kept.width + 1), hidden]);
        Ok(Tensor::cat(vec![whole, grid], 0))
    }
}

impl MultiModalModel for LlavaNext {
    fn kv_spec(&self) -> KvSpec {
        self.vlm.decoder.kv_spec()
    }

    fn vocab_size(&self) -> usize {
        self.vlm.decoder.config().vocab_size
    }

    fn hidden_size(&self) -> usize {
        self.vlm.decoder.config().hidden_size
    }

    fn max_position_embeddings(&self) -> usize {
        self.vlm.decoder.config().max_position_embeddings
    }

    fn prefix_domain(&self, prompt_len: usize) -> u64 {
        self.vlm.decoder.prefix_domain(prompt_len)
    }

    fn weight_bytes(&self) -> usize {
        self.vlm.weight_bytes()
    }

    fn encode(&self, modality: &str, items: &[&NamedTensors]) -> Result<Vec<Encoded>> {
        if modality != kiln_image::MODALITY {
            return Err(Error::unsupported(format!(
                "{modality} input by LLaVA-NeXT"
            )));
        }
        items
            .iter()
            .map(|item| {
                let (shape, pixels) = pixels(item)?;
                let encoded = self.vlm.encode_pictures(shape, pixels)?;
                self.packer.pack(item, encoded)
            })
            .collect()
    }

    fn begin_encode(
        &self,
        modality: &str,
        items: &[Arc<NamedTensors>],
    ) -> Result<Box<dyn EncodeTask>> {
        if modality != kiln_image::MODALITY {
            return encode_at_once(self, modality, items);
        }
        let packer = self.packer.clone();
        let arrange = move |item: &NamedTensors, encoded| packer.pack(item, encoded);
        self.vlm.begin_pictures(items, pixels, Box::new(arrange))
    }

    fn embed(&self, token_ids: Tensor<1, Int>) -> Result<Tensor<2>> {
        Ok(self.vlm.decoder.embed(token_ids))
    }

    fn forward(&self, batch: ForwardBatch<'_>) -> Result<Tensor<2>> {
        self.vlm.decoder.forward(batch)
    }

    fn logits(&self, hidden: Tensor<2>) -> Result<Tensor<2>> {
        Ok(self.vlm.decoder.logits(hidden))
    }
}
