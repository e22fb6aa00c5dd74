//! The sheet: a section for each picture, then the prompt.

use super::canvas::{Canvas, Color, GREY, INK, LETTER, LIGHT, LINE, Spot, WHITE, width_of, wrap};
use super::panels::{Block, Placed, WIDTH, pictures, views};
use super::prompt::shorten;
use super::tokens::Layout;
use super::words::range_words;
use super::{Inspection, Item};
use image::RgbImage;
use std::path::Path;

const MARGIN: i64 = 24;
const GAP: i64 = 20;
const BAR: i64 = 40;
const MOST_PROMPT_LINES: usize = 6;

/// One colour an item, told apart by more than their hue.
const COLORS: [Color; 6] = [
    [0x1f, 0x6f, 0xd6],
    [0xd0, 0x5a, 0x0e],
    [0x1a, 0x87, 0x4c],
    [0x88, 0x4a, 0xc2],
    [0xc0, 0x2b, 0x55],
    [0x0f, 0x80, 0x8c],
];

impl Inspection {
    /// All that the words say, drawn.
    pub(crate) fn sheet(&self) -> RgbImage {
        self.draw().0
    }

    /// The sheet, and where on it each view is.
    pub(super) fn draw(&self) -> (RgbImage, Vec<Placed>) {
        let mut blocks = Vec::new();
        for (index, item) in self.items.iter().enumerate() {
            let color = COLORS[index % COLORS.len()];
            blocks.push(title(item, color));
            blocks.push(pictures(item, color));
            blocks.extend(views(item, index));
        }
        blocks.push(self.bar());
        let height: i64 = blocks.iter().map(|b| b.canvas.height() + GAP).sum();
        let mut sheet = Canvas::new(WIDTH + 2 * MARGIN, height - GAP + 2 * MARGIN);
        let mut placed = Vec::new();
        let mut y = MARGIN;
        for block in blocks {
            sheet.paste(MARGIN, y, &block.canvas);
            placed.extend(block.views.into_iter().map(|mut view| {
                view.spot.x += MARGIN;
                view.spot.y += y;
                view
            }));
            y += block.canvas.height() + GAP;
        }
        (sheet.into_image(), placed)
    }

    /// The prompt's positions from left to right, what they hold, and how much of the context that
    /// is.
    fn bar(&self) -> Block {
        let prompt = &self.prompt;
        let letters = (WIDTH / LETTER) as usize;
        let mut text = wrap(&prompt.text(), letters);
        if text.len() > MOST_PROMPT_LINES {
            text.truncate(MOST_PROMPT_LINES);
            if let Some(last) = text.last_mut() {
                *last = format!("{} ...", shorten(last, letters - 4));
            }
        }
        let rows = 2 + self.items.len() as i64 + text.len() as i64;
        let mut canvas = Canvas::new(WIDTH, rows * LINE + BAR + 36);
        let mut y = 4;
        canvas.fill(Spot::new(0, 0, WIDTH, 2), LIGHT);
        y += GAP / 2;
        canvas.text(0, y, &format!("prompt: {} tokens", prompt.length), INK);
        y += LINE + 4;
        self.cells(&mut canvas, y);
        y += BAR + 8;
        for (index, item) in self.items.iter().enumerate() {
            let color = COLORS[index % COLORS.len()];
            canvas.fill(Spot::new(0, y, LETTER, LETTER), color);
            let line = format!(
                "{} tokens, positions {}, {}",
                item.range.length,
                range_words(&item.range.range()),
                short_name(&item.name)
            );
            canvas.text(2 * LETTER, y, &shorten(&line, letters - 2), INK);
            y += LINE;
        }
        let share = format!(
            "{:.1}% of the context of {}",
            prompt.share(),
            prompt.context
        );
        let bar = Spot::new(0, y + 2, WIDTH - width_of(&share) - LETTER, 12);
        canvas.fill(bar, LIGHT);
        let used = (bar.width as f64 * prompt.share() / 100.0).ceil() as i64;
        canvas.fill(Spot::new(0, y + 2, used.clamp(1, bar.width), 12), INK);
        canvas.text(bar.right() + LETTER, y, &share, GREY);
        y += LINE + GAP / 2;
        for line in &text {
            canvas.text(0, y, line, GREY);
            y += LINE;
        }
        Block {
            canvas,
            views: vec![],
        }
    }

