//! Weights of eight or four bits, and the linear layer on them.
//!
//! Both are whole numbers times a scale, so that products are summed in whole numbers, exactly, and
//! a row's bits depend on nothing but the row. Activations are rounded to eight bits as they come,
//! with a scale for each [`BLOCK`] of a row: an outlier costs precision in its own block only.
//!
//! Weights are packed for the kernels when they are made. 16 outputs go together ([`GROUP`]), and of
//! each block of K four elements of one output stand beside those of the next output: what one
//! instruction multiplies.

use super::flex::simd::{self, Isa, Kernel};
use super::{Dispatch, KilnOps, Quantization, empty};
use crate::work;
use burn::tensor::{Bytes, DType, FloatDType, Int, Shape, Tensor, TensorData};
use cubecl_environment::bytes::AllocationProperty;
use rayon::prelude::*;

/// Elements of K that share a scale.
pub(super) const BLOCK: usize = 128;
/// Outputs that are packed together.
pub(super) const GROUP: usize = 16;
/// Elements of K of [`Quantization::Q4`] that share a step and a zero.
pub(super) const PART: usize = 32;
/// Parts of a block.
pub(super) const PARTS: usize = BLOCK / PART;
/// Bytes of a block of a group at eight bits.
pub(super) const BLOCK_BYTES_8: usize = BLOCK * GROUP;
/// Bytes of a block of a group at four bits: step and zero of each part, then the numbers.
pub(super) const BLOCK_BYTES_4: usize = PARTS * GROUP + BLOCK * GROUP / 2;

/// The shape of a packed weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packing {
    pub(super) kind: Quantization,
    /// Outputs.
    pub(super) n: usize,
    /// Elements of a row.
    pub(super) k: usize,
}

impl Packing {
    /// Groups of outputs; the last is filled with zeros.
    pub(super) fn groups(self) -> usize {
        self.n.div_ceil(GROUP)
    }

    /// Blocks of K; the last is filled with zeros.
    pub(super) fn blocks(self) -> usize {
        self.k.div_ceil(BLOCK)
    }

    /// Bytes of a block of a group.
    pub(super) fn block_bytes(self) -> usize {
        match self.kind {
            Quantization::Q8 => BLOCK_BYTES_8,
            Quantization::Q4 => BLOCK_BYTES_4,
        }
    }

    /// Scales of a group: [`Quantization::Q8`] block by block, each output by output.
    pub(super) fn group_scales(self) -> usize {
        match self.kind {
            Quantization::Q8 => self.blocks() * GROUP,
            Quantization::Q4 => GROUP,
        }
    }
}

/// A weight, `[out, in]`, of whole numbers and scales.
#[derive(Clone)]
pub struct QuantizedWeight {
    /// Groups, of each its blocks.
    pub(super) data: Tensor<1, Int>,
    /// Groups, of each its scales.
    pub(super) scales: Tensor<1>,
    pub(super) packing: Packing,
}

impl QuantizedWeight {
    /// Rounds a weight, 16 rows at a time, on the host.
    ///
    /// # Shapes
    /// `weight`: `[out, in]`, `f32`, `bf16` or `f16`.
    pub fn new(weight: Tensor<2>, kind: Quantization) -> Self {
        let [n, k] = weight.dims();
        let packing = Packing { kind, n, k };
        let device = weight.device();
        let size = packing.blocks() * packing.block_bytes();
        let mut data = vec![Line([0; 64]); packing.groups() * size / 64];
        let mut scales = vec![0.0; packing.groups() * packing.group_scales()];
        // Some rows at a time are widened and copied, never the whole.
        let rows = GROUP * 64;
        for first in (0..n).step_by(rows) {
            let count = rows.min(n - first);
            let part = weight.clone().narrow(0, first, count);
            let part = part.cast(FloatDType::F32).into_data();
            let part: Vec<f32> = part.try_to_vec().expect("f32 data");
            let group = first / GROUP;
            let data: &mut [u8] = bytemuck::cast_slice_mut(&mut data);
            let scales = &mut scales[group * packing.group_scales()..];
            pack(&part, packing, &mut data[group * size..], scales);
        }
        let len = packing.groups() * size;
        let bytes = bytes::Bytes::from_owner(Lines(data));
        let bytes = Bytes::from_shared(bytes, AllocationProperty::Native);
        let dtype = match kind {
            Quantization::Q8 => DType::I8,
            Quantization::Q4 => DType::U8,
        };
        let data = TensorData::from_bytes(bytes, Shape::from(vec![len]), dtype);
        let count = scales.len();
        Self {
            data: Tensor::from_data(data, (&device, dtype)),
            scales: Tensor::from_data(TensorData::new(scales, [count]), (&device, DType::F32)),
            packing,
        }
    }

