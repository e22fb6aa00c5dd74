//! What the checks show a model. Each modality that the kit can draw has a line in [`DRAWN`]; of
//! others the checks see dummy data alone.

mod files;
mod pictures;

use kiln_registry::{MediaItem, Result};
use serde_json::Value;

/// Items of one modality, of any shape: the extents that a caller can choose, such as width and
/// height.
pub(crate) trait Draw: Sync {
    /// The modality's name.
    fn modality(&self) -> &'static str;

    /// An item of a shape, in words.
    fn name(&self, shape: &[usize]) -> String;

    /// An item of noise: another one for another shape or seed.
    fn draw(&self, shape: &[usize], seed: u64) -> Result<MediaItem>;

    /// An item of zeros, at no cost however large: for calls that look at its shape alone.
    fn blank(&self, shape: &[usize]) -> Result<MediaItem>;

    /// A small everyday shape. Seeds that are equal modulo 3 have one shape.
    fn usual(&self, seed: u64) -> Vec<usize>;

    /// Shapes to take through the encoder: smallest, largest, longest, and what `configs` name.
    fn shapes(&self, configs: [&Value; 2]) -> Vec<Vec<usize>>;

    /// Those of [`shapes`](Self::shapes) at which memory peaks, if anywhere.
    fn extremes(&self, configs: [&Value; 2]) -> Vec<Vec<usize>>;

    /// Shapes to take through the input processor alone: as many as a second or two allow.
    fn every_shape(&self) -> Box<dyn Iterator<Item = Vec<usize>>>;

    /// The largest extent of each axis.
    fn longest(&self) -> &'static [usize];

    /// Files as they come, with their names.
    fn files(&self) -> &'static [(&'static str, &'static [u8])];

    /// In how many modes [`file`](Self::file) writes.
    fn modes(&self) -> usize;

    /// A file of a mode, and its name. Files of two modes with as many bytes of samples have the
    /// same samples.
    fn file(&self, shape: &[usize], mode: usize, seed: u64) -> (String, Vec<u8>);

    /// Shape and mode of files whose samples are the same bytes, while their media differ.
    fn twins(&self) -> Vec<(Vec<usize>, usize)>;
}

/// The modalities that the kit can draw.
const DRAWN: &[&dyn Draw] = &[&pictures::Pictures];

/// How to draw a modality.
pub(crate) fn drawn(modality: &str) -> Option<&'static dyn Draw> {
    DRAWN.iter().find(|d| d.modality() == modality).copied()
}

/// An item that a text-only model has no use for.
pub(crate) fn foreign() -> Option<MediaItem> {
    let draw = DRAWN.first()?;
    draw.draw(&draw.usual(0), 1).ok()
}

/// A well-mixed number for a number.
pub(crate) fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}
