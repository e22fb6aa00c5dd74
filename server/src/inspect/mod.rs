//! What the model sees of a picture, for `kiln inspect` and the web page: as words, as data and as a
//! sheet.
//!
//! Nothing is made again for show: the pictures go through the loaded model's own pipeline, views
//! are drawn from the tensors that its encoder would get, and the prompt is the one that a request
//! would run. [`kiln_image::plan`] explains how the views came about, where it truly does: its
//! pixels must equal the model's.

mod canvas;
mod data;
mod geometry;
mod panels;
mod prompt;
mod sheet;
mod tokens;
mod words;

#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use image::metadata::Orientation;
use image::{ImageDecoder, ImageReader};
use kiln_engine::{
    InputPipeline, ItemContent, MediaInput, Message, Prepared, PromptInput, Request,
};
use kiln_image::{ImageProcessorConfig, MODALITY, Plan, RgbImage8, Size, map_rgb, plan};
use kiln_registry::{
    Error, InputContext, MediaCounts, MediaItem, NamedTensors, PlaceholderRange, Prompt,
};
use prompt::PromptLayout;
use std::io::Cursor;
use tokens::Layout;

/// The question that the chat template is filled with.
const QUESTION: &str = "What is in this picture?";

/// All that is known of a prompt with pictures before the model runs.
pub(crate) struct Inspection {
    items: Vec<Item>,
    prompt: PromptLayout,
    max_tokens: Option<usize>,
}

/// One picture on its way to the model.
struct Item {
    name: String,
    file: FileFacts,
    picture: RgbImage8,
    /// Name, element type, extents, bytes.
    tensors: Vec<(String, &'static str, Vec<usize>, usize)>,
    views: Views,
    /// How the views came about, if the image crate's plan is what was executed.
    explained: Option<(Plan, ImageProcessorConfig)>,
    range: PlaceholderRange,
    layout: Layout,
}

struct FileFacts {
    format: String,
    bytes: usize,
    turned: bool,
}

/// What the tower gets, as pictures again.
#[derive(Default)]
struct Views {
    pictures: Vec<RgbImage8>,
    /// The side of a patch, if the configuration states one.
    patch: Option<usize>,
    /// Why there are no pictures.
    missing: Option<String>,
}

impl Views {
    fn size(&self) -> Size {
        self.pictures
            .first()
            .map_or(Size::new(0, 0), RgbImage8::size)
    }

