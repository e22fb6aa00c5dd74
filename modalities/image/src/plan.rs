//! What becomes of a picture, decided from the configuration and the picture's size alone.
//!
//! The mappers execute a [`Plan`] and decide nothing themselves, so what a tool prints of it is
//! what the model sees.

use crate::anyres;
use crate::config::{ImageProcessorConfig, ProcessorKind, SizeSpec, nonzero};
use crate::pixels::{Rect, Size};
use kiln_registry::{Error, Result};

/// One step: lay the picture on a canvas, resample the canvas, look through a window.
///
/// Padding to a square is a canvas larger than the picture; cropping a window smaller than the
/// resampled canvas; padding a tile a window that exceeds it (what is outside is black).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// The canvas in the picture's coordinates; its corner is at or before the origin.
    pub canvas: Rect,
    /// The canvas's colour where the picture does not cover it.
    pub background: [u8; 3],
    /// The canvas's size after resampling.
    pub resized: Size,
    /// What is kept of that, in resampled coordinates.
    pub window: Rect,
}

impl Stage {
    /// Only resampling.
    pub fn resize(picture: Size, resized: Size) -> Self {
        Self {
            canvas: picture.rect(),
            background: [0; 3],
            resized,
            window: resized.rect(),
        }
    }

    /// Only padding to a square, the picture in the middle.
    pub fn square(picture: Size, background: [u8; 3]) -> Self {
        let side = picture.width.max(picture.height);
        let canvas = Rect {
            x: -(((side - picture.width) / 2) as i64),
            y: -(((side - picture.height) / 2) as i64),
            width: side,
            height: side,
        };
        let size = Size::new(side, side);
        Self {
            canvas,
            background,
            resized: size,
            window: size.rect(),
        }
    }

    /// The same with the middle of the window cut out, as the reference's `center_crop`.
    #[must_use]
    pub fn crop(mut self, size: Size) -> Self {
        let (x, width) = crop_axis(self.window.width, size.width);
        let (y, height) = crop_axis(self.window.height, size.height);
        self.window = Rect {
            x: self.window.x + x,
            y: self.window.y + y,
            width,
            height,
        };
        self
    }

    /// Whether the step leaves a picture of this size as it is.
    pub fn is_identity(&self, picture: Size) -> bool {
        let whole = picture.rect();
        self.canvas == whole && self.resized == picture && self.window == whole
    }
}

/// Where a crop of `want` pixels begins on an axis of `have`. Python's `//` rounds down, the
/// padding's half rounds up: both come out as `floor((have - want) / 2)`.
fn crop_axis(have: usize, want: usize) -> (i64, usize) {
    ((have as i64 - want as i64).div_euclid(2), want)
}

/// One picture that the tower sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// How it is made from the original picture.
    pub stage: Stage,
    /// How it is resampled or cropped once more (LLaVA-NeXT runs every tile through the whole
    /// processor; nothing happens when the tile has the processor's size already).
    pub again: Option<Stage>,
}

impl View {
    /// Its size in the end.
    pub fn size(&self) -> Size {
        self.again.as_ref().unwrap_or(&self.stage).window.size()
    }
}

/// All that becomes of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The picture's own size.
    pub picture: Size,
    /// What the tower sees, in the order of `pixel_values`. LLaVA-NeXT: first the whole picture,
    /// then its tiles row by row.
    pub views: Vec<View>,
    /// LLaVA-NeXT: the resolution that the picture was fitted into.
    pub resolution: Option<Size>,
    /// LLaVA-NeXT: where the fitted picture lies in that resolution.
    pub fitted: Option<Rect>,
    /// LLaVA-NeXT: the tiles in that resolution.
    pub tiles: Vec<Rect>,
    /// Zeros appended after normalising, right and below, up to this size.
    pub padded: Option<Size>,
}

impl Plan {
    /// The size of every view, padding included.
    pub fn view_size(&self) -> Size {
        let size = self.views.first().map_or(Size::new(0, 0), View::size);
        self.padded.unwrap_or(size)
    }

    /// Whether views are tiles, so that `pixel_values` has an axis for them.
    pub fn is_tiled(&self) -> bool {
        self.resolution.is_some()
    }
}

/// Decides what becomes of a picture of `width` by `height`.
///
/// # Errors
/// [`Error::InvalidInput`] for a picture too narrow to resize; [`Error::Checkpoint`] for a
/// configuration that can't be followed.
pub fn plan(config: &ImageProcessorConfig, width: usize, height: usize) -> Result<Plan> {
    let picture = Size::new(width, height);
    if picture.pixels() == 0 {
        return Err(Error::invalid("the image has no pixels"));
    }
    if config.kind == ProcessorKind::LlavaNext {
        return plan_anyres(config, picture);
    }
    let mut stage = Stage::resize(picture, picture);
    if config.kind == ProcessorKind::Llava && config.do_pad {
        stage = Stage::square(picture, background(config));
    }
    stage = resize_and_crop(config, stage)?;
    let size = stage.window.size();
    let padded = match config.pad_size.and_then(|s| s.as_exact()) {
        Some(to) if config.do_pad && config.kind != ProcessorKind::Llava && to != size => {
            if to.width < size.width || to.height < size.height {
                return Err(Error::invalid(format!(
                    "the image is resized to {}x{}, `pad_size` holds {}x{}",
                    size.width, size.height, to.width, to.height
                )));
            }
            Some(to)
        }
        _ => None,
    };
    Ok(Plan {
        picture,
        views: vec![View { stage, again: None }],
        resolution: None,
        fitted: None,
        tiles: vec![],
        padded,
    })
}

