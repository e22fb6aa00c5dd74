//! The operators in Burn's own, for every backend without code of ours, and what the native ones
//! are tested against. Clear before fast.

use super::{
    Activation, Quantization,
    quantized::{BLOCK, BLOCK_BYTES_4, GROUP, PART, PARTS, Packing},
};
use burn::tensor::{
    Bool, DType, FloatDType, IndexingUpdateOp, Int, IntDType, Tensor, TensorData,
    activation::{relu, sigmoid, softmax},
};
use kiln_registry::BatchLayout;

/// [`super::linear`]
pub(super) fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let product = like(x, &weight).matmul(wide(weight).transpose());
    match bias {
        Some(bias) => product + wide(bias).unsqueeze(),
        None => product,
    }
}

/// [`super::linear_quantized`]
pub(super) fn linear_quantized(
    x: Tensor<2>,
    data: Tensor<1, Int>,
    scales: Tensor<1>,
    bias: Option<Tensor<1>>,
    packing: Packing,
) -> Tensor<2> {
    linear(rounded(x), widened(data, scales, packing), bias)
}

/// Rows as a linear layer on a quantized weight takes them: each block a whole number of steps,
/// 127 of which are its greatest magnitude.
fn rounded(x: Tensor<2>) -> Tensor<2> {
    /// Adding and taking it away rounds to a whole number, ties to even.
    const ROUND: f32 = 12_582_912.0;
    let [m, k] = x.dims();
    let blocks = k.div_ceil(BLOCK);
    let x = x.pad((0, blocks * BLOCK - k, 0, 0), 0.0);
    let x: Tensor<3> = x.reshape([m, blocks, BLOCK]);
    let most = x.clone().abs().max_dim(2);
    let tiny = most.clone().lower_equal_elem(1e-30);
    let inverse = (most.clone().recip() * 127.0).mask_fill(tiny, 0.0);
    let steps = (x * inverse + ROUND) - ROUND;
    let x: Tensor<2> = (steps * (most / 127.0)).reshape([m, blocks * BLOCK]);
    x.narrow(1, 0, k)
}

/// [`super::QuantizedWeight::widened`]
pub(super) fn widened(data: Tensor<1, Int>, scales: Tensor<1>, packing: Packing) -> Tensor<2> {
    let (groups, blocks) = (packing.groups(), packing.blocks());
    let data = data.cast(IntDType::I32);
    let weight: Tensor<2> = match packing.kind {
        Quantization::Q8 => {
            let numbers: Tensor<5, Int> = data.reshape([groups, blocks, BLOCK / 4, GROUP, 4]);
            let numbers = numbers.permute([0, 3, 1, 2, 4]).float();
            let numbers: Tensor<3> = numbers.reshape([groups * GROUP, blocks, BLOCK]);
            let scales: Tensor<3> = scales.reshape([groups, blocks, GROUP]).swap_dims(1, 2);
            (numbers * scales.reshape([groups * GROUP, blocks, 1])).flatten(1, 2)
        }
        Quantization::Q4 => {
            let data: Tensor<3, Int> = data.reshape([groups, blocks, BLOCK_BYTES_4]);
            let steps = data.clone().narrow(2, 0, PARTS * GROUP);
            let steps: Tensor<6, Int> = steps.reshape([groups, blocks, PARTS, 1, GROUP, 1]);
            let (step, zero) = (steps.clone() % 16 + 1, steps / 16);
            let numbers = data.narrow(2, PARTS * GROUP, BLOCK * GROUP / 2);
            let shape = [groups, blocks, PARTS, PART / 8, GROUP, 4];
            let numbers: Tensor<6, Int> = numbers.reshape(shape);
            let numbers = Tensor::cat(vec![numbers.clone() % 16, numbers / 16], 3);
            let numbers = ((numbers - zero) * step)
                .permute([0, 4, 1, 2, 3, 5])
                .float();
            let numbers: Tensor<2> = numbers.reshape([groups * GROUP, blocks * BLOCK]);
            numbers * scales.reshape([groups * GROUP, 1])
        }
    };
    weight.slice([0..packing.n, 0..packing.k])
}

/// [`super::rms_norm`]
pub(super) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> Tensor<2> {
    let variance = x.clone().square().mean_dim(1);
    x / (variance + eps).sqrt() * wide(weight).unsqueeze()
}

/// [`super::layer_norm`]
pub(super) fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred / (variance + eps).sqrt() * wide(weight).unsqueeze() + wide(bias).unsqueeze()
}

/// [`super::rotary`]
pub(super) fn rotary(x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
    let half = cos.dims()[1];
    let cos: Tensor<3> = cos.unsqueeze_dim(1);
    let sin: Tensor<3> = sin.unsqueeze_dim(1);
    let first = x.clone().narrow(2, 0, half);
    let second = x.narrow(2, half, half);
    Tensor::cat(
        vec![
            first.clone() * cos.clone() - second.clone() * sin.clone(),
            second * cos + first * sin,
        ],
        2,
    )
}

