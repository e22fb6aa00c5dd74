//! Rounding of weights, and the order in which kernels read them.
//!
//! 16 outputs are rounded side by side, a lane of a register for each, so that what is found for an
//! output needs no sum across lanes. Nothing is fused: every instruction set packs the same bytes.

use super::super::{
    element::Element,
    simd::{self, Isa, Kernel, Lanes},
};
use crate::ops::{
    Quantization,
    quantized::{GROUP, LINE, LINES, PART, PARTS, Packing, STEP_BYTES_4, STEP_BYTES_8},
};
use rayon::prelude::*;

/// A line of the cache: rows of a tile begin with one.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

struct Lines(Vec<Line>);

impl AsRef<[u8]> for Lines {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// A weight's numbers, group by group, and its scales.
pub(in super::super) fn pack<T: Element>(
    weight: &[T],
    packing: Packing,
) -> (bytes::Bytes, Vec<f32>) {
    let Packing { kind, k, .. } = packing;
    let groups = packing.groups();
    let mut data = vec![Line([0; 64]); groups * packing.group_bytes() / 64];
    let mut scales = vec![0.0; groups * GROUP];
    if k > 0 {
        weight
            .par_chunks(GROUP * k)
            .zip(data.par_chunks_mut(packing.group_bytes() / 64))
            .zip(scales.par_chunks_mut(GROUP))
            .for_each(|((rows, data), scales)| {
                let data = bytemuck::cast_slice_mut(data);
                simd::run(Round {
                    kind,
                    rows,
                    k,
                    data,
                    scales,
                });
            });
    }
    (bytes::Bytes::from_owner(Lines(data)), scales)
}

/// Up to 16 rows.
struct Round<'a, T> {
    kind: Quantization,
    rows: &'a [T],
    k: usize,
    data: &'a mut [u8],
    scales: &'a mut [f32],
}

impl<T: Element> Kernel for Round<'_, T> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let mut inverse = [0.0; GROUP];
        for ((row, scale), inverse) in self
            .rows
            .chunks_exact(self.k)
            .zip(self.scales.iter_mut())
            .zip(&mut inverse)
        {
            let most = greatest::<I, T>(row);
            *scale = match self.kind {
                _ if most < 1e-30 => 0.0,
                // A row with a number that is none is none.
                _ if !most.is_finite() => most,
                Quantization::Q8 => nearest_scale::<I, T>(row, most),
                // 15 of the greatest slope reach from the least number to the greatest.
                Quantization::Q4 => most / 119.0,
            };
            let usable = most.is_finite() && *scale > 0.0;
            *inverse = if usable { scale.recip() } else { 0.0 };
        }
        let parts = self.k.div_ceil(PART);
        match self.kind {
            Quantization::Q8 => {
                let lines = self.data.chunks_exact_mut(STEP_BYTES_8 / PARTS);
                for (p, lines) in lines.enumerate().take(parts) {
                    round_8(&numbers::<I, T>(self.rows, self.k, p, &inverse), lines);
                }
            }
            Quantization::Q4 => {
                for p in 0..parts {
                    let numbers = numbers::<I, T>(self.rows, self.k, p, &inverse);
                    let step = &mut self.data[p / PARTS * STEP_BYTES_4..][..STEP_BYTES_4];
                    round_4(&numbers, step, p % PARTS);
                }
            }
        }
    }
}

/// The greatest magnitude of a row; none where one of its numbers is none.
#[inline(always)]
fn greatest<I: Isa, T: Element>(row: &[T]) -> f32 {
    // Without a sign, bits are in the order of the numbers, and NaN is the greatest.
    let bits = |x: f32| x.to_bits() & 0x7fff_ffff;
    let (whole, rest) = row.as_chunks::<GROUP>();
    let mut most = [0; GROUP];
    for stored in whole {
        let lanes = T::widen_lanes::<I>(stored);
        for l in 0..GROUP {
            most[l] = most[l].max(bits(lanes[l]));
        }
    }
    let most = most.into_iter().chain(rest.iter().map(|x| bits(x.widen())));
    f32::from_bits(most.max().unwrap_or(0))
}

