//! Drawing on a bitmap: rectangles, pictures at another scale, letters of 8 by 8 dots.

use font8x8::UnicodeFonts;
use image::RgbImage;
use kiln_image::{Filter, RgbImage8, resize};

/// Red, green, blue.
pub(super) type Color = [u8; 3];

pub(super) const WHITE: Color = [255; 3];
pub(super) const INK: Color = [0x1f, 0x23, 0x28];
pub(super) const GREY: Color = [0x65, 0x6d, 0x76];
pub(super) const LIGHT: Color = [0xd8, 0xde, 0xe4];

/// Pixels of a letter's dot.
const DOT: i64 = 2;
/// Width of a letter.
pub(super) const LETTER: i64 = 8 * DOT;
/// Height of a line of text.
pub(super) const LINE: i64 = 24;

/// Where something lies on a canvas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) x: i64,
    pub(super) y: i64,
    pub(super) width: i64,
    pub(super) height: i64,
}

impl Spot {
    pub(super) const fn new(x: i64, y: i64, width: i64, height: i64) -> Self {
        Self {
            x,
            y,
            width,
            height,
        }
    }

    pub(super) fn right(&self) -> i64 {
        self.x + self.width
    }

    pub(super) fn bottom(&self) -> i64 {
        self.y + self.height
    }
}

/// A bitmap, white at first. What is drawn beyond its edges is lost.
pub(super) struct Canvas(RgbImage);

impl Canvas {
    pub(super) fn new(width: i64, height: i64) -> Self {
        let side = |n: i64| u32::try_from(n.max(1)).unwrap_or(1);
        Self(RgbImage::from_pixel(
            side(width),
            side(height),
            image::Rgb(WHITE),
        ))
    }

    pub(super) fn height(&self) -> i64 {
        i64::from(self.0.height())
    }

    pub(super) fn into_image(self) -> RgbImage {
        self.0
    }

    /// Another canvas from the corner `x`, `y` on.
    pub(super) fn paste(&mut self, x: i64, y: i64, other: &Self) {
        image::imageops::replace(&mut self.0, &other.0, x, y);
    }

    pub(super) fn fill(&mut self, spot: Spot, color: Color) {
        self.blend(spot, color, 255);
    }

    /// Lays a colour over what is there; `alpha`: 0 leaves it, 255 hides it.
    pub(super) fn blend(&mut self, spot: Spot, color: Color, alpha: u16) {
        let (width, height) = (i64::from(self.0.width()), i64::from(self.0.height()));
        for y in spot.y.max(0)..spot.bottom().min(height) {
            for x in spot.x.max(0)..spot.right().min(width) {
                self.dot(x, y, color, alpha);
            }
        }
    }

    /// A thin line that shows on dark and on light.
    pub(super) fn line(&mut self, spot: Spot) {
        for y in spot.y..spot.bottom() {
            for x in spot.x..spot.right() {
                let under = match (u32::try_from(x), u32::try_from(y)) {
                    (Ok(x), Ok(y)) => self.0.get_pixel_checked(x, y),
                    _ => None,
                };
                let light =
                    under.is_some_and(|p| p.0.iter().map(|c| u16::from(*c)).sum::<u16>() > 420);
                let (color, alpha) = if light { (INK, 70) } else { (WHITE, 120) };
                self.dot(x, y, color, alpha);
            }
        }
    }

