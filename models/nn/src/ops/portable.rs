//! The operators in Burn's own, for every backend without code of ours, and what the native ones
//! are tested against. Clear before fast.

use super::{
    Activation, Quantization,
    quantized::{CLIP, GROUP, LINE, LINES, MOST, PART, PARTS, Packing, STEP, STEP_BYTES_4},
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

/// Rows as a linear layer on a quantized weight takes them: whole numbers of a step that follows
/// the mean magnitude, or the greatest where that is near.
fn rounded(x: Tensor<2>) -> Tensor<2> {
    /// Adding and taking it away rounds to a whole number, ties to even.
    const ROUND: f32 = 12_582_912.0;
    let [_, k] = x.dims();
    let most = x.clone().abs().max_dim(1);
    let tiny = most.clone().lower_equal_elem(1e-30);
    let finest = (most.clone().recip() * MOST).mask_fill(tiny, 0.0);
    // Of whole numbers, so that the sum is the same in any order.
    let total = (x.clone().abs() * finest.clone() + ROUND) - ROUND;
    let total = total.cast(DType::F64).sum_dim(1).cast(DType::F32);
    let clip = (total * (CLIP / k as f32)).clamp_max(MOST);
    let steps = (clip * (1.0 / 127.0)).clamp_min(1.0);
    let numbers = (x * (finest * steps.clone().recip()) + ROUND) - ROUND;
    numbers * (most * (1.0 / MOST) * steps)
}

/// [`super::QuantizedWeight::widened`]
pub(super) fn widened(data: Tensor<1, Int>, scales: Tensor<1>, packing: Packing) -> Tensor<2> {
    let (groups, steps) = (packing.groups(), packing.steps());
    let data = data.cast(IntDType::I32);
    let numbers: Tensor<6, Int> = match packing.kind {
        Quantization::Q8 => data.reshape([groups, steps, STEP / 4, GROUP, 2, 2]),
        Quantization::Q4 => {
            let data: Tensor<3, Int> = data.reshape([groups, steps, STEP_BYTES_4]);
            // Output by output: the quarters of the lines, of each the lines.
            let head: Tensor<6, Int> =
                data.clone()
                    .narrow(2, 0, LINE)
                    .reshape([groups * steps, 4, PARTS, LINES, 1, 2]);
            let head = head.permute([0, 2, 1, 3, 4, 5]);
            let (slope, base) = (head.clone().narrow(5, 0, 1), head.narrow(5, 1, 1));
            let bytes: Tensor<6, Int> = data.narrow(2, LINE, PARTS * LINES * LINE).reshape([
                groups * steps,
                PARTS,
                LINES,
                4,
                1,
                16,
            ]);
            let bytes = bytes.permute([0, 1, 3, 2, 4, 5]);
            let numbers = Tensor::cat(vec![bytes.clone() % 16, bytes / 16], 4);
            let numbers: Tensor<6, Int> =
                numbers.reshape([groups * steps, PARTS, 4, LINES, 1, PART]);
            let numbers = (numbers * slope + base * 16 + 8) / 16 - 128;
            let numbers = numbers.reshape([groups * steps, PARTS, GROUP, PART / 4, 2, 2]);
            let numbers = numbers.permute([0, 1, 3, 2, 4, 5]);
            numbers.reshape([groups, steps, STEP / 4, GROUP, 2, 2])
        }
    };
    let weight = numbers.permute([0, 3, 1, 2, 4, 5]).float();
    let weight: Tensor<2> = weight.reshape([groups * GROUP, steps * STEP]);
    let weight = weight * scales.reshape([groups * GROUP, 1]);
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
