//! Bytes to a picture: format by the bytes, limits by the header, orientation, colours.
//!
//! Messages are fixed texts: what a decoder has to say about damaged bytes may hold addresses
//! or lengths that are nobody's business.
//!
//! # How near to Pillow
//! PNG, GIF, BMP, TIFF, lossless WebP: equal. Lossy WebP: equal on the goldens. JPEG: the
//! inverse cosine transform is not libjpeg-turbo's. On the goldens (quality 75 to 90) no channel
//! is more than 2 levels of 255 off without chroma subsampling, 3 with it, and 0.6 on average;
//! the last two rows and columns of a subsampled picture whose side is no multiple of 16 are up
//! to 17 levels off, because chroma is continued differently beyond the edge.
//!
//! Transparency is dropped, as by the reference's `load_image`. (Its processors would composite
//! it on white, if they were handed a picture that `load_image` has not been through.)

use crate::pixels::RgbImage8;
use crate::sniff::{self, Format, damaged, unsupported};
use crate::{MODALITY, color, gif, tiff};
use image::codecs::{bmp, jpeg, png, tiff as image_tiff, webp};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, Limits};
use kiln_registry::{DecodeLimits, Error, MediaItem, Result};
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a PNG decoder may allocate beside the pixels: colour profiles are compressed, so a small
/// file can ask for much.
const PNG_SIDE_ALLOCATION: u64 = 64 << 20;

/// Decodes a picture.
///
/// # Shapes
/// The item's content: u8 `[height, width, 3]`.
///
/// # Errors
/// [`Error::InvalidInput`] for bytes that are no image of an accepted format, are damaged or cut
/// short, have no pixel, or exceed the limits.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<MediaItem> {
    Ok(MediaItem::raw(
        MODALITY,
        decode_rgb(bytes, limits)?.into_tensor()?,
    ))
}

/// Decodes a picture to upright RGB.
///
/// # Errors
/// As [`decode`].
pub(crate) fn decode_rgb(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage8> {
    let format = sniff::sniff(bytes)?;
    // A fault of a decoder must not take the pool's thread along.
    catch_unwind(AssertUnwindSafe(|| decode_as(format, bytes, limits)))
        .unwrap_or_else(|_| Err(damaged()))
}

fn decode_as(format: Format, bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage8> {
    let cursor = Cursor::new(bytes);
    // The header comes first: a bomb is told apart before anything walks or reads the file.
    match format {
        Format::Png => {
            let mut bounds = Limits::default();
            bounds.max_alloc = Some(PNG_SIDE_ALLOCATION.max(limits.max_side as u64 * 32));
            let decoder = png::PngDecoder::with_limits(cursor, bounds).map_err(failed)?;
            finish(format, bytes, decoder, limits)
        }
        Format::Jpeg => {
            let decoder = jpeg::JpegDecoder::new(cursor).map_err(failed)?;
            finish(format, bytes, decoder, limits)
        }
        Format::WebP => {
            let decoder = webp::WebPDecoder::new(cursor).map_err(failed)?;
            finish(format, bytes, decoder, limits)
        }
        Format::Bmp => {
            let decoder = bmp::BmpDecoder::new(cursor).map_err(failed)?;
            finish(format, bytes, decoder, limits)
        }
        Format::Gif => {
            let image = gif::decode(bytes, limits)?;
            sniff::check_single_nature(bytes)?;
            Ok(image)
        }
        Format::Tiff => {
            if let Some((image, orientation)) = tiff::decode(bytes, limits)? {
                sniff::check_single_nature(bytes)?;
                return upright(image, orientation);
            }
            let decoder = image_tiff::TiffDecoder::new(cursor).map_err(failed)?;
            finish(format, bytes, decoder, limits)
        }
    }
}

/// Refuses sizes out of bounds.
pub(crate) fn check_limits(width: u32, height: u32, limits: &DecodeLimits) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::invalid("the image has no pixels"));
    }
    let side = limits.max_side;
    if width > side || height > side {
        return Err(Error::invalid(format!(
            "the image is {width}x{height} pixels, the limit is {side} a side"
        )));
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels {
        return Err(Error::invalid(format!(
            "the image has {pixels} pixels, the limit is {}",
            limits.max_pixels
        )));
    }
    Ok(())
}

fn finish(
    format: Format,
    bytes: &[u8],
    mut decoder: impl ImageDecoder,
    limits: &DecodeLimits,
) -> Result<RgbImage8> {
    let (width, height) = decoder.dimensions();
    check_limits(width, height, limits)?;
    sniff::check_whole(format, bytes)?;
    sniff::check_single_nature(bytes)?;
    let orientation = orientation(&mut decoder);
    let color = decoder.color_type();
    let total = usize::try_from(decoder.total_bytes()).map_err(|_| damaged())?;
    let mut samples = vec![0; total];
    decoder.read_image(&mut samples).map_err(failed)?;
    // IHDR's colour type 4 is grey with alpha; other transparency is a chunk beside plain grey.
    let clip_grey = !(format == Format::Png && bytes.get(25) == Some(&4));
    let image = color::to_rgb(width as usize, height as usize, color, clip_grey, samples)?;
    upright(image, orientation)
}

/// The orientation in EXIF, else in XMP, as Pillow looks for it. Damaged metadata says nothing.
fn orientation(decoder: &mut impl ImageDecoder) -> Orientation {
    let exif = decoder.exif_metadata().ok().flatten();
    if let Some(found) = exif.as_deref().and_then(Orientation::from_exif_chunk) {
        return found;
    }
    if let Ok(found) = decoder.orientation()
        && found != Orientation::NoTransforms
    {
        return found;
    }
    let xmp = decoder.xmp_metadata().ok().flatten().unwrap_or_default();
    xmp_orientation(&xmp).unwrap_or(Orientation::NoTransforms)
}

/// The digit after `tiff:Orientation="` or `tiff:Orientation>`.
fn xmp_orientation(xmp: &[u8]) -> Option<Orientation> {
    const KEY: &[u8] = b"tiff:Orientation";
    let at = xmp.windows(KEY.len()).position(|w| w == KEY)?;
    let rest = xmp.get(at + KEY.len()..)?;
    let digit = rest
        .strip_prefix(b"=\"")
        .or_else(|| rest.strip_prefix(b">"))?
        .first()?;
    Orientation::from_exif(digit.wrapping_sub(b'0'))
}

fn upright(image: RgbImage8, orientation: Orientation) -> Result<RgbImage8> {
    if orientation == Orientation::NoTransforms {
        return Ok(image);
    }
    let (width, height) = (image.width() as u32, image.height() as u32);
    let buffer = image::RgbImage::from_raw(width, height, image.into_data()).ok_or_else(damaged)?;
    let mut turned = DynamicImage::ImageRgb8(buffer);
    turned.apply_orientation(orientation);
    let turned = turned.into_rgb8();
    RgbImage8::new(
        turned.width() as usize,
        turned.height() as usize,
        turned.into_raw(),
    )
}

fn failed(error: ImageError) -> Error {
    match error {
        ImageError::Unsupported(_) => unsupported(),
        _ => damaged(),
    }
}
