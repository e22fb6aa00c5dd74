//! The native operators against their portable twins, and the law that a row's bits do not depend
//! on its batch.

mod attention;
mod quantized;

use super::{flex::pool::Pool, *};
use burn::{
    backend::Flex,
    tensor::{Device, FloatDType, TensorData},
};
use proptest::prelude::*;

const DTYPES: [FloatDType; 3] = [FloatDType::F32, FloatDType::BF16, FloatDType::F16];

/// Numbers in -1..1 that a seed determines.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(
        TensorData::new(values, shape),
        (&Device::flex(), DType::F32),
    )
}

fn random<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    tensor(numbers(seed, shape.iter().product()), shape)
}

/// The same tensor as it is, as a transposed view, and as a part of a larger one.
fn views(x: &Tensor<2>) -> [Tensor<2>; 3] {
    let [m, n] = x.dims();
    let turned = tensor(host(x.clone().transpose()), [n, m]).cast(FloatDType::from(x.dtype()));
    let around = Tensor::ones([m + 2, n + 3], (&x.device(), x.dtype()));
    let inside = around.slice_assign([1..m + 1, 2..n + 2], x.clone());
    [
        x.clone(),
        turned.transpose(),
        inside.slice([1..m + 1, 2..n + 2]),
    ]
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    let data = x.cast(FloatDType::F32).into_data();
    data.try_to_vec().expect("f32 data")
}

fn bits<const D: usize>(x: Tensor<D>) -> Vec<u32> {
    host(x).into_iter().map(f32::to_bits).collect()
}

/// Whether both are the same but for rounding.
fn assert_close<const D: usize>(native: Tensor<D>, twin: Tensor<D>, what: &str) {
    let scale = host(twin.clone())
        .iter()
        .fold(1e-3f32, |a, b| a.max(b.abs()));
    assert_near(native, twin, 1e-5 * scale, what);
}

/// Whether both are the same within a tolerance.
fn assert_near<const D: usize>(native: Tensor<D>, twin: Tensor<D>, tolerance: f32, what: &str) {
    assert_eq!(native.dims(), twin.dims(), "{what}");
    assert_eq!(native.dtype(), twin.dtype(), "{what}");
    let (native, twin) = (host(native), host(twin));
    for (i, (a, b)) in native.iter().zip(&twin).enumerate() {
        assert!(
            (a - b).abs() <= tolerance,
            "{what}: element {i} is {a}, not {b}"
        );
    }
}

