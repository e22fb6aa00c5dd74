//! A keyed random stream whose values never change with a dependency's version.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::scene::Split;

/// ChaCha8 keyed by seed, index and split.
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    /// `purpose` separates the streams of one scene (content from questions), so that a
    /// change to one leaves the other alone.
    pub(crate) fn new(seed: u64, index: u64, split: Split, purpose: u64) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&index.to_le_bytes());
        key[16..32].copy_from_slice(match split {
            Split::Train => b"kiln demo: train",
            Split::Eval => b"kiln demo: eval.",
        });
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(purpose);
        Self(rng)
    }

    /// A whole number in `0..n` (0 when `n` is 0).
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// True once in `n` draws.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A real number in `-r..r`.
    pub(crate) fn around_zero(&mut self, r: f32) -> f32 {
        let unit = (self.0.next_u64() >> 40) as f32 / (1u64 << 24) as f32;
        (2.0 * unit - 1.0) * r
    }

    /// One of the items. The slice is a constant of this crate and never empty.
    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Fisher-Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
