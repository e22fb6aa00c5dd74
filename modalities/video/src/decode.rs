//! Bytes to frames: format by the bytes, the canvas by the header, everything else frame by frame.
//!
//! A frame is decoded only while the count, the pixels and the seconds so far are within their
//! limits, so a file of a hundred thousand frames costs no more than the limit. Messages are fixed
//! texts, as those of pictures.
//!
//! Each frame is the whole canvas as a viewer shows it. Transparency is dropped, as it is from
//! pictures; what no frame has painted is black. Frames equal Pillow's, but where a frame of a WebP is
//! blended over the one before: there the decoder rounds, and a channel may be one level of 255 lower.

use crate::clip::Clip;
use crate::sniff::{self, Format, damaged, still, unsupported};
use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{AnimationDecoder, Frames, ImageDecoder, ImageError, Limits};
use kiln_image::check_single_nature;
use kiln_registry::{DecodeLimits, Error, MediaItem, Result};
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// All frames together may have so many times the pixels of the largest one allowed.
const ALL_FRAMES: u64 = 2;

/// Bytes that a decoder may hold for each pixel of the canvas: a few canvases of four bytes.
const BYTES_PER_PIXEL: u64 = 24;

/// What a decoder may hold beside the canvases: colour profiles, tables.
const SIDE_ALLOCATION: u64 = 16 << 20;

/// A delay of 10 ms or less means "as the viewer likes"; viewers and film tools take this.
const DEFAULT_DELAY_MS: i64 = 100;

/// Decodes a video.
///
/// # Shapes
/// The item's content: u8 `[frames, height, width, 3]`; beside it [`crate::FRAME_TIMES`].
///
/// # Errors
/// [`Error::InvalidInput`] for bytes that are no animation of an accepted format, are damaged or cut
/// short, have no frame, or exceed the limits.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<MediaItem> {
    let format = sniff::sniff(bytes)?;
    // A fault of a decoder must not take the pool's thread along.
    catch_unwind(AssertUnwindSafe(|| decode_as(format, bytes, limits)))
        .unwrap_or_else(|_| Err(damaged()))
}

fn decode_as(format: Format, bytes: &[u8], limits: &DecodeLimits) -> Result<MediaItem> {
    let cursor = Cursor::new(bytes);
    match format {
        Format::Gif => {
            let mut decoder = GifDecoder::new(cursor).map_err(failed)?;
            let canvas = Canvas::of(&decoder, limits)?;
            decoder.set_limits(canvas.bounds()).map_err(failed)?;
            check_single_nature(bytes)?;
            collect(decoder.into_frames(), canvas, limits)
        }
        Format::WebP => {
            sniff::check_whole_riff(bytes)?;
            let mut decoder = WebPDecoder::new(cursor).map_err(failed)?;
            let canvas = Canvas::of(&decoder, limits)?;
            decoder.set_limits(canvas.bounds()).map_err(failed)?;
            if !decoder.has_animation() {
                return Err(still());
            }
            check_single_nature(bytes)?;
            collect(decoder.into_frames(), canvas, limits)
        }
        Format::Apng => {
            let mut bounds = Limits::default();
            bounds.max_alloc = Some(SIDE_ALLOCATION + u64::from(limits.max_side) * 32);
            let mut decoder = PngDecoder::with_limits(cursor, bounds).map_err(failed)?;
            let canvas = Canvas::of(&decoder, limits)?;
            decoder.set_limits(canvas.bounds()).map_err(failed)?;
            if !decoder.is_apng().map_err(failed)? {
                return Err(still());
            }
            check_single_nature(bytes)?;
            let frames = decoder.apng().map_err(failed)?.into_frames();
            collect(frames, canvas, limits)
        }
    }
}

/// The size of every frame.
#[derive(Clone, Copy)]
struct Canvas {
    width: u32,
    height: u32,
}

impl Canvas {
    fn of(decoder: &impl ImageDecoder, limits: &DecodeLimits) -> Result<Self> {
        let (width, height) = decoder.dimensions();
        if width == 0 || height == 0 {
            return Err(Error::invalid("the video has no pixels"));
        }
        let side = limits.max_side;
        if width > side || height > side {
            return Err(Error::invalid(format!(
                "the video is {width}x{height} pixels, the limit is {side} a side"
            )));
        }
        let canvas = Self { width, height };
        if canvas.pixels() > limits.max_pixels {
            return Err(Error::invalid(format!(
                "a frame of the video has {} pixels, the limit is {}",
                canvas.pixels(),
                limits.max_pixels
            )));
        }
        Ok(canvas)
    }

    fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// A frame's own rectangle may be larger than the canvas; the decoder gets no room for that.
    fn bounds(self) -> Limits {
        let mut bounds = Limits::default();
        bounds.max_image_width = Some(self.width);
        bounds.max_image_height = Some(self.height);
        bounds.max_alloc = Some(self.pixels() * BYTES_PER_PIXEL + SIDE_ALLOCATION);
        bounds
    }
}

fn collect(frames: Frames<'_>, canvas: Canvas, limits: &DecodeLimits) -> Result<MediaItem> {
    let most_pixels = limits.max_pixels.saturating_mul(ALL_FRAMES);
    let (mut pixels, mut times, mut now) = (Vec::new(), vec![0], 0i64);
    let mut frames = frames;
    loop {
        let count = times.len();
        if count > limits.max_frames || canvas.pixels().saturating_mul(count as u64) > most_pixels {
            // Only now does it matter whether there is one more.
            return match frames.next() {
                None => finish(pixels, times, canvas),
                Some(_) if count > limits.max_frames => Err(Error::invalid(format!(
                    "the video has more than {} frames, the limit",
                    limits.max_frames
                ))),
                Some(_) => Err(Error::invalid(format!(
                    "the frames of the video have more than {most_pixels} pixels together, the limit"
                ))),
            };
        }
        let Some(frame) = frames.next() else {
            return finish(pixels, times, canvas);
        };
        let frame = frame.map_err(failed)?;
        let (numerator, denominator) = frame.delay().numer_denom_ms();
        let delay = i64::from(numerator) / i64::from(denominator.max(1));
        now += if delay <= 10 { DEFAULT_DELAY_MS } else { delay };
        if now as f64 > limits.max_seconds * 1000.0 {
            return Err(Error::invalid(format!(
                "the video lasts longer than {} seconds, the limit",
                limits.max_seconds
            )));
        }
        times.push(now);
        let picture = frame.into_buffer();
        if picture.dimensions() != (canvas.width, canvas.height) {
            return Err(damaged());
        }
        pixels.extend(picture.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]));
    }
}

fn finish(pixels: Vec<u8>, times: Vec<i64>, canvas: Canvas) -> Result<MediaItem> {
    if pixels.is_empty() {
        return Err(Error::invalid("the video has no frames"));
    }
    let shape = [
        times.len() - 1,
        canvas.height as usize,
        canvas.width as usize,
    ];
    Clip::item(shape, pixels, times)
}

fn failed(error: ImageError) -> Error {
    match error {
        ImageError::Unsupported(_) => unsupported(),
        _ => damaged(),
    }
}
