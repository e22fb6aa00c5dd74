//! The parts of a picture's section: the original, the resized picture, the views.

use super::Item;
use super::canvas::{Canvas, Color, GREY, INK, LETTER, LIGHT, LINE, Spot, WHITE, width_of, wrap};
use super::geometry::{Area, seen, seen_by_all, unseen};
use super::words::{percent, size};
use kiln_image::{Plan, Rect, RgbImage8, Size, Stage, render};

/// The sheet's width inside its margins.
pub(super) const WIDTH: i64 = 1088;
/// Two panels side by side.
const COLUMN: i64 = 528;
const RIGHT: i64 = WIDTH - COLUMN;
/// The most that a picture takes of a panel.
const MOST_HEIGHT: i64 = 480;
/// A picture smaller than this is enlarged.
const SMALL: f64 = 448.0;
/// Frames lie outside of what they frame: room for them.
const EDGE: i64 = 4;

/// Pixels of a resized picture that are worth making just to show them.
const MOST_RESIZED: usize = 16 << 20;
/// Views that are worth drawing.
const MOST_VIEWS: usize = 1024;
/// The most that all views take together, and one that is enlarged, and one that is not.
const MOST_VIEWS_HEIGHT: i64 = 800;
const MOST_ENLARGED: i64 = 340;
const MOST_SIDE: i64 = 672;

/// Where a view was drawn: `enlarged` dots for each of its pixels, or one for `shrunk` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) item: usize,
    pub(super) view: usize,
    pub(super) spot: Spot,
    pub(super) enlarged: i64,
    pub(super) shrunk: i64,
}

/// A part of the sheet, with the views on it.
pub(super) struct Block {
    pub(super) canvas: Canvas,
    pub(super) views: Vec<Placed>,
}

impl Block {
    fn plain(canvas: Canvas) -> Self {
        Self {
            canvas,
            views: vec![],
        }
    }
}

/// From a picture's coordinates to a spot on the sheet.
struct Frame {
    extent: Area,
    spot: Spot,
}

impl Frame {
    fn new(extent: Area, x: i64, y: i64) -> Self {
        let (width, height) = (extent.width().max(1.0), extent.height().max(1.0));
        let room = (COLUMN - 2 * EDGE) as f64;
        let mut scale = (room / width).min(MOST_HEIGHT as f64 / height);
        if scale > 1.0 {
            scale = scale.min((SMALL / width.max(height)).max(1.0)).floor();
        }
        // A line of a picture stays visible.
        let side = |n: f64| ((n * scale).round() as i64).max(4);
        Self {
            extent,
            spot: Spot::new(x + EDGE, y + EDGE, side(width), side(height)),
        }
    }

    fn spot(&self, area: Area) -> Spot {
        let x = |v: f64| {
            let at = (v - self.extent.left) / self.extent.width().max(1e-9);
            self.spot.x + (at * self.spot.width as f64).round() as i64
        };
        let y = |v: f64| {
            let at = (v - self.extent.top) / self.extent.height().max(1e-9);
            self.spot.y + (at * self.spot.height as f64).round() as i64
        };
        let (left, top) = (x(area.left), y(area.top));
        Spot::new(
            left,
            top,
            (x(area.right) - left).max(1),
            (y(area.bottom) - top).max(1),
        )
    }
}

/// Marks windows on a panel: a frame each, numbered when there are several.
fn mark(canvas: &mut Canvas, spots: &[Spot], color: Color) {
    for spot in spots {
        canvas.frame(*spot, 2, color);
    }
    if spots.len() < 2 {
        return;
    }
    for (number, spot) in (1..).zip(spots) {
        let label = number.to_string();
        if spot.width >= width_of(&label) + 8 && spot.height >= LETTER + 8 {
            canvas.label(spot.x, spot.y, &label, color);
        }
    }
}

