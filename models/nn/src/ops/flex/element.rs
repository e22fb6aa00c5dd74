//! The types that weights and caches are stored in. Arithmetic is in `f32`; widening is exact.

use burn::tensor::Element as BurnElement;
use bytemuck::Pod;
use half::{bf16, f16};

/// A stored number.
pub(super) trait Element: BurnElement + Pod {
    /// Its value.
    fn widen(self) -> f32;

    /// The nearest stored number, ties to even.
    fn narrow(value: f32) -> Self;
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
        Self::from_f32(value)
    }
}

impl Element for f16 {
    // In integer operations that vectorise on every instruction set: `half` asks the machine for
    // F16C at each number.
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        let exponent = magnitude & (0x1f << 23);
        // Moves the exponent's bias from 15 to 127. An exponent of all ones (infinity, NaN) moves
        // as far again.
        let rebiased = magnitude + (112 << 23);
        let special = rebiased + (112 << 23);
        // A subnormal is a normal number of the next exponent, less its implicit one.
        let subnormal = f32::from_bits(rebiased + (1 << 23)) - f32::from_bits(113 << 23);
        let value = if exponent == 0 {
            subnormal.to_bits()
        } else if exponent == 0x1f << 23 {
            special
        } else {
            rebiased
        };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}
