//! The geometry of LLaVA-NeXT's "anyres": which resolution, how the picture lies in it, tiles.
//!
//! Rounding is the reference's to the last pixel: the number of image tokens hangs on it.
//!
//! *Source*: LLaVA-NeXT; Hugging Face `select_best_resolution`, `get_patch_output_size`,
//! `LlavaNextImageProcessor`, `get_anyres_image_grid_shape`.

use crate::pixels::{Rect, Size};
use kiln_registry::{Error, Result};

/// The resolution (`[height, width]` pairs) that keeps most of the picture and, among those,
/// wastes least. `None` only for an empty list.
pub fn select_best_resolution(picture: Size, pinpoints: &[[usize; 2]]) -> Option<Size> {
    let mut best = None;
    let (mut most_kept, mut least_wasted) = (0usize, usize::MAX);
    for &[height, width] in pinpoints {
        let scale =
            (width as f64 / picture.width as f64).min(height as f64 / picture.height as f64);
        // `as` truncates, like Python's int().
        let (w, h) = (
            (picture.width as f64 * scale) as usize,
            (picture.height as f64 * scale) as usize,
        );
        let kept = w.saturating_mul(h).min(picture.pixels());
        let wasted = width.saturating_mul(height).saturating_sub(kept);
        if kept > most_kept || (kept == most_kept && wasted < least_wasted) {
            (most_kept, least_wasted) = (kept, wasted);
            best = Some(Size::new(width, height));
        }
    }
    best
}

/// The picture's size after it was fitted into `target`, its ratio kept (`get_patch_output_size`).
pub fn patch_output_size(picture: Size, target: Size) -> Size {
    let across = target.width as f64 / picture.width as f64;
    let down = target.height as f64 / picture.height as f64;
    if across < down {
        let height = (picture.height as f64 * across).ceil() as usize;
        Size::new(target.width, height.min(target.height))
    } else {
        let width = (picture.width as f64 * down).ceil() as usize;
        Size::new(width.min(target.width), target.height)
    }
}

/// Padding before the picture, left and top; an odd pixel goes behind it (`_get_padding_size`).
pub fn padding(fitted: Size, target: Size) -> (usize, usize) {
    (
        target.width.saturating_sub(fitted.width) / 2,
        target.height.saturating_sub(fitted.height) / 2,
    )
}

/// The tiles of a resolution, row by row, in its own coordinates. Tiles at the right and bottom
/// are smaller where the side is no multiple of `side` (`divide_to_patches`).
pub fn tiles(resolution: Size, side: usize) -> Vec<Rect> {
    let side = side.max(1);
    let mut tiles = Vec::new();
    for y in (0..resolution.height).step_by(side) {
        for x in (0..resolution.width).step_by(side) {
            tiles.push(Rect {
                x: x as i64,
                y: y as i64,
                width: side.min(resolution.width - x),
                height: side.min(resolution.height - y),
            });
        }
    }
    tiles
}

/// Columns and rows of tiles that the model lays out for a picture, as
/// [`Size`] (the reference returns rows first). `patch`: the side of a tile, which the model's code
/// calls `image_size`.
///
/// # Errors
/// [`Error::Checkpoint`] when there is no resolution or the tile has no side.
pub fn get_anyres_image_grid_shape(
    picture: Size,
    pinpoints: &[[usize; 2]],
    patch: usize,
) -> Result<Size> {
    let best = select_best_resolution(picture, pinpoints)
        .filter(|_| patch > 0)
        .ok_or_else(|| Error::checkpoint("config.json", "`image_grid_pinpoints` is empty"))?;
    Ok(Size::new(best.width / patch, best.height / patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PINPOINTS: [[usize; 2]; 5] =
        [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

    #[test]
    fn narrow_pictures_still_have_a_resolution() {
        for (w, h) in [(1, 1), (1, 10_000), (10_000, 1), (16_384, 16_384)] {
            let best = select_best_resolution(Size::new(w, h), &PINPOINTS).unwrap();
            let fitted = patch_output_size(Size::new(w, h), best);
            assert!(fitted.width >= 1 && fitted.height >= 1, "{w}x{h}");
            assert!(
                fitted.width == best.width || fitted.height == best.height,
                "{w}x{h}"
            );
        }
        assert_eq!(select_best_resolution(Size::new(5, 5), &[]), None);
    }

    #[test]
    fn ragged_tiles_are_cut_off() {
        let tiles = tiles(Size::new(500, 336), 336);
        assert_eq!(tiles.len(), 2);
        assert_eq!(
            tiles[1],
            Rect {
                x: 336,
                y: 0,
                width: 164,
                height: 336
            }
        );
    }
}
