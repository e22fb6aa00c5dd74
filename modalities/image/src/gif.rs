//! The first frame of a GIF, as Pillow shows it.
//!
//! Pillow lays the frame on a canvas of the transparent index, or of index 0, and drops the
//! transparency afterwards: every pixel has the colour of its index. The canvas grows when the
//! frame exceeds it. Further frames are never decoded, however many there are.

use crate::decode::check_limits;
use crate::pixels::RgbImage8;
use crate::sniff::damaged;
use kiln_registry::{DecodeLimits, Result};

pub(crate) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage8> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    // The limits below bound the memory; they are checked before a frame is read.
    options.set_memory_limit(gif::MemoryLimit::Unlimited);
    let mut decoder = options.read_info(bytes).map_err(|_| damaged())?;
    let (screen_width, screen_height) = (decoder.width(), decoder.height());
    check_limits(screen_width.into(), screen_height.into(), limits)?;
    let frame = decoder
        .next_frame_info()
        .map_err(|_| damaged())?
        .ok_or_else(damaged)?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (width, height) = (usize::from(frame.width), usize::from(frame.height));
    let background = frame.transparent.unwrap_or(0);
    let canvas_width = usize::from(screen_width).max(left + width);
    let canvas_height = usize::from(screen_height).max(top + height);
    check_limits(canvas_width as u32, canvas_height as u32, limits)?;
    if width == 0 || height == 0 {
        return Err(damaged());
    }

    let mut indices = vec![0; width * height];
    decoder
        .read_into_buffer(&mut indices)
        .map_err(|_| damaged())?;
    let palette = decoder.palette().map_err(|_| damaged())?;
    // Pillow's palettes start out as a grey ramp: that shows behind the given colours.
    let mut colors: Vec<[u8; 3]> = (0..=255).map(|v| [v; 3]).collect();
    for (color, given) in colors.iter_mut().zip(palette.chunks_exact(3)) {
        color.copy_from_slice(given);
    }

    let mut rgb = colors[usize::from(background)].repeat(canvas_width * canvas_height);
    for (y, row) in indices.chunks_exact(width).enumerate() {
        let at = ((top + y) * canvas_width + left) * 3;
        for (pixel, index) in rgb[at..].chunks_exact_mut(3).zip(row) {
            pixel.copy_from_slice(&colors[usize::from(*index)]);
        }
    }
    RgbImage8::new(canvas_width, canvas_height, rgb)
}
