//! LLaVA-NeXT's choice of a grid and its rounding, over a table of sizes from transformers.

use crate::support::read;
use kiln_image::Size;
use kiln_image::anyres::{get_anyres_image_grid_shape, patch_output_size, select_best_resolution};

/// One line of `next-tokens.tsv`.
pub(crate) struct Row {
    /// Which tile side and list of resolutions: see [`pinpoints`].
    pub(crate) set: String,
    pub(crate) picture: Size,
    pub(crate) tiles: Size,
    pub(crate) resized: Size,
}

/// The table.
pub(crate) fn rows() -> Vec<Row> {
    let text = String::from_utf8(read("next-tokens.tsv")).unwrap();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (set, rest) = line.split_once('\t').unwrap();
            let n: Vec<usize> = rest.split('\t').map(|n| n.parse().unwrap()).collect();
            assert_eq!(n.len(), 9, "{line}");
            Row {
                set: set.to_owned(),
                picture: Size::new(n[0], n[1]),
                tiles: Size::new(n[3], n[2]),
                resized: Size::new(n[5], n[4]),
            }
        })
        .collect()
}

/// The tile's side and the resolutions, `[height, width]`, of a set of the table.
pub(crate) fn pinpoints(set: &str) -> (usize, Vec<[usize; 2]>) {
    let grid = |side: usize, most: usize| {
        (1..=most)
            .flat_map(|h| (1..=most).map(move |w| [side * h, side * w]))
            .collect()
    };
    let scaled = |side: usize, tiles: &[[usize; 2]]| {
        tiles.iter().map(|[h, w]| [side * h, side * w]).collect()
    };
    match set {
        "v1.6-336/14" => (336, scaled(336, &[[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]])),
        "wide-336/14" => (336, grid(336, 4)),
        "siglip-384/14" => (384, grid(384, 3)),
        "tiny-28/7" => (
            28,
            scaled(
                28,
                &[[1, 2], [2, 1], [2, 2], [3, 1], [1, 3], [3, 2], [2, 3]],
            ),
        ),
        other => panic!("{other}"),
    }
}

#[test]
fn grids_and_resized_sizes_are_the_references() {
    let rows = rows();
    assert!(rows.len() > 1000, "{}", rows.len());
    let mut wrong = vec![];
    for row in rows {
        let (side, list) = pinpoints(&row.set);
        let best = select_best_resolution(row.picture, &list).unwrap();
        let tiles = get_anyres_image_grid_shape(row.picture, &list, side).unwrap();
        let resized = patch_output_size(row.picture, best);
        if tiles != row.tiles || resized != row.resized {
            wrong.push(format!(
                "{} {:?}: tiles {tiles:?} (reference {:?}), resized {resized:?} (reference {:?})",
                row.set, row.picture, row.tiles, row.resized
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
