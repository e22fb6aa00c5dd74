//! Buffers that kernels write before they read them.

/// 64 bytes, one line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u8; 64]);

#[cfg(target_arch = "x86_64")]
impl Line {
    pub(super) const ZERO: Self = Self([0; 64]);
}

/// Room for some bytes, rounded up to whole lines.
pub(super) fn lines(bytes: usize) -> Vec<Line> {
    Vec::with_capacity(bytes.div_ceil(size_of::<Line>()))
}

/// A pointer that tasks share, each for a part of its own.
#[derive(Clone, Copy)]
pub(super) struct Raw<T>(pub(super) *mut T);

// SAFETY: only an address; who dereferences it says why that is sound.
unsafe impl<T> Send for Raw<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Raw<T> {}

impl<T> Raw<T> {
    /// The pointer. A method, so that a closure captures all of this.
    pub(super) fn get(self) -> *mut T {
        self.0
    }
}