    /// Outputs and elements of a row.
    pub fn dims(&self) -> [usize; 2] {
        [self.packing.n, self.packing.k]
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.data.dims()[0] + self.scales.dims()[0] * size_of::<f32>()
    }

    /// What it stands for.
    ///
    /// # Shapes
    /// f32 `[out, in]`
    #[cfg(test)]
    pub(super) fn widened(&self) -> Tensor<2> {
        super::portable::widened(self.data.clone(), self.scales.clone(), self.packing)
    }
}

/// `x * weight^T + bias` on a quantized weight. Each block of 128 elements of a row of `x` is
/// rounded to 255 steps between its greatest magnitudes before it is multiplied.
///
/// # Shapes
/// `x`: `[m, k]`, `weight`: `[n, k]`, `bias`: `[n]`; the result: `[m, n]`.
pub fn linear_quantized(
    x: Tensor<2>,
    weight: &QuantizedWeight,
    bias: Option<Tensor<1>>,
) -> Tensor<2> {
    let [m, k] = x.dims();
    let packing = weight.packing;
    let n = packing.n;
    assert_eq!(k, packing.k, "a row of x is as long as a row of the weight");
    if m == 0 || n == 0 {
        return empty([m, n], &x);
    }
    assert_ne!(k, 0, "a row of x has elements");
    work::quantized(m, n, k, weight.bytes());
    let x = x.into_dispatch();
    let data = weight.data.clone().into_dispatch();
    let scales = weight.scales.clone().into_dispatch();
    Tensor::from_dispatch(match bias {
        Some(bias) => {
            assert_eq!(bias.dims(), [n], "one bias for each output");
            let bias = bias.into_dispatch();
            Dispatch::linear_quantized_bias(x, data, scales, bias, packing)
        }
        None => Dispatch::linear_quantized(x, data, scales, packing),
    })
}

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

/// Packs some rows, whole groups but for the last.
fn pack(rows: &[f32], packing: Packing, data: &mut [u8], scales: &mut [f32]) {
    let Packing { kind, k, .. } = packing;
    rows.par_chunks(GROUP * k)
        .zip(data.par_chunks_mut(packing.blocks() * packing.block_bytes()))
        .zip(scales.par_chunks_mut(packing.group_scales()))
        .for_each(|((rows, data), scales)| {
            simd::run(Round {
                kind,
                rows,
                k,
                data,
                scales,
            });
        });
}

/// Up to 16 rows, by the widest instructions: four bits are searched for.
struct Round<'a> {
    kind: Quantization,
    rows: &'a [f32],
    k: usize,
    data: &'a mut [u8],
    scales: &'a mut [f32],
}

impl Kernel for Round<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        match self.kind {
            Quantization::Q8 => round_8(self.rows, self.k, self.data, self.scales),
            Quantization::Q4 => round_4(self.rows, self.k, self.data, self.scales),
        }
    }
}

/// A weight's data and scales.
#[cfg(test)]
pub(super) fn packed(weight: &[f32], packing: Packing) -> (Vec<u8>, Vec<f32>) {
    let groups = packing.groups();
    let mut data = vec![0; groups * packing.blocks() * packing.block_bytes()];
    let mut scales = vec![0.0; groups * packing.group_scales()];
    pack(weight, packing, &mut data, &mut scales);
    (data, scales)
}

/// Where the element `k` of a block stands, of output `o` of its group.
#[inline(always)]
fn place(o: usize, k: usize) -> usize {
    k / 4 * 4 * GROUP + o * 4 + k % 4
}

