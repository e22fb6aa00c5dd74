//! Which part of the original picture a view shows, in the picture's own coordinates.

use kiln_image::{Plan, Rect, Size, Stage, View};

/// A rectangle between pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Area {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl From<Rect> for Area {
    fn from(rect: Rect) -> Self {
        Self {
            left: rect.x as f64,
            top: rect.y as f64,
            right: rect.x as f64 + rect.width as f64,
            bottom: rect.y as f64 + rect.height as f64,
        }
    }
}

impl Area {
    pub(super) fn width(&self) -> f64 {
        (self.right - self.left).max(0.0)
    }

    pub(super) fn height(&self) -> f64 {
        (self.bottom - self.top).max(0.0)
    }

    /// The smallest area around both.
    pub(super) fn union(self, other: Self) -> Self {
        Self {
            left: self.left.min(other.left),
            top: self.top.min(other.top),
            right: self.right.max(other.right),
            bottom: self.bottom.max(other.bottom),
        }
    }

    /// What both have; without extent where they lie apart.
    pub(super) fn intersect(self, other: Self) -> Self {
        Self {
            left: self.left.max(other.left),
            top: self.top.max(other.top),
            right: self.right.min(other.right),
            bottom: self.bottom.min(other.bottom),
        }
    }

    fn moved(self, x: f64, y: f64) -> Self {
        Self {
            left: self.left + x,
            top: self.top + y,
            right: self.right + x,
            bottom: self.bottom + y,
        }
    }

    fn scaled(self, x: f64, y: f64) -> Self {
        Self {
            left: self.left * x,
            top: self.top * y,
            right: self.right * x,
            bottom: self.bottom * y,
        }
    }
}

/// From resampled coordinates of a stage to those before it.
fn before(stage: &Stage, area: Area) -> Area {
    let (canvas, resized) = (stage.canvas, stage.resized);
    area.scaled(
        canvas.width as f64 / resized.width.max(1) as f64,
        canvas.height as f64 / resized.height.max(1) as f64,
    )
    .moved(canvas.x as f64, canvas.y as f64)
}

/// What a view shows; it may reach beyond the picture, where it shows padding.
pub(super) fn seen(view: &View) -> Area {
    let window = view.stage.window;
    let kept = match &view.again {
        None => window.into(),
        Some(again) => before(again, again.window.into()).moved(window.x as f64, window.y as f64),
    };
    before(&view.stage, kept)
}

/// What all views show together, as one area.
pub(super) fn seen_by_all(plan: &Plan) -> Area {
    plan.views
        .iter()
        .map(seen)
        .reduce(Area::union)
        .unwrap_or(plan.picture.rect().into())
}

/// Pixels of the picture that no view shows: left, top, right, bottom, and as a share of all.
pub(super) fn unseen(plan: &Plan) -> ([f64; 4], f64) {
    let picture: Area = plan.picture.rect().into();
    let seen = seen_by_all(plan).intersect(picture);
    let sides = [
        seen.left,
        seen.top,
        picture.right - seen.right,
        picture.bottom - seen.bottom,
    ];
    let share = 1.0 - seen.width() * seen.height() / (picture.width() * picture.height());
    (
        sides.map(|s| if s < 0.01 { 0.0 } else { s }),
        share.max(0.0),
    )
}

/// Width over height.
pub(super) fn ratio(size: Size) -> f64 {
    size.width as f64 / size.height.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_image::{ImageProcessorConfig, ProcessorKind, plan};

    #[test]
    fn a_centre_crop_loses_both_ends() {
        let config = ImageProcessorConfig::defaults(ProcessorKind::Clip);
        let (sides, share) = unseen(&plan(&config, 400, 200).unwrap());
        assert_eq!(sides, [100.0, 0.0, 100.0, 0.0]);
        assert!((share - 0.5).abs() < 1e-9, "{share}");
    }

    #[test]
    fn tiles_lose_nothing_and_reach_beyond_the_picture() {
        let config = ImageProcessorConfig::defaults(ProcessorKind::LlavaNext);
        let plan = plan(&config, 200, 700).unwrap();
        assert_eq!(unseen(&plan), ([0.0; 4], 0.0));
        let all = seen_by_all(&plan);
        assert!(all.left < 0.0 && all.right > 200.0, "{all:?}");
    }
}