/// `int(mean * 255)` of each channel.
fn background(config: &ImageProcessorConfig) -> [u8; 3] {
    config.image_mean.map(|m| (m * 255.0) as u8)
}

fn plan_anyres(config: &ImageProcessorConfig, picture: Size) -> Result<Plan> {
    let fault = |message: &str| Error::checkpoint("preprocessor_config.json", message);
    let crop = config.crop_size.and_then(|s| nonzero(s.height));
    let side = crop
        .or(nonzero(config.size.height))
        .or(nonzero(config.size.shortest_edge))
        .ok_or_else(|| fault("`size` needs height and width, or shortest_edge"))?;
    let base = config
        .size
        .as_exact()
        .or(nonzero(config.size.shortest_edge).map(|s| Size::new(s, s)))
        .ok_or_else(|| fault("`size` needs height and width, or shortest_edge"))?;
    let best = anyres::select_best_resolution(picture, &config.image_grid_pinpoints)
        .ok_or_else(|| fault("`image_grid_pinpoints` is empty"))?;
    let fitted = anyres::patch_output_size(picture, best);
    let (left, top) = anyres::padding(fitted, best);
    let tiles = anyres::tiles(best, side);

    let mut stages = vec![Stage::resize(picture, base)];
    for tile in &tiles {
        let (x, y) = (tile.x - left as i64, tile.y - top as i64);
        let window = Rect { x, y, ..*tile };
        stages.push(Stage {
            window,
            ..Stage::resize(picture, fitted)
        });
    }
    let mut views = Vec::with_capacity(stages.len());
    for stage in stages {
        let size = stage.window.size();
        let again = resize_and_crop(config, Stage::resize(size, size))?;
        views.push(View {
            stage,
            again: (!again.is_identity(size)).then_some(again),
        });
    }
    let first = views[0].size();
    if views.iter().any(|v| v.size() != first) {
        return Err(fault(
            "the tiles come out in several sizes: turn `do_center_crop` on",
        ));
    }
    let fitted = Rect {
        x: left as i64,
        y: top as i64,
        width: fitted.width,
        height: fitted.height,
    };
    Ok(Plan {
        picture,
        views,
        resolution: Some(best),
        fitted: Some(fitted),
        tiles,
        padded: None,
    })
}

fn resize_and_crop(config: &ImageProcessorConfig, mut stage: Stage) -> Result<Stage> {
    if config.do_resize {
        stage.resized = output_size(stage.canvas.size(), &config.size)?;
        stage.window = stage.resized.rect();
    }
    if config.do_center_crop {
        let size = config.crop_size.and_then(|s| s.as_exact()).ok_or_else(|| {
            Error::checkpoint(
                "preprocessor_config.json",
                "`crop_size` needs height and width",
            )
        })?;
        stage = stage.crop(size);
    }
    Ok(stage)
}

/// The size after resizing, with the reference's rounding (`PilBackend.resize`).
fn output_size(picture: Size, spec: &SizeSpec) -> Result<Size> {
    let (w, h) = (picture.width as f64, picture.height as f64);
    let size = match *spec {
        SizeSpec {
            shortest_edge: Some(short @ 1..),
            longest_edge: Some(long @ 1..),
            ..
        } => shortest_and_longest(picture, short, long),
        SizeSpec {
            shortest_edge: Some(short @ 1..),
            ..
        } => {
            if picture.width <= picture.height {
                Size::new(short, (short as f64 * h / w) as usize)
            } else {
                Size::new((short as f64 * w / h) as usize, short)
            }
        }
        SizeSpec {
            max_height: Some(max_h @ 1..),
            max_width: Some(max_w @ 1..),
            ..
        } => {
            let scale = (max_h as f64 / h).min(max_w as f64 / w);
            Size::new((w * scale) as usize, (h * scale) as usize)
        }
        SizeSpec {
            height: Some(height @ 1..),
            width: Some(width @ 1..),
            ..
        } => Size::new(width, height),
        _ => {
            return Err(Error::checkpoint(
                "preprocessor_config.json",
                "`size` needs height and width, shortest_edge, or max_height and max_width",
            ));
        }
    };
    if size.pixels() == 0 {
        return Err(Error::invalid(
            "the image is too narrow: resizing leaves no pixel of it",
        ));
    }
    Ok(size)
}

/// `get_size_with_aspect_ratio`: the short side's length, less where the long side is capped.
fn shortest_and_longest(picture: Size, short: usize, long: usize) -> Size {
    let (w, h) = (picture.width as f64, picture.height as f64);
    let (min, max) = (w.min(h), w.max(h));
    let (mut side, mut exact) = (short, short as f64);
    if max / min * short as f64 > long as f64 {
        exact = long as f64 * min / max;
        // Python rounds halves to even.
        side = exact.round_ties_even() as usize;
    }
    if picture.width.min(picture.height) == side {
        picture
    } else if w < h {
        Size::new(side, (exact * h / w) as usize)
    } else {
        Size::new((exact * w / h) as usize, side)
    }
}