/// The scale of a row at eight bits that errs least of some that are tried: the greatest magnitudes
/// may be cut a little.
#[inline(always)]
fn nearest_scale<I: Isa, T: Element>(row: &[T], most: f32) -> f32 {
    /// Scales in a greatest magnitude.
    const TRIED: [f32; 8] = [127.0, 125.0, 123.0, 119.0, 129.0, 131.0, 135.0, 139.0];
    let scales = TRIED.map(|count| most / count);
    let inverse = TRIED.map(|count| count / most);
    let mut errors = [[0.0; GROUP]; TRIED.len()];
    let (whole_chunks, rest) = row.as_chunks::<GROUP>();
    let mut add = |numbers: &Lanes| {
        for (error, (scale, inverse)) in errors.iter_mut().zip(scales.iter().zip(&inverse)) {
            for l in 0..GROUP {
                let off = cut(whole(numbers[l] * inverse)) * scale - numbers[l];
                error[l] += off * off;
            }
        }
    };
    for chunk in whole_chunks {
        add(&T::widen_lanes::<I>(chunk));
    }
    let mut last = [0.0; GROUP];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = from.widen();
    }
    add(&last);
    let mut best = (f32::INFINITY, scales[0]);
    for (error, scale) in errors.into_iter().zip(scales) {
        let error = simd::sum(error);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// Within eight bits.
#[inline(always)]
fn cut(x: f32) -> f32 {
    x.clamp(-127.0, 127.0)
}

/// A part of each row, in units of its scale and within eight bits: of each element of K a lane for
/// each row. What there is not is 0.
#[inline(always)]
fn numbers<I: Isa, T: Element>(
    rows: &[T],
    k: usize,
    part: usize,
    inverse: &Lanes,
) -> [Lanes; PART] {
    let mut numbers = [[0.0; GROUP]; PART];
    let (first, last) = numbers.split_at_mut(GROUP);
    for (half, numbers) in [first, last].into_iter().enumerate() {
        let mut square = [[0.0; GROUP]; GROUP];
        let start = part * PART + half * GROUP;
        for (row, to) in rows.chunks_exact(k).zip(&mut square) {
            let row = &row[start.min(k)..(start + GROUP).min(k)];
            if let Some(row) = row.first_chunk() {
                *to = T::widen_lanes::<I>(row);
            } else {
                for (to, from) in to.iter_mut().zip(row) {
                    *to = from.widen();
                }
            }
        }
        simd::transpose(&mut square);
        for (to, from) in numbers.iter_mut().zip(&square) {
            for l in 0..GROUP {
                to[l] = cut(from[l] * inverse[l]);
            }
        }
    }
    numbers
}

/// The nearest whole number, ties to even.
#[inline(always)]
fn whole(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND) - ROUND
}

/// Half a step at eight bits, to the nearest.
#[inline(always)]
fn round_8(numbers: &[Lanes; PART], data: &mut [u8]) {
    for (four, line) in numbers
        .chunks_exact(4)
        .zip(data.chunks_exact_mut(4 * GROUP))
    {
        for l in 0..GROUP {
            for i in 0..4 {
                line[l * 4 + i] = whole(four[i][l]) as i32 as u8;
            }
        }
    }
}

/// A part at four bits: the slope and base that err least of some that are tried, and the numbers.
#[inline(always)]
fn round_4(numbers: &[Lanes; PART], step: &mut [u8], part: usize) {
    let (mut low, mut high) = (numbers[0], numbers[0]);
    for number in numbers {
        for l in 0..GROUP {
            low[l] = if number[l] < low[l] {
                number[l]
            } else {
                low[l]
            };
            high[l] = if number[l] > high[l] {
                number[l]
            } else {
                high[l]
            };
        }
    }
    let mut best = Ramp::of(&low, &high);
    let mut least = best.error(numbers);
    for inward in [0.0f32, 0.05, 0.1] {
        let (mut from, mut to) = (low, high);
        for l in 0..GROUP {
            let off = (high[l] - low[l]) * inward;
            (from[l], to[l]) = (low[l] + off, high[l] - off);
        }
        let ramp = Ramp::of(&from, &to).fitted(numbers);
        let error = ramp.error(numbers);
        for l in 0..GROUP {
            if error[l] < least[l] {
                least[l] = error[l];
                best.slope[l] = ramp.slope[l];
                best.base[l] = ramp.base[l];
            }
        }
    }
    best.write(numbers, step, part);
}

/// For each lane 16 numbers: `base + i * slope`, in units of 1/16, above -128.
#[derive(Clone, Copy)]
struct Ramp {
    /// A whole number, 1 to 255.
    slope: Lanes,
    /// 16 times a whole number of eight bits; with 15 slopes it is less than 4,088.
    base: Lanes,
}

