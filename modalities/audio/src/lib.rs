//! Audio for Kiln: bytes to samples, samples to the features that an audio tower takes.
//!
//! WAV, FLAC, MP3 and Ogg Vorbis are decoded to one channel at the file's own sampling rate. An item
//! keeps that rate beside its samples: which rate a model wants is its processor's to say, and an
//! item's identity must not hang on who asks. The mapper resamples.
//!
//! How many feature frames a sound has is decided by one pure function,
//! [`FeatureExtractorConfig::valid_frames`]; the mapper marks them, and a model's input processor
//! counts them, before anything is computed.
//!
//! *Source*: Hugging Face transformers, `feature_extraction_whisper.py`, `audio_utils.py`.

mod config;
mod decode;
mod features;
mod map;
mod mel;
mod resample;
mod sniff;
mod sound;

#[cfg(test)]
mod goldens;
#[cfg(test)]
mod hostile;

pub use config::FeatureExtractorConfig;
pub use decode::decode;
pub use map::map_audio;
pub use sound::{SAMPLING_RATE, Sound};

use kiln_registry::{MODALITIES, ModalitySpec};

/// The modality's name.
pub const MODALITY: &str = "audio";

/// The media types of what [`decode`] accepts.
pub const MEDIA_TYPES: &[&str] = &["audio/wav", "audio/flac", "audio/mpeg", "audio/ogg"];

#[linkme::distributed_slice(MODALITIES)]
#[linkme(crate = kiln_registry::linkme)]
static AUDIO: ModalitySpec = ModalitySpec::new(MODALITY, env!("CARGO_PKG_NAME"))
    .media_types(MEDIA_TYPES)
    .decoder(decode)
    .default_mapper(map_audio);
