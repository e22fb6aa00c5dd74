//! How many rows a picture takes, and which features of its tiles are kept: integer arithmetic on
//! the configuration and the picture's size, the same for processor and encoder.

use kiln_image::anyres::get_anyres_image_grid_shape;
use kiln_image::{Rect, Size};
use kiln_nn::vlm::VlmConfig;
use kiln_registry::{Error, InputContext, Result};
use serde::Deserialize;

const MOST_PIXELS: usize = 64 << 20;

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
        let pinpoints = raw
            .image_grid_pinpoints
            .unwrap_or_else(|| vec![[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]);
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
        // A picture of the largest resolution is made at start-up: no more than one may have anyway.
        if pinpoints.iter().any(|[h, w]| h * w > MOST_PIXELS) {
            return Err(Error::checkpoint(
                "config.json",
                format!("`image_grid_pinpoints` names more than {MOST_PIXELS} pixels"),
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
        layout("tiny-28/7")
    }

    /// A set of the table that `fixtures.py` wrote with transformers.
    fn layout(set: &str) -> AnyresLayout {
        let all = |most: usize| {
            (1..=most)
                .flat_map(|h| (1..=most).map(move |w| [h, w]))
                .collect()
        };
        let (image_size, grid, scaled): (usize, usize, Vec<[usize; 2]>) = match set {
            "v1.6-336/14" => (336, 24, vec![[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]),
            "wide-336/14" => (336, 24, all(4)),
            "siglip-384/14" => (384, 27, all(3)),
            "tiny-28/7" => {
                let scaled = vec![[1, 2], [2, 1], [2, 2], [3, 1], [1, 3], [3, 2], [2, 3]];
                (28, 4, scaled)
            }
            other => panic!("{other}"),
        };
        AnyresLayout {
            pinpoints: scaled.iter().map(|s| s.map(|n| n * image_size)).collect(),
            image_size,
            grid,
        }
    }

    #[test]
    fn rows_are_the_tokens_that_transformers_counts() {
        let table = include_str!("../../../tests/fixtures/next-tokens.tsv");
        let (mut wrong, mut count) = (vec![], 0);
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let (set, numbers) = line.split_once('\t').unwrap();
            let n: Vec<usize> = numbers.split('\t').map(|n| n.parse().unwrap()).collect();
            let (layout, picture) = (layout(set), Size::new(n[0], n[1]));
            let kept = layout.kept(picture, layout.tiles(picture).unwrap());
            // 0 tokens: a picture so thin that transformers refuses it.
            let rows = layout.rows(picture).unwrap();
            if [kept.height, kept.width] != n[6..8] || (n[8] > 0 && rows != n[8]) {
                wrong.push(format!("{line}: kept {kept:?}, {rows} rows"));
            }
            count += usize::from(n[8] > 0);
        }
        assert!(count > 950, "{count}");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
