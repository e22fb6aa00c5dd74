//! The parts that model crates share: weights from safetensors, custom operators, text decoders,
//! vision and audio towers, and the LLaVA layout that puts a tower before a decoder.
//!
//! A model crate picks parts, says how its checkpoint names them, and implements
//! [`kiln_registry::MultiModalModel`] over them. Nothing here submits a model.

pub mod audio;
pub mod decoder;
mod encoder_layer;
pub mod layers;
#[cfg(test)]
mod no_tokenizer;
pub mod ops;
pub mod placeholder;
pub mod vision;
pub mod vlm;
pub mod weights;
pub mod work;
