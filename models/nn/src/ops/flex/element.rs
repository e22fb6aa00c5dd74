//! The types that weights and caches are stored in. Arithmetic is in `f32`; widening is exact.

use super::{
    attention::{self, Attention, Sequence},
    narrow,
    simd::{Isa, LANES, Lanes, Line},
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

    /// The values of 16 rows side by side: for each element one line, and so many from one to the
    /// next. Meanwhile a part of eight other rows is fetched.
    ///
    /// # Safety
    /// Each row has `depth` elements, and there is room for as many lines, rounded up to 32. The
    /// machine has the instruction set.
    #[inline(always)]
    unsafe fn turn<I: Isa>(
        rows: [*const Self; LANES],
        depth: usize,
        fetch: Fetch,
        to: *mut Line,
        stride: usize,
    ) {
        let mut square = [[0.0; LANES]; LANES];
        for at in (0..depth).step_by(LANES) {
            // SAFETY: the caller's promise; what is fetched need not be there.
            unsafe {
                for r in 0..LANES {
                    let row = rows[r].add(at);
                    let rest = std::slice::from_raw_parts(row, LANES.min(depth - at));
                    square[r] = Self::lanes::<I>(rest, 0);
                    if r % 4 == 0 {
                        fetch.line::<I>(at / LANES, r / 4);
                    }
                }
                let columns = I::transpose(square.each_ref().map(|row| I::load_unaligned(row.as_ptr())));
                for i in 0..LANES {
                    I::store(to.add((at + i) * stride), columns[i]);
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
        depth: usize,
        fetch: Fetch,
        to: *mut Line,
        stride: usize,
    ) {
        const PAIRS: usize = 2 * LANES;
        let whole = depth / PAIRS * PAIRS;
        // SAFETY: the caller's promise; what is fetched need not be there.
        unsafe {
            for at in (0..whole).step_by(PAIRS) {
                let mut square = [I::splat(&0.0); LANES];
                for r in 0..LANES {
                    square[r] = I::load_unaligned(rows[r].add(at).cast());
                    if r % 2 == 0 {
                        fetch.line::<I>(at / LANES + r / 8, r / 2 % 4);
                    }
                }
                store_pairs::<I>(square, to.add(at * stride), stride);
            }
            if whole < depth {
                let mut rest = [[Self::ZERO; PAIRS]; LANES];
                let mut square = [I::splat(&0.0); LANES];
                for r in 0..LANES {
                    let row = rows[r].add(whole);
                    row.copy_to_nonoverlapping(rest[r].as_mut_ptr(), depth - whole);
                    square[r] = I::load_unaligned(rest[r].as_ptr().cast());
                }
                store_pairs::<I>(square, to.add(whole * stride), stride);
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

/// Parts of rows that will be read soon.
#[derive(Clone, Copy)]
pub(super) struct Fetch {
    pub(super) start: *const u8,
    /// Bytes of a part of a row.
    pub(super) row: usize,
    /// Bytes of a quarter of it: a line, or two, which come together.
    pub(super) quarter: usize,
}

impl Fetch {
    /// Asks for a quarter of a row's part.
    #[inline(always)]
    pub(super) fn line<I: Isa>(self, row: usize, quarter: usize) {
        I::fetch(self.start.wrapping_add(row * self.row + quarter * self.quarter));
    }
}

/// Turns 16 rows of 16 pairs round, and widens them.
///
/// # Safety
/// Room for 32 lines, and a machine that has the instruction set.
#[inline(always)]
unsafe fn store_pairs<I: Isa>(rows: [I::Vector; LANES], to: *mut Line, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let columns = I::transpose(rows);
        for i in 0..LANES {
            // The second of two lies above the first.
            let [first, second] = I::widen_pairs(columns[i]);
            I::store(to.add(2 * i * stride), first);
            I::store(to.add((2 * i + 1) * stride), second);
        }
    }
}
