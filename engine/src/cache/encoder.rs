//! Encoder rows by the content of the item that they stand for: a picture that was seen before is not
//! encoded again.

use super::ByteLru;
use burn::tensor::Tensor;
use kiln_registry::ContentHash;

/// The rows of items, least recently used first to go. Whoever takes rows shares them.
pub(crate) struct EncoderCache {
    rows: ByteLru<ContentHash, Tensor<2>>,
}

impl EncoderCache {
    /// A cache of so many bytes.
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            rows: ByteLru::new(budget),
        }
    }

    /// Whether an item's rows are there.
    pub(crate) fn contains(&self, item: &ContentHash) -> bool {
        self.rows.contains(item)
    }

    /// An item's rows, `[rows, hidden]`.
    pub(crate) fn get(&mut self, item: &ContentHash) -> Option<Tensor<2>> {
        self.rows.get(item).cloned()
    }

    /// Keeps an item's rows as far as the budget allows.
    pub(crate) fn insert(&mut self, item: ContentHash, rows: &Tensor<2>) {
        self.rows.insert(item, rows.clone(), row_bytes(rows));
    }

    /// Bytes of all rows.
    pub(crate) fn held(&self) -> usize {
        self.rows.held()
    }
}

/// Bytes of encoder rows.
pub(crate) fn row_bytes(rows: &Tensor<2>) -> usize {
    rows.dims().iter().product::<usize>() * size_of::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use kiln_registry::NamedTensors;

    #[test]
    fn rows_come_back_under_their_items_content() {
        let hash = |name: &str| ContentHash::of(&[name], &NamedTensors::new());
        let rows = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &Device::flex());
        let mut cache = EncoderCache::new(2 * 16);
        for name in ["a", "b", "c"] {
            cache.insert(hash(name), &rows);
        }
        assert_eq!(cache.held(), 32, "two of them fit");
        assert!(cache.get(&hash("a")).is_none() && cache.contains(&hash("b")));
        let got = cache.get(&hash("c")).unwrap();
        assert_eq!(got.into_data(), rows.into_data());
    }
}
