//! The mappers: an image item to the tensors that a model's `encode` takes.
//!
//! They execute a [`Plan`] and add nothing to it.

use crate::config::ImageProcessorConfig;
use crate::normalize::Normalizer;
use crate::pixels::RgbImage8;
use crate::plan::{Plan, plan};
use crate::resample::render;
use kiln_registry::{Error, HostTensor, InputContext, MediaItem, NamedTensors, Result};

/// The mapper of models that see one picture per image.
///
/// # Shapes
/// `pixel_values`: f32 `[1, 3, height, width]`.
///
/// # Errors
/// [`Error::InvalidInput`] for a picture that can't be resized as configured,
/// [`Error::Checkpoint`] or [`Error::Unsupported`] for a configuration that can't be followed.
pub fn map_image(ctx: &InputContext, item: &MediaItem) -> Result<NamedTensors> {
    map_rgb(
        &ImageProcessorConfig::from_context(ctx)?,
        &RgbImage8::from_item(item)?,
    )
}

/// The mapper of models that see a picture and tiles of it.
///
/// # Shapes
/// `pixel_values`: f32 `[1, tiles, 3, height, width]`, the whole picture first.
/// `image_sizes`: i64 `[1, 2]`, the picture's own height and width.
///
/// # Errors
/// As [`map_image`]; [`Error::Checkpoint`] when the processor makes no tiles.
pub fn map_anyres(ctx: &InputContext, item: &MediaItem) -> Result<NamedTensors> {
    let tensors = map_image(ctx, item)?;
    if tensors.get("image_sizes").is_none() {
        return Err(Error::checkpoint(
            "preprocessor_config.json",
            "the model takes tiles: `image_processor_type` must be LlavaNextImageProcessor",
        ));
    }
    Ok(tensors)
}

/// What both mappers do, for callers that hold a picture and a configuration: tiles where the
/// configuration makes them.
///
/// # Shapes
/// As [`map_anyres`] for LLaVA-NeXT's processor, else as [`map_image`].
///
/// # Errors
/// As [`map_image`].
pub fn map_rgb(config: &ImageProcessorConfig, image: &RgbImage8) -> Result<NamedTensors> {
    let plan = plan(config, image.width(), image.height())?;
    let pixels = execute(&plan, config, image)?;
    let size = plan.view_size();
    if !plan.is_tiled() {
        let pixels = HostTensor::f32([1, 3, size.height, size.width], pixels)?;
        return Ok(NamedTensors::new().with("pixel_values", pixels));
    }
    let shape = [1, plan.views.len(), 3, size.height, size.width];
    let sizes = vec![plan.picture.height as i64, plan.picture.width as i64];
    Ok(NamedTensors::new()
        .with("pixel_values", HostTensor::f32(shape, pixels)?)
        .with("image_sizes", HostTensor::i64([1, 2], sizes)?))
}

/// # Shapes
/// Returns f32 `[views, 3, height, width]`.
fn execute(plan: &Plan, config: &ImageProcessorConfig, image: &RgbImage8) -> Result<Vec<f32>> {
    let normalizer = Normalizer::new(config);
    let mut pixels = Vec::new();
    for view in &plan.views {
        let mut seen = render(image, &view.stage, config.resample)?;
        if let Some(again) = &view.again {
            seen = render(&seen, again, config.resample)?;
        }
        match plan.padded {
            None => normalizer.append(&seen, &mut pixels),
            Some(size) => {
                let mut bare = Vec::new();
                normalizer.append(&seen, &mut bare);
                for row in 0..3 * size.height {
                    let (plane, y) = (row / size.height, row % size.height);
                    let before = pixels.len();
                    if y < seen.height() {
                        let at = (plane * seen.height() + y) * seen.width();
                        pixels.extend_from_slice(&bare[at..at + seen.width()]);
                    }
                    pixels.resize(before + size.width, 0.0);
                }
            }
        }
    }
    Ok(pixels)
}
