//! The native operators against their portable twins, and the law that a row's bits do not depend
//! on its batch.

use super::{flex::pool::Pool, *};
use burn::{
    backend::Flex,
    tensor::{Device, FloatDType, TensorData},
};
use kiln_registry::SequenceSpan;
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

/// Whether attention to values of a type, in -1..1, is the same but for rounding: weights may be
/// rounded to `bf16` for values of it.
fn assert_attends<const D: usize>(native: Tensor<D>, twin: Tensor<D>, dtype: FloatDType) {
    match dtype {
        FloatDType::BF16 => assert_near(native, twin, 1.0 / 256.0, "attention"),
        _ => assert_close(native, twin, "attention"),
    }
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

/// Numbers in -1..1, but a few far beyond.
fn spiky(seed: u64, shape: [usize; 2]) -> Tensor<2> {
    let mut values = numbers(seed, shape[0] * shape[1]);
    let places = numbers(seed + 1000, values.len() / 200);
    for place in places {
        let at = ((place + 1.0) / 2.0 * values.len() as f32) as usize;
        let last = values.len() - 1;
        values[at.min(last)] *= 50.0;
    }
    tensor(values, shape)
}

const KINDS_OF_QUANTIZATION: [Quantization; 2] = [Quantization::Q8, Quantization::Q4];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn linear_quantized_is_its_twin(
        m in prop_oneof![1usize..9, 30usize..70],
        n in 1usize..70,
        k in prop_oneof![1usize..300, 1000usize..1100],
        dtype in 0usize..3,
        biased: bool,
    ) {
        let x = spiky(1, [m, k]);
        let weight = random(2, [n, k]).cast(DTYPES[dtype]);
        let bias = biased.then(|| random(3, [n]));
        for kind in KINDS_OF_QUANTIZATION {
            for weight in views(&weight) {
                let weight = QuantizedWeight::new(weight, kind);
                let twin = portable::linear_quantized(
                    x.clone(),
                    weight.data.clone(),
                    weight.scales.clone(),
                    bias.clone(),
                    weight.packing,
                );
                for x in views(&x) {
                    let native = linear_quantized(x, &weight, bias.clone());
                    assert_close(native, twin.clone(), &format!("{kind:?}"));
                }
            }
        }
    }

    #[test]
    fn a_row_of_linear_quantized_is_the_same_alone(
        m in 2usize..80,
        n in 1usize..90,
        k in prop_oneof![1usize..300, 1000usize..1300],
    ) {
        let x = spiky(4, [m, k]);
        for kind in KINDS_OF_QUANTIZATION {
            let weight = QuantizedWeight::new(random(5, [n, k]), kind);
            let all = bits(linear_quantized(x.clone(), &weight, None));
            for part in [1, 2, 3, 5, 7, 8, 17, 33] {
                let mut rows = Vec::new();
                for first in (0..m).step_by(part) {
                    let x = x.clone().narrow(0, first, part.min(m - first));
                    rows.extend(bits(linear_quantized(x, &weight, None)));
                }
                prop_assert!(rows == all, "{:?} in parts of {}", kind, part);
            }
        }
    }
}

/// How far a rounded weight is off, of which nothing but the format is the cause.
#[test]
fn quantized_weights_are_as_near_as_their_bits_allow() {
    let weight = random(40, [48, 700]);
    for (kind, most) in [(Quantization::Q8, 0.005), (Quantization::Q4, 0.08)] {
        let quantized = QuantizedWeight::new(weight.clone(), kind);
        assert_eq!(quantized.dims(), [48, 700]);
        let off = host((quantized.widened() - weight.clone()).square().mean());
        let error = (off[0] / host(weight.clone().square().mean())[0]).sqrt();
        assert!(error < most, "{kind:?}: {error}");
    }
    // Rows of nothing, of one number, and of one sign.
    let rows = [[0.0; 40], [0.7; 40], [-3.0; 40]].concat();
    let odd = tensor(rows, [3, 40]);
    for kind in KINDS_OF_QUANTIZATION {
        let widened = QuantizedWeight::new(odd.clone(), kind).widened();
        for (a, b) in host(widened).iter().zip(host(odd.clone())) {
            assert!((a - b).abs() <= 0.04 * b.abs(), "{kind:?}: {a} is not {b}");
        }
    }
}

