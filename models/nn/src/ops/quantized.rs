//! Weights of eight or four bits, and the linear layer on them.
//!
//! Both kinds stand for whole numbers of eight bits times one scale for each output, and a row of
//! activations for whole numbers times one scale. So a sum of products is a whole number over all of
//! K, exact in whatever order it is added, scaled once at its end; a row's bits depend on nothing
//! but the row.
//!
//! An activation far beyond the others would leave these a few steps only. So the step follows the
//! mean magnitude ([`CLIP`]), and what exceeds eight bits is given a second number, in units of
//! [`HIGH`] steps. A tile of rows is multiplied by the weight once more where it has such numbers,
//! and only there.
//!
//! Weights are packed for the kernels when they are made. 16 outputs go together ([`GROUP`]), and of
//! each [`STEP`] of K four elements of one output stand beside those of the next output: what one
//! instruction multiplies.

use super::{Dispatch, KilnOps, Quantization, empty, flex};
use crate::work;
use burn::tensor::{Bytes, DType, Device, Int, Shape, Tensor, TensorData};
use cubecl_environment::bytes::AllocationProperty;

/// Elements of K that a tile has in a row.
pub(super) const STEP: usize = 64;
/// Outputs that are packed together.
pub(super) const GROUP: usize = 16;
/// Elements of K of [`Quantization::Q4`] that share a slope and a base: of a number `i` of four bits,
/// `(i * slope + 16 * base) / 16`, rounded, less 128, is the number of eight bits that it stands for.
pub(super) const PART: usize = 32;
/// Parts of a step.
pub(super) const PARTS: usize = STEP / PART;
/// Bytes of a step of a group at eight bits.
pub(super) const STEP_BYTES_8: usize = STEP * GROUP;
/// Bytes of a line of four bits: 32 elements of four outputs.
pub(super) const LINE: usize = 64;
/// Lines of a part of a group.
pub(super) const LINES: usize = GROUP / 4;
/// Bytes of a step of a group at four bits: a line with slope and base of each output for each part,
/// then the parts' lines. Output `4 * a + j` of the group is in the quarter `a` of line `j`, and its
/// slopes and bases in that of the first line. A byte has an element in its low bits, and the one 16
/// further on in its high bits.
pub(super) const STEP_BYTES_4: usize = LINE + PARTS * LINES * LINE;
/// Multiples of a row's mean magnitude up to which its activations are of eight bits: the step is
/// the 127th part of that, or of the greatest magnitude if that is less. A greater one saves second
/// numbers and costs precision; `xtask/quality` measures what.
pub(super) const CLIP: f32 = 6.0;
/// Steps of a second number of an activation.
pub(super) const HIGH: i32 = 128;
/// The greatest number of steps of an activation: of eight bits in units of [`HIGH`].
pub(super) const MOST: f32 = 16_256.0;

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

    /// Steps of K; the last is filled with zeros.
    pub(super) fn steps(self) -> usize {
        self.k.div_ceil(STEP)
    }

    /// Bytes of a group.
    pub(super) fn group_bytes(self) -> usize {
        self.steps()
            * match self.kind {
                Quantization::Q8 => STEP_BYTES_8,
                Quantization::Q4 => STEP_BYTES_4,
            }
    }
}

/// A weight, `[out, in]`, of whole numbers and scales.
#[derive(Clone)]
pub struct QuantizedWeight {
    /// Groups, of each its steps.
    pub(super) data: Tensor<1, Int>,
    /// A scale for each output, zeros behind the last one up to a whole group.
    pub(super) scales: Tensor<1>,
    pub(super) packing: Packing,
}

impl QuantizedWeight {
    /// Elements of a row at most: their sums surely fit 32 bits.
    pub const MAX_K: usize = 1 << 17;

    /// Rounds a weight on the host.
    ///
    /// # Shapes
    /// `weight`: `[out, in]`, `f32`, `bf16` or `f16`; at most [`MAX_K`](Self::MAX_K) elements in a row.
    pub fn new(weight: Tensor<2>, kind: Quantization) -> Self {
        let device = weight.device();
        Self::from_data(&weight.into_data(), kind, &device, |_, _| {})
    }

    /// Changes whenever the same weight is rounded or packed to other bytes.
    pub(crate) const FORMAT: u32 = 1;

    /// [`new`](Self::new) from numbers on the host, which are read in place. `keep` sees
    /// numbers and scales: one behind the other they are what [`from_kept`](Self::from_kept) takes.
    pub(crate) fn from_data(
        weight: &TensorData,
        kind: Quantization,
        device: &Device,
        keep: impl FnOnce(&bytes::Bytes, &[f32]),
    ) -> Self {
        let [n, k] = weight.shape().dims();
        assert!(k <= Self::MAX_K, "sums over {k} elements fit 32 bits");
        let packing = Packing { kind, n, k };
        let (data, scales) = flex::pack(weight, packing);
        keep(&data, &scales);
        Self::from_parts(data, scales, packing, device)
    }

    /// What was kept of a weight of this shape; `None` when it can't be that. Its numbers stay where
    /// they are.
    pub(crate) fn from_kept(
        kept: bytes::Bytes,
        kind: Quantization,
        [n, k]: [usize; 2],
        device: &Device,
    ) -> Option<Self> {
        let packing = Packing { kind, n, k };
        let numbers = packing.groups() * packing.group_bytes();
        let scales = packing.groups() * GROUP * size_of::<f32>();
        // The kernels read whole lines.
        if kept.len() != numbers + scales || !(kept.as_ptr() as usize).is_multiple_of(64) {
            return None;
        }
        let scales: Vec<f32> = kept[numbers..]
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        let data = kept.slice(..numbers);
        Some(Self::from_parts(data, scales, packing, device))
    }

    fn from_parts(data: bytes::Bytes, scales: Vec<f32>, packing: Packing, device: &Device) -> Self {
        let count = scales.len();
        Self {
            data: Self::numbers(data, packing.kind, device),
            scales: Tensor::from_data(TensorData::new(scales, [count]), (device, DType::F32)),
            packing,
        }
    }

    fn numbers(bytes: bytes::Bytes, kind: Quantization, device: &Device) -> Tensor<1, Int> {
        let dtype = match kind {
            Quantization::Q8 => DType::I8,
            Quantization::Q4 => DType::U8,
        };
        let shape = Shape::from(vec![bytes.len()]);
        let bytes = Bytes::from_shared(bytes, AllocationProperty::Native);
        Tensor::from_data(TensorData::from_bytes(bytes, shape, dtype), (device, dtype))
    }

    /// Outputs and elements of a row.
    pub fn dims(&self) -> [usize; 2] {
        [self.packing.n, self.packing.k]
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.data.dims()[0] + self.scales.dims()[0] * size_of::<f32>()
    }

    /// Its numbers and scales.
    #[cfg(test)]
    pub(crate) fn parts(&self) -> (TensorData, TensorData) {
        (
            self.data.clone().into_data(),
            self.scales.clone().into_data(),
        )
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

/// `x * weight^T + bias` on a quantized weight. A row of `x` is rounded to whole numbers of one step
/// before it is multiplied, which follows its mean magnitude; what exceeds eight bits is given a
/// second number.
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
