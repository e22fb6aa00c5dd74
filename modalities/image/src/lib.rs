//! Images for Kiln: bytes to RGB, RGB to the tensors that a vision tower takes.
//!
//! The arithmetic is Hugging Face's on its Pillow backend, bit for bit where bits can be compared:
//! resampling equals Pillow's, and rescaling and normalising follow the reference's order and float
//! types. "Fast" processor names are accepted and run the same arithmetic (the reference's own
//! "Fast" classes differ from it by about one level in 255).
//!
//! What becomes of a picture is decided by one pure function, [`plan`], from the processor's
//! configuration and the picture's size alone. The mappers execute that plan; tools may print it.
//!
//! Embeddings that the caller computed (`image_embeds`) never come here: the engine passes a
//! [`kiln_registry::MediaKind::Embeds`] item by the mapper.
//!
//! *Source*: Hugging Face transformers (`image_transforms`, `image_processing_backends`, the CLIP,
//! SigLIP, LLaVA and LLaVA-NeXT image processors), Pillow (`Resample.c`, `Geometry.c`).

pub mod anyres;
mod color;
mod config;
mod decode;
mod gif;
mod map;
mod normalize;
mod pixels;
mod plan;
mod resample;
mod sniff;
mod tiff;

#[cfg(test)]
mod goldens;

pub use config::{ImageProcessorConfig, ProcessorKind, SizeSpec};
pub use decode::decode;
pub use map::{map_anyres, map_image, map_rgb};
pub use normalize::Normalizer;
pub use pixels::{Rect, RgbImage8, Size};
pub use plan::{Plan, Stage, View, plan};
pub use resample::{Filter, center_crop, pad, pad_to_square, render, resize};
pub use sniff::check_single_nature;

use kiln_registry::{MODALITIES, ModalitySpec};

/// The modality's name.
pub const MODALITY: &str = "image";

/// The media types of what [`decode`] accepts.
pub const MEDIA_TYPES: &[&str] = &[
    "image/png",
    "image/jpeg",
    "image/webp",
    "image/gif",
    "image/bmp",
    "image/tiff",
];

#[linkme::distributed_slice(MODALITIES)]
#[linkme(crate = kiln_registry::linkme)]
static IMAGE: ModalitySpec = ModalitySpec::new(MODALITY, env!("CARGO_PKG_NAME"))
    .media_types(MEDIA_TYPES)
    .decoder(decode)
    .default_mapper(map_image);
