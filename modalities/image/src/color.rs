//! Every colour mode to RGB of 8 bits, as Pillow's `convert("RGB")` does it.
//!
//! | mode | becomes |
//! |---|---|
//! | alpha, transparency | dropped, the colour below it stays (nothing is composited) |
//! | 16-bit grey | clipped to 255 (Pillow's `I;16`), **not** scaled |
//! | 16-bit grey with alpha, RGB, RGBA | the high byte |
//! | 32-bit grey, integers or floats | truncated and clipped to 0..=255 |
//! | CMYK | `(255 - ink) * (255 - black) / 255`, rounded |

use crate::pixels::RgbImage8;
use crate::sniff::{damaged, unsupported};
use image::ColorType;
use kiln_registry::Result;

/// `a * b / 255`, rounded, for bytes.
fn mul_div_255(a: u8, b: u8) -> u8 {
    let t = u32::from(a) * u32::from(b) + 128;
    (((t >> 8) + t) >> 8) as u8
}

/// One pixel of inks (0 = none) to RGB.
pub(crate) fn cmyk(c: u8, m: u8, y: u8, k: u8) -> [u8; 3] {
    let light = 255 - k;
    [c, m, y].map(|ink| light.saturating_sub(mul_div_255(ink, light)))
}

fn word(bytes: &[u8]) -> u16 {
    u16::from_ne_bytes([bytes[0], bytes[1]])
}

/// Decoded samples to RGB. `clip_grey`: whether 16-bit grey comes from a file without an alpha
/// channel of its own, which Pillow opens as `I;16`.
///
/// # Shapes
/// `samples`: `[height, width, channels]` in native byte order.
pub(crate) fn to_rgb(
    width: usize,
    height: usize,
    color: ColorType,
    clip_grey: bool,
    samples: Vec<u8>,
) -> Result<RgbImage8> {
    let grey = |v: u8| [v; 3];
    let high = |b: &[u8]| (word(b) >> 8) as u8;
    let each = |size: usize, f: &dyn Fn(&[u8]) -> [u8; 3]| -> Vec<u8> {
        let mut rgb = Vec::with_capacity(samples.len() / size * 3);
        for pixel in samples.chunks_exact(size) {
            rgb.extend_from_slice(&f(pixel));
        }
        rgb
    };
    let grey16 = |p: &[u8]| {
        grey(if clip_grey {
            word(p).min(255) as u8
        } else {
            high(p)
        })
    };
    let rgb = match color {
        ColorType::Rgb8 => samples,
        ColorType::L8 => each(1, &|p| grey(p[0])),
        ColorType::La8 => each(2, &|p| grey(p[0])),
        ColorType::Rgba8 => each(4, &|p| [p[0], p[1], p[2]]),
        ColorType::L16 => each(2, &grey16),
        ColorType::La16 => each(4, &grey16),
        ColorType::Rgb16 => each(6, &|p| [high(p), high(&p[2..]), high(&p[4..])]),
        ColorType::Rgba16 => each(8, &|p| [high(p), high(&p[2..]), high(&p[4..])]),
        _ => return Err(unsupported()),
    };
    RgbImage8::new(width, height, rgb).map_err(|_| damaged())
}
