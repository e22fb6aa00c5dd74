//! Bytes to normalised floats in planes.
//!
//! A result depends on the byte and the channel alone, so the 768 possible values are computed
//! once, in the reference's order and float types.

use crate::config::ImageProcessorConfig;
use crate::pixels::RgbImage8;

/// The table from bytes to floats.
///
/// *Source*: Hugging Face `image_transforms.rescale` (in 64 bits, then cast down) and
/// `image_transforms.normalize` (in 32 bits).
#[derive(Debug, Clone)]
pub struct Normalizer {
    table: Box<[[f32; 256]; 3]>,
}

impl Normalizer {
    /// The table of a configuration.
    pub fn new(config: &ImageProcessorConfig) -> Self {
        let mut table = Box::new([[0.0; 256]; 3]);
        for (c, plane) in table.iter_mut().enumerate() {
            let (mean, std) = (config.image_mean[c] as f32, config.image_std[c] as f32);
            for (byte, value) in plane.iter_mut().enumerate() {
                *value = byte as f32;
                if config.do_rescale {
                    *value = (byte as f64 * config.rescale_factor) as f32;
                }
                if config.do_normalize {
                    *value = (*value - mean) / std;
                }
            }
        }
        Self { table }
    }

    /// Appends the picture as planes.
    ///
    /// # Shapes
    /// Appends f32 `[3, height, width]`.
    pub fn append(&self, image: &RgbImage8, out: &mut Vec<f32>) {
        out.reserve(image.data().len());
        for (channel, plane) in self.table.iter().enumerate() {
            out.extend(
                image
                    .data()
                    .chunks_exact(3)
                    .map(|p| plane[usize::from(p[channel])]),
            );
        }
    }
}
