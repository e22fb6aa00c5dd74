//! The operators that models are made of, over tensors of any backend.
//!
//! The CPU has code of its own (`flex`); any other backend runs the same operators in Burn's own
//! (`portable`). Activations are `f32`; weights and caches are `f32`, `bf16` or `f16`.
//!
//! **On the CPU a row of a result has the same bits whatever else is in the batch**, however a
//! prompt is cut into chunks and however many threads there are. So batching, chunked prefill and
//! prefix reuse do not change an answer.
//!
//! An operand of a type that is not named here, or of a shape that does not fit, is a bug of the
//! caller and panics.

mod backend;
mod flex;
pub mod fused;
#[cfg(any(test, feature = "cuda"))]
mod portable;
mod quantized;
#[cfg(test)]
mod tests;

pub use flex::limits;
pub use kiln_registry::Quantization;
pub use quantized::{QuantizedWeight, linear_quantized};

use crate::work;

use backend::KilnOps;
use burn::{
    backend::Dispatch,
    tensor::{DType, FloatDType, Int, Tensor},
};
use kiln_registry::BatchLayout;

/// A function between two linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// `x * (1 + erf(x / sqrt 2)) / 2`
    Gelu,
    /// [`Gelu`](Self::Gelu) with a hyperbolic tangent in place of the error function.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`
    QuickGelu,
    /// `max(x, 0)`
    Relu,
}

impl Activation {
    /// The activation of a name in `config.json`, as Hugging Face's `ACT2FN` has it.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_pytorch_tanh" | "gelu_new" => Self::GeluTanh,
            "quick_gelu" => Self::QuickGelu,
            "relu" => Self::Relu,
            _ => return None,
        })
    }
}

/// The nearest numbers of another type, ties to even.
///
/// # Shapes
/// Any, to the same.
pub fn cast<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    // Of nothing, Burn's own serves as well.
    let some = x.shape().num_elements() > 0;
    match some.then(|| flex::cast(&x, dtype)).flatten() {
        Some(out) => out,
        None => x.cast(dtype),
    }
}

/// `x * weight^T + bias`, summed in `f32`. On a weight of `bf16` the elements of `x` are rounded to
/// `bf16` before they are multiplied.
///
/// # Shapes
/// `x`: `[m, k]`, `weight`: `[n, k]`, `bias`: `[n]`; the result: `[m, n]`.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let [m, k] = x.dims();
    let [n, weight_k] = weight.dims();
    assert_eq!(k, weight_k, "a row of x is as long as a row of the weight");
    if m == 0 || n == 0 {
        return empty([m, n], &x);
    }
    assert_ne!(k, 0, "a row of x has elements");
    work::linear(m, n, k, weight.dtype());
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(match bias {
        Some(bias) => {
            assert_eq!(bias.dims(), [n], "one bias for each output");
            Dispatch::linear_bias(x, weight, bias.into_dispatch())
        }
        None => Dispatch::linear(x, weight),
    })
}

/// Each row over its root mean square: `x / sqrt(mean(x^2) + eps) * weight`
///
/// # Shapes
/// `x`: `[m, n]`, `weight`: `[n]`; the result: `[m, n]`.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> Tensor<2> {
    assert_eq!([x.dims()[1]], weight.dims(), "one weight for each element");
    if x.shape().num_elements() == 0 {
        return x;
    }
    let out = Dispatch::rms_norm(x.into_dispatch(), weight.into_dispatch(), eps);
    Tensor::from_dispatch(out)
}

/// Each row to mean 0 and variance 1: `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, with
/// the biased variance.
///
/// # Shapes
/// `x`: `[m, n]`, `weight` and `bias`: `[n]`; the result: `[m, n]`.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    assert_eq!([x.dims()[1]], weight.dims(), "one weight for each element");
    assert_eq!([x.dims()[1]], bias.dims(), "one bias for each element");
    if x.shape().num_elements() == 0 {
        return x;
    }
    let (x, weight, bias) = (
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
    );
    Tensor::from_dispatch(Dispatch::layer_norm(x, weight, bias, eps))
}

