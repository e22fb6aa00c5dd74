//! On a matrix unit, for weights of `bf16` as they lie in the file.

use super::super::{
    amx::{
        linear::{self as kernel, Affine as Native, Layer},
        pack::{Columns, Then},
    },
    bf16::Unit,
    contiguous, dims, owned, slice, widened,
};
use super::{Affine, Ends, Norm, Tensor, Weight, rows};
use crate::work;
use burn::{backend::Flex, tensor::DType};
use burn_flex::FlexTensor;
use std::borrow::Cow;

/// A layer's operands on the CPU.
struct Held {
    weight: FlexTensor,
    bias: Option<FlexTensor>,
}

impl Held {
    /// `None` for another backend, and for other weights.
    fn new(affine: &Affine) -> Option<Self> {
        let Weight::Float(weight) = &affine.weight else {
            return None;
        };
        let weight = weight.clone().try_into_primitive::<Flex>().ok()?;
        let bias = match &affine.bias {
            Some(bias) => Some(bias.clone().try_into_primitive::<Flex>().ok()?),
            None => None,
        };
        (weight.dtype() == DType::BF16).then(|| Self {
            weight: contiguous(weight),
            bias: bias.map(contiguous),
        })
    }

    fn outputs(&self) -> usize {
        let [n, _] = dims(&self.weight);
        n
    }

    fn native<'a>(&'a self, bias: Option<&'a Cow<'a, [f32]>>) -> Native<'a> {
        Native {
            weight: slice(&self.weight),
            bias: bias.map(|bias| &**bias),
        }
    }
}

fn counted(x: &Columns, held: &Held) {
    work::linear(x.rows, held.outputs(), x.k, DType::BF16);
}

pub(super) fn linear<const N: usize>(
    x: &Tensor<2>,
    norm: Option<&Norm>,
    layers: [(&Affine, Ends<'_>); N],
) -> Option<[Tensor<2>; N]> {
    if Unit::best() != Unit::Tiles {
        return None;
    }
    let mut all = Vec::with_capacity(2 * N);
    for (affine, ends) in &layers {
        all.push(Held::new(affine)?);
        if let Ends::Gate(_, gated) = ends {
            all.push(Held::new(gated)?);
        }
    }
    let x = rows(x, norm, Columns::new)?;
    all.iter().for_each(|held| counted(&x, held));
    let biases: Vec<_> = all
        .iter()
        .map(|held| held.bias.as_ref().map(widened))
        .collect();
    let mut natives = all
        .iter()
        .zip(&biases)
        .map(|(held, bias)| held.native(bias.as_ref()));
    let mut next = || {
        natives
            .next()
            .unwrap_or_else(|| unreachable!("one a layer"))
    };
    let native = layers.map(|(affine, ends)| Layer {
        affine: next(),
        gated: matches!(ends, Ends::Gate(..)).then(&mut next),
        n: affine.dims()[0],
        then: match ends {
            Ends::Nothing => Then::Write,
            Ends::Activation(kind) | Ends::Gate(kind, _) => Then::Activate(kind),
        },
    });
    let out = kernel::linear(&x, native);
    Some(super::results(
        out,
        x.rows,
        layers.map(|(affine, _)| affine),
    ))
}

pub(super) fn linear_added(
    x: &Tensor<2>,
    affine: &Affine,
    to: &mut Option<Tensor<2>>,
) -> Option<Tensor<2>> {
    if Unit::best() != Unit::Tiles {
        return None;
    }
    let (held, x) = Held::new(affine).zip(rows(x, None, Columns::new))?;
    counted(&x, &held);
    // Of the CPU, like the weight.
    let to = to.take()?.try_into_primitive::<Flex>().ok()?;
    let mut to = owned(to);
    let bias = held.bias.as_ref().map(widened);
    let layer = Layer {
        affine: held.native(bias.as_ref()),
        gated: None,
        n: held.outputs(),
        then: Then::Add,
    };
    let out: &mut [f32] = to.storage_mut();
    assert_eq!(out.len(), x.rows * layer.n, "a sum for each output");
    // SAFETY: the numbers are this tensor's alone.
    unsafe { kernel::linear_to(&x, [layer], [out.as_mut_ptr()]) };
    Some(Tensor::from_primitive::<Flex>(to))
}
