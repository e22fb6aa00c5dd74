//! Intel's matrix unit: eight tiles of 16 rows of 64 bytes, multiplied by one instruction.
//!
//! The instructions are written in assembly, since Rust's own are not stable. The compiler knows
//! no tiles: it neither uses nor saves them, so that what one block of assembly leaves in a tile
//! is there for the next one, as long as nothing between them runs another kernel on this thread.

pub(super) mod attention;
mod cursor;
pub(super) mod int8;
pub(super) mod linear;
pub(super) mod pack;
mod panel;

use std::arch::asm;
use std::sync::OnceLock;

/// Whether this process may use the matrix unit, for `bf16` and for `i8`, together with all that
/// AVX-512 has on such machines.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512vnni")
            && has_tiles()
            && permitted()
    })
}

/// Whether the processor has tiles of `bf16` and `i8`.
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    // Leaf 7, register edx: amx-bf16 (22), amx-tile (24), amx-int8 (25).
    const BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS
}

/// Asks the kernel for the state that tiles need, once for all threads of the process. Only Linux
/// has this call.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that reads and writes no memory of ours; the registers that it
    // changes are named. A kernel without it answers with an error.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The shape of the tiles of this thread, until it is dropped.
pub(super) struct Tiles;

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// Tiles of 16 rows; `row_bytes` of each.
    ///
    /// # Safety
    /// [`available`] said yes, and no other value of this type is alive on this thread.
    pub(super) unsafe fn of(row_bytes: [usize; 8]) -> Self {
        // SAFETY: what the caller promised.
        unsafe { Self::with_rows(row_bytes, [16; 8]) }
    }

    /// Tiles of up to 16 rows.
    ///
    /// # Safety
    /// As of [`of`](Self::of).
    unsafe fn with_rows(row_bytes: [usize; 8], rows: [usize; 8]) -> Self {
        let mut shapes = Shapes {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        for (tile, (bytes, rows)) in row_bytes.into_iter().zip(rows).enumerate() {
            assert!(
                (1..=64).contains(&bytes) && (1..=16).contains(&rows),
                "the size of a tile"
            );
            shapes.row_bytes[tile] = bytes as u16;
            shapes.rows[tile] = rows as u8;
        }
        // SAFETY: the instruction exists, and reads the 64 bytes of a valid configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) }
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the value was made where the instruction exists. Without it every switch of
        // threads would save and restore the tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}
