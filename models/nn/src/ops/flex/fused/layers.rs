//! By kernels that take any layers of the same rows: on weights of eight and four bits, and on float
//! weights where no matrix unit multiplies them. Rows are normalised and packed once for all layers
//! that take them.

use super::super::{
    HeldWeight, bf16, contiguous, dims,
    element::Element,
    gemm, int8,
    layers::{self, Layer, Operand, Then},
    norm, owned, simd, slice, widened,
};
use super::{Affine, Ends, Norm, Tensor, Weight, held, rows};
use crate::work;
use burn::{backend::Flex, tensor::DType};
use burn_flex::FlexTensor;
use half::f16;
use std::{borrow::Cow, marker::PhantomData};

/// A layer's operands on the CPU.
trait Held: Sized {
    type Rows: Sync;
    type Unit: Copy + Sync;
    type Native<'a>: Operand<Rows = Self::Rows, Unit = Self::Unit>
    where
        Self: 'a;

    /// `None` for another backend, and for other weights.
    fn hold(affine: &Affine) -> Option<Self>;

    fn bias(&self) -> Option<Cow<'_, [f32]>>;

    fn native<'a>(&'a self, bias: Option<&'a [f32]>) -> Self::Native<'a>;

    fn pack(x: &[f32], k: usize, norm: Option<norm::Norm<'_>>) -> Self::Rows;

    /// What multiplies so many rows.
    fn unit(count: usize) -> Self::Unit;

    /// Counts a layer of so many rows.
    fn count(affine: &Affine, count: usize);
}

impl Held for HeldWeight {
    type Rows = int8::Rows;
    type Unit = int8::Unit;
    type Native<'a> = int8::Quantized<'a>;

    fn hold(affine: &Affine) -> Option<Self> {
        let Weight::Quantized(weight) = &affine.weight else {
            return None;
        };
        let data = weight.data.clone().try_into_primitive::<Flex>().ok()?;
        let bias = match &affine.bias {
            Some(bias) => Some(held(bias)?),
            None => None,
        };
        let scales = held(&weight.scales)?;
        Some(Self::new(data, scales, bias, weight.packing))
    }

    fn bias(&self) -> Option<Cow<'_, [f32]>> {
        self.bias()
    }

    fn native<'a>(&'a self, bias: Option<&'a [f32]>) -> int8::Quantized<'a> {
        self.native(bias)
    }

    fn pack(x: &[f32], k: usize, norm: Option<norm::Norm<'_>>) -> int8::Rows {
        int8::Rows::new(x, k, norm)
    }

    fn unit(count: usize) -> int8::Unit {
        int8::Unit::best(count)
    }

    fn count(affine: &Affine, count: usize) {
        if let Weight::Quantized(weight) = &affine.weight {
            let [n, k] = weight.dims();
            work::quantized(count, n, k, weight.bytes());
        }
    }
}

/// A weight of numbers of this type.
struct HeldFloat<E> {
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    of: PhantomData<E>,
}

impl<E: Element> Held for HeldFloat<E> {
    type Rows = gemm::Rows;
    type Unit = simd::Level;
    type Native<'a> = gemm::Affine<'a, E>;

    fn hold(affine: &Affine) -> Option<Self> {
        let Weight::Float(weight) = &affine.weight else {
            return None;
        };
        let weight = weight.clone().try_into_primitive::<Flex>().ok()?;
        let bias = match &affine.bias {
            Some(bias) => Some(held(bias)?),
            None => None,
        };
        (weight.dtype() == E::dtype()).then(|| Self {
            weight: contiguous(weight),
            bias,
            of: PhantomData,
        })
    }

    fn bias(&self) -> Option<Cow<'_, [f32]>> {
        self.bias.as_ref().map(widened)
    }

    fn native<'a>(&'a self, bias: Option<&'a [f32]>) -> gemm::Affine<'a, E> {
        let [n, k] = dims(&self.weight);
        let weight = slice(&self.weight);
        gemm::Affine { weight, bias, n, k }
    }

    fn pack(x: &[f32], k: usize, norm: Option<norm::Norm<'_>>) -> gemm::Rows {
        gemm::Rows::new(x, k, norm, E::dtype() == DType::BF16)
    }

    fn unit(_: usize) -> simd::Level {
        simd::best()
    }

    fn count(affine: &Affine, count: usize) {
        let [n, k] = affine.dims();
        work::linear(count, n, k, E::dtype());
    }
}

