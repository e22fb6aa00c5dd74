//! Weights of four bits as those of eight that they stand for.
#![expect(
    clippy::needless_range_loop,
    reason = "a loop of known length over registers unrolls, where an iterator may stay a call"
)]

use super::super::{
    memory::Line,
    simd::{self, Isa, Kernel},
};
use crate::ops::quantized::{GROUP, LINE, LINES, PART, STEP_BYTES_4, STEP_BYTES_8};

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
    use super::vnni::{Step, turned};
    use std::arch::x86_64::{
        _mm512_set1_epi8, _mm512_setzero_si512, _mm512_storeu_si512, _mm512_xor_si512,
    };
    let sign = _mm512_set1_epi8(-128);
    let (steps, _) = data.as_chunks::<STEP_BYTES_4>();
    let (numbers, _) = numbers.as_chunks_mut::<STEP_BYTES_8>();
    for (step, numbers) in steps.iter().zip(numbers) {
        let step = Step::new(step);
        for (p, numbers) in numbers.chunks_exact_mut(PART * GROUP).enumerate() {
            // No closures: they would be compiled for any machine, and called.
            let mut halves = [[_mm512_setzero_si512(); LINES]; 2];
            for j in 0..LINES {
                (halves[0][j], halves[1][j]) = step.numbers(p, j);
            }
            let (first, second) = numbers.split_at_mut(PART * GROUP / 2);
            for (fours, to) in [(turned(halves[0]), first), (turned(halves[1]), second)] {
                for (four, to) in fours.into_iter().zip(to.chunks_exact_mut(LINE)) {
                    // SAFETY: a line.
                    unsafe {
                        let four = _mm512_xor_si512(four, sign);
                        _mm512_storeu_si512(to.as_mut_ptr().cast(), four);
                    }
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
        let (steps, _) = self.data.as_chunks::<STEP_BYTES_4>();
        let (numbers, _) = self.numbers.as_chunks_mut::<STEP_BYTES_8>();
        for (step, numbers) in steps.iter().zip(numbers) {
            let (head, lines) = step.split_at(LINE);
            for (line, bytes) in lines.chunks_exact(LINE).enumerate() {
                let (p, j) = (line / LINES, line % LINES);
                for (a, bytes) in bytes.chunks_exact(16).enumerate() {
                    let at = a * 16 + p * 8 + j * 2;
                    let (slope, base) = (u16::from(head[at]), u16::from(head[at + 1]));
                    let number = |i: u8| {
                        let number = (u16::from(i) * slope + base * 16 + 8) >> 4;
                        (number.min(255) as u8) ^ 0x80
                    };
                    for (b, byte) in bytes.iter().enumerate() {
                        let mut set = |k: usize, number| {
                            numbers[k / 4 * 4 * GROUP + (4 * a + j) * 4 + k % 4] = number;
                        };
                        set(p * PART + b, number(byte & 15));
                        set(p * PART + PART / 2 + b, number(byte >> 4));
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