fn heading(canvas: &mut Canvas, x: i64, y: i64, lines: &[String]) -> i64 {
    let letters = (COLUMN / LETTER) as usize;
    let mut y = y;
    for (index, line) in lines.iter().enumerate() {
        for line in wrap(line, letters) {
            canvas.text(x, y, &line, if index == 0 { INK } else { GREY });
            y += LINE;
        }
    }
    y
}

fn heading_height(lines: &[String]) -> i64 {
    let letters = (COLUMN / LETTER) as usize;
    lines
        .iter()
        .map(|l| wrap(l, letters).len() as i64 * LINE)
        .sum()
}

/// The original with what the model does not see dimmed and its windows marked; beside it the
/// resized picture.
pub(super) fn pictures(item: &Item, color: Color) -> Block {
    let picture: Area = item.picture.size().rect().into();
    let plan = item.explained.as_ref().map(|(plan, _)| plan);
    let mut left = vec![format!("original {}", size(item.picture.size()))];
    let extent = match plan {
        None => picture,
        Some(plan) => {
            let (_, lost) = unseen(plan);
            left.push(match lost {
                l if l < 1e-9 => "all of it is seen".to_owned(),
                l => format!("{} of it is not seen", percent(l)),
            });
            let canvases = plan.views.iter().map(|view| view.stage.canvas.into());
            canvases
                .chain([seen_by_all(plan)])
                .fold(picture, Area::union)
        }
    };
    let resized = plan.and_then(|plan| resized(item, plan));
    let right = resized.as_ref().map_or(vec![], |r| r.heading.clone());
    let top = heading_height(&left).max(heading_height(&right)) + 2;

    let original = Frame::new(extent, 0, top);
    let beside = resized.as_ref().map(|r| Frame::new(r.extent, RIGHT, top));
    let bottom = beside.as_ref().map_or(0, |f| f.spot.bottom());
    let height = original.spot.bottom().max(bottom) + EDGE;
    let mut canvas = Canvas::new(WIDTH, height);

    heading(&mut canvas, 0, 0, &left);
    if original.spot(picture) != original.spot {
        let padding = plan
            .and_then(|p| p.views.last())
            .map_or(WHITE, |v| v.stage.background);
        canvas.fill(original.spot, padding);
        canvas.hatch(original.spot, LIGHT);
        canvas.frame(original.spot, 1, GREY);
    }
    canvas.picture(original.spot(picture), &item.picture);
    canvas.frame(original.spot(picture), 1, GREY);
    if let Some(plan) = plan {
        dim(&mut canvas, &original, plan);
        let spots: Vec<_> = windows(plan).map(|area| original.spot(area)).collect();
        mark(&mut canvas, &spots, color);
    }

    if let (Some(resized), Some(frame)) = (resized, beside) {
        heading(&mut canvas, RIGHT, 0, &resized.heading);
        match &resized.picture {
            Some(picture) => canvas.picture(frame.spot, picture),
            None => canvas.hatch(frame.spot, LIGHT),
        }
        canvas.frame(frame.spot, 1, GREY);
        let spots: Vec<_> = resized
            .windows
            .iter()
            .map(|window| frame.spot((*window).into()))
            .collect();
        mark(&mut canvas, &spots, color);
    }
    Block::plain(canvas)
}

/// What each view but the whole picture's shows; of a single view, what that one shows.
fn windows(plan: &Plan) -> impl Iterator<Item = Area> + '_ {
    let whole = usize::from(plan.views.len() > 1);
    plan.views.iter().skip(whole).map(seen)
}

/// Pales the part of the picture that no view shows.
fn dim(canvas: &mut Canvas, frame: &Frame, plan: &Plan) {
    if unseen(plan).1 < 1e-9 {
        return;
    }
    let picture = frame.spot(plan.picture.rect().into());
    let seen = frame.spot(seen_by_all(plan).intersect(plan.picture.rect().into()));
    let (top, bottom) = (seen.y.max(picture.y), seen.bottom().min(picture.bottom()));
    for strip in [
        Spot::new(picture.x, picture.y, picture.width, top - picture.y),
        Spot::new(picture.x, bottom, picture.width, picture.bottom() - bottom),
        Spot::new(picture.x, top, seen.x - picture.x, bottom - top),
        Spot::new(
            seen.right(),
            top,
            picture.right() - seen.right(),
            bottom - top,
        ),
    ] {
        canvas.blend(strip, WHITE, 178);
    }
}

