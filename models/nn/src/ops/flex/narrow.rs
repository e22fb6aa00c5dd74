//! Rounding of `f32` to `bf16` on all threads. Burn's own cast is one loop on one of them, number by
//! number, which a tower waits for twice a layer.

use super::{
    contiguous, pool,
    simd::{self, Isa, Kernel},
    slice,
};
use burn::tensor::{Bytes, DType};
use burn_flex::{FlexTensor, Layout};
use half::bf16;
use std::mem::MaybeUninit;

/// Elements of one task.
const CHUNK: usize = 1 << 14;

/// The nearest `bf16`, ties to even; a NaN stays one.
#[inline(always)]
pub(super) fn nearest(value: f32) -> bf16 {
    // Without a branch, so that loops become vectors; the bits are those of `half`.
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    bf16::from_bits(if nan { bits >> 16 | 0x40 } else { rounded } as u16)
}

/// A tensor of `f32` as one of `bf16`.
pub(super) fn narrow(x: FlexTensor) -> FlexTensor {
    let x = contiguous(x);
    let values: &[f32] = slice(&x);
    let mut out = Vec::with_capacity(values.len());
    let room = &mut out.spare_capacity_mut()[..values.len()];
    pool::chunks_mut(room, CHUNK, |i, out| {
        let x = &values[i * CHUNK..][..out.len()];
        simd::run(Narrow { x, out });
    });
    // SAFETY: all of them are written.
    unsafe { out.set_len(values.len()) };
    let layout = Layout::contiguous(x.layout().shape().clone());
    FlexTensor::new(Bytes::from_elems(out), layout, DType::BF16)
}

struct Narrow<'a> {
    x: &'a [f32],
    out: &'a mut [MaybeUninit<bf16>],
}

impl Kernel for Narrow<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        for (out, x) in self.out.iter_mut().zip(self.x) {
            out.write(nearest(*x));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_the_one_of_half() {
        let special = [0, 1, 0x7f80_0000, 0x7f80_0001, 0x7fff_ffff, 0x7f7f_ffff];
        let spread = (0..1u32 << 16).map(|i| i.wrapping_mul(0x9e37_79b1));
        let ties = (0..1u32 << 10).map(|i| (i * 0x3f_0007) << 15);
        for bits in special.into_iter().chain(spread).chain(ties) {
            for value in [bits, bits ^ 1 << 31].map(f32::from_bits) {
                assert_eq!(
                    nearest(value).to_bits(),
                    bf16::from_f32(value).to_bits(),
                    "{bits:x}"
                );
            }
        }
    }
}