    /// Whole patches across and down.
    fn grid(&self) -> Option<Size> {
        let (patch, size) = (self.patch?, self.size());
        let grid = Size::new(size.width / patch, size.height / patch);
        (grid.pixels() > 0).then_some(grid)
    }
}

/// Runs pictures, each with its file's name, through the input side of a loaded model.
///
/// # Errors
/// What a request with these pictures would be answered, such as damaged files, too many pictures,
/// or a model without image input.
pub(crate) fn inspect(pipeline: &InputPipeline, images: &[(String, Bytes)]) -> Result<Inspection> {
    let entry = pipeline.entry();
    if images.is_empty() {
        bail!(Error::invalid("there is no picture to inspect"));
    }
    if !entry.supports(MODALITY) {
        bail!(Error::invalid(format!(
            "this model takes no image input ({})",
            entry.describe_modalities()
        )));
    }
    let decoded = images
        .iter()
        .map(|(name, bytes)| {
            pipeline
                .decode_item(MODALITY, bytes)
                .with_context(|| name.clone())
        })
        .collect::<Result<Vec<_>>>()?;
    let (prepared, note) = prepare(pipeline, &decoded)?;

    let mut items = Vec::with_capacity(images.len());
    for (range, item) in prepared.placeholders.iter().zip(&prepared.items) {
        let (Some((name, bytes)), Some(source)) = (images.get(range.item), decoded.get(range.item))
        else {
            bail!("the model made a placeholder range without a picture");
        };
        let ItemContent::Mapped(tensors) = &item.content else {
            bail!("{name}: not mapped");
        };
        let picture = RgbImage8::from_item(source)?;
        let file = FileFacts::read(bytes, picture.size());
        items.push(Item::new(
            pipeline.context(),
            name.clone(),
            file,
            picture,
            tensors,
            range.clone(),
        ));
    }
    Ok(Inspection {
        items,
        prompt: PromptLayout::new(pipeline, &prepared, note),
        max_tokens: pipeline.max_tokens().get(MODALITY).copied(),
    })
}

/// Pictures and a question through the chat template; where that can't be, the model's own
/// placeholder prompt. Also says which of the two it is.
fn prepare(pipeline: &InputPipeline, decoded: &[MediaItem]) -> Result<(Prepared, String)> {
    let modalities = std::iter::repeat_n(MODALITY, decoded.len());
    let mut request = Request::new(
        PromptInput::Chat(vec![Message::user(QUESTION, modalities)]),
        decoded.iter().cloned().map(MediaInput::Item).collect(),
    );
    let reason = if !pipeline.has_chat_template() {
        "there is no chat template".to_owned()
    } else {
        match pipeline.prepare(&request) {
            Ok(prepared) => return Ok((prepared, format!("chat template, \"{QUESTION}\""))),
            Err(error) => format!("the chat template gives no prompt: {error}"),
        }
    };
    let counts = MediaCounts::new().with(MODALITY, decoded.len());
    let dummy = pipeline
        .entry()
        .make_dummy_data(pipeline.context(), 1, &counts)?;
    request.prompt = match dummy.prompt {
        Prompt::Tokens(ids) => PromptInput::Tokens(ids),
        Prompt::Text { text, .. } => PromptInput::Text(text),
    };
    let prepared = pipeline.prepare(&request)?;
    Ok((prepared, format!("placeholders alone ({reason})")))
}

impl Item {
    fn new(
        ctx: &InputContext,
        name: String,
        file: FileFacts,
        picture: RgbImage8,
        tensors: &NamedTensors,
        range: PlaceholderRange,
    ) -> Self {
        let config = ImageProcessorConfig::from_context(ctx);
        let views = match &config {
            Ok(config) => views(ctx, config, tensors),
            Err(error) => Views {
                missing: Some(error.to_string()),
                ..Views::default()
            },
        };
        let explained = config
            .ok()
            .filter(|_| views.missing.is_none())
            .and_then(|config| {
                let plan = plan(&config, picture.width(), picture.height()).ok()?;
                let made = map_rgb(&config, &picture).ok()?;
                let same = made.get(PIXELS)? == tensors.get(PIXELS)?;
                same.then_some((plan, config))
            });
        let plan = explained.as_ref().map(|(plan, _)| plan);
        let layout = Layout::of(range.rows(), &views, plan);
        let tensors = tensors
            .iter()
            .map(|(name, tensor)| {
                (
                    name.to_owned(),
                    tensor.data().dtype(),
                    tensor.shape().to_vec(),
                    tensor.size_bytes(),
                )
            })
            .collect();
        Self {
            name,
            file,
            picture,
            tensors,
            views,
            explained,
            range,
            layout,
        }
    }
}

impl FileFacts {
    /// What the header says; what can't be read says nothing, for the picture is decoded already.
    fn read(bytes: &[u8], upright: Size) -> Self {
        let format = image::guess_format(bytes)
            .map_or("image".to_owned(), |f| format!("{f:?}").to_uppercase());
        let turned = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .ok()
            .and_then(|reader| reader.into_decoder().ok())
            .is_some_and(|mut decoder| {
                let stored = decoder.dimensions();
                stored != (upright.width as u32, upright.height as u32)
                    || decoder
                        .orientation()
                        .is_ok_and(|o| o != Orientation::NoTransforms)
            });
        Self {
            format,
            bytes: bytes.len(),
            turned,
        }
    }
}

/// The tensor of pixels.
const PIXELS: &str = "pixel_values";

/// Normalised planes to pictures.
fn views(ctx: &InputContext, config: &ImageProcessorConfig, tensors: &NamedTensors) -> Views {
    let missing = |reason: String| Views {
        missing: Some(reason),
        ..Views::default()
    };
    let Some(tensor) = tensors.get(PIXELS) else {
        return missing(format!("there is no `{PIXELS}`"));
    };
    let (height, width, data) = match (tensor.shape(), tensor.as_f32()) {
        ([_, 3, h, w] | [_, _, 3, h, w], Some(data)) if h * w > 0 => (*h, *w, data),
        (shape, _) => {
            return missing(format!(
                "`{PIXELS}` is {} {shape:?}, not f32 [.., 3, height, width]",
                tensor.data().dtype()
            ));
        }
    };
    let mut pictures = Vec::new();
    for planes in data.chunks_exact(3 * height * width) {
        let mut bytes = Vec::with_capacity(planes.len());
        for at in 0..height * width {
            for channel in 0..3 {
                bytes.push(level(
                    config,
                    channel,
                    planes[channel * height * width + at],
                ));
            }
        }
        match RgbImage8::new(width, height, bytes) {
            Ok(picture) => pictures.push(picture),
            Err(error) => return missing(error.to_string()),
        }
    }
    let patch = ctx
        .config()
        .pointer("/vision_config/patch_size")
        .and_then(serde_json::Value::as_u64)
        .and_then(|side| usize::try_from(side).ok())
        .filter(|side| (1..=width.min(height)).contains(side));
    Views {
        pictures,
        patch,
        missing: None,
    }
}

/// The grey level that a normalised value stands for.
fn level(config: &ImageProcessorConfig, channel: usize, value: f32) -> u8 {
    let mut level = f64::from(value);
    if config.do_normalize {
        level = level * config.image_std[channel] + config.image_mean[channel];
    }
    if config.do_rescale {
        level /= config.rescale_factor;
    }
    // `as` saturates, and takes no-number for 0.
    level.round() as u8
}