/// Of a row of eight bits, a number far beyond the others would leave these next to nothing.
#[test]
fn a_number_far_beyond_the_others_costs_them_nothing() {
    let (n, k) = (40, 512);
    let mut x = numbers(60, k);
    let mut weight = numbers(61, n * k);
    x[7] = 400.0;
    weight.iter_mut().skip(7).step_by(k).for_each(|w| *w = 0.0);
    let x = tensor(x, [1, k]);
    for kind in KINDS_OF_QUANTIZATION {
        let weight = QuantizedWeight::new(tensor(weight.clone(), [n, k]), kind);
        let exact = linear(x.clone(), weight.widened(), None);
        let off = linear_quantized(x.clone(), &weight, None) - exact.clone();
        let square = |x: Tensor<2>| host(x.square().mean())[0];
        let error = (square(off) / square(exact)).sqrt();
        assert!(error < 0.04, "{kind:?}: {error}");
    }
}

/// What is no number shows; what is none of a row's business does not.
#[test]
fn a_row_that_is_no_number_says_so() {
    let mut x = numbers(41, 3 * 200);
    (x[30], x[200 + 150]) = (f32::NAN, f32::INFINITY);
    for kind in KINDS_OF_QUANTIZATION {
        let weight = QuantizedWeight::new(random(42, [20, 200]), kind);
        let out = host(linear_quantized(tensor(x.clone(), [3, 200]), &weight, None));
        assert!(out[..40].iter().all(|v| !v.is_finite()), "{kind:?}");
        assert!(out[40..].iter().all(|v| v.is_finite()), "{kind:?}");
        let zeros = linear_quantized(tensor(vec![0.0; 200], [1, 200]), &weight, None);
        assert!(host(zeros).iter().all(|v| *v == 0.0), "{kind:?}");
    }
}

/// Sums of the greatest numbers over the longest row fit 32 bits.
#[test]
fn the_longest_row_is_exact() {
    let k = QuantizedWeight::MAX_K;
    let x = tensor(vec![1.0; k], [1, k]);
    for kind in KINDS_OF_QUANTIZATION {
        let weight = QuantizedWeight::new(tensor(vec![-1.0; 3 * k], [3, k]), kind);
        let out = host(linear_quantized(x.clone(), &weight, None));
        for value in out {
            let off = (value / -(k as f32) - 1.0).abs();
            assert!(off < 0.01, "{kind:?}: {value}");
        }
    }
}

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

    #[test]
    fn attention_is_its_twin(
        batch in 1usize..3,
        tokens in 1usize..140,
        context in 1usize..140,
        kv_heads in 1usize..3,
        group in 1usize..4,
        dim in 1usize..100,
        dtype in 0usize..3,
    ) {
        let dtype = DTYPES[dtype];
        let q = random(12, [batch, tokens, kv_heads * group, dim]) * 4.0;
        let k = random(13, [batch, context, kv_heads, dim]).cast(dtype);
        let v = random(14, [batch, context, kv_heads, dim]).cast(dtype);
        let turned = |x: &Tensor<4>| {
            let (dtype, x) = (FloatDType::from(x.dtype()), x.clone().swap_dims(1, 2));
            let shape = x.dims();
            tensor(host(x), shape).cast(dtype).swap_dims(1, 2)
        };
        let twin = portable::attention(q.clone(), k.clone(), v.clone(), 0.3);
        let native = attention(turned(&q), k.clone(), turned(&v), 0.3);
        assert_attends(native, twin.clone(), dtype);
        assert_attends(attention(q, k, v, 0.3), twin, dtype);
    }
}

const KINDS: [Activation; 5] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
];

/// Sequences over one cache, and what their tokens give.
#[derive(Debug, Clone)]
struct Paged {
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    kv_heads: usize,
    group: usize,
    dim: usize,
    block_size: usize,
    dtype: FloatDType,
    window: Option<usize>,
}

