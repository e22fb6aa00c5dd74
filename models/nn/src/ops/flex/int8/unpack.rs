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
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: the machine has the instructions.
        unsafe { wide(data, numbers) };
        return numbers;
    }
    simd::run(Unpack { data, numbers });
    numbers
}

/// What [`Unpack`] does, with products of bytes, which no instruction has, from those of 16 bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn wide(data: &[u8], numbers: &mut [u8]) {
    use std::arch::x86_64::{
        __m128i, __m512i, _mm_loadu_si128, _mm512_add_epi8, _mm512_and_si512,
        _mm512_broadcast_i32x4, _mm512_cvtepu8_epi32, _mm512_loadu_si512, _mm512_mask_blend_epi8,
        _mm512_mullo_epi16, _mm512_set1_epi8, _mm512_set1_epi16, _mm512_shuffle_epi8,
        _mm512_slli_epi16, _mm512_srli_epi16, _mm512_storeu_si512, _mm512_sub_epi8,
    };
    /// Each lane's first byte in all four.
    const SPREAD: [u8; 16] = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12];
    let low = _mm512_set1_epi8(15);
    let (blocks, _) = data.as_chunks::<BLOCK_BYTES_4>();
    let (numbers, _) = numbers.as_chunks_mut::<BLOCK_BYTES_8>();
    // SAFETY: for the spread pattern, for the steps of a part and for its lines.
    unsafe {
        let spread = _mm_loadu_si128(SPREAD.as_ptr().cast::<__m128i>());
        let spread = _mm512_broadcast_i32x4(spread);
        for (block, numbers) in blocks.iter().zip(numbers) {
            for p in 0..PARTS {
                let steps = _mm_loadu_si128(block.as_ptr().add(p * GROUP).cast());
                let steps = _mm512_shuffle_epi8(_mm512_cvtepu8_epi32(steps), spread);
                let zero = _mm512_and_si512(_mm512_srli_epi16::<4>(steps), low);
                let step = _mm512_add_epi8(_mm512_and_si512(steps, low), _mm512_set1_epi8(1));
                let step = _mm512_and_si512(step, _mm512_set1_epi16(0xff));
                let scaled = |numbers: __m512i| {
                    let numbers = _mm512_sub_epi8(numbers, zero);
                    let even = _mm512_mullo_epi16(numbers, step);
                    let odd = _mm512_mullo_epi16(_mm512_srli_epi16::<8>(numbers), step);
                    _mm512_mask_blend_epi8(0xaaaa_aaaa_aaaa_aaaa, even, _mm512_slli_epi16::<8>(odd))
                };
                let from = block.as_ptr().add(PARTS * GROUP + p * PART * GROUP / 2);
                let to = numbers.as_mut_ptr().add(p * PART * GROUP);
                for line in 0..PART / 8 {
                    let both = _mm512_loadu_si512(from.add(line * 64).cast());
                    let first = scaled(_mm512_and_si512(both, low));
                    let second = scaled(_mm512_and_si512(_mm512_srli_epi16::<4>(both), low));
                    _mm512_storeu_si512(to.add(line * 64).cast(), first);
                    _mm512_storeu_si512(to.add((PART / 8 + line) * 64).cast(), second);
                }
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::flex::{memory::lines, simd::Level};

    #[test]
    fn every_way_unpacks_the_same() {
        let data: Vec<u8> = (0..3 * BLOCK_BYTES_4)
            .map(|i| (i * 151 % 253) as u8)
            .collect();
        let mut buffer = lines(3 * BLOCK_BYTES_8);
        let best = unpack(&data, &mut buffer);
        for level in Level::available() {
            let mut numbers = vec![0; 3 * BLOCK_BYTES_8];
            let kernel = Unpack {
                data: &data,
                numbers: &mut numbers,
            };
            simd::run_at(level, kernel);
            assert!(numbers == best, "{level:?}");
        }
    }
}
