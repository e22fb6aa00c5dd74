//! Native operators of the CPU backend: tensors in, slices to the kernels, tensors out.

mod activation;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod bf16;
mod cache;
mod element;
pub(super) mod fused;
mod gemm;
mod int8;
mod layers;
pub mod limits;
mod math;
#[cfg(all(test, target_arch = "x86_64"))]
mod measure;
mod memory;
mod narrow;
mod norm;
#[cfg(target_arch = "x86_64")]
mod pairs;
pub(super) mod pool;
mod rope;
pub(super) mod simd;
#[cfg(test)]
mod tests;

use super::{Activation, Quantization, quantized::Packing};
use attention::{Attention, Sequence};
use burn::{
    backend::Flex,
    tensor::{DType, Element as _, FloatDType, Shape, Tensor, TensorData},
};
use burn_flex::{FlexTensor, Layout};
use element::Element;
use gemm::Affine;
use half::f16;
use kiln_registry::BatchLayout;
use layers::{Layer, Then};
use memory::Floats;
use norm::Norm;
use std::borrow::Cow;

/// Runs `$body` with `$e` standing for the type that `$dtype` names.
macro_rules! with_element {
    ($dtype:expr, $e:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $e = f32;
                $body
            }
            DType::BF16 => {
                type $e = half::bf16;
                $body
            }
            DType::F16 => {
                type $e = f16;
                $body
            }
            other => panic!("f32, bf16 or f16 expected, not {other:?}"),
        }
    };
}

/// [`super::linear`]
pub(super) fn linear(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
    let [x, weight] = [x, weight].map(contiguous);
    let bias = bias.map(contiguous);
    let bias = bias.as_ref().map(widened);
    let [n, k] = dims(&weight);
    let [m, _] = dims(&x);
    let (x, bias) = (slice::<f32>(&x), bias.as_deref());
    let out = match weight.dtype() {
        DType::BF16 => {
            let weight = slice::<half::bf16>(&weight);
            bf16::linear(x, Affine { weight, bias, n, k })
        }
        dtype => {
            with_element!(dtype, E => {
                let weight = slice::<E>(&weight);
                gemm::linear(x, Affine { weight, bias, n, k })
            })
        }
    };
    tensor(out, [m, n])
}

/// A weight's numbers as kernels read them, group by group, and its scales.
pub(super) fn pack(weight: &TensorData, packing: Packing) -> (bytes::Bytes, Vec<f32>) {
    with_element!(weight.dtype(), E => {
        let weight = weight.as_slice::<E>().expect("numbers of this type");
        int8::pack(weight, packing)
    })
}

/// [`super::linear_quantized`]
pub(super) fn linear_quantized(
    x: FlexTensor,
    data: FlexTensor,
    scales: FlexTensor,
    bias: Option<FlexTensor>,
    packing: Packing,
) -> FlexTensor {
    let x = contiguous(x);
    let [m, k] = dims(&x);
    let weight = HeldWeight::new(data, scales, bias, packing);
    let rows = int8::Rows::new(slice(&x), k, None);
    let bias = weight.bias();
    let layer = Layer {
        op: weight.native(bias.as_deref()),
        then: Then::Write,
    };
    let [out] = layers::each(int8::Unit::best(m), &rows, [layer]);
    tensor(out, [m, packing.n])
}

/// The parts of a quantized layer.
struct HeldWeight {
    data: FlexTensor,
    scales: FlexTensor,
    bias: Option<FlexTensor>,
    packing: Packing,
}

impl HeldWeight {
    fn new(
        data: FlexTensor,
        scales: FlexTensor,
        bias: Option<FlexTensor>,
        packing: Packing,
    ) -> Self {
        Self {
            data: contiguous(data),
            scales: contiguous(scales),
            bias: bias.map(contiguous),
            packing,
        }
    }

    fn bias(&self) -> Option<Cow<'_, [f32]>> {
        self.bias.as_ref().map(widened)
    }

    fn native<'a>(&'a self, bias: Option<&'a [f32]>) -> int8::Quantized<'a> {
        int8::Quantized {
            data: match self.packing.kind {
                Quantization::Q8 => bytemuck::cast_slice(slice::<i8>(&self.data)),
                Quantization::Q4 => slice(&self.data),
            },
            scales: slice(&self.scales),
            bias,
            packing: self.packing,
        }
    }
}

/// [`super::cast`], where this backend has code for it.
pub(super) fn cast<const D: usize>(x: &Tensor<D>, dtype: FloatDType) -> Option<Tensor<D>> {
    if (x.dtype(), dtype) != (DType::F32, FloatDType::BF16) {
        return None;
    }
    let x = x.clone().try_into_primitive::<Flex>().ok()?;
    Some(Tensor::from_primitive::<Flex>(narrow::narrow(x)))
}

/// [`super::rms_norm`]
pub(super) fn rms_norm(x: FlexTensor, weight: FlexTensor, eps: f64) -> FlexTensor {
    let mut x = owned(x);
    let weight = contiguous(weight);
    let weight = &widened(&weight);
    let eps = eps as f32;
    Norm::Rms { weight, eps }.apply_all(x.storage_mut());
    x
}

/// [`super::layer_norm`]
pub(super) fn layer_norm(
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    eps: f64,
) -> FlexTensor {
    let mut x = owned(x);
    let [weight, bias] = [weight, bias].map(contiguous);
    let norm = Norm::Layer {
        weight: &widened(&weight),
        bias: &widened(&bias),
        eps: eps as f32,
    };
    norm.apply_all(x.storage_mut());
    x
}