impl Paged {
    /// Tokens `part` of sequence `s`, as queries (`heads` = all) or as keys or values.
    fn rows(&self, s: usize, kind: u64, heads: usize, part: (usize, usize)) -> Vec<f32> {
        let width = heads * self.dim;
        let all = numbers(100 + 3 * s as u64 + kind, self.lengths[s] * width);
        all[part.0 * width..part.1 * width].to_vec()
    }

    /// Runs batches of `(sequence, new tokens)` over a cache whose block `b` is `order[b]`-th of
    /// the memory, and collects each sequence's rows.
    fn run(
        &self,
        batches: &[Vec<(usize, usize)>],
        order: &[u32],
        attend: impl Fn(Tensor<3>, Tensor<4>, Tensor<4>, &BatchLayout, Option<usize>) -> Tensor<3>,
    ) -> Vec<Vec<f32>> {
        let device = Device::flex();
        let heads = self.kv_heads * self.group;
        let shape = [order.len(), self.block_size, self.kv_heads, self.dim];
        // What is not written must not be read: a NaN would spread.
        let unwritten = || tensor(vec![f32::NAN; shape.iter().product()], shape).cast(self.dtype);
        let (mut keys, mut values) = (unwritten(), unwritten());
        let mut free = order.iter().copied();
        let mut tables: Vec<Vec<u32>> = vec![Vec::new(); self.lengths.len()];
        let mut done = vec![0; self.lengths.len()];
        let mut out = vec![Vec::new(); self.lengths.len()];
        for batch in batches {
            let mut spans = Vec::new();
            let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
            for &(s, n) in batch {
                let part = (done[s], done[s] + n);
                done[s] = part.1;
                while tables[s].len() * self.block_size < part.1 {
                    tables[s].push(free.next().expect("enough blocks"));
                }
                q.extend(self.rows(s, 0, heads, part));
                k.extend(self.rows(s, 1, self.kv_heads, part));
                v.extend(self.rows(s, 2, self.kv_heads, part));
                spans.push(SequenceSpan {
                    query_len: n,
                    context_len: part.1,
                    prompt_len: self.lengths[s],
                    blocks: tables[s].clone(),
                });
            }
            let layout = BatchLayout::new(spans, self.block_size, &device).expect("a layout");
            let tokens = layout.tokens();
            let new = |rows| tensor(rows, [tokens, self.kv_heads, self.dim]);
            keys = kv_write(keys, new(k), layout.slots.clone());
            values = kv_write(values, new(v), layout.slots.clone());
            let q = tensor(q, [tokens, heads, self.dim]);
            let rows = host(attend(
                q,
                keys.clone(),
                values.clone(),
                &layout,
                self.window,
            ));
            let mut rows = rows.as_slice();
            for &(s, n) in batch {
                let (part, rest) = rows.split_at(n * heads * self.dim);
                out[s].extend_from_slice(part);
                rows = rest;
            }
        }
        out
    }

    fn native(&self, batches: &[Vec<(usize, usize)>], order: &[u32]) -> Vec<Vec<f32>> {
        self.run(batches, order, |q, k, v, layout, window| {
            paged_attention(q, k, v, layout, 0.2, window)
        })
    }

    fn blocks(&self) -> u32 {
        let blocks: usize = self
            .lengths
            .iter()
            .map(|n| n.div_ceil(self.block_size))
            .sum();
        blocks as u32
    }

    /// Every sequence whole, in one batch of its own.
    fn whole(&self) -> Vec<Vec<(usize, usize)>> {
        self.lengths
            .iter()
            .enumerate()
            .map(|(s, n)| vec![(s, *n)])
            .collect()
    }
}

fn same(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    let bits = |x: &[Vec<f32>]| -> Vec<Vec<u32>> {
        x.iter()
            .map(|x| x.iter().map(|v| v.to_bits()).collect())
            .collect()
    };
    bits(a) == bits(b)
}

