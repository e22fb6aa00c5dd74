//! Linear layers with what stands before and behind them, in one go: on weights of `bf16` a matrix unit
//! has code of its own for that. Where neither it nor the other kernels take a layer (AVX-512's
//! products of pairs), the caller composes.

mod layers;
#[cfg(target_arch = "x86_64")]
mod tiles;

use super::{contiguous, dims, memory::Floats, norm, slice, tensor, widened};
use crate::ops::fused::{Affine, Ends, Norm, Weight};
use burn::{backend::Flex, tensor::Tensor};
use burn_flex::FlexTensor;

/// The results of layers that take the same rows; `None` where this machine has no code for them.
pub(in crate::ops) fn linear<const N: usize>(
    x: &Tensor<2>,
    norm: Option<&Norm>,
    layers: [(&Affine, Ends<'_>); N],
) -> Option<[Tensor<2>; N]> {
    if let Some(out) = layers::linear(x, norm, layers) {
        return Some(out);
    }
    #[cfg(target_arch = "x86_64")]
    return tiles::linear(x, norm, layers);
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// `to + linear(x)`, in place where nothing else has a hold of `to`, which is taken; `None`, and it
/// stays, where this machine has no code for it.
pub(in crate::ops) fn linear_added(
    x: &Tensor<2>,
    layer: &Affine,
    to: &mut Option<Tensor<2>>,
) -> Option<Tensor<2>> {
    if let Some(out) = layers::linear_added(x, layer, to) {
        return Some(out);
    }
    #[cfg(target_arch = "x86_64")]
    return tiles::linear_added(x, layer, to);
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// The results of layers, `[count, n]` each.
fn results<const N: usize>(out: [Floats; N], count: usize, layers: [&Affine; N]) -> [Tensor<2>; N] {
    let mut outputs = layers.iter().map(|layer| layer.dims()[0]);
    out.map(|out| {
        let shape = [count, outputs.next().unwrap_or_default()];
        Tensor::from_primitive::<Flex>(tensor(out, shape))
    })
}

fn held(x: &Tensor<1>) -> Option<FlexTensor> {
    let x = x.clone().try_into_primitive::<Flex>().ok()?;
    Some(contiguous(x))
}

/// Rows `[m, k]`, as `pack` makes them of numbers, `k` and a norm.
fn rows<T>(
    x: &Tensor<2>,
    norm: Option<&Norm>,
    pack: impl Fn(&[f32], usize, Option<norm::Norm<'_>>) -> T,
) -> Option<T> {
    let x = contiguous(x.clone().try_into_primitive::<Flex>().ok()?);
    let [_, k] = dims(&x);
    let x = slice(&x);
    Some(match norm {
        None => pack(x, k, None),
        Some(Norm::Rms { weight, eps }) => {
            let (weight, eps) = (held(weight)?, *eps as f32);
            let weight = &widened(&weight);
            pack(x, k, Some(norm::Norm::Rms { weight, eps }))
        }
        Some(Norm::Layer { weight, bias, eps }) => {
            let (weight, bias, eps) = (held(weight)?, held(bias)?, *eps as f32);
            let (weight, bias) = (&widened(&weight), &widened(&bias));
            pack(x, k, Some(norm::Norm::Layer { weight, bias, eps }))
        }
    })
}
