//! The TIFF colour modes that the image crate refuses or rounds differently from Pillow:
//! palettes, CMYK, 32-bit grey.

use crate::color::cmyk;
use crate::pixels::RgbImage8;
use crate::sniff::{damaged, unsupported};
use image::metadata::Orientation;
use kiln_registry::{DecodeLimits, Result};
use std::io::Cursor;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

const PHOTOMETRIC: u16 = 262;
const BLACK_IS_ZERO: u16 = 1;
const PALETTE: u16 = 3;

/// Classic TIFF's integers in the file's byte order.
struct Words {
    little: bool,
}

impl Words {
    fn u16(&self, bytes: &[u8], at: usize) -> Option<u16> {
        let word = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.little {
            u16::from_le_bytes(word)
        } else {
            u16::from_be_bytes(word)
        })
    }

    fn u32(&self, bytes: &[u8], at: usize) -> Option<u32> {
        let word = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.little {
            u32::from_le_bytes(word)
        } else {
            u32::from_be_bytes(word)
        })
    }
}

/// Where the first directory keeps the kind of colour, if that is a palette.
fn palette_mark(bytes: &[u8]) -> Option<(usize, Words)> {
    let words = Words {
        little: bytes.starts_with(b"II"),
    };
    let directory = words.u32(bytes, 4)? as usize;
    let entries = usize::from(words.u16(bytes, directory)?);
    (0..entries)
        .map(|i| directory + 2 + i * 12)
        .find(|at| words.u16(bytes, *at) == Some(PHOTOMETRIC))
        .map(|at| at + 8)
        .filter(|at| words.u16(bytes, *at) == Some(PALETTE))
        .map(|at| (at, words))
}

fn failed(error: TiffError) -> kiln_registry::Error {
    match error {
        TiffError::UnsupportedError(_) | TiffError::LimitsExceeded => unsupported(),
        _ => damaged(),
    }
}

/// Decodes a picture of one of the modes above; `None` for all others.
pub(crate) fn decode(
    bytes: &[u8],
    limits: &DecodeLimits,
) -> Result<Option<(RgbImage8, Orientation)>> {
    if let Some((at, words)) = palette_mark(bytes) {
        // The tiff crate knows no palettes: tell it that the indices are grey levels.
        let mut grey = bytes.to_vec();
        let kind = if words.little {
            BLACK_IS_ZERO.to_le_bytes()
        } else {
            BLACK_IS_ZERO.to_be_bytes()
        };
        grey[at..at + 2].copy_from_slice(&kind);
        return decode_mode(&grey, limits, true);
    }
    decode_mode(bytes, limits, false)
}

fn decode_mode(
    bytes: &[u8],
    limits: &DecodeLimits,
    palette: bool,
) -> Result<Option<(RgbImage8, Orientation)>> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(failed)?;
    let (width, height) = decoder.dimensions().map_err(failed)?;
    crate::decode::check_limits(width, height, limits)?;
    let color = decoder.colortype().map_err(failed)?;
    if !palette && !matches!(color, ColorType::CMYK(8) | ColorType::Gray(32)) {
        return Ok(None);
    }
    let orientation = decoder
        .find_tag(Tag::Orientation)
        .map_err(failed)?
        .and_then(|v| Orientation::from_exif(v.into_u16().ok()?.min(255) as u8))
        .unwrap_or(Orientation::NoTransforms);
    let colors = if palette {
        decoder.get_tag_u16_vec(Tag::ColorMap).map_err(failed)?
    } else {
        vec![]
    };

    let mut bounds = Limits::default();
    bounds.decoding_buffer_size = (limits.max_pixels as usize).saturating_mul(8);
    bounds.intermediate_buffer_size = bounds.decoding_buffer_size;
    let samples = decoder.with_limits(bounds).read_image().map_err(failed)?;
    let (width, height) = (width as usize, height as usize);
    let rgb: Vec<u8> = match (color, samples) {
        (ColorType::CMYK(8), DecodingResult::U8(inks)) => inks
            .chunks_exact(4)
            .flat_map(|p| cmyk(p[0], p[1], p[2], p[3]))
            .collect(),
        (ColorType::Gray(32), DecodingResult::F32(v)) => v
            .iter()
            .flat_map(|v| [v.clamp(0.0, 255.0) as u8; 3])
            .collect(),
        (ColorType::Gray(32), DecodingResult::I32(v)) => v
            .iter()
            .flat_map(|v| [(*v).clamp(0, 255) as u8; 3])
            .collect(),
        (ColorType::Gray(32), DecodingResult::U32(v)) => {
            v.iter().flat_map(|v| [(*v).min(255) as u8; 3]).collect()
        }
        (ColorType::Gray(bits @ (1 | 2 | 4 | 8)), DecodingResult::U8(packed)) if palette => {
            look_up(width, usize::from(bits), &packed, &colors).ok_or_else(damaged)?
        }
        _ => return Err(unsupported()),
    };
    let image = RgbImage8::new(width, height, rgb).map_err(|_| damaged())?;
    Ok(Some((image, orientation)))
}

/// Packed indices to colours. The map holds all reds, then all greens, then all blues.
fn look_up(width: usize, bits: usize, packed: &[u8], colors: &[u16]) -> Option<Vec<u8>> {
    let entries = colors.len() / 3;
    let stride = (width * bits).div_ceil(8);
    let mut rgb = Vec::with_capacity(packed.len() * 24 / bits);
    for row in packed.chunks_exact(stride) {
        for x in 0..width {
            let bit = x * bits;
            let byte = usize::from(*row.get(bit / 8)?);
            let index = (byte >> (8 - bits - bit % 8)) & ((1 << bits) - 1);
            if index >= entries {
                return None;
            }
            rgb.extend([0, 1, 2].map(|c| (colors[c * entries + index] >> 8) as u8));
        }
    }
    Some(rgb)
}