/// The picture between resizing and cutting, in its own coordinates.
struct Resized {
    heading: Vec<String>,
    extent: Area,
    windows: Vec<Rect>,
    /// `None` when it is too large to make.
    picture: Option<RgbImage8>,
}

fn resized(item: &Item, plan: &Plan) -> Option<Resized> {
    let (_, config) = item.explained.as_ref()?;
    let view = plan.views.first()?;
    let filter = config.resample;
    let (stage, windows, caption) = match (plan.resolution, plan.fitted) {
        (Some(resolution), Some(fitted)) => {
            let window = Rect {
                x: -fitted.x,
                y: -fitted.y,
                ..resolution.rect()
            };
            let stage = Stage {
                window,
                ..Stage::resize(plan.picture, fitted.size())
            };
            let caption = format!("fitted into {}", size(resolution));
            let mut windows = plan.tiles.clone();
            for tile in &mut windows {
                tile.x += window.x;
                tile.y += window.y;
            }
            (stage, windows, caption)
        }
        _ => {
            let stage = Stage {
                window: view.stage.resized.rect(),
                ..view.stage
            };
            let caption = if view.stage.window == stage.window {
                "not cropped".to_owned()
            } else {
                format!("cropped to {}", size(view.stage.window.size()))
            };
            (stage, vec![view.stage.window], caption)
        }
    };
    let mut heading = vec![
        format!("resized {} {}", size(stage.resized), filter.name()),
        caption,
    ];
    let picture = (stage.window.size().pixels() <= MOST_RESIZED)
        .then(|| render(&item.picture, &stage, filter).ok())
        .flatten();
    if picture.is_none() {
        heading.push("(too large to draw)".to_owned());
    }
    Some(Resized {
        heading,
        extent: stage.window.into(),
        windows,
        picture,
    })
}

/// The views as the tower gets them, with their patches: the whole picture, then tiles where they
/// belong.
pub(super) fn views(item: &Item, index: usize) -> Option<Block> {
    let count = item.views.pictures.len().min(MOST_VIEWS);
    let side = item.views.size();
    if side.pixels() == 0 {
        return None;
    }
    let columns = item
        .explained
        .as_ref()
        .and_then(|(plan, _)| plan.resolution)
        .map(|resolution| resolution.width.div_ceil(side.width) as i64);
    let fit = Fit::new(side, count as i64, columns);
    let mut heading = format!("the tower gets {}", item.views_words());
    let letters = (WIDTH / LETTER) as usize;
    match (fit.enlarged, fit.shrunk) {
        (1, 1) => {}
        (n, 1) => heading.push_str(&format!(" (shown {n}x)")),
        (_, n) => heading.push_str(&format!(" (shown 1/{n})")),
    }
    let mut lines: Vec<_> = wrap(&heading, letters)
        .into_iter()
        .map(|line| (line, INK))
        .collect();
    let tokens = wrap(&item.tokens_words(), letters);
    lines.extend(tokens.into_iter().map(|line| (line, GREY)));
    let top = lines.len() as i64 * LINE + 2;
    let mut canvas = Canvas::new(WIDTH, top + fit.height());
    for ((line, color), y) in lines.iter().zip((0i64..).step_by(LINE as usize)) {
        canvas.text(0, y, line, *color);
    }
    let mut placed = Vec::with_capacity(count);
    for (at, picture) in item.views.pictures.iter().take(count).enumerate() {
        let (x, y) = fit.corner(at as i64);
        let spot = Spot::new(x, top + y + fit.caption, fit.width, fit.tall);
        if fit.caption > 0 {
            let name = match at {
                0 if count > 1 && columns.is_some() => "whole".to_owned(),
                _ if columns.is_some() => at.to_string(),
                _ => (at + 1).to_string(),
            };
            if count > 1 && width_of(&name) <= fit.width {
                canvas.text(x, top + y, &name, GREY);
            }
        }
        canvas.picture(spot, picture);
        canvas.frame(spot, 1, GREY);
        if let Some(patch) = item.views.patch {
            patches(&mut canvas, spot, side, patch, &fit);
        }
        placed.push(Placed {
            item: index,
            view: at,
            spot,
            enlarged: fit.enlarged,
            shrunk: fit.shrunk,
        });
    }
    Some(Block {
        canvas,
        views: placed,
    })
}

