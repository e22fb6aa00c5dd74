//! The product by AVX-512's instruction that adds four products of bytes to a lane of 32 bits.
//!
//! One of its operands has no sign. That is the weight, plus 128. What that adds to a sum, a
//! multiple of the activations' own sum, is taken from it again.

mod eight;
mod four;

pub(super) use eight::{GROUPS, Room, TILE, multiply, pass};
pub(super) use four::{FEW, Step, few, turned};

use super::Slab;
use crate::ops::flex::layers::Out;
use crate::ops::quantized::HIGH;
use std::arch::x86_64::{
    __m512i, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
};

/// Whether the machine has the instruction, and with it all that is used here.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// What an unsigned weight adds to a sum too much, for activations of a sum.
#[inline]
#[target_feature(enable = "avx512f")]
fn unsigned(sum: i32) -> __m512i {
    _mm512_set1_epi32(sum.wrapping_mul(-128))
}

/// Writes a group's outputs of a row, of the sums of its numbers and second numbers.
///
/// # Safety
/// Nothing else writes them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in super::super) unsafe fn write(
    low: __m512i,
    high: __m512i,
    scale: f32,
    slab: Slab<'_>,
    row: usize,
    out: Out<'_>,
) {
    let mask = ((1u32 << slab.outputs) - 1) as u16;
    // SAFETY: masked to the outputs that there are.
    unsafe {
        let bias = match out.bias {
            Some(bias) => _mm512_maskz_loadu_ps(mask, bias[slab.first..].as_ptr()),
            None => _mm512_setzero_ps(),
        };
        let scale = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(slab.scales.as_ptr()));
        let high = _mm512_mul_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(HIGH as f32));
        let value = _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(low), high), scale);
        let value = _mm512_add_ps(value, bias);
        _mm512_mask_storeu_ps(out.at(row, slab.first), mask, value);
    }
}
