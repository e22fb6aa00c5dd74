//! Weights at eight and at four bits.

use super::*;

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