const KINDS_OF_QUANTIZATION: [Quantization; 2] = [Quantization::Q8, Quantization::Q4];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn linear_is_its_twin(
        m in prop_oneof![1usize..9, 90usize..110],
        n in 1usize..70,
        k in prop_oneof![1usize..70, 1000usize..1100],
        dtype in 0usize..3,
        biased: bool,
    ) {
        let x = random(1, [m, k]);
        let weight = random(2, [n, k]).cast(DTYPES[dtype]);
        let bias = biased.then(|| random(3, [n]));
        let twin = portable::linear(x.clone(), weight.clone(), bias.clone());
        for x in views(&x) {
            for weight in views(&weight) {
                let native = linear(x.clone(), weight, bias.clone());
                assert_close(native, twin.clone(), "linear");
            }
        }
    }

    #[test]
    fn a_row_of_linear_is_the_same_alone(
        m in 2usize..130,
        n in 1usize..90,
        k in prop_oneof![1usize..100, 1020usize..2100],
        dtype in 0usize..3,
    ) {
        let x = random(4, [m, k]);
        let weight = random(5, [n, k]).cast(DTYPES[dtype]);
        let all = bits(linear(x.clone(), weight.clone(), None));
        for part in [1, 2, 3, 5, 7, 8, 13] {
            let mut rows = Vec::new();
            for first in (0..m).step_by(part) {
                let x = x.clone().narrow(0, first, part.min(m - first));
                rows.extend(bits(linear(x, weight.clone(), None)));
            }
            prop_assert!(rows == all, "in parts of {}", part);
        }
    }

    #[test]
    fn row_operators_are_their_twins(m in 1usize..40, half in 1usize..700, dtype in 0usize..3) {
        let n = 2 * half;
        let x = random(6, [m, n]) * 3.0 + 0.5;
        let weight = random(7, [n]).cast(DTYPES[dtype]);
        let bias = random(8, [n]).cast(DTYPES[dtype]);
        let up = random(9, [m, n]);
        let (cos, sin) = (random(10, [m, half]), random(11, [m, half]));
        for x in views(&x) {
            assert_close(
                rms_norm(x.clone(), weight.clone(), 1e-5),
                portable::rms_norm(x.clone(), weight.clone(), 1e-5),
                "rms_norm",
            );
            assert_close(
                layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5),
                portable::layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5),
                "layer_norm",
            );
            let heads = x.clone().reshape([m, 1, n]);
            for cos in views(&cos) {
                assert_close(
                    rotary(heads.clone(), cos.clone(), sin.clone()),
                    portable::rotary(heads.clone(), cos, sin.clone()),
                    "rotary",
                );
            }
            for kind in KINDS {
                let name = format!("{kind:?}");
                let twin = portable::activation(x.clone(), kind);
                assert_close(activation(x.clone(), kind), twin, &name);
                let twin = portable::gated(x.clone(), up.clone(), kind);
                assert_close(gated(x.clone(), up.clone(), kind), twin, &name);
            }
            // A row alone, and the operand unharmed by what was done in place.
            let alone = x.clone().narrow(0, m - 1, 1);
            let norm = |x: Tensor<2>| bits(layer_norm(x, weight.clone(), bias.clone(), 1e-6));
            prop_assert_eq!(&norm(x.clone())[(m - 1) * n..], norm(alone.clone()));
            let norm = |x: Tensor<2>| bits(rms_norm(x, weight.clone(), 1e-6));
            prop_assert_eq!(&norm(x.clone())[(m - 1) * n..], norm(alone.clone()));
            let act = |x: Tensor<2>| bits(activation(x, Activation::Gelu));
            prop_assert_eq!(&act(x.clone())[(m - 1) * n..], act(alone));
        }
    }
}

const KINDS: [Activation; 5] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
];

/// The twins of the row operators, against values worked out by hand.
#[test]
fn the_other_twins_are_their_definitions() {
    let x = tensor(vec![3.0, 4.0], [1, 2]);
    let one = tensor(vec![1.0, 2.0], [2]);
    let near = |x: Tensor<2>, expected: [f32; 2]| {
        for (a, b) in host(x).iter().zip(expected) {
            assert!((a - b).abs() < 2e-6, "{a} is not {b}");
        }
    };
    // sqrt((9 + 16) / 2) = 3.535534
    near(
        portable::rms_norm(x.clone(), one.clone(), 0.0),
        [0.848_528_1, 2.262_741_7],
    );
    near(
        portable::layer_norm(x.clone(), one.clone(), one.clone(), 0.0),
        [0.0, 4.0],
    );
    // A quarter turn: (a, b) becomes (-b, a).
    let turned = portable::rotary(
        x.clone().reshape([1, 1, 2]),
        tensor(vec![0.0], [1, 1]),
        tensor(vec![1.0], [1, 1]),
    );
    near(turned.reshape([1, 2]), [-4.0, 3.0]);
    let weight = tensor(vec![1.0, 2.0, -1.0, 0.5], [2, 2]);
    near(portable::linear(x, weight, Some(one)), [12.0, 1.0]);
    let x = tensor(vec![1.0, -2.0], [1, 2]);
    near(
        portable::activation(x.clone(), Activation::Silu),
        [0.731_058_6, -0.238_405_84],
    );
    near(
        portable::activation(x.clone(), Activation::Gelu),
        [0.841_344_7, -0.045_500_264],
    );
    near(
        portable::activation(x.clone(), Activation::GeluTanh),
        [0.841_192, -0.045_402_306],
    );
    near(
        portable::activation(x.clone(), Activation::QuickGelu),
        [0.845_795_8, -0.064_341_37],
    );
    near(portable::activation(x, Activation::Relu), [1.0, 0.0]);
}