    fn dot(&mut self, x: i64, y: i64, color: Color, alpha: u16) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else {
            return;
        };
        if let Some(pixel) = self.0.get_pixel_mut_checked(x, y) {
            for (under, over) in pixel.0.iter_mut().zip(color) {
                let mixed = u16::from(*under) * (255 - alpha) + u16::from(over) * alpha;
                *under = ((mixed + 127) / 255) as u8;
            }
        }
    }

    /// A frame around the spot; nothing of the spot itself is hidden.
    pub(super) fn frame(&mut self, spot: Spot, thick: i64, color: Color) {
        let (x, y) = (spot.x - thick, spot.y - thick);
        let (width, height) = (spot.width + 2 * thick, spot.height + 2 * thick);
        for edge in [
            Spot::new(x, y, width, thick),
            Spot::new(x, spot.bottom(), width, thick),
            Spot::new(x, y, thick, height),
            Spot::new(spot.right(), y, thick, height),
        ] {
            self.fill(edge, color);
        }
    }

    /// Thin slanted lines: nothing of the picture is here.
    pub(super) fn hatch(&mut self, spot: Spot, color: Color) {
        for y in spot.y..spot.bottom() {
            for x in spot.x..spot.right() {
                if (x + y).rem_euclid(8) < 2 {
                    self.dot(x, y, color, 160);
                }
            }
        }
    }

    /// A picture over the whole spot: enlarged dot by dot, made smaller by averaging.
    pub(super) fn picture(&mut self, spot: Spot, picture: &RgbImage8) {
        let (Ok(width), Ok(height)) = (usize::try_from(spot.width), usize::try_from(spot.height))
        else {
            return;
        };
        let enlarged = width >= picture.width() && height >= picture.height();
        let filter = if enlarged {
            Filter::Nearest
        } else {
            Filter::Box
        };
        let Ok(scaled) = resize(picture, width, height, filter) else {
            return;
        };
        for y in 0..height {
            for (x, pixel) in scaled.row(y).chunks_exact(3).enumerate() {
                let color = [pixel[0], pixel[1], pixel[2]];
                self.dot(spot.x + x as i64, spot.y + y as i64, color, 255);
            }
        }
    }

    /// A line of text, its upper left corner at `x`, `y`.
    pub(super) fn text(&mut self, x: i64, y: i64, text: &str, color: Color) {
        for (column, letter) in (0i64..).zip(text.chars()) {
            for (row, bits) in (0i64..).zip(glyph(letter)) {
                for bit in (0i64..8).filter(|bit| bits >> bit & 1 == 1) {
                    let dot = Spot::new(x + column * LETTER + bit * DOT, y + row * DOT, DOT, DOT);
                    self.fill(dot, color);
                }
            }
        }
    }

    /// Text in a box of one colour that sets it off from a picture.
    pub(super) fn label(&mut self, x: i64, y: i64, text: &str, color: Color) {
        let spot = Spot::new(x, y, width_of(text) + 4, LETTER + 4);
        self.fill(spot, color);
        self.text(x + 3, y + 3, text, WHITE);
    }
}

/// Pixels that a line of text takes across.
pub(super) fn width_of(text: &str) -> i64 {
    text.chars().count() as i64 * LETTER
}

/// Lines of at most so many letters, broken at spaces where there are any.
pub(super) fn wrap(text: &str, letters: usize) -> Vec<String> {
    let letters = letters.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut length = 0;
    for word in text.split_inclusive(' ') {
        let whole = word.trim_end_matches(' ').chars().count();
        if length > 0 && length + whole > letters {
            lines.push(std::mem::take(&mut line).trim_end().to_owned());
            length = 0;
        }
        for c in word.chars() {
            if length >= letters && c != ' ' {
                lines.push(std::mem::take(&mut line));
                length = 0;
            }
            line.push(c);
            length += 1;
        }
    }
    if !line.trim_end().is_empty() || lines.is_empty() {
        lines.push(line.trim_end().to_owned());
    }
    lines
}

fn glyph(letter: char) -> [u8; 8] {
    font8x8::BASIC_FONTS
        .get(letter)
        .or_else(|| font8x8::LATIN_FONTS.get(letter))
        .or_else(|| font8x8::GREEK_FONTS.get(letter))
        .or_else(|| font8x8::HIRAGANA_FONTS.get(letter))
        // An empty box for what the font does not have.
        .unwrap_or([0xff, 0x81, 0x81, 0x81, 0x81, 0x81, 0x81, 0xff])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_inside_what_has_none() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefgh ij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("", 4), [""]);
        assert!(wrap("a b  c   d", 3).iter().all(|l| l.chars().count() <= 3));
    }

    #[test]
    fn drawing_beyond_the_edges_is_harmless() {
        let mut canvas = Canvas::new(4, 4);
        let everywhere = Spot::new(-9, -9, 40, 40);
        canvas.text(-5, -5, "Wä漢", INK);
        canvas.hatch(everywhere, INK);
        canvas.frame(Spot::new(-2, 1, 9, 1), 3, INK);
        canvas.picture(
            everywhere,
            &RgbImage8::filled(kiln_image::Size::new(1, 2), [9; 3]).unwrap(),
        );
        assert!(canvas.into_image().pixels().all(|p| p.0 == [9; 3]));
    }
}
