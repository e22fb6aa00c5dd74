//! The types that weights and caches are stored in. Arithmetic is in `f32`; widening is exact.

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
