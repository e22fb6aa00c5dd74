//! On weights of eight and four bits: rows are normalised and rounded once for all layers that take
//! them.

use super::super::{
    HeldWeight,
    int8::{self, Layer, Rows, Then},
    owned, tensor,
};
use super::{Affine, Ends, Norm, Tensor, Weight, held, rows};
use crate::work;
use burn::backend::Flex;

/// `None` for another backend, and for other weights.
fn hold(affine: &Affine) -> Option<HeldWeight> {
    let Weight::Quantized(weight) = &affine.weight else {
        return None;
    };
    let data = weight.data.clone().try_into_primitive::<Flex>().ok()?;
    let bias = match &affine.bias {
        Some(bias) => Some(held(bias)?),
        None => None,
    };
    let scales = held(&weight.scales)?;
    Some(HeldWeight::new(data, scales, bias, weight.packing))
}

fn counted(rows: &Rows, affine: &Affine) {
    if let Weight::Quantized(weight) = &affine.weight {
        let [n, k] = weight.dims();
        work::quantized(rows.count, n, k, weight.bytes());
    }
}

pub(super) fn linear<const N: usize>(
    x: &Tensor<2>,
    norm: Option<&Norm>,
    layers: [(&Affine, Ends<'_>); N],
) -> Option<[Tensor<2>; N]> {
    let mut all = Vec::with_capacity(N);
    for (affine, ends) in &layers {
        let gated = match ends {
            Ends::Gate(_, gated) => Some(hold(gated)?),
            Ends::Nothing | Ends::Activation(_) => None,
        };
        all.push((hold(affine)?, gated));
    }
    let rows = rows(x, norm, Rows::new)?;
    for (affine, ends) in &layers {
        counted(&rows, affine);
        if let Ends::Gate(_, gated) = ends {
            counted(&rows, gated);
        }
    }
    let biases: Vec<_> = all
        .iter()
        .map(|(held, gated)| (held.bias(), gated.as_ref().and_then(HeldWeight::bias)))
        .collect();
    let native = std::array::from_fn::<Layer<'_>, N, _>(|i| {
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
    let mut outputs = layers.iter().map(|(affine, _)| affine.dims()[0]);
    Some(int8::each(&rows, native).map(|out| {
        let shape = [rows.count, outputs.next().unwrap_or_default()];
        Tensor::from_primitive::<Flex>(tensor(out, shape))
    }))
}

pub(super) fn linear_added(
    x: &Tensor<2>,
    affine: &Affine,
    to: &mut Option<Tensor<2>>,
) -> Option<Tensor<2>> {
    let held = hold(affine)?;
    let rows = rows(x, None, Rows::new)?;
    counted(&rows, affine);
    // Of the CPU, like the weight.
    let mut to = owned(to.take()?.try_into_primitive::<Flex>().ok()?);
    let bias = held.bias();
    int8::added(&rows, held.native(bias.as_deref()), to.storage_mut());
    Some(Tensor::from_primitive::<Flex>(to))
}
