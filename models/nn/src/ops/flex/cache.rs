//! Writes keys and values of new tokens into their slots of a paged cache.

use super::element::Element;

/// Writes row `t` of `new` to slot `slots[t]` of `cache`; both are rows of `width`.
///
/// # Panics
/// When a slot is not in the cache: the layout belongs to another cache.
pub(super) fn write<E: Element>(cache: &mut [E], new: &[f32], slots: &[i64], width: usize) {
    for (row, slot) in new.chunks_exact(width).zip(slots) {
        let slot = usize::try_from(*slot).expect("a slot is not negative");
        let stored = &mut cache[slot * width..][..width];
        for (stored, value) in stored.iter_mut().zip(row) {
            *stored = E::narrow(*value);
        }
    }
}
