//! The types that weights and caches are stored in. Arithmetic is in `f32`; widening is exact.
#![expect(
    clippy::needless_range_loop,
    reason = "a loop of known length over registers unrolls, where an iterator may stay a call"
)]

use super::{
    attention::{self, Attention, Sequence},
    narrow,
    simd::{Isa, LANES, Lanes},
};
use burn::tensor::Element as BurnElement;
use bytemuck::Pod;
use half::{bf16, f16};

/// A stored number.
pub(super) trait Element: BurnElement + Pod {
    /// Its value.
    fn widen(self) -> f32;

    /// The values of 16 numbers.
    #[inline(always)]
    fn widen_lanes<I: Isa>(stored: &[Self; LANES]) -> Lanes {
        let mut lanes = [0.0; LANES];
        for l in 0..LANES {
            lanes[l] = stored[l].widen();
        }
        lanes
    }

    /// Lanes `at` of a row, zero beyond its end.
    #[inline(always)]
    fn lanes<I: Isa>(row: &[Self], at: usize) -> Lanes {
        let part = row.get(at * LANES..).unwrap_or_default();
        match part.first_chunk() {
            Some(whole) => Self::widen_lanes::<I>(whole),
            None => {
                let mut stored = [Self::zeroed(); LANES];
                stored[..part.len()].copy_from_slice(part);
                Self::widen_lanes::<I>(&stored)
            }
        }
    }

    /// The values of 16 numbers, in registers.
    ///
    /// # Safety
    /// They are there, and the machine has the instruction set.
    #[inline(always)]
    unsafe fn load<I: Isa>(from: *const Self) -> I::Vector {
        // SAFETY: the caller's promise; numbers are aligned as such.
        unsafe {
            let lanes = Self::widen_lanes::<I>(&*from.cast());
            I::load(lanes.as_ptr())
        }
    }

    /// The values of 16 rows side by side, a line for each element: line `(k % 16) * lane + k / 16 *
    /// step` for element `k`. Beyond the last element there are zeros, up to whole groups of 32.
    ///
    /// # Safety
    /// Each row has so many elements, and there is room for the lines. The machine has the
    /// instruction set.
    #[inline(always)]
    unsafe fn turn<I: Isa>(
        rows: [*const Self; LANES],
        elements: usize,
        to: *mut f32,
        [lane, step]: [usize; 2],
    ) {
        for at in (0..elements).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let mut square = [I::splat(&0.0); LANES];
                for r in 0..LANES {
                    let row = rows[r].add(at);
                    let row = std::slice::from_raw_parts(row, LANES.min(elements - at));
                    square[r] = I::load(Self::lanes::<I>(row, 0).as_ptr());
                }
                let columns = I::transpose(square);
                for i in 0..LANES {
                    let line = i * lane + at / LANES * step;
                    I::store(to.add(line * LANES), columns[i]);
                }
            }
        }
    }

    /// The nearest stored number, ties to even.
    fn narrow(value: f32) -> Self;

    /// Attends to keys and values of this type.
    fn attend<'a>(op: Attention<'a, Self>, sequences: &[Sequence<'a>], out: &'a mut [f32]) {
        attention::attention(op, sequences, out);
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    // Two by two, which takes half the exchanges.
    #[inline(always)]
    unsafe fn turn<I: Isa>(
        rows: [*const Self; LANES],
        elements: usize,
        to: *mut f32,
        strides: [usize; 2],
    ) {
        const PAIRS: usize = 2 * LANES;
        let whole = elements / PAIRS * PAIRS;
        // SAFETY: the caller's promise.
        unsafe {
            for at in (0..whole).step_by(PAIRS) {
                let mut square = [I::splat(&0.0); LANES];
                for r in 0..LANES {
                    square[r] = I::load(rows[r].add(at).cast());
                }
                store_pairs::<I>(square, to.add(at * strides[1]), strides);
            }
            if whole < elements {
                let mut rest = [[Self::ZERO; PAIRS]; LANES];
                let mut square = [I::splat(&0.0); LANES];
                for r in 0..LANES {
                    let row = rows[r].add(whole);
                    row.copy_to_nonoverlapping(rest[r].as_mut_ptr(), elements - whole);
                    square[r] = I::load(rest[r].as_ptr().cast());
                }
                store_pairs::<I>(square, to.add(whole * strides[1]), strides);
            }
        }
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        narrow::nearest(value)
    }

    fn attend<'a>(op: Attention<'a, Self>, sequences: &[Sequence<'a>], out: &'a mut [f32]) {
        attention::attention_bf16(op, sequences, out);
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    // `half` asks the machine for F16C at each number.
    #[inline(always)]
    fn widen_lanes<I: Isa>(stored: &[Self; LANES]) -> Lanes {
        I::widen_f16(stored)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// Turns 16 rows of 16 pairs round, and widens them.
///
/// # Safety
/// Room for 32 lines, and a machine that has the instruction set.
#[inline(always)]
unsafe fn store_pairs<I: Isa>(rows: [I::Vector; LANES], to: *mut f32, [lane, step]: [usize; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        let columns = I::transpose(rows);
        for i in 0..LANES {
            // The second of two lies above the first.
            let [first, second] = I::widen_pairs(columns[i]);
            let line = 2 * i % LANES * lane + 2 * i / LANES * step;
            I::store(to.add(line * LANES), first);
            I::store(to.add((line + lane) * LANES), second);
        }
    }
}