fn paged() -> impl Strategy<Value = Paged> {
    (
        prop::collection::vec(1usize..150, 1..4),
        1usize..3,
        1usize..5,
        1usize..70,
        1usize..40,
        0usize..3,
        prop::option::of(1usize..100),
    )
        .prop_map(
            |(lengths, kv_heads, group, dim, block_size, dtype, window)| Paged {
                lengths,
                kv_heads,
                group,
                dim,
                block_size,
                dtype: DTYPES[dtype],
                window,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn paged_attention_is_its_twin_in_any_batch(paged in paged(), sizes in prop::collection::vec(1usize..60, 1..9)) {
        let order: Vec<u32> = (0..paged.blocks()).collect();
        let whole = paged.native(&paged.whole(), &order);
        let twin = paged.run(&paged.whole(), &order, |q, k, v, layout, window| {
            portable::paged_attention(q, k, v, layout, 0.2, window)
        });
        for (whole, twin) in whole.iter().zip(&twin) {
            let n = whole.len();
            let (whole, twin) = (tensor(whole.clone(), [n]), tensor(twin.clone(), [n]));
            assert_attends(whole, twin, paged.dtype);
        }
        // All sequences at once, in chunks of drawn sizes, blocks back to front.
        let mut left = paged.lengths.clone();
        let mut sizes = sizes.iter().cycle();
        let mut batches = Vec::new();
        while left.iter().any(|n| *n > 0) {
            let mut batch = Vec::new();
            for (s, left) in left.iter_mut().enumerate().rev() {
                let n = (*sizes.next().expect("a cycle")).min(*left);
                if n > 0 {
                    batch.push((s, n));
                    *left -= n;
                }
            }
            batches.push(batch);
        }
        let order: Vec<u32> = order.into_iter().rev().collect();
        prop_assert!(same(&whole, &paged.native(&batches, &order)));
    }
}

#[test]
fn a_prompt_cut_anywhere_is_the_whole_prompt() {
    for (window, dtype) in [
        (None, FloatDType::F32),
        (None, FloatDType::BF16),
        (Some(33), FloatDType::F32),
        (Some(33), FloatDType::BF16),
    ] {
        let paged = Paged {
            lengths: vec![131],
            kv_heads: 1,
            group: 3,
            dim: 20,
            block_size: 16,
            dtype,
            window,
        };
        let order: Vec<u32> = (0..paged.blocks()).collect();
        let whole = paged.native(&paged.whole(), &order);
        for cut in 1..131 {
            let cut = paged.native(&[vec![(0, cut)], vec![(0, 131 - cut)]], &order);
            assert!(same(&whole, &cut));
        }
        let steps: Vec<Vec<(usize, usize)>> = vec![vec![(0, 1)]; 131];
        assert!(same(&whole, &paged.native(&steps, &order)));
    }
}

/// The twin itself, against the definition in `f64`.
#[test]
fn the_twin_of_paged_attention_is_the_definition() {
    let paged = Paged {
        lengths: vec![9, 5],
        kv_heads: 2,
        group: 2,
        dim: 6,
        block_size: 4,
        dtype: FloatDType::F32,
        window: Some(3),
    };
    let twin = paged.run(
        &[vec![(0, 9), (1, 5)]],
        &[3, 1, 4, 0, 2],
        |q, k, v, layout, window| portable::paged_attention(q, k, v, layout, 0.2, window),
    );
    for (s, &n) in paged.lengths.iter().enumerate() {
        let [q, k, v] = [(0, 4), (1, 2), (2, 2)].map(|(kind, h)| paged.rows(s, kind, h, (0, n)));
        for p in 0..n {
            for h in 0..4 {
                let row = |x: &[f32], heads: usize, at: usize, head: usize| -> Vec<f64> {
                    x[(at * heads + head) * 6..][..6]
                        .iter()
                        .map(|v| f64::from(*v))
                        .collect()
                };
                let query = row(&q, 4, p, h);
                let seen = (p + 1).saturating_sub(3)..p + 1;
                let weights: Vec<f64> = seen
                    .clone()
                    .map(|j| {
                        let key = row(&k, 2, j, h / 2);
                        (query.iter().zip(&key).map(|(a, b)| a * b).sum::<f64>() * 0.2).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for e in 0..6 {
                    let expected: f64 = seen
                        .clone()
                        .zip(&weights)
                        .map(|(j, w)| w / total * row(&v, 2, j, h / 2)[e])
                        .sum();
                    let got = f64::from(twin[s][(p * 4 + h) * 6 + e]);
                    assert!((got - expected).abs() < 1e-6, "{got} is not {expected}");
                }
            }
        }
    }
}

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
