//! Scenes with questions about them: the data of Kiln's built-in model.
//!
//! A scene is drawn from `(seed, index, split)` alone, so training and evaluation are
//! reproducible, and the two splits key the generator differently: no evaluation scene
//! can appear in training, whatever the seed.

mod font;
mod questions;
mod render;
mod rng;
mod scene;

pub use questions::{Kind, Question};
pub use render::SIDE;
pub use scene::{Color, Object, Scene, ShapeKind, Size, Split, position_name};
