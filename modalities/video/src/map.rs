//! The mapper: a video item to the tensor that a model's `encode` takes.

use crate::clip::Clip;
use crate::config::VideoProcessorConfig;
use kiln_image::{RgbImage8, map_rgb};
use kiln_registry::{Error, HostTensor, InputContext, MediaItem, NamedTensors, Result};

/// The mapper of models that see a video as pictures.
///
/// # Shapes
/// `pixel_values_videos`: f32 `[1, frames, 3, height, width]`, the frames that
/// [`crate::FrameSampling::indices`] chooses.
///
/// # Errors
/// [`Error::InvalidInput`] for a video without frames or of a size that can't be resized as
/// configured, [`Error::Checkpoint`] or [`Error::Unsupported`] for a configuration that can't be
/// followed.
pub fn map_video(ctx: &InputContext, item: &MediaItem) -> Result<NamedTensors> {
    map_clip(
        &VideoProcessorConfig::from_context(ctx)?,
        Clip::from_item(item)?,
    )
}

pub(crate) fn map_clip(config: &VideoProcessorConfig, clip: Clip<'_>) -> Result<NamedTensors> {
    let indices = config.sampling.indices(clip.frames(), clip.seconds());
    let (mut pixels, mut size) = (Vec::new(), None);
    for index in &indices {
        let frame = clip.frame(*index).to_vec();
        let picture = RgbImage8::new(clip.width(), clip.height(), frame)?;
        let mapped = map_rgb(&config.frame, &picture)?;
        let ([_, _, height, width], values) = mapped.require_f32::<4>("pixel_values")?;
        if pixels.is_empty() {
            pixels.reserve_exact(values.len() * indices.len());
        }
        pixels.extend_from_slice(values);
        size = Some((height, width));
    }
    let (height, width) = size.ok_or_else(|| Error::invalid("the video has no frames"))?;
    let shape = [1, indices.len(), 3, height, width];
    Ok(NamedTensors::new().with("pixel_values_videos", HostTensor::f32(shape, pixels)?))
}