/// [`super::rotary`]
pub(super) fn rotary(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
    let mut x = owned(x);
    let [cos, sin] = [cos, sin].map(contiguous);
    let [_, heads, _] = dims(&x);
    let [_, half] = dims(&cos);
    rope::rotary(x.storage_mut(), slice(&cos), slice(&sin), heads, half);
    x
}

/// [`super::kv_write`]
pub(super) fn kv_write(cache: FlexTensor, new: FlexTensor, slots: FlexTensor) -> FlexTensor {
    let mut cache = owned(cache);
    let [new, slots] = [new, slots].map(contiguous);
    let [_, _, kv_heads, head_dim] = dims(&cache);
    with_element!(cache.dtype(), E => {
        let stored = cache.storage_mut::<E>();
        cache::write(stored, slice(&new), slice(&slots), kv_heads * head_dim);
    });
    cache
}

/// [`super::paged_attention`]
pub(super) fn paged_attention(
    q: FlexTensor,
    keys: FlexTensor,
    values: FlexTensor,
    layout: &BatchLayout,
    scale: f32,
    window: Option<usize>,
) -> FlexTensor {
    let sequences: Vec<Sequence<'_>> = layout
        .spans()
        .iter()
        .map(|span| Sequence {
            queries: span.query_len,
            context: span.context_len,
            blocks: &span.blocks,
        })
        .collect();
    let mask = Mask {
        causal: true,
        window,
    };
    attend(q, keys, values, &sequences, mask, scale)
}

/// [`super::attention`]: a picture is a sequence of one block, as long as it is.
pub(super) fn attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, scale: f32) -> FlexTensor {
    let [batch, tokens, heads, head_dim] = dims(&q);
    let [_, context, _, _] = dims(&k);
    let blocks: Vec<u32> = (0..batch as u32).collect();
    let sequences: Vec<Sequence<'_>> = blocks
        .chunks(1)
        .map(|blocks| Sequence {
            queries: tokens,
            context,
            blocks,
        })
        .collect();
    let flat = contiguous(q).reshape(Shape::from(vec![batch * tokens, heads, head_dim]));
    let mask = Mask {
        causal: false,
        window: None,
    };
    attend(flat, k, v, &sequences, mask, scale)
        .reshape(Shape::from(vec![batch, tokens, heads, head_dim]))
}

/// What a token sees.
struct Mask {
    causal: bool,
    window: Option<usize>,
}

fn attend(
    q: FlexTensor,
    keys: FlexTensor,
    values: FlexTensor,
    sequences: &[Sequence<'_>],
    mask: Mask,
    scale: f32,
) -> FlexTensor {
    let [q, keys, values] = [q, keys, values].map(contiguous);
    let [tokens, heads, head_dim] = dims(&q);
    let [_, block_size, kv_heads, _] = dims(&keys);
    let mut out = Floats::zeros(tokens * heads * head_dim);
    with_element!(keys.dtype(), E => {
        let op = Attention {
            q: slice::<f32>(&q),
            keys: slice::<E>(&keys),
            values: slice::<E>(&values),
            heads,
            kv_heads,
            head_dim,
            block_size,
            scale,
            causal: mask.causal,
            window: mask.window,
        };
        E::attend(op, sequences, out.as_mut_slice());
    });
    tensor(out, [tokens, heads, head_dim])
}

/// [`super::activation`]
pub(super) fn activation(x: FlexTensor, kind: Activation) -> FlexTensor {
    let mut x = owned(x);
    activation::activation(kind, x.storage_mut());
    x
}

/// [`super::gated`]
pub(super) fn gated(gate: FlexTensor, up: FlexTensor, kind: Activation) -> FlexTensor {
    let mut gate = owned(gate);
    let up = contiguous(up);
    activation::gated(kind, gate.storage_mut(), slice(&up));
    gate
}

fn dims<const D: usize>(x: &FlexTensor) -> [usize; D] {
    x.layout().shape().dims()
}

/// The tensor as one run of elements; a copy only where a view is not.
fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.is_contiguous() {
        x
    } else {
        x.to_contiguous()
    }
}

/// The tensor as the whole of a buffer, to be written in place. It is copied if it is a view, or
/// (by `storage_mut`) if another tensor has a hold of it.
fn owned(x: FlexTensor) -> FlexTensor {
    x.to_contiguous()
}

/// The elements of a contiguous tensor.
fn slice<E: burn::tensor::Element + bytemuck::Pod>(x: &FlexTensor) -> &[E] {
    x.as_slice()
        .unwrap_or_else(|| panic!("{:?} expected, not {:?}", E::dtype(), x.dtype()))
}

/// The elements of a contiguous parameter as `f32`.
fn widened(x: &FlexTensor) -> Cow<'_, [f32]> {
    if x.dtype() == f32::dtype() {
        return Cow::Borrowed(slice(x));
    }
    with_element!(x.dtype(), E => slice::<E>(x).iter().map(|v| v.widen()).collect())
}

fn tensor<const D: usize>(values: Floats, shape: [usize; D]) -> FlexTensor {
    let layout = Layout::contiguous(Shape::from(shape.to_vec()));
    FlexTensor::new(values.into_bytes(), layout, DType::F32)
}
