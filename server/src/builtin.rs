//! The model and the picture that are part of the binary. `cargo xtask train-demo` makes the model;
//! its card is `assets/kiln-demo/README.md`.

use bytes::Bytes;
use kiln_engine::{Checkpoint, EmbeddedFiles};

/// What stands in place of a folder for the built-in model.
pub(crate) const NAME: &str = "builtin";

/// What is asked when nothing is.
pub(crate) const QUESTION: &str = "Describe the picture.";

macro_rules! embed {
    ($($file:literal),+ $(,)?) => {
        &[$(($file, include_bytes!(concat!("../../assets/kiln-demo/", $file)))),+]
    };
}

const FILES: EmbeddedFiles = embed![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
];

/// The picture as bytes.
pub(crate) const PICTURE: &[u8] = include_bytes!("../../assets/sample.png");

/// The model.
pub(crate) fn checkpoint() -> Checkpoint {
    Checkpoint::embedded("the built-in model", FILES)
}

/// The picture, a PNG file.
pub(crate) fn picture() -> Bytes {
    Bytes::from_static(PICTURE)
}