/// The type of a float weight that these kernels multiply.
fn float(affine: &Affine) -> Option<DType> {
    match &affine.weight {
        Weight::Quantized(_) => None,
        Weight::Float(weight) => match weight.dtype() {
            DType::BF16 => {
                matches!(bf16::Unit::best(), bf16::Unit::Widened(_)).then_some(DType::BF16)
            }
            dtype => Some(dtype),
        },
    }
}

pub(super) fn linear<const N: usize>(
    x: &Tensor<2>,
    norm: Option<&Norm>,
    layers: [(&Affine, Ends<'_>); N],
) -> Option<[Tensor<2>; N]> {
    match layers.first()?.0.weight {
        Weight::Quantized(_) => linear_of::<HeldWeight, N>(x, norm, layers),
        Weight::Float(_) => match float(layers[0].0)? {
            DType::F32 => linear_of::<HeldFloat<f32>, N>(x, norm, layers),
            DType::BF16 => linear_of::<HeldFloat<half::bf16>, N>(x, norm, layers),
            DType::F16 => linear_of::<HeldFloat<f16>, N>(x, norm, layers),
            _ => None,
        },
    }
}

fn linear_of<H: Held, const N: usize>(
    x: &Tensor<2>,
    norm: Option<&Norm>,
    layers: [(&Affine, Ends<'_>); N],
) -> Option<[Tensor<2>; N]> {
    let mut all = Vec::with_capacity(N);
    for (affine, ends) in &layers {
        let gated = match ends {
            Ends::Gate(_, gated) => Some(H::hold(gated)?),
            Ends::Nothing | Ends::Activation(_) => None,
        };
        all.push((H::hold(affine)?, gated));
    }
    let [count, _] = x.dims();
    let rows = rows(x, norm, H::pack)?;
    for (affine, ends) in &layers {
        H::count(affine, count);
        if let Ends::Gate(_, gated) = ends {
            H::count(gated, count);
        }
    }
    let biases: Vec<_> = all
        .iter()
        .map(|(held, gated)| (held.bias(), gated.as_ref().and_then(H::bias)))
        .collect();
    let native = std::array::from_fn::<Layer<H::Native<'_>>, N, _>(|i| {
        let ((held, gated), (bias, gated_bias)) = (&all[i], &biases[i]);
        Layer {
            op: held.native(bias.as_deref()),
            then: match (layers[i].1, gated) {
                (Ends::Gate(kind, _), Some(gated)) => {
                    Then::Gate(kind, gated.native(gated_bias.as_deref()))
                }
                (Ends::Activation(kind) | Ends::Gate(kind, _), _) => Then::Activate(kind),
                (Ends::Nothing, _) => Then::Write,
            },
        }
    });
    let out = layers::each(H::unit(count), &rows, native);
    Some(super::results(out, count, layers.map(|(affine, _)| affine)))
}

pub(super) fn linear_added(
    x: &Tensor<2>,
    affine: &Affine,
    to: &mut Option<Tensor<2>>,
) -> Option<Tensor<2>> {
    match affine.weight {
        Weight::Quantized(_) => added_of::<HeldWeight>(x, affine, to),
        Weight::Float(_) => match float(affine)? {
            DType::F32 => added_of::<HeldFloat<f32>>(x, affine, to),
            DType::BF16 => added_of::<HeldFloat<half::bf16>>(x, affine, to),
            DType::F16 => added_of::<HeldFloat<f16>>(x, affine, to),
            _ => None,
        },
    }
}

fn added_of<H: Held>(
    x: &Tensor<2>,
    affine: &Affine,
    to: &mut Option<Tensor<2>>,
) -> Option<Tensor<2>> {
    let held = H::hold(affine)?;
    let [count, _] = x.dims();
    let rows = rows(x, None, H::pack)?;
    H::count(affine, count);
    // Of the CPU, like the weight.
    let mut to = owned(to.take()?.try_into_primitive::<Flex>().ok()?);
    let bias = held.bias();
    let native = held.native(bias.as_deref());
    layers::added(H::unit(count), &rows, native, to.storage_mut());
    Some(Tensor::from_primitive::<Flex>(to))
}
