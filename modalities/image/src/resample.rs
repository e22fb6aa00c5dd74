//! Resampling with Pillow's arithmetic, so that every pixel equals the reference's.
//!
//! A picture is put on a canvas (padding), the canvas is resampled, and only a window of the
//! result is computed (cropping). Neither the padded nor the uncropped picture ever exists in
//! memory: a 1x10000 picture whose short edge goes to 224 would have half a billion pixels.
//!
//! *Source*: Pillow `Resample.c` (separable filters, 22-bit fixed point) and `Geometry.c`
//! (nearest). The filters' support grows with the downscaling factor (antialiasing).

use crate::pixels::{Rect, RgbImage8, Size};
use crate::plan::Stage;
use kiln_registry::{Error, Result};
use std::f64::consts::PI;

/// Fraction bits of a coefficient: 32, less 8 for the pixel and 2 for overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Pixels that one resampled picture may have. Far above every vision tower's input; a guard
/// against configurations that resize without cropping.
const MAX_OUTPUT_PIXELS: usize = 64 << 20;

/// A resampling filter, numbered as in Pillow and Hugging Face's `resample`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// 0: the source pixel under the centre.
    Nearest,
    /// 1: Lanczos with three lobes.
    Lanczos,
    /// 2: triangle.
    Bilinear,
    /// 3: Keys' cubic with a = -0.5.
    Bicubic,
    /// 4: mean of the covered source pixels.
    Box,
    /// 5: a sinc lobe under a Hamming window.
    Hamming,
}