/// Thin lines between patches, unless they would hide the picture.
fn patches(canvas: &mut Canvas, spot: Spot, side: Size, patch: usize, fit: &Fit) {
    let step = patch as i64 * fit.enlarged;
    if fit.shrunk > 1 || step < 8 {
        return;
    }
    let lines = |side: usize| (1..side.div_ceil(patch) as i64).map(move |i| i * step);
    for x in lines(side.width) {
        canvas.line(Spot::new(spot.x + x, spot.y, 1, spot.height));
    }
    for y in lines(side.height) {
        canvas.line(Spot::new(spot.x, spot.y + y, spot.width, 1));
    }
}

/// The scale at which all views fit on the sheet, and where each goes.
struct Fit {
    enlarged: i64,
    shrunk: i64,
    width: i64,
    tall: i64,
    /// Height of the line above a view.
    caption: i64,
    gap: i64,
    columns: i64,
    rows: i64,
    /// Whether the first view stands alone at the left, before the grid.
    whole: bool,
}

impl Fit {
    fn new(side: Size, count: i64, columns: Option<i64>) -> Self {
        let enlarge = (1..=64).rev().map(|n| (n, 1));
        let shrink = (2..=side.width.max(side.height).max(2) as i64).map(|n| (1, n));
        let mut last = None;
        for (enlarged, shrunk) in enlarge.chain(shrink) {
            let fit = Self::at(enlarged, shrunk, side, count, columns);
            let longest = fit.width.max(fit.tall);
            let most = if enlarged > 1 {
                MOST_ENLARGED
            } else {
                MOST_SIDE
            };
            let fits = fit.block_width() <= WIDTH && fit.height() <= MOST_VIEWS_HEIGHT;
            if fits && longest <= most {
                return fit;
            }
            last = Some(fit);
        }
        last.unwrap_or_else(|| Self::at(1, 1, side, count, columns))
    }

    fn at(enlarged: i64, shrunk: i64, side: Size, count: i64, columns: Option<i64>) -> Self {
        let shown = |n: usize| (n as i64 * enlarged / shrunk).max(1);
        let (width, tall) = (shown(side.width), shown(side.height));
        let gap = if width >= 48 { 12 } else { 4 };
        let caption = if width >= 3 * LETTER && count > 1 {
            LINE
        } else {
            2
        };
        let whole = columns.is_some() && count > 1;
        let rest = if whole { count - 1 } else { count };
        let columns = columns
            .unwrap_or((WIDTH - 4) / (width + gap))
            .clamp(1, rest.max(1));
        Self {
            enlarged,
            shrunk,
            width,
            tall,
            caption,
            gap,
            columns,
            rows: (rest + columns - 1) / columns,
            whole,
        }
    }

    /// Pixels between the whole picture and the grid.
    fn indent(&self) -> i64 {
        if self.whole {
            self.width + 4 * self.gap
        } else {
            0
        }
    }

    fn block_width(&self) -> i64 {
        self.indent() + self.columns * (self.width + self.gap)
    }

    fn height(&self) -> i64 {
        self.rows * (self.caption + self.tall + self.gap)
    }

    fn corner(&self, view: i64) -> (i64, i64) {
        if self.whole && view == 0 {
            return (2, 0);
        }
        let at = view - i64::from(self.whole);
        let (column, row) = (at % self.columns, at / self.columns);
        (
            2 + self.indent() + column * (self.width + self.gap),
            row * (self.caption + self.tall + self.gap),
        )
    }
}
