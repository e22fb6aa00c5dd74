//! Draws a scene with antialiasing: plain area sampling, no graphics library, so that
//! every machine draws the same bytes.

use crate::font;
use crate::scene::{Object, Scene, ShapeKind, Size};

/// Width and height of a picture in pixels.
pub const SIDE: u32 = 224;

const S: usize = SIDE as usize;
/// Samples a pixel in each direction.
const SUB: usize = 4;
/// Where the caption bar begins.
const BAR_TOP: usize = 196;
/// Side of a dot of the 5 x 7 font, and the distance between letters.
const DOT: f32 = 3.4;
const PITCH: f32 = 28.0;
const TEXT_LEFT: f32 = 56.0;

impl Scene {
    /// The picture: RGB bytes, row by row.
    ///
    /// # Shapes
    /// `SIDE * SIDE * 3` bytes.
    pub fn render(&self) -> Vec<u8> {
        let mut px = Vec::with_capacity(S * S * 3);
        for y in 0..S {
            let color = if y < BAR_TOP {
                self.background
            } else {
                [252, 252, 250]
            };
            for _ in 0..S {
                px.extend_from_slice(&color);
            }
        }
        for o in &self.objects {
            draw_object(&mut px, o);
        }
        for (i, c) in self.text.bytes().enumerate() {
            let left = TEXT_LEFT + PITCH * i as f32 + (PITCH - 5.0 * DOT) / 2.0;
            let top = BAR_TOP as f32 + (PITCH - 7.0 * DOT) / 2.0;
            let origin = [left + self.text_offset[0], top + self.text_offset[1]];
            draw_glyph(&mut px, &font::glyph(c), origin, self.ink);
        }
        px
    }
}

fn draw_object(px: &mut [u8], o: &Object) {
    let radius = match o.size {
        Size::Small => 14.0f32,
        Size::Large => 27.0,
    };
    let cx = [37.0f32, 112.0, 187.0][o.cell % 3] + o.offset[0];
    let cy = [32.5f32, 98.0, 163.5][(o.cell / 3) % 3] + o.offset[1];
    let base = o.color.rgb();
    let color = std::array::from_fn(|c| (i16::from(base[c]) + o.tint[c]).clamp(0, 255) as u8);
    let bounds = [cx - radius, cy - radius, cx + radius, cy + radius];
    fill(px, bounds, color, |x, y| {
        inside(o.shape, (x - cx) / radius, (y - cy) / radius)
    });
}

fn draw_glyph(px: &mut [u8], rows: &[u8; 7], origin: [f32; 2], ink: [u8; 3]) {
    let [left, top] = origin;
    let bounds = [left, top, left + 5.0 * DOT, top + 7.0 * DOT];
    fill(px, bounds, ink, |x, y| {
        let (column, row) = (((x - left) / DOT).floor(), ((y - top) / DOT).floor());
        (0.0..5.0).contains(&column)
            && (0.0..7.0).contains(&row)
            && rows[row as usize] >> (4 - column as usize) & 1 == 1
    });
}

/// Blends `color` in by the share of each pixel's samples that `inside` takes.
fn fill(px: &mut [u8], bounds: [f32; 4], color: [u8; 3], inside: impl Fn(f32, f32) -> bool) {
    let clamp = |v: f32| v.clamp(0.0, S as f32) as usize;
    let [x0, y0, x1, y1] = bounds;
    for y in clamp(y0.floor())..clamp(y1.ceil()) {
        for x in clamp(x0.floor())..clamp(x1.ceil()) {
            let mut hits = 0;
            for i in 0..SUB * SUB {
                let sx = x as f32 + ((i % SUB) as f32 + 0.5) / SUB as f32;
                let sy = y as f32 + ((i / SUB) as f32 + 0.5) / SUB as f32;
                hits += usize::from(inside(sx, sy));
            }
            for (c, &ink) in color.iter().enumerate() {
                let p = &mut px[(y * S + x) * 3 + c];
                let all = SUB * SUB;
                *p = ((usize::from(*p) * (all - hits) + usize::from(ink) * hits + all / 2) / all)
                    as u8;
            }
        }
    }
}

/// Whether a point of the unit disc's square lies in the shape; y grows downwards.
fn inside(shape: ShapeKind, x: f32, y: f32) -> bool {
    match shape {
        ShapeKind::Circle => x * x + y * y <= 0.92,
        ShapeKind::Square => x.abs() <= 0.84 && y.abs() <= 0.84,
        // Apex at the top, base near the bottom.
        ShapeKind::Triangle => y <= 0.85 && x.abs() <= (y + 0.95) * 0.53,
        ShapeKind::Star => in_star(x, y),
    }
}

/// A five-pointed star: its half-plane form, folded into one tenth by symmetry.
fn in_star(x: f32, y: f32) -> bool {
    const STEP: f32 = std::f32::consts::TAU / 5.0;
    let angle = x.atan2(-y);
    let folded = (angle - (angle / STEP).round() * STEP).abs();
    let r = (x * x + y * y).sqrt();
    // The edge runs from the tip (radius 1 at angle 0) to the notch (radius 0.44 at
    // half a step).
    let (tip, notch) = (1.0f32, 0.44f32);
    let (nx, ny) = (notch * (STEP / 2.0).cos(), notch * (STEP / 2.0).sin());
    let (px, py) = (r * folded.cos(), r * folded.sin());
    (nx - tip) * py - ny * (px - tip) >= 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Split;

    #[test]
    fn each_object_shows_its_colour_at_its_place() {
        for i in 0..200 {
            let scene = Scene::generate(2, i, Split::Eval);
            let px = scene.render();
            assert_eq!(px.len(), S * S * 3);
            for o in &scene.objects {
                let x = ([37.0, 112.0, 187.0][o.cell % 3] + o.offset[0]) as usize;
                let y = ([32.5, 98.0, 163.5][o.cell / 3] + o.offset[1]) as usize;
                for c in 0..3 {
                    let want = i16::from(o.color.rgb()[c]) + o.tint[c];
                    assert_eq!(i16::from(px[(y * S + x) * 3 + c]), want.clamp(0, 255));
                }
            }
        }
    }

    #[test]
    fn a_star_has_tips_and_notches() {
        assert!(in_star(0.0, -0.95) && in_star(0.0, 0.3));
        assert!(!in_star(0.0, 0.6) && !in_star(0.5, -0.7));
    }
}