proptest! {
    #[test]
    fn a_cast_is_burns_own(m in 1usize..70, n in 1usize..600, seed: u64) {
        let x = random(seed, [m, n]);
        let none = empty([0, n], &x);
        for x in views(&x).into_iter().chain([none]) {
            for dtype in DTYPES {
                let ours = cast(x.clone(), dtype);
                prop_assert_eq!(ours.dtype(), DType::from(dtype));
                prop_assert_eq!(bits(ours), bits(x.clone().cast(dtype)));
            }
        }
    }
}

#[test]
fn a_write_goes_to_its_slots_in_place() {
    for dtype in DTYPES {
        let cache = random(20, [3, 4, 2, 5]).cast(dtype);
        let new = random(21, [3, 2, 5]);
        let slots = TensorData::new(vec![11i64, 0, 6], [3]);
        let slots = Tensor::<1, Int>::from_data(slots, (&Device::flex(), DType::I64));
        let twin = portable::kv_write(cache.clone(), new.clone(), slots.clone());
        let before = bits(cache.clone());
        let written = kv_write(cache.clone(), new.clone(), slots.clone());
        assert_eq!(bits(written.clone()), bits(twin), "{dtype:?}");
        assert_eq!(bits(cache), before, "another owner's cache is left alone");
        let address = |x: Tensor<4>| {
            let x = x.try_into_primitive::<Flex>().expect("a tensor of the CPU");
            (x.bytes().as_ptr(), Tensor::<4>::from_primitive::<Flex>(x))
        };
        let (before, alone) = address(written);
        assert_eq!(address(kv_write(alone, new, slots)).0, before, "copied");
    }
}

/// More rows than one pass takes, several passes over K, and tasks for any number of threads.
#[test]
fn threads_change_nothing() {
    let (x, weight) = (random(30, [800, 1100]), random(31, [150, 1100]));
    let q = random(32, [2, 300, 6, 40]);
    let kv = random(33, [2, 300, 2, 40]);
    let short = FloatDType::BF16;
    let (narrow, narrow_kv) = (weight.clone().cast(short), kv.clone().cast(short));
    let quantized = KINDS_OF_QUANTIZATION.map(|kind| QuantizedWeight::new(weight.clone(), kind));
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let inside = || {
            let attend = |kv: &Tensor<4>| attention(q.clone(), kv.clone(), kv.clone(), 0.2);
            let rounded = quantized.each_ref();
            let rounded = rounded.map(|weight| bits(linear_quantized(x.clone(), weight, None)));
            (
                bits(linear(x.clone(), weight.clone(), None)),
                bits(linear(x.clone(), narrow.clone(), None)),
                [&kv, &narrow_kv].map(|kv| bits(attend(kv))),
                rounded,
            )
        };
        pool.expect("threads")
            .install(|| Pool::new(threads).install(inside))
    };
    let alone = on(1);
    assert!(alone == on(2) && alone == on(3));
    let few = linear(x.clone().narrow(0, 766, 4), weight.clone(), None);
    assert_eq!(alone.0[766 * 150..][..4 * 150], bits(few));
}

