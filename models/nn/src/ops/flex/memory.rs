//! Buffers that kernels write before they read them.

use burn::tensor::Bytes;
use cubecl_environment::bytes::{
    AccessError, AccessPolicy, AllocationController, AllocationProperty,
};
use std::mem::MaybeUninit;
use std::ops::Deref;

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
pub(super) struct Raw<T>(pub(super) *mut T);

impl<T> Clone for Raw<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Raw<T> {}

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

/// Room for a [`Floats`].
pub(super) struct Room(Floats);

impl Room {
    pub(super) fn new(len: usize) -> Self {
        let lines = lines(len * size_of::<f32>());
        Self(Floats { lines, len })
    }

    /// Where the numbers begin.
    pub(super) fn start(&mut self) -> Raw<f32> {
        Raw(self.0.lines.as_mut_ptr().cast())
    }

    /// The numbers.
    ///
    /// # Safety
    /// All of them are written.
    pub(super) unsafe fn written(self) -> Floats {
        self.0
    }
}

/// A result: numbers on the start of a line, so that no store of a whole register crosses one.
pub(super) struct Floats {
    lines: Vec<Line>,
    len: usize,
}

impl Floats {
    /// Zeros.
    pub(super) fn zeros(len: usize) -> Self {
        let mut room = Room::new(len);
        // SAFETY: all are written.
        unsafe {
            room.start().get().write_bytes(0, len);
            room.written()
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: within the capacity, and written.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }

    pub(super) fn into_bytes(self) -> Bytes {
        let len = self.len * size_of::<f32>();
        // SAFETY: as many bytes are written.
        unsafe { Bytes::from_controller(Box::new(self), len) }
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: within the capacity, and written.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl AllocationController for Floats {
    fn alloc_align(&self) -> usize {
        align_of::<Line>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Native
    }

    unsafe fn memory_mut(
        &mut self,
        _: AccessPolicy,
    ) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let len = self.len * size_of::<f32>();
        // SAFETY: within the capacity.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) })
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let len = self.len * size_of::<f32>();
        // SAFETY: within the capacity.
        Ok(unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), len) })
    }
}
