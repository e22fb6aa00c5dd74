//! What an item's tokens stand for, as far as their number, the patches and the plan tell.
//!
//! No architecture is asked: a layout is named only when it gives exactly the number of tokens
//! that the model's own input processor gave.

use super::Views;
use kiln_image::{Plan, Size};

/// How the number of an item's tokens comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// So many patches of the views go into each token.
    Patches(usize),
    /// One a patch, and so many more.
    PatchesAnd(usize),
    /// The whole picture's patches; then those of all tiles that the picture covers, row by row.
    Tiles {
        /// Tokens of the whole picture.
        whole: usize,
        /// Rows and columns of patches that are kept of the tiles.
        kept: Size,
        /// Whether each row has one token more, at its end.
        row_ends: bool,
    },
    /// The same number for each view.
    PerView(usize),
    /// Only the total is known.
    Total,
}

impl Layout {
    pub(super) fn of(rows: usize, views: &Views, plan: Option<&Plan>) -> Self {
        let count = views.pictures.len();
        if count == 0 || rows == 0 {
            return Self::Total;
        }
        if let Some(grid) = views.grid() {
            let patches = grid.pixels() * count;
            if let Some(tiles) = plan.and_then(|plan| tiles(rows, grid, views, plan)) {
                return tiles;
            }
            if patches.is_multiple_of(rows) {
                return Self::Patches(patches / rows);
            }
            if count == 1 && (patches + 1..patches + 8).contains(&rows) {
                return Self::PatchesAnd(rows - patches);
            }
        }
        if count > 1 && rows.is_multiple_of(count) {
            return Self::PerView(rows / count);
        }
        Self::Total
    }

    /// In words, of so many views with this grid of patches.
    pub(super) fn words(self, views: &Views) -> Option<String> {
        Some(match self {
            Self::Patches(1) => "one for each patch".to_owned(),
            Self::Patches(n) => format!("one for every {n} patches"),
            Self::PatchesAnd(n) => format!("one for each patch and {n} more"),
            Self::PerView(n) => format!("{n} for each of {} views", views.pictures.len()),
            Self::Total => return None,
            Self::Tiles {
                whole,
                kept,
                row_ends,
            } => {
                let (w, h) = (kept.width, kept.height);
                let mut words = format!(
                    "{whole} for the whole picture, {} for its tiles ({w}x{h} patches that the \
                     picture covers)",
                    w * h
                );
                if row_ends {
                    words.push_str(&format!(", {h} for the ends of their rows"));
                }
                words
            }
        })
    }
}

/// Tiles side by side are one grid of patches. The picture reaches two opposite edges of it, lies
/// in the middle between the other two, and the rows of padding there may be left out. With or
/// without a token at each row's end, that is few candidates; at most one of them has the number.
fn tiles(rows: usize, grid: Size, views: &Views, plan: &Plan) -> Option<Layout> {
    let (resolution, fitted, patch) = (plan.resolution?, plan.fitted?, views.patch?);
    let rest = rows.checked_sub(grid.pixels()).filter(|n| *n > 0)?;
    let side = views.size();
    let across = resolution.width / side.width * grid.width;
    let down = resolution.height / side.height * grid.height;
    let near = |have: usize, most: usize, fitted: usize| {
        let off = have as f64 - fitted as f64 / patch as f64;
        // Padding is the same on both sides. A very narrow picture may have no column left.
        have <= most && (most - have).is_multiple_of(2) && off.abs() < 2.0
    };
    for row_ends in [true, false] {
        let end = usize::from(row_ends);
        let wide = Size::new(across, rest / (across + end));
        let tall = Size::new((rest / down).saturating_sub(end), down);
        for kept in [wide, tall] {
            if (kept.width + end) * kept.height == rest
                && near(kept.width, across, fitted.width)
                && near(kept.height, down, fitted.height)
            {
                return Some(Layout::Tiles {
                    whole: grid.pixels(),
                    kept,
                    row_ends,
                });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_image::{ImageProcessorConfig, ProcessorKind, RgbImage8, plan};

    fn views(count: usize) -> Views {
        let view = RgbImage8::filled(Size::new(336, 336), [0; 3]).unwrap();
        Views {
            pictures: vec![view; count],
            patch: Some(14),
            missing: None,
        }
    }

    #[test]
    fn one_view_is_told_by_its_patches() {
        assert_eq!(Layout::of(576, &views(1), None), Layout::Patches(1));
        assert_eq!(Layout::of(144, &views(1), None), Layout::Patches(4));
        assert_eq!(Layout::of(577, &views(1), None), Layout::PatchesAnd(1));
        assert_eq!(Layout::of(500, &views(1), None), Layout::Total);
        assert_eq!(Layout::of(1731, &views(3), None), Layout::PerView(577));
        assert_eq!(Layout::of(0, &views(1), None), Layout::Total);
    }

    #[test]
    fn tiles_are_told_by_what_the_picture_covers() {
        let mut config = ImageProcessorConfig::defaults(ProcessorKind::LlavaNext);
        config.size = kiln_image::SizeSpec::shortest(336);
        config.crop_size = Some(kiln_image::SizeSpec::exact(336, 336));
        // 640x480 goes to 672x504 of 672x672: 36 of 48 rows of 48 patches are kept.
        let plan = plan(&config, 640, 480).unwrap();
        let with = |row_ends| Layout::Tiles {
            whole: 576,
            kept: Size::new(48, 36),
            row_ends,
        };
        let of = |rows| Layout::of(rows, &views(5), Some(&plan));
        assert_eq!(of(576 + 36 * 49), with(true));
        assert_eq!(of(576 + 36 * 48), with(false));
        assert_eq!(of(576 * 5), Layout::Patches(1));
        assert_eq!(of(577 * 5), Layout::PerView(577));
        assert_eq!(of(576 + 35 * 49), Layout::Total);
    }
}
