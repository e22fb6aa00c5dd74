//! The inner loop on tiles: 32 outputs by up to 32 rows, step by step of K.

use std::arch::asm;

/// Where two tiles of the weight and two groups of rows stand.
pub(super) struct Cursor {
    pub(super) low: *const u8,
    pub(super) high: *const u8,
    /// Bytes from an output to the next.
    pub(super) stride: usize,
    /// Bytes from a step of the weight to the next.
    pub(super) advance: usize,
    pub(super) group: *const u8,
    pub(super) other: *const u8,
    /// Bytes of a pair of K in a group.
    pub(super) width: usize,
    /// Bytes of a step in a group.
    pub(super) step: usize,
}

impl Cursor {
    /// Tiles 0 to 3 take `count` steps: both tiles of the weight by both groups. The groups are
    /// loaded past the first-level cache, in which the weight would not stay otherwise.
    ///
    /// # Safety
    /// The tiles are configured, and the steps are there.
    #[inline(always)]
    pub(super) unsafe fn four(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        // SAFETY: what the caller promised.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{low} + {stride}]",
                "tileloaddt1 tmm6, [{group} + {width}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloaddt1 tmm7, [{other} + {width}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{high} + {stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {low}, {advance}",
                "add {high}, {advance}",
                "add {group}, {step}",
                "add {other}, {step}",
                "dec {count}",
                "jnz 2b",
                low = inout(reg) self.low,
                high = inout(reg) self.high,
                stride = in(reg) self.stride,
                advance = in(reg) self.advance,
                group = inout(reg) self.group,
                other = inout(reg) self.other,
                width = in(reg) self.width,
                step = in(reg) self.step,
                count = inout(reg) count => _,
                options(nostack, readonly),
            );
        }
    }

    /// Tiles 0 and 2 take `count` steps: both tiles of the weight by the first group.
    ///
    /// # Safety
    /// As of [`four`](Self::four).
    #[inline(always)]
    pub(super) unsafe fn two(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        // SAFETY: what the caller promised.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{low} + {stride}]",
                "tileloadd tmm6, [{group} + {width}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{high} + {stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {low}, {advance}",
                "add {high}, {advance}",
                "add {group}, {step}",
                "dec {count}",
                "jnz 2b",
                low = inout(reg) self.low,
                high = inout(reg) self.high,
                stride = in(reg) self.stride,
                advance = in(reg) self.advance,
                group = inout(reg) self.group,
                width = in(reg) self.width,
                step = in(reg) self.step,
                count = inout(reg) count => _,
                options(nostack, readonly),
            );
        }
    }
}

/// Tiles 0 to 3 to zero.
///
/// # Safety
/// The tiles are configured.
#[inline(always)]
pub(super) unsafe fn clear() {
    // SAFETY: what the caller promised.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, nomem),
        );
    }
}

/// Tiles 0 to 3 from memory, 1 KiB each.
///
/// # Safety
/// The tiles are configured; `sums` are four tiles.
#[inline(always)]
pub(super) unsafe fn load(sums: *const f32) {
    // SAFETY: what the caller promised.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {line}]",
            "tileloadd tmm1, [{sums} + {line} + 1024]",
            "tileloadd tmm2, [{sums} + {line} + 2048]",
            "tileloadd tmm3, [{sums} + {line} + 3072]",
            sums = in(reg) sums,
            line = in(reg) 64usize,
            options(nostack, readonly),
        );
    }
}

/// Tiles 0 to 3 to memory.
///
/// # Safety
/// As of [`load`].
#[inline(always)]
pub(super) unsafe fn store(sums: *mut f32) {
    // SAFETY: what the caller promised.
    unsafe {
        asm!(
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            sums = in(reg) sums,
            line = in(reg) 64usize,
            options(nostack),
        );
    }
}
