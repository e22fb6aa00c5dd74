//! How many rows a picture takes, and which features of its tiles are kept: integer arithmetic on
//! the configuration and the picture's size, the same for processor and encoder.

use kiln_image::anyres::get_anyres_image_grid_shape;
use kiln_image::{Rect, Size};
use kiln_nn::vlm::VlmConfig;
use kiln_registry::{Error, InputContext, Result};
use serde::Deserialize;

/// The resolutions that a checkpoint fits pictures into, and the tower's grid.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AnyresLayout {
    /// `[height, width]` each.
    pinpoints: Vec<[usize; 2]>,
    image_size: usize,
    grid: usize,
}

#[derive(Deserialize)]
struct Raw {
    image_grid_pinpoints: Option<Vec<[usize; 2]>>,
}

impl AnyresLayout {
    /// # Errors
    /// [`Error::Checkpoint`] when a resolution is not made of whole tiles, [`Error::Unsupported`]
    /// when the selected features of a tile are not exactly its patches: the reference fails on
    /// every picture then.
    pub(crate) fn from_context(ctx: &InputContext, config: &VlmConfig) -> Result<Self> {
        let raw: Raw = ctx.parse_config()?;
        let side = config.tower.image_size;
        let pinpoints = raw.image_grid_pinpoints.unwrap_or_else(|| {
            vec![[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
        });
        let whole = |n: usize| n > 0 && n.is_multiple_of(side) && n / side <= 64;
        if pinpoints.is_empty() || !pinpoints.as_flattened().iter().all(|n| whole(*n)) {
            return Err(Error::checkpoint(
                "config.json",
                format!(
                    "`image_grid_pinpoints` must name resolutions of whole tiles of {side} pixels, \
                     at most 64 on a side"
                ),
            ));
        }
        let grid = config.tower.grid();
        let selected = config.selection.tokens(&config.tower);
        if selected != grid * grid {
            return Err(Error::unsupported(format!(
                "LLaVA-NeXT with {selected} features of a tile of {} patches: \
                 `vision_feature_select_strategy` must be `default` with a class token, `full` \
                 without",
                grid * grid
            )));
        }
        Ok(Self {
            pinpoints,
            image_size: side,
            grid,
        })
    }

    /// Patches on a tile's side.
    pub(crate) fn grid(&self) -> usize {
        self.grid
    }

    /// Columns and rows of tiles of a picture.
    pub(crate) fn tiles(&self, picture: Size) -> Result<Size> {
        get_anyres_image_grid_shape(picture, &self.pinpoints, self.image_size)
    }

    /// The part of the tiles' grid of features that the picture covers (`unpad_image`).
    pub(crate) fn kept(&self, picture: Size, tiles: Size) -> Rect {
        let (across, down) = (tiles.width * self.grid, tiles.height * self.grid);
        let (width, height) = (picture.width as f64, picture.height as f64);
        let mut kept = Size::new(across, down).rect();
        if width / height > across as f64 / down as f64 {
            let padding = (down - truncate(height * (across as f64 / width)).min(down)) / 2;
            kept.y = padding as i64;
            kept.height -= 2 * padding;
        } else {
            let padding = (across - truncate(width * (down as f64 / height)).min(across)) / 2;
            kept.x = padding as i64;
            kept.width -= 2 * padding;
        }
        kept
    }

    /// Rows of a picture: the whole, the tiles' part that is kept, a newline for each of its rows.
    pub(crate) fn rows(&self, picture: Size) -> Result<usize> {
        let kept = self.kept(picture, self.tiles(picture)?);
        Ok(self.grid * self.grid + kept.height * (kept.width + 1))
    }

    /// The picture that takes the most rows, and how many: no picture keeps more than its whole
    /// resolution, and a picture of exactly that size keeps it all.
    pub(crate) fn largest(&self) -> (Size, usize) {
        self.pinpoints
            .iter()
            .map(|[height, width]| {
                let (down, across) = (height / self.image_size, width / self.image_size);
                let rows = down * self.grid * (across * self.grid + 1);
                (Size::new(*width, *height), self.grid * self.grid + rows)
            })
            .max_by_key(|(_, rows)| *rows)
            .unwrap_or((Size::new(1, 1), 0))
    }
}

/// Python's `int(round(x, 7))`.
fn truncate(x: f64) -> usize {
    // Formatting rounds the exact binary value, as Python's `round` does.
    format!("{x:.7}").parse::<f64>().map_or(0, |x| x as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> AnyresLayout {
        let scaled = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3], [3, 2], [2, 3]];
        AnyresLayout {
            pinpoints: scaled.map(|[h, w]| [28 * h, 28 * w]).to_vec(),
            image_size: 28,
            grid: 4,
        }
    }

    #[test]
    fn the_largest_picture_reaches_its_rows_and_none_exceeds_them() {
        let layout = tiny();
        let (size, most) = layout.largest();
        assert_eq!(layout.rows(size).unwrap(), most);
        for width in (1..300).chain([1000, 16_384]) {
            for height in (1..300).chain([1000, 16_384]) {
                let rows = layout.rows(Size::new(width, height)).unwrap();
                assert!(rows <= most, "{width}x{height}: {rows}");
            }
        }
    }
}