/// [`super::kv_write`]
pub(super) fn kv_write(cache: Tensor<4>, new: Tensor<3>, slots: Tensor<1, Int>) -> Tensor<4> {
    let [blocks, block_size, kv_heads, head_dim] = cache.dims();
    let new = new.cast(FloatDType::from(cache.dtype()));
    let rows: Tensor<3> = cache.reshape([blocks * block_size, kv_heads, head_dim]);
    rows.scatter_nd::<2, 3>(slots.unsqueeze_dim(1), new, IndexingUpdateOp::Assign)
        .reshape([blocks, block_size, kv_heads, head_dim])
}

/// [`super::paged_attention`]
pub(super) fn paged_attention(
    q: Tensor<3>,
    keys: Tensor<4>,
    values: Tensor<4>,
    layout: &BatchLayout,
    scale: f32,
    window: Option<usize>,
) -> Tensor<3> {
    let [_, heads, head_dim] = q.dims();
    let device = q.device();
    let mut row = 0;
    let mut parts = Vec::with_capacity(layout.spans().len());
    for span in layout.spans() {
        let (queries, context) = (span.query_len, span.context_len);
        let blocks: Vec<i64> = span.blocks.iter().map(|b| i64::from(*b)).collect();
        let blocks = TensorData::new(blocks, [span.blocks.len()]);
        let blocks = Tensor::<1, Int>::from_data(blocks, (&device, DType::I64));
        let gather = |cache: &Tensor<4>| -> Tensor<4> {
            let rows: Tensor<3> = cache.clone().select(0, blocks.clone()).flatten(0, 1);
            wide(rows.narrow(0, 0, context)).unsqueeze()
        };
        let hidden: Vec<bool> = (context - queries..context)
            .flat_map(|p| {
                let first = window.map_or(0, |w| (p + 1).saturating_sub(w.max(1)));
                (0..context).map(move |j| j < first || j > p)
            })
            .collect();
        let hidden = TensorData::new(hidden, [1, 1, queries, context]);
        let hidden = Tensor::<4, Bool>::from_data(hidden, &device);
        let q = like(q.clone(), &keys).narrow(0, row, queries).unsqueeze();
        let part = attend(q, gather(&keys), gather(&values), scale, Some(hidden));
        parts.push(part.reshape([queries, heads, head_dim]));
        row += queries;
    }
    Tensor::cat(parts, 0)
}

/// [`super::attention`]
pub(super) fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, scale: f32) -> Tensor<4> {
    attend(like(q, &k), wide(k), wide(v), scale, None)
}

/// Attention of `[batch, tokens, heads, head_dim]`, each KV head repeated for its query heads.
fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    scale: f32,
    hidden: Option<Tensor<4, Bool>>,
) -> Tensor<4> {
    let heads = q.dims()[2];
    let repeat = |x: Tensor<4>| -> Tensor<4> {
        let [batch, tokens, kv_heads, head_dim] = x.dims();
        let x: Tensor<5> = x.unsqueeze_dim(3);
        x.repeat_dim(3, heads / kv_heads)
            .reshape([batch, tokens, heads, head_dim])
            .swap_dims(1, 2)
    };
    let scores = q.swap_dims(1, 2).matmul(repeat(k).transpose()) * scale;
    let scores = match hidden {
        Some(hidden) => scores.mask_fill(hidden, f32::NEG_INFINITY),
        None => scores,
    };
    softmax(scores, 3).matmul(repeat(v)).swap_dims(1, 2)
}

/// [`super::activation`]
pub(super) fn activation(x: Tensor<2>, kind: Activation) -> Tensor<2> {
    match kind {
        Activation::Silu => x.clone() * sigmoid(x),
        Activation::Gelu => {
            let erf = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf();
            x * 0.5 * (erf + 1.0)
        }
        Activation::GeluTanh => {
            let inner = x.clone() * x.clone() * x.clone() * 0.044_715 + x.clone();
            let tanh = (inner * (2.0 / std::f64::consts::PI).sqrt()).tanh();
            x * 0.5 * (tanh + 1.0)
        }
        Activation::QuickGelu => x.clone() * sigmoid(x * 1.702),
        Activation::Relu => relu(x),
    }
}

/// [`super::gated`]
pub(super) fn gated(gate: Tensor<2>, up: Tensor<2>, kind: Activation) -> Tensor<2> {
    activation(gate, kind) * up
}

/// Rows as they are multiplied with a weight, or queries with keys: where these are of `bf16`, the
/// others are rounded to it.
fn like<const D: usize, const K: usize>(x: Tensor<D>, other: &Tensor<K>) -> Tensor<D> {
    match other.dtype() {
        DType::BF16 => wide(x.cast(FloatDType::BF16)),
        _ => x,
    }
}

fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.cast(FloatDType::F32)
}