/// What is done in one go is what is done one after the other.
#[test]
fn fused_layers_have_the_bits_of_their_parts() {
    use fused::{Affine, Norm, Weight, linear_activated, linear_added, linear_each, linear_gated};
    let kinds = KINDS_OF_QUANTIZATION.map(Err);
    for kind in DTYPES.map(Ok).into_iter().chain(kinds) {
        for (m, k, n) in [
            (1, 40, 17),
            (5, 96, 48),
            (33, 64, 16),
            (200, 1056, 310),
            (700, 40, 150),
        ] {
            let affine = |seed: u64, n: usize, bias: bool| Affine {
                weight: match kind {
                    Ok(dtype) => Weight::Float(random(seed, [n, k]).cast(dtype)),
                    Err(kind) => {
                        Weight::Quantized(QuantizedWeight::new(random(seed, [n, k]), kind))
                    }
                },
                bias: bias.then(|| random(seed + 1, [n])),
            };
            let x = random(40, [m, k]);
            let norms = [
                Norm::Rms {
                    weight: random(41, [k]),
                    eps: 1e-5,
                },
                Norm::Layer {
                    weight: random(42, [k]),
                    bias: random(43, [k]),
                    eps: 1e-5,
                },
            ];
            let (a, b, c) = (
                affine(44, n, true),
                affine(46, n, false),
                affine(48, 9, true),
            );
            let act = Activation::Silu;
            for norm in &norms {
                let y = norm.forward(x.clone());
                let each = linear_each(x.clone(), norm, [&a, &b, &c]).map(bits);
                assert!(each == [&a, &b, &c].map(|layer| bits(layer.forward(y.clone()))));
                let activated = linear_activated(x.clone(), Some(norm), &a, act);
                let parts = activation(a.forward(y.clone()), act);
                assert!(bits(activated) == bits(parts));
                let made = linear_gated(x.clone(), norm, &a, &b, act);
                let parts = gated(a.forward(y.clone()), b.forward(y), act);
                assert!(bits(made) == bits(parts));
            }
            let plain = linear_activated(x.clone(), None, &b, act);
            assert!(bits(plain) == bits(activation(b.forward(x.clone()), act)));
            let to = random(50, [m, n]);
            let added = linear_added(x.clone(), &a, to.clone());
            assert!(bits(added) == bits(to.clone() + a.forward(x.clone())));
            assert!(
                bits(to) == bits(random(50, [m, n])),
                "another owner's is left alone"
            );
        }
    }
}

#[test]
fn nothing_gives_nothing() {
    let x = random(0, [0, 8]);
    let weight = random(0, [4, 8]);
    let row = random(0, [8]);
    assert_eq!(linear(x.clone(), weight.clone(), None).dims(), [0, 4]);
    assert_eq!(
        linear(x.clone(), weight, Some(random(0, [4]))).dims(),
        [0, 4]
    );
    assert_eq!(linear(random(0, [3, 8]), x.clone(), None).dims(), [3, 0]);
    for kind in KINDS_OF_QUANTIZATION {
        let weight = QuantizedWeight::new(random(0, [4, 8]), kind);
        assert_eq!(linear_quantized(x.clone(), &weight, None).dims(), [0, 4]);
    }
    assert_eq!(rms_norm(x.clone(), row.clone(), 1e-5).dims(), [0, 8]);
    assert_eq!(layer_norm(x.clone(), row.clone(), row, 1e-5).dims(), [0, 8]);
    assert_eq!(activation(x.clone(), Activation::Silu).dims(), [0, 8]);
    assert_eq!(gated(x.clone(), x, Activation::Silu).dims(), [0, 8]);
    let (q, angles) = (random(0, [0, 2, 4]), random(0, [0, 2]));
    assert_eq!(rotary(q.clone(), angles.clone(), angles).dims(), [0, 2, 4]);
    let device = Device::flex();
    let layout = BatchLayout::new(Vec::new(), 4, &device).expect("an empty layout");
    let cache = random(0, [2, 4, 1, 4]);
    let written = kv_write(cache.clone(), random(0, [0, 1, 4]), layout.slots.clone());
    assert_eq!(bits(written), bits(cache.clone()));
    let out = paged_attention(q, cache.clone(), cache, &layout, 1.0, None);
    assert_eq!(out.dims(), [0, 2, 4]);
    let x = random(0, [0, 5, 2, 4]);
    assert_eq!(attention(x.clone(), x.clone(), x, 1.0).dims(), [0, 5, 2, 4]);
}