impl Ramp {
    /// From the least to the greatest number.
    #[inline(always)]
    fn of(low: &Lanes, high: &Lanes) -> Self {
        let (mut slope, mut middle) = ([0.0; GROUP], [0.0; GROUP]);
        for l in 0..GROUP {
            slope[l] = (high[l] - low[l]) * (16.0 / 15.0);
            middle[l] = (high[l] + low[l]) * 0.5;
        }
        Self::rounded(&slope, &middle, &[7.5; GROUP])
    }

    /// The nearest that can be stored, of a slope in units of 1/16 and a number at a place.
    #[inline(always)]
    fn rounded(slope: &Lanes, number: &Lanes, place: &Lanes) -> Self {
        let mut ramp = Self {
            slope: [1.0; GROUP],
            base: [0.0; GROUP],
        };
        for l in 0..GROUP {
            let slope = whole(slope[l]).clamp(1.0, 255.0);
            let base = whole(number[l] + 128.0 - place[l] * slope * (1.0 / 16.0));
            // Rounded, 16 bits become eight.
            let most = ((4087 - 15 * slope as i32) >> 4) as f32;
            ramp.slope[l] = slope;
            ramp.base[l] = base.max(0.0).min(most) * 16.0;
        }
        ramp
    }

    /// Which of the 16 is nearest.
    #[inline(always)]
    fn nearest(&self, inverse: &Lanes, number: &Lanes) -> Lanes {
        let mut nearest = [0.0; GROUP];
        for l in 0..GROUP {
            let at = (units(number[l]) - self.base[l]) * inverse[l];
            nearest[l] = whole(at.clamp(0.0, 15.0));
        }
        nearest
    }

    #[inline(always)]
    fn inverse(&self) -> Lanes {
        self.slope.map(f32::recip)
    }

    /// The one that errs least if each number keeps its place.
    #[inline(always)]
    fn fitted(&self, numbers: &[Lanes; PART]) -> Self {
        let inverse = self.inverse();
        let [mut q, mut qq, mut y, mut qy] = [[0.0; GROUP]; 4];
        for number in numbers {
            let at = self.nearest(&inverse, number);
            for l in 0..GROUP {
                q[l] += at[l];
                qq[l] += at[l] * at[l];
                y[l] += number[l];
                qy[l] += at[l] * number[l];
            }
        }
        let count = PART as f32;
        let mut slope = [0.0; GROUP];
        for l in 0..GROUP {
            let spread = count * qq[l] - q[l] * q[l];
            slope[l] = (count * qy[l] - q[l] * y[l]) / spread.max(1.0) * 16.0;
            q[l] *= 1.0 / count;
            y[l] *= 1.0 / count;
        }
        Self::rounded(&slope, &y, &q)
    }

    /// The sum of the squared errors, in units of 1/16.
    #[inline(always)]
    fn error(&self, numbers: &[Lanes; PART]) -> Lanes {
        let inverse = self.inverse();
        let mut error = [0.0; GROUP];
        for number in numbers {
            let at = self.nearest(&inverse, number);
            for l in 0..GROUP {
                let off = at[l] * self.slope[l] + self.base[l] - units(number[l]);
                error[l] += off * off;
            }
        }
        error
    }

    #[inline(always)]
    fn write(&self, numbers: &[Lanes; PART], step: &mut [u8], part: usize) {
        let inverse = self.inverse();
        let (head, lines) = step.split_at_mut(LINE);
        let lines = &mut lines[part * LINES * LINE..][..LINES * LINE];
        for l in 0..GROUP {
            let at = l / 4 * 16 + part * 8 + l % 4 * 2;
            head[at] = self.slope[l] as i32 as u8;
            head[at + 1] = (self.base[l] * (1.0 / 16.0)) as i32 as u8;
        }
        let (first, second) = numbers.split_at(PART / 2);
        for (b, (first, second)) in first.iter().zip(second).enumerate() {
            let first = self.nearest(&inverse, first);
            let second = self.nearest(&inverse, second);
            for l in 0..GROUP {
                let byte = first[l] as i32 | (second[l] as i32) << 4;
                lines[l % 4 * LINE + l / 4 * 16 + b] = byte as u8;
            }
        }
    }
}

/// A number in units of 1/16 above -128.
#[inline(always)]
fn units(number: f32) -> f32 {
    number * 16.0 + 2048.0
}