/// Up to 16 rows at eight bits, to the nearest.
#[inline(always)]
fn round_8(rows: &[f32], k: usize, data: &mut [u8], scales: &mut [f32]) {
    for (o, row) in rows.chunks_exact(k).enumerate() {
        for (b, block) in row.chunks(BLOCK).enumerate() {
            let most = block.iter().fold(0.0f32, |most, w| most.max(w.abs()));
            let scale = most / 127.0;
            scales[b * GROUP + o] = scale;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let data = &mut data[b * BLOCK_BYTES_8..];
            for (k, w) in block.iter().enumerate() {
                let number = (w * inverse).round_ties_even().clamp(-127.0, 127.0);
                data[place(o, k)] = number as i8 as u8;
            }
        }
    }
}

/// Up to 16 rows at four bits. A row is scaled to whole numbers of eight bits first, of which each
/// part is given by the step and the zero that err least.
#[inline(always)]
fn round_4(rows: &[f32], k: usize, data: &mut [u8], scales: &mut [f32]) {
    for (o, row) in rows.chunks_exact(k).enumerate() {
        let most = row.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        // Steps go a little beyond the greatest number, and must not leave eight bits.
        let scale = most / 119.0;
        scales[o] = scale;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (p, part) in row.chunks(PART).enumerate() {
            let mut numbers = [0.0; PART];
            for (number, w) in numbers.iter_mut().zip(part) {
                *number = w * inverse;
            }
            let best = Steps::of(&numbers);
            let data = &mut data[p / PARTS * BLOCK_BYTES_4..];
            data[p % PARTS * GROUP + o] = (best.step as u8 - 1) | ((best.zero as u8) << 4);
            let data = &mut data[PARTS * GROUP + p % PARTS * PART * GROUP / 2..];
            for (k, number) in numbers.iter().enumerate() {
                // The second half of a part is in the high bits of the first.
                let (at, shift) = (place(o, k % (PART / 2)), k / (PART / 2) * 4);
                data[at] |= (best.nearest(*number) as u8) << shift;
            }
        }
    }
}

/// By halves: in an order that registers can follow.
#[inline(always)]
fn sum(mut numbers: [f32; PART]) -> f32 {
    let mut half = PART / 2;
    while half > 0 {
        for at in 0..half {
            numbers[at] += numbers[at + half];
        }
        half /= 2;
    }
    numbers[0]
}

/// 16 numbers of eight bits: `(i - zero) * step`, `i` from 0 to 15.
#[derive(Debug, Clone, Copy)]
struct Steps {
    /// 1 to 16
    step: f32,
    /// 0 to 15
    zero: f32,
}

impl Steps {
    /// Those that err least on some numbers.
    #[inline(always)]
    fn of(numbers: &[f32; PART]) -> Self {
        let low = numbers.iter().fold(0.0f32, |a, b| a.min(*b));
        let high = numbers.iter().fold(0.0f32, |a, b| a.max(*b));
        let exact = (high - low) / 15.0;
        let mut best = (
            f32::INFINITY,
            Self {
                step: 1.0,
                zero: 0.0,
            },
        );
        for step in [exact.floor() - 1.0, exact.floor(), exact.floor() + 1.0] {
            let step = step.clamp(1.0, 16.0);
            let zero = (-low / step).round_ties_even().clamp(0.0, 15.0);
            for zero in [zero - 1.0, zero, zero + 1.0] {
                let steps = Self { step, zero };
                let fits = zero * step <= 128.0 && (15.0 - zero) * step <= 127.0;
                if !(0.0..=15.0).contains(&zero) || !fits {
                    continue;
                }
                let mut errors = [0.0; PART];
                for (error, number) in errors.iter_mut().zip(numbers) {
                    *error = steps.error(*number);
                }
                let error = sum(errors);
                if error < best.0 {
                    best = (error, steps);
                }
            }
        }
        best.1
    }

    #[inline(always)]
    fn nearest(self, number: f32) -> f32 {
        ((number / self.step).round_ties_even() + self.zero).clamp(0.0, 15.0)
    }

    #[inline(always)]
    fn error(self, number: f32) -> f32 {
        let off = (self.nearest(number) - self.zero) * self.step - number;
        off * off
    }
}
