//! The seam between operators over tensors and a backend's own code for them.

use super::{Activation, flex, quantized::Packing};
use burn::backend::{
    Backend, Flex, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use kiln_registry::BatchLayout;

/// The operators of [`crate::ops`] over a backend's primitives; shapes and meaning are given
/// there. A backend without code of its own calls `super::portable`.
#[backend_extension(Flex, Cube: cfg(feature = "cuda"))]
pub(super) trait KilnOps: Backend {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    fn linear_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    fn linear_quantized(
        x: FloatTensor<Self>,
        data: IntTensor<Self>,
        scales: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self>;

    fn linear_quantized_bias(
        x: FloatTensor<Self>,
        data: IntTensor<Self>,
        scales: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self>;

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self>;

    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;

    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    fn kv_write(
        cache: FloatTensor<Self>,
        new: FloatTensor<Self>,
        slots: IntTensor<Self>,
    ) -> FloatTensor<Self>;

    fn paged_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        layout: &BatchLayout,
        scale: f32,
        window: Option<usize>,
    ) -> FloatTensor<Self>;

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;

    fn activation(x: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self>;

    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, kind: Activation)
    -> FloatTensor<Self>;
}

impl KilnOps for Flex {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        flex::linear(x, weight, None)
    }

    fn linear_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        flex::linear(x, weight, Some(bias))
    }

    fn linear_quantized(
        x: FloatTensor<Self>,
        data: IntTensor<Self>,
        scales: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self> {
        flex::linear_quantized(x, data, scales, None, packing)
    }

    fn linear_quantized_bias(
        x: FloatTensor<Self>,
        data: IntTensor<Self>,
        scales: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self> {
        flex::linear_quantized(x, data, scales, Some(bias), packing)
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        flex::rms_norm(x, weight, eps)
    }

    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        flex::layer_norm(x, weight, bias, eps)
    }

    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        flex::rotary(x, cos, sin)
    }

    fn kv_write(
        cache: FloatTensor<Self>,
        new: FloatTensor<Self>,
        slots: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        flex::kv_write(cache, new, slots)
    }

    fn paged_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        layout: &BatchLayout,
        scale: f32,
        window: Option<usize>,
    ) -> FloatTensor<Self> {
        flex::paged_attention(q, keys, values, layout, scale, window)
    }

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        flex::attention(q, k, v, scale)
    }

    fn activation(x: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self> {
        flex::activation(x, kind)
    }

    fn gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        kind: Activation,
    ) -> FloatTensor<Self> {
        flex::gated(gate, up, kind)
    }
}

/// CubeCL's backends have no code of their own yet.
#[cfg(feature = "cuda")]
mod cube {
    use super::{Activation, BatchLayout, FloatTensor, IntTensor, KilnOps, Packing};
    use crate::ops::portable;
    use burn::{
        backend::Cube,
        tensor::{Int, Tensor},
    };

    fn lift<const D: usize>(x: FloatTensor<Cube>) -> Tensor<D> {
        Tensor::from_primitive::<Cube>(x)
    }

    fn lower<const D: usize>(x: Tensor<D>) -> FloatTensor<Cube> {
        x.try_into_primitive::<Cube>()
            .expect("operators stay on the device of their operands")
    }

    impl KilnOps for Cube {
        fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
            lower(portable::linear(lift(x), lift(weight), None))
        }

        fn linear_bias(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            lower(portable::linear(lift(x), lift(weight), Some(lift(bias))))
        }

        fn linear_quantized(
            x: FloatTensor<Self>,
            data: IntTensor<Self>,
            scales: FloatTensor<Self>,
            packing: Packing,
        ) -> FloatTensor<Self> {
            let data = Tensor::<1, Int>::from_primitive::<Cube>(data);
            lower(portable::linear_quantized(
                lift(x),
                data,
                lift(scales),
                None,
                packing,
            ))
        }

        fn linear_quantized_bias(
            x: FloatTensor<Self>,
            data: IntTensor<Self>,
            scales: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            packing: Packing,
        ) -> FloatTensor<Self> {
            let data = Tensor::<1, Int>::from_primitive::<Cube>(data);
            let (scales, bias) = (lift(scales), Some(lift(bias)));
            lower(portable::linear_quantized(
                lift(x),
                data,
                scales,
                bias,
                packing,
            ))
        }

        fn rms_norm(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            eps: f64,
        ) -> FloatTensor<Self> {
            lower(portable::rms_norm(lift(x), lift(weight), eps))
        }

        fn layer_norm(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            eps: f64,
        ) -> FloatTensor<Self> {
            lower(portable::layer_norm(lift(x), lift(weight), lift(bias), eps))
        }

        fn rotary(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            lower(portable::rotary(lift(x), lift(cos), lift(sin)))
        }

        fn kv_write(
            cache: FloatTensor<Self>,
            new: FloatTensor<Self>,
            slots: IntTensor<Self>,
        ) -> FloatTensor<Self> {
            let slots = Tensor::<1, Int>::from_primitive::<Cube>(slots);
            lower(portable::kv_write(lift(cache), lift(new), slots))
        }

        fn paged_attention(
            q: FloatTensor<Self>,
            keys: FloatTensor<Self>,
            values: FloatTensor<Self>,
            layout: &BatchLayout,
            scale: f32,
            window: Option<usize>,
        ) -> FloatTensor<Self> {
            let (q, keys, values) = (lift(q), lift(keys), lift(values));
            lower(portable::paged_attention(
                q, keys, values, layout, scale, window,
            ))
        }

        fn attention(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            scale: f32,
        ) -> FloatTensor<Self> {
            lower(portable::attention(lift(q), lift(k), lift(v), scale))
        }

        fn activation(x: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self> {
            lower(portable::activation(lift(x), kind))
        }

        fn gated(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            kind: Activation,
        ) -> FloatTensor<Self> {
            lower(portable::gated(lift(gate), lift(up), kind))
        }
    }
}
