//! Video for Kiln: bytes to frames, frames to the tensors that a vision tower takes.
//!
//! Animated GIF, animated WebP and APNG are decoded here, without any library outside Rust. Films
//! (MP4, WebM) are not: whoever has them samples frames, or hands the frames over decoded.
//!
//! Which frames a model sees is decided by one pure function, [`FrameSampling::indices`], from the
//! processor's configuration, the number of frames and their duration. The mapper follows it, and
//! so does a model's input processor, so the two can't count differently. Each frame then goes
//! through the plan of [`kiln_image`], which is a picture's.
//!
//! *Source*: Hugging Face transformers, `video_processing_utils.py` and `video_utils.py`.

mod clip;
mod config;
mod decode;
mod map;
mod sample;
mod sniff;

#[cfg(test)]
mod goldens;

pub use clip::{Clip, FRAME_TIMES};
pub use config::VideoProcessorConfig;
pub use decode::decode;
pub use map::map_video;
pub use sample::{DEFAULT_MAX_FRAMES, FrameSampling};

use kiln_registry::{MODALITIES, ModalitySpec};

/// The modality's name.
pub const MODALITY: &str = "video";

/// The media types of what [`decode`] accepts.
pub const MEDIA_TYPES: &[&str] = &["image/gif", "image/webp", "image/apng", "image/png"];

#[linkme::distributed_slice(MODALITIES)]
#[linkme(crate = kiln_registry::linkme)]
static VIDEO: ModalitySpec = ModalitySpec::new(MODALITY, env!("CARGO_PKG_NAME"))
    .media_types(MEDIA_TYPES)
    .decoder(decode)
    .default_mapper(map_video);
