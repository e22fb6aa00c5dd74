//! Which encoder rows replace which rows of a step's embeddings.

use burn::tensor::Tensor;
use kiln_registry::PlaceholderRange;
use std::ops::Range;

/// Rows of encoder output for consecutive rows of a chunk.
#[derive(Debug, Clone)]
pub(crate) struct Overlay {
    /// The first row within the chunk.
    pub(crate) at: usize,
    /// `[rows, hidden]`
    pub(crate) rows: Tensor<2>,
}

/// The overlays of one item on the positions of a chunk.
pub(crate) fn overlays(
    range: &PlaceholderRange,
    features: &Tensor<2>,
    chunk: &Range<usize>,
) -> Vec<Overlay> {
    let [_, hidden] = features.dims();
    runs(range, chunk)
        .into_iter()
        .map(|(at, rows)| Overlay {
            at,
            rows: features.clone().slice([rows, 0..hidden]),
        })
        .collect()
}

/// Runs of positions that take encoder rows: the first row within the chunk, and which rows of the
/// item.
fn runs(range: &PlaceholderRange, chunk: &Range<usize>) -> Vec<(usize, Range<usize>)> {
    let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
    let mut row = 0;
    for position in range.range() {
        let taken = range
            .embed_mask
            .as_ref()
            .is_none_or(|mask| mask.get(position - range.offset).copied().unwrap_or(false));
        if !taken {
            continue;
        }
        if chunk.contains(&position) {
            let at = position - chunk.start;
            match runs.last_mut() {
                Some((first, rows)) if *first + rows.len() == at => rows.end += 1,
                _ => runs.push((at, row..row + 1)),
            }
        }
        row += 1;
    }
    runs
}

/// The embeddings with overlays in their places.
///
/// # Shapes
/// `embeds`: `[tokens, hidden]`, and so the result; overlays sorted, not overlapping.
pub(crate) fn merge(embeds: Tensor<2>, overlays: Vec<Overlay>) -> Tensor<2> {
    if overlays.is_empty() {
        return embeds;
    }
    let [tokens, hidden] = embeds.dims();
    let mut parts = Vec::with_capacity(2 * overlays.len() + 1);
    let mut next = 0;
    for overlay in overlays {
        if overlay.at > next {
            parts.push(embeds.clone().slice([next..overlay.at, 0..hidden]));
        }
        next = overlay.at + overlay.rows.dims()[0];
        parts.push(overlay.rows);
    }
    if next < tokens {
        parts.push(embeds.slice([next..tokens, 0..hidden]));
    }
    Tensor::cat(parts, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn range(embed_mask: Option<Vec<bool>>) -> PlaceholderRange {
        PlaceholderRange {
            modality: "image".to_owned(),
            item: 0,
            offset: 2,
            length: 5,
            embed_mask,
        }
    }

    #[test]
    fn a_chunk_takes_the_rows_of_its_own_positions() {
        assert_eq!(runs(&range(None), &(0..10)), [(2, 0..5)]);
        assert_eq!(runs(&range(None), &(4..6)), [(0, 2..4)]);
        assert_eq!(runs(&range(None), &(7..9)), []);
        // A separator in the middle keeps its text embedding and takes no row.
        let mask = range(Some(vec![true, true, false, true, true]));
        assert_eq!(runs(&mask, &(0..10)), [(2, 0..2), (5, 2..4)]);
        assert_eq!(runs(&mask, &(5..10)), [(0, 2..4)]);
    }

    #[test]
    fn overlays_replace_only_their_rows() {
        let device = Device::flex();
        let embeds = Tensor::<2>::from_data([[0.0], [1.0], [2.0], [3.0], [4.0]], &device);
        let features = Tensor::<2>::from_data([[10.0], [11.0], [12.0], [13.0], [14.0]], &device);
        let merged = merge(embeds, overlays(&range(None), &features, &(0..5)));
        let values: Vec<f32> = merged.into_data().try_to_vec().unwrap();
        assert_eq!(values, [0.0, 1.0, 10.0, 11.0, 12.0]);
    }
}
