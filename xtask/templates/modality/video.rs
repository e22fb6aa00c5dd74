//! Videos: each frame is a picture, through the same tower and projector, one behind the other.

use kiln_nn::placeholder::Placeholder;
use kiln_nn::vlm::{Vlm, VlmConfig};
use kiln_registry::{
    DummyInputs, Encoded, InputContext, MaxTokens, MediaItem, ModalitySupport, NamedTensors,
    ProcessedInputs, Result,
};
use kiln_video::{Clip, MODALITY, VideoProcessorConfig};
use serde::Deserialize;

/// How the model takes a video.
pub(crate) const SUPPORT: ModalitySupport =
    ModalitySupport::new().max_tokens(MaxTokens::Computed(max_tokens));

#[derive(Deserialize)]
struct Keys {
    #[serde(alias = "video_token_id")]
    video_token_index: u32,
}

fn placeholder(ctx: &InputContext) -> Result<Placeholder> {
    let keys: Keys = ctx.parse_config()?;
    Ok(Placeholder {
        modality: MODALITY,
        key: "video_token_index",
        token_id: keys.video_token_index,
    })
}

/// Tokens of a frame: those of a picture.
fn frame_tokens(config: &VlmConfig) -> usize {
    config.selection.tokens(&config.tower)
}

fn max_tokens(ctx: &InputContext) -> Result<usize> {
    let frames = VideoProcessorConfig::from_context(ctx)?.sampling.most();
    Ok(frames * frame_tokens(&VlmConfig::from_context(ctx)?))
}

/// With videos of as many frames as are ever taken.
pub(crate) fn dummies(ctx: &InputContext, count: usize, inputs: DummyInputs) -> Result<DummyInputs> {
    let side = VlmConfig::from_context(ctx)?.tower.image_size;
    let sampling = VideoProcessorConfig::from_context(ctx)?.sampling;
    let longest = Clip::longest(&sampling, side, side)?;
    Ok(placeholder(ctx)?.more_dummies(inputs, &longest, count))
}

/// With a video's placeholder as often as its frames have tokens.
pub(crate) fn expand(
    ctx: &InputContext,
    items: &[MediaItem],
    prompt: ProcessedInputs,
) -> Result<ProcessedInputs> {
    let tokens = frame_tokens(&VlmConfig::from_context(ctx)?);
    let sampling = VideoProcessorConfig::from_context(ctx)?.sampling;
    placeholder(ctx)?.expand(ctx, items, prompt, |item| {
        let clip = Clip::from_item(item)?;
        Ok(sampling.count(clip.frames(), clip.seconds()) * tokens)
    })
}

/// # Shapes
/// `pixel_values_videos`: f32 `[1, frames, 3, side, side]`; the features: f32 `[frames * tokens, hidden]`.
pub(crate) fn encode(vlm: &Vlm, item: &NamedTensors) -> Result<Encoded> {
    let ([items, frames, channels, height, width], pixels) =
        item.require_f32::<5>("pixel_values_videos")?;
    vlm.encode_pictures([items * frames, channels, height, width], pixels)
}
