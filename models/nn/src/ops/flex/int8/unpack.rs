//! Weights of four bits as those of eight that they stand for: `base + i * slope`, cut to the high
//! byte of 16 bits.

use super::super::{
    memory::Line,
    simd::{self, Isa, Kernel},
};
use crate::ops::quantized::{GROUP, PART, PART_BYTES_4, STEP_BYTES_4, STEP_BYTES_8};

/// Bytes of a part at eight bits.
const PART_BYTES_8: usize = PART * GROUP;

/// Unpacks whole steps into a buffer that has room for them.
pub(super) fn unpack<'a>(data: &[u8], buffer: &'a mut Vec<Line>) -> &'a [u8] {
    let len = data.len() / STEP_BYTES_4 * STEP_BYTES_8;
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

/// What [`Unpack`] does, a line at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn wide(data: &[u8], numbers: &mut [u8]) {
    use std::arch::x86_64::_mm512_storeu_si512;
    let (parts, _) = data.as_chunks::<PART_BYTES_4>();
    let (numbers, _) = numbers.as_chunks_mut::<PART_BYTES_8>();
    for (part, numbers) in parts.iter().zip(numbers) {
        let part = super::vnni::Part::new(part, 0);
        for (eight, lines) in numbers.chunks_exact_mut(8 * GROUP).enumerate() {
            let (first, second) = part.numbers(eight);
            // SAFETY: two lines.
            unsafe {
                _mm512_storeu_si512(lines.as_mut_ptr().cast(), first);
                _mm512_storeu_si512(lines.as_mut_ptr().add(4 * GROUP).cast(), second);
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
        let (parts, _) = self.data.as_chunks::<PART_BYTES_4>();
        let (numbers, _) = self.numbers.as_chunks_mut::<PART_BYTES_8>();
        for (part, numbers) in parts.iter().zip(numbers) {
            let (head, lines) = part.split_at(4 * GROUP);
            let (slopes, bases) = head.split_at(2 * GROUP);
            let (slopes, _) = slopes.as_chunks::<2>();
            let (bases, _) = bases.as_chunks::<2>();
            let lines = lines.chunks_exact(4 * GROUP);
            for (line, numbers) in lines.zip(numbers.chunks_exact_mut(8 * GROUP)) {
                let (words, _) = line.as_chunks::<4>();
                let (first, second) = numbers.split_at_mut(4 * GROUP);
                for o in 0..GROUP {
                    let slope = u16::from_le_bytes(slopes[o]);
                    let base = u16::from_le_bytes(bases[o]);
                    let word = u32::from_le_bytes(words[o]);
                    let number = |shift: usize| {
                        let number = (word >> shift & 15) as u16;
                        let [_, high] = number.wrapping_mul(slope).wrapping_add(base).to_le_bytes();
                        high
                    };
                    for i in 0..4 {
                        first[o * 4 + i] = number(i / 2 * 16 + i % 2 * 4);
                        second[o * 4 + i] = number(8 + i / 2 * 16 + i % 2 * 4);
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
        let data: Vec<u8> = (0..3 * STEP_BYTES_4)
            .map(|i| (i * 151 % 253) as u8)
            .collect();
        let mut buffer = lines(3 * STEP_BYTES_8);
        let best = unpack(&data, &mut buffer);
        for level in Level::available() {
            let mut numbers = vec![0; 3 * STEP_BYTES_8];
            let kernel = Unpack {
                data: &data,
                numbers: &mut numbers,
            };
            simd::run_at(level, kernel);
            assert!(numbers == best, "{level:?}");
        }
    }
}