/// Rotary position embedding as Hugging Face's `rotate_half`: element `i` of a head turns with
/// element `i + head_dim / 2`.
///
/// # Shapes
/// `x`: `[tokens, heads, head_dim]`, `cos` and `sin`: `[tokens, head_dim / 2]`; the result as `x`.
pub fn rotary(x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
    let [tokens, _, head_dim] = x.dims();
    assert_eq!(head_dim % 2, 0, "a head has two halves");
    assert_eq!(
        cos.dims(),
        [tokens, head_dim / 2],
        "one angle for each pair"
    );
    assert_eq!(
        sin.dims(),
        [tokens, head_dim / 2],
        "one angle for each pair"
    );
    if x.shape().num_elements() == 0 {
        return x;
    }
    let (x, cos, sin) = (x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(Dispatch::rotary(x, cos, sin))
}

/// Writes keys or values of new tokens into their slots (`block * block_size + offset`) of a
/// paged cache. In place where the cache has one owner; otherwise it is copied first.
///
/// # Shapes
/// `cache`: `[blocks, block_size, kv_heads, head_dim]`, `new`: `[tokens, kv_heads, head_dim]`,
/// `slots`: `[tokens]` of `i64`; the result as `cache`, of its type.
pub fn kv_write(cache: Tensor<4>, new: Tensor<3>, slots: Tensor<1, Int>) -> Tensor<4> {
    let [_, _, kv_heads, head_dim] = cache.dims();
    let [tokens, ..] = new.dims();
    assert_eq!(
        new.dims(),
        [tokens, kv_heads, head_dim],
        "heads of the cache"
    );
    assert_eq!(slots.dims(), [tokens], "one slot for each token");
    if tokens == 0 {
        return cache;
    }
    let (cache, new, slots) = (
        cache.into_dispatch(),
        new.into_dispatch(),
        slots.into_dispatch(),
    );
    Tensor::from_dispatch(Dispatch::kv_write(cache, new, slots))
}

/// Causal attention of a flat batch over the paged cache, into which the batch's own keys and
/// values are written already. Query head `h` reads KV head `h * kv_heads / heads`. A token at
/// position `p` sees positions `p + 1 - window..=p` of its own sequence, from 0 without a window.
/// With a cache of `bf16`, queries are rounded to `bf16`, and so may the weights of the values be.
///
/// # Shapes
/// `q`: `[tokens, heads, head_dim]`, `keys` and `values`: `[blocks, block_size, kv_heads,
/// head_dim]`; the result as `q`.
pub fn paged_attention(
    q: Tensor<3>,
    keys: Tensor<4>,
    values: Tensor<4>,
    layout: &BatchLayout,
    scale: f32,
    window: Option<usize>,
) -> Tensor<3> {
    let [tokens, heads, head_dim] = q.dims();
    let [_, _, kv_heads, width] = keys.dims();
    assert_eq!(keys.dims(), values.dims(), "a value for each key");
    assert_eq!(keys.dtype(), values.dtype(), "keys and values of one type");
    assert_eq!(head_dim, width, "queries are as wide as keys");
    assert_eq!(heads % kv_heads, 0, "as many query heads for each KV head");
    assert_eq!(tokens, layout.tokens(), "the layout is that of the batch");
    if tokens == 0 {
        return q;
    }
    let token = 2 * kv_heads * head_dim * keys.dtype().size();
    work::paged_attention(layout, heads, head_dim, token, window);
    let (q, keys, values) = (
        q.into_dispatch(),
        keys.into_dispatch(),
        values.into_dispatch(),
    );
    let out = Dispatch::paged_attention(q, keys, values, layout, scale, window);
    Tensor::from_dispatch(out)
}

/// Full attention, each token of a picture to all of them. Of keys and values of `bf16` the same is
/// true as for [`paged_attention`].
///
/// # Shapes
/// `q`: `[batch, tokens, heads, head_dim]`, `k` and `v`: `[batch, tokens, kv_heads, head_dim]`
/// (their tokens may be other than the queries'); the result as `q`.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, scale: f32) -> Tensor<4> {
    let [batch, queries, heads, head_dim] = q.dims();
    let [kv_batch, keys, kv_heads, width] = k.dims();
    assert_eq!(k.dims(), v.dims(), "a value for each key");
    assert_eq!(k.dtype(), v.dtype(), "keys and values of one type");
    assert_eq!((batch, head_dim), (kv_batch, width), "queries fit the keys");
    assert_eq!(heads % kv_heads, 0, "as many query heads for each KV head");
    if q.shape().num_elements() == 0 {
        return q;
    }
    work::attention(batch * queries, keys, heads, head_dim);
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(Dispatch::attention(q, k, v, scale))
}

/// An activation, element by element.
///
/// # Shapes
/// `x` and the result: `[m, n]`.
pub fn activation(x: Tensor<2>, kind: Activation) -> Tensor<2> {
    if x.shape().num_elements() == 0 {
        return x;
    }
    Tensor::from_dispatch(Dispatch::activation(x.into_dispatch(), kind))
}

/// `activation(gate) * up`, the middle of a gated feed-forward layer.
///
/// # Shapes
/// `gate`, `up` and the result: `[m, n]`.
pub fn gated(gate: Tensor<2>, up: Tensor<2>, kind: Activation) -> Tensor<2> {
    assert_eq!(gate.dims(), up.dims(), "a gate for each element");
    if gate.shape().num_elements() == 0 {
        return gate;
    }
    let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
    Tensor::from_dispatch(Dispatch::gated(gate, up, kind))
}

fn empty<const D: usize>(shape: [usize; D], like: &Tensor<2>) -> Tensor<D> {
    Tensor::zeros(shape, (&like.device(), DType::F32))
}