impl Filter {
    /// The filter of Pillow's number.
    pub fn from_pillow(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Nearest,
            1 => Self::Lanczos,
            2 => Self::Bilinear,
            3 => Self::Bicubic,
            4 => Self::Box,
            5 => Self::Hamming,
            _ => return None,
        })
    }

    /// Its name, as in Pillow, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Lanczos => "lanczos",
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::Box => "box",
            Self::Hamming => "hamming",
        }
    }

    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            if x == 0.0 {
                1.0
            } else {
                (x * PI).sin() / (x * PI)
            }
        };
        let d = x.abs();
        match self {
            Self::Nearest | Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bilinear => (1.0 - d).max(0.0),
            Self::Hamming if d == 0.0 => 1.0,
            Self::Hamming if d >= 1.0 => 0.0,
            Self::Hamming => (d * PI).sin() / (d * PI) * (0.54 + 0.46 * (d * PI).cos()),
            Self::Bicubic => {
                const A: f64 = -0.5;
                if d < 1.0 {
                    ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0
                } else if d < 2.0 {
                    (((d - 5.0) * d + 8.0) * d - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// For each computed output position: the first source position and its coefficients.
struct Taps {
    spans: Vec<(usize, usize, usize)>,
    coefficients: Vec<i32>,
}

impl Taps {
    /// The taps of output positions `first..first + count` of an axis resampled from `input` to
    /// `output` pixels.
    fn new(input: usize, output: usize, first: usize, count: usize, filter: Filter) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let inverse = 1.0 / filter_scale;
        let mut taps = Self {
            spans: Vec::with_capacity(count),
            coefficients: Vec::new(),
        };
        let mut weights = Vec::new();
        for position in first..first + count {
            let center = (position as f64 + 0.5) * scale;
            // `as` truncates like C's cast; what is below zero is clamped there as well.
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            weights.clear();
            weights
                .extend((start..end).map(|i| filter.weight((i as f64 - center + 0.5) * inverse)));
            let total: f64 = weights.iter().sum();
            let offset = taps.coefficients.len();
            taps.coefficients.extend(weights.iter().map(|w| {
                let w = if total != 0.0 { w / total } else { *w };
                let fixed = w * f64::from(1u32 << PRECISION_BITS);
                (fixed + if w < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
            taps.spans.push((start, offset, weights.len()));
        }
        taps
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.spans
            .iter()
            .map(|&(start, offset, len)| (start, &self.coefficients[offset..][..len]))
    }

    /// The source positions that are needed at all.
    fn range(&self) -> std::ops::Range<usize> {
        let start = self.spans.iter().map(|s| s.0).min().unwrap_or(0);
        let end = self.spans.iter().map(|s| s.0 + s.2).max().unwrap_or(0);
        start..end
    }
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// One row through the horizontal filter. `row` begins at source column `first`.
fn horizontal(row: &[u8], first: usize, taps: &Taps, out: &mut [u8]) {
    for (pixel, (start, coefficients)) in out.chunks_exact_mut(3).zip(taps.iter()) {
        let mut sum = [HALF; 3];
        for (p, k) in row[(start - first) * 3..].chunks_exact(3).zip(coefficients) {
            sum[0] += i32::from(p[0]) * k;
            sum[1] += i32::from(p[1]) * k;
            sum[2] += i32::from(p[2]) * k;
        }
        pixel.copy_from_slice(&sum.map(clip));
    }
}

/// One source row's share of a row through the vertical filter.
fn accumulate(sums: &mut [i32], row: &[u8], k: i32) {
    for (sum, p) in sums.iter_mut().zip(row) {
        *sum += i32::from(*p) * k;
    }
}

fn finish(sums: &[i32], row: &mut [u8]) {
    for (byte, sum) in row.iter_mut().zip(sums) {
        *byte = clip(*sum);
    }
}

/// A picture lying on a larger canvas of one colour, row by row, without building it.
struct Canvas<'a> {
    image: &'a RgbImage8,
    size: Size,
    left: usize,
    top: usize,
    blank: Vec<u8>,
}

impl<'a> Canvas<'a> {
    fn new(image: &'a RgbImage8, stage: &Stage) -> Result<Self> {
        let (left, top) = (-stage.canvas.x, -stage.canvas.y);
        let size = stage.canvas.size();
        let inside = left >= 0
            && top >= 0
            && left as usize + image.width() <= size.width
            && top as usize + image.height() <= size.height;
        if !inside {
            return Err(Error::internal("the canvas does not hold the picture"));
        }
        let blank = stage.background.repeat(size.width);
        Ok(Self {
            image,
            size,
            left: left as usize,
            top: top as usize,
            blank,
        })
    }

    /// Whether the row shows nothing of the picture.
    fn is_blank(&self, y: usize) -> bool {
        y < self.top || y >= self.top + self.image.height()
    }

    fn row<'b>(&'b self, y: usize, scratch: &'b mut Vec<u8>) -> &'b [u8] {
        if self.is_blank(y) {
            return &self.blank;
        }
        let row = self.image.row(y - self.top);
        if self.size.width == self.image.width() {
            return row;
        }
        scratch.clear();
        scratch.extend_from_slice(&self.blank);
        scratch[self.left * 3..][..row.len()].copy_from_slice(row);
        scratch
    }
}

/// Source positions by Pillow's nearest rule: positions are accumulated, not multiplied.
fn nearest(input: usize, output: usize, first: usize, count: usize) -> Vec<Option<usize>> {
    let step = input as f64 / output as f64;
    let mut position = step * 0.5;
    let mut found = Vec::with_capacity(count);
    for i in 0..first + count {
        if i >= first {
            found.push(Some(position as usize).filter(|p| *p < input));
        }
        position += step;
    }
    found
}

/// The window (inside the resampled canvas) as bytes.
fn resample(canvas: &Canvas<'_>, output: Size, window: Rect, filter: Filter) -> Vec<u8> {
    let (x, y) = (window.x as usize, window.y as usize);
    let stride = window.width * 3;
    let mut scratch = Vec::new();
    if canvas.size == output {
        let mut out = Vec::with_capacity(stride * window.height);
        for row in y..y + window.height {
            out.extend_from_slice(&canvas.row(row, &mut scratch)[x * 3..][..stride]);
        }
        return out;
    }
    if filter == Filter::Nearest {
        let columns = nearest(canvas.size.width, output.width, x, window.width);
        let rows = nearest(canvas.size.height, output.height, y, window.height);
        let mut out = vec![0; stride * window.height];
        for (out_row, row) in out.chunks_exact_mut(stride).zip(&rows) {
            let Some(row) = row else { continue };
            let source = canvas.row(*row, &mut scratch);
            for (pixel, column) in out_row.chunks_exact_mut(3).zip(&columns) {
                if let Some(column) = column {
                    pixel.copy_from_slice(&source[column * 3..][..3]);
                }
            }
        }
        return out;
    }
    let down = (canvas.size.height != output.height)
        .then(|| Taps::new(canvas.size.height, output.height, y, window.height, filter));
    let across = (canvas.size.width != output.width)
        .then(|| Taps::new(canvas.size.width, output.width, x, window.width, filter));
    match (across, down) {
        (Some(across), Some(down)) if vertical_first(canvas.size, output) => {
            columns_then_rows(canvas, &across, &down)
        }
        (across, down) => rows_then_columns(canvas, window, across.as_ref(), down.as_ref()),
    }
}

/// Which pass Pillow runs first. Both round to bytes in between, so the order shows in the
/// result. Since version 13 it depends on which side shrinks by more pixels; before, rows came
/// first always.
fn vertical_first(input: Size, output: Size) -> bool {
    let shrinks = |from: usize, to: usize| from as i64 - to as i64;
    let down = shrinks(input.height, output.height);
    down > 0 && down > 2 * shrinks(input.width, output.width)
}

fn rows_then_columns(
    canvas: &Canvas<'_>,
    window: Rect,
    across: Option<&Taps>,
    down: Option<&Taps>,
) -> Vec<u8> {
    let (x, y) = (window.x as usize, window.y as usize);
    let stride = window.width * 3;
    let rows = down.map_or(y..y + window.height, Taps::range);
    let first = rows.start;
    let mut scratch = Vec::new();
    let mut narrow = vec![0; rows.len() * stride];
    // Every row of bare canvas comes out alike: filter it once.
    let mut blank: Option<Vec<u8>> = None;
    for (y, out) in rows.zip(narrow.chunks_exact_mut(stride)) {
        if canvas.is_blank(y)
            && let Some(blank) = &blank
        {
            out.copy_from_slice(blank);
            continue;
        }
        let row = canvas.row(y, &mut scratch);
        match across {
            Some(taps) => horizontal(row, 0, taps, out),
            None => out.copy_from_slice(&row[x * 3..][..stride]),
        }
        if canvas.is_blank(y) {
            blank = Some(out.to_vec());
        }
    }
    let Some(down) = down else { return narrow };
    let mut out = vec![0; stride * window.height];
    let mut sums = vec![0; stride];
    for (out_row, (start, coefficients)) in out.chunks_exact_mut(stride).zip(down.iter()) {
        sums.fill(HALF);
        let rows = narrow[(start - first) * stride..].chunks_exact(stride);
        for (row, k) in rows.zip(coefficients) {
            accumulate(&mut sums, row, *k);
        }
        finish(&sums, out_row);
    }
    out
}

fn columns_then_rows(canvas: &Canvas<'_>, across: &Taps, down: &Taps) -> Vec<u8> {
    let columns = across.range();
    let (first, end) = (columns.start * 3, columns.end * 3);
    let mut scratch = Vec::new();
    let mut sums = vec![0; end - first];
    let mut row = vec![0; end - first];
    let stride = across.spans.len() * 3;
    let mut out = vec![0; stride * down.spans.len()];
    for (out_row, (start, coefficients)) in out.chunks_exact_mut(stride).zip(down.iter()) {
        sums.fill(HALF);
        for (y, k) in (start..).zip(coefficients) {
            accumulate(&mut sums, &canvas.row(y, &mut scratch)[first..end], *k);
        }
        finish(&sums, &mut row);
        horizontal(&row, columns.start, across, out_row);
    }
    out
}

/// Executes one stage of a plan: canvas, resampling, window.
///
/// # Errors
/// [`Error::InvalidInput`] when the result would have too many pixels or none;
/// [`Error::Internal`] when the canvas does not hold the picture.
pub fn render(image: &RgbImage8, stage: &Stage, filter: Filter) -> Result<RgbImage8> {
    let window = stage.window;
    if window.size().pixels() > MAX_OUTPUT_PIXELS {
        return Err(Error::invalid(format!(
            "the image would be resized to {}x{}, the limit is {MAX_OUTPUT_PIXELS} pixels: \
             send one that is less narrow",
            window.width, window.height
        )));
    }
    if window.size().pixels() == 0 || stage.resized.pixels() == 0 {
        return Err(Error::invalid(
            "the image is too narrow: resizing leaves no pixel of it",
        ));
    }
    let canvas = Canvas::new(image, stage)?;
    let Some(visible) = window.intersect(stage.resized.rect()) else {
        return RgbImage8::filled(window.size(), [0; 3]);
    };
    let bytes = resample(&canvas, stage.resized, visible, filter);
    if visible == window {
        return RgbImage8::new(window.width, window.height, bytes);
    }
    let mut out = vec![0; window.size().pixels() * 3];
    let (left, top) = (
        (visible.x - window.x) as usize,
        (visible.y - window.y) as usize,
    );
    let stride = visible.width * 3;
    for (row, from) in bytes.chunks_exact(stride).enumerate() {
        let at = ((top + row) * window.width + left) * 3;
        out[at..at + stride].copy_from_slice(from);
    }
    RgbImage8::new(window.width, window.height, out)
}

/// Resizes as `PIL.Image.resize` does, bit for bit.
///
/// # Errors
/// As [`render`].
pub fn resize(image: &RgbImage8, width: usize, height: usize, filter: Filter) -> Result<RgbImage8> {
    render(
        image,
        &Stage::resize(image.size(), Size::new(width, height)),
        filter,
    )
}

/// Cuts the middle out as the reference's `center_crop` does: what lies outside is black.
///
/// # Errors
/// As [`render`].
pub fn center_crop(image: &RgbImage8, width: usize, height: usize) -> Result<RgbImage8> {
    let stage = Stage::resize(image.size(), image.size()).crop(Size::new(width, height));
    render(image, &stage, Filter::Nearest)
}

/// Pads to `size` with one colour, the picture's corner at `(left, top)`.
///
/// # Errors
/// As [`render`]; the size must hold the picture there.
pub fn pad(
    image: &RgbImage8,
    size: Size,
    left: usize,
    top: usize,
    background: [u8; 3],
) -> Result<RgbImage8> {
    let (x, y) = (-(left as i64), -(top as i64));
    let canvas = Rect {
        x,
        y,
        width: size.width,
        height: size.height,
    };
    let stage = Stage {
        canvas,
        background,
        resized: size,
        window: size.rect(),
    };
    render(image, &stage, Filter::Nearest)
}

/// Pads to a square with one colour, the picture in the middle.
///
/// # Errors
/// As [`render`].
pub fn pad_to_square(image: &RgbImage8, background: [u8; 3]) -> Result<RgbImage8> {
    render(
        image,
        &Stage::square(image.size(), background),
        Filter::Nearest,
    )
}