    fn cells(&self, canvas: &mut Canvas, y: i64) {
        let length = self.prompt.length.max(1) as i64;
        // The first pixel of a position.
        let x = |position: usize| (position as i64 * WIDTH + length - 1) / length;
        let spot = |from: usize, to: usize| Spot::new(x(from), y, (x(to) - x(from)).max(1), BAR);
        canvas.fill(Spot::new(0, y, WIDTH, BAR), LIGHT);
        for segment in &self.prompt.segments {
            let positions = &segment.positions;
            let Some((index, item)) = segment
                .range
                .and_then(|index| Some((index, self.items.get(index)?)))
            else {
                continue;
            };
            let color = COLORS[index % COLORS.len()];
            let kinds = item.kinds();
            // From pixels to positions: a pixel may stand for many.
            for column in x(positions.start)..x(positions.end).max(x(positions.start) + 1) {
                let cell = Spot::new(column, y, 1, BAR);
                let at = (column * length / WIDTH) as usize;
                canvas.fill(cell, color);
                match kinds.get(at.saturating_sub(positions.start)) {
                    // Ends of rows are legible only where each is a line by itself.
                    Some(Kind::RowEnd) if WIDTH / length >= 3 => canvas.blend(cell, INK, 110),
                    Some(Kind::Tile | Kind::RowEnd) => canvas.blend(cell, WHITE, 90),
                    Some(Kind::Separator) => canvas.fill(cell, LIGHT),
                    Some(Kind::Row) | None => {}
                }
            }
        }
        if WIDTH / length >= 5 {
            for position in 1..self.prompt.length {
                canvas.fill(Spot::new(x(position), y, 1, BAR), WHITE);
            }
        }
        for segment in &self.prompt.segments {
            let count = segment.positions.len().to_string();
            let spot = spot(segment.positions.start, segment.positions.end);
            let room = spot.width - width_of(&count) - 8;
            if room < 0 {
                continue;
            }
            let (at, above) = (spot.x + 4 + room / 2, y + (BAR - LETTER) / 2);
            let color = match segment.range {
                None => GREY,
                Some(index) => COLORS[index % COLORS.len()],
            };
            canvas.label(at - 2, above - 2, &count, color);
        }
    }
}

/// What a position of a placeholder range holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An encoder row; of tiled pictures, one of the whole picture.
    Row,
    /// An encoder row of the tiles.
    Tile,
    /// What ends a row of the tiles.
    RowEnd,
    /// A token that keeps its text embedding.
    Separator,
}

impl Item {
    fn kinds(&self) -> Vec<Kind> {
        let mut row = 0;
        (0..self.range.length)
            .map(|at| {
                let mask = self.range.embed_mask.as_ref();
                if mask.is_some_and(|mask| mask.get(at) == Some(&false)) {
                    return Kind::Separator;
                }
                row += 1;
                match self.layout {
                    Layout::Tiles {
                        whole,
                        kept,
                        row_ends,
                    } if row > whole => {
                        let end = row_ends && (row - whole).is_multiple_of(kept.width + 1);
                        if end { Kind::RowEnd } else { Kind::Tile }
                    }
                    _ => Kind::Row,
                }
            })
            .collect()
    }
}

fn title(item: &Item, color: Color) -> Block {
    let mut canvas = Canvas::new(WIDTH, LETTER + 10);
    let letters = (WIDTH / LETTER) as usize;
    let facts = shorten(&item.file_words(), letters - 16);
    let room = letters.saturating_sub(facts.chars().count() + 4).max(12);
    let name = shorten(&short_name(&item.name), room);
    canvas.fill(Spot::new(0, 0, LETTER, LETTER), color);
    canvas.text(2 * LETTER, 1, &name, INK);
    canvas.text(3 * LETTER + width_of(&name), 1, &facts, GREY);
    canvas.fill(Spot::new(0, LETTER + 8, WIDTH, 2), LIGHT);
    Block {
        canvas,
        views: vec![],
    }
}

/// The last part of a path.
fn short_name(name: &str) -> String {
    Path::new(name)
        .file_name()
        .map_or(name.to_owned(), |n| n.to_string_lossy().into_owned())
}
