//! Weights of four bits as those of eight that they stand for.

use super::super::{
    memory::Line,
    simd::{self, Isa, Kernel},
};
use crate::ops::quantized::{BLOCK_BYTES_4, BLOCK_BYTES_8, GROUP, PART, PARTS};

/// Unpacks whole blocks into a buffer that has room for them.
pub(super) fn unpack<'a>(data: &[u8], buffer: &'a mut Vec<Line>) -> &'a [u8] {
    let len = data.len() / BLOCK_BYTES_4 * BLOCK_BYTES_8;
    assert!(len <= buffer.capacity() * size_of::<Line>());
    // SAFETY: plain bytes within the capacity, all of which are written before they are read.
    let numbers = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), len) };
    simd::run(Unpack { data, numbers });
    numbers
}

struct Unpack<'a> {
    data: &'a [u8],
    numbers: &'a mut [u8],
}

impl Kernel for Unpack<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        /// Bytes of four elements of each output.
        const FOUR: usize = 4 * GROUP;
        let (blocks, _) = self.data.as_chunks::<BLOCK_BYTES_4>();
        let (numbers, _) = self.numbers.as_chunks_mut::<BLOCK_BYTES_8>();
        for (block, numbers) in blocks.iter().zip(numbers) {
            let (steps, data) = block.split_at(PARTS * GROUP);
            let (steps, _) = steps.as_chunks::<GROUP>();
            let parts = data.chunks_exact(PART * GROUP / 2);
            let numbers = numbers.chunks_exact_mut(PART * GROUP);
            for ((steps, part), numbers) in steps.iter().zip(parts).zip(numbers) {
                let mut step = [0u8; FOUR];
                let mut zero = [0u8; FOUR];
                for i in 0..FOUR {
                    step[i] = (steps[i / 4] & 15) + 1;
                    zero[i] = steps[i / 4] >> 4;
                }
                let (part, _) = part.as_chunks::<FOUR>();
                let (low, high) = numbers.split_at_mut(PART * GROUP / 2);
                let (low, _) = low.as_chunks_mut::<FOUR>();
                let (high, _) = high.as_chunks_mut::<FOUR>();
                for ((four, low), high) in part.iter().zip(low).zip(high) {
                    for i in 0..FOUR {
                        low[i] = (four[i] & 15).wrapping_sub(zero[i]).wrapping_mul(step[i]);
                        high[i] = (four[i] >> 4).wrapping_sub(zero[i]).wrapping_mul(step[i]);
                    }
                }
            }
        }
    }
}
