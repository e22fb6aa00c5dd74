//! What the kernels are built from: instruction sets, stored types, polynomials.

use super::{
    attention::{Attention, Sequence, attention_at},
    bf16::{self, Unit},
    element::Element,
    gemm::{Affine, linear_at},
    int8::{self, Quantized},
    math,
    simd::{self, Isa, Kernel, LANES, Level, run_at},
};
use crate::ops::Quantization;
use crate::ops::quantized::Packing;
use half::f16;

/// Numbers that are neither round nor equal.
fn numbers(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * step).sin()).collect()
}

/// The same sums on every instruction set: but for the fused rounding, in the same order.
#[test]
fn every_instruction_set_gives_the_same() {
    for (m, n, k) in [(1, 7, 33), (5, 9, 64), (101, 37, 1050), (16, 70, 40)] {
        let x = numbers(m * k, 0.37);
        let weight: Vec<half::bf16> = numbers(n * k, 0.71)
            .into_iter()
            .map(half::bf16::from_f32)
            .collect();
        let results: Vec<Vec<f32>> = Level::available()
            .into_iter()
            .map(|level| {
                let op = Affine {
                    weight: &weight,
                    bias: None,
                    k,
                    n,
                };
                linear_at(level, &x, op, false).to_vec()
            })
            .collect();
        for (i, v) in results[0].iter().enumerate() {
            let (row, output) = (&x[i / n * k..][..k], &weight[i % n * k..][..k]);
            let products = row
                .iter()
                .zip(output)
                .map(|(x, w)| f64::from(x * w.widen()));
            let expected: f64 = products.sum();
            assert!(
                (f64::from(*v) - expected).abs() < 1e-4,
                "{v} is not {expected}"
            );
        }
        for result in &results[1..] {
            assert!(
                result == results.last().expect("results"),
                "AVX2 and AVX-512 agree"
            );
        }
    }
}

/// Few rows and many go different ways, to the same bits; weights of every type.
#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    fn check<E: Element>(level: Level) {
        for (m, n, k) in [
            (41, 37, 1),
            (27, 5, 47),
            (30, 70, 1040),
            (800, 33, 40),
            (14, 100, 2310),
        ] {
            let x = numbers(m * k, 0.37);
            let weight: Vec<E> = numbers(n * k, 0.71).into_iter().map(E::narrow).collect();
            let bias = numbers(n, 0.9);
            let linear = |x: &[f32]| {
                let (weight, bias) = (&weight, Some(bias.as_slice()));
                linear_at(level, x, Affine { weight, bias, n, k }, false).to_vec()
            };
            let all = linear(&x);
            for part in [1, 3, 6, 7, 12, 13, 26] {
                let parts: Vec<f32> = x.chunks(part * k).flat_map(linear).collect();
                let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert!(
                    bits(&parts) == bits(&all),
                    "{level:?} {m} {n} {k} in parts of {part}"
                );
            }
        }
    }
    for level in Level::available() {
        check::<f32>(level);
        check::<f16>(level);
        check::<half::bf16>(level);
    }
}

/// What every unit of the machine gives is the sum of the rounded products, and a row of it has the
/// same bits in any batch.
#[test]
fn every_unit_multiplies_bf16() {
    let shapes = [
        (1, 1, 1),
        (2, 31, 33),
        (17, 33, 31),
        (33, 64, 1024),
        (70, 95, 1056),
        (131, 48, 2100),
        (610, 40, 96),
        (300, 70, 1100),
    ];
    for (m, n, k) in shapes {
        let x = numbers(m * k, 0.37);
        let weight: Vec<half::bf16> = numbers(n * k, 0.71)
            .into_iter()
            .map(half::bf16::from_f32)
            .collect();
        let bias = numbers(n, 0.9);
        for unit in Unit::available() {
            let linear = |x: &[f32]| {
                let (weight, bias) = (&weight, Some(bias.as_slice()));
                bf16::linear_at(unit, x, Affine { weight, bias, n, k })
            };
            let all = linear(&x);
            for i in [0, m / 2, m - 1] {
                let row = &x[i * k..][..k];
                for (j, v) in all[i * n..][..n].iter().enumerate() {
                    let products = row.iter().zip(&weight[j * k..][..k]);
                    let products =
                        products.map(|(x, w)| half::bf16::from_f32(*x).to_f64() * w.to_f64());
                    let expected = f64::from(bias[j]) + products.sum::<f64>();
                    assert!(
                        (f64::from(*v) - expected).abs() < 1e-4,
                        "{unit:?} {m} {n} {k}: {v} is not {expected}"
                    );
                }
            }
            for part in [1, 2, 7, 12, 13, 16, 17, 33, 64, 577] {
                let parts: Vec<f32> = x
                    .chunks(part * k)
                    .flat_map(|x| linear(x).to_vec())
                    .collect();
                assert!(parts == *all, "{unit:?} {m} {n} {k} in parts of {part}");
            }
        }
    }
}

/// Whole numbers: every unit, at any number of rows, gives the same bits.
#[test]
fn every_unit_multiplies_quantized_weights_alike() {
    for (m, n, k) in [
        (1, 1, 1),
        (2, 33, 130),
        (3, 17, 31),
        (9, 48, 1024),
        (61, 70, 300),
        (40, 33, 3000),
        (700, 134, 300),
    ] {
        let mut x = numbers(m * k, 0.37);
        // Some far beyond the others, in some of the rows.
        x.iter_mut().step_by(501).for_each(|x| *x *= 300.0);
        let bias = numbers(n, 0.9);
        for kind in [Quantization::Q8, Quantization::Q4] {
            let packing = Packing { kind, n, k };
            let (data, scales) = int8::pack(&numbers(n * k, 0.71), packing);
            let op = Quantized {
                data: &data,
                scales: &scales,
                bias: Some(&bias),
                packing,
            };
            let results: Vec<Vec<f32>> = int8::Unit::available()
                .into_iter()
                .map(|unit| int8::linear_at(unit, &x, op).to_vec())
                .collect();
            for (unit, result) in int8::Unit::available().iter().zip(&results) {
                assert!(*result == results[0], "{unit:?} {kind:?} {m} {n} {k}");
            }
        }
    }
}

/// Rounding is `half`'s, for numbers of every kind.
#[test]
fn every_unit_rounds_to_the_nearest() {
    let kinds = [
        0x3f80_7fff,
        0x3f80_8000,
        0x3f80_8001,
        0x3f81_8000,
        0x7f7f_ffff,
    ];
    let kinds = kinds.map(f32::from_bits);
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-30];
    for unit in Unit::available() {
        for x in kinds.into_iter().chain(kinds.map(|x| -x)).chain(special) {
            let weight = [half::bf16::ONE];
            let (x, bias) = (&[x], None);
            let out = bf16::linear_at(
                unit,
                x,
                Affine {
                    weight: &weight,
                    bias,
                    n: 1,
                    k: 1,
                },
            );
            let expected = half::bf16::from_f32(x[0]).to_f32();
            assert!(
                out[0] == expected || out[0].is_nan() && expected.is_nan(),
                "{unit:?}: {} became {}, not {expected}",
                x[0],
                out[0]
            );
        }
    }
}

/// The same for attention, but for the exponential's last bits.
#[test]
fn every_instruction_set_attends_the_same() {
    let (tokens, heads, head_dim) = (150, 3, 37);
    let q = numbers(tokens * heads * head_dim, 0.37);
    let keys: Vec<f16> = numbers(tokens * head_dim, 0.71)
        .into_iter()
        .map(f16::from_f32)
        .collect();
    let results: Vec<Vec<f32>> = Level::available()
        .into_iter()
        .map(|level| {
            let mut out = vec![0.0; q.len()];
            let op = Attention {
                q: &q,
                keys: &keys,
                values: &keys,
                heads,
                kv_heads: 1,
                head_dim,
                block_size: 10,
                scale: 0.2,
                causal: true,
                window: Some(99),
            };
            let blocks: Vec<u32> = (0..15).rev().collect();
            let sequence = Sequence {
                queries: tokens,
                context: tokens,
                blocks: &blocks,
            };
            attention_at(level, op, &[sequence], &mut out);
            out
        })
        .collect();
    for result in &results[1..] {
        for (a, b) in result.iter().zip(&results[0]) {
            assert!((a - b).abs() < 1e-5, "{a} is not {b}");
        }
        assert!(
            result == results.last().expect("results"),
            "AVX2 and AVX-512 agree"
        );
    }
}

/// Widens all numbers of a type.
struct Widen<'a, E> {
    stored: &'a [E],
    out: &'a mut [f32],
}

impl<E: Element> Kernel for Widen<'_, E> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let (stored, _) = self.stored.as_chunks::<LANES>();
        let (out, _) = self.out.as_chunks_mut::<LANES>();
        for (stored, out) in stored.iter().zip(out) {
            *out = E::widen_lanes::<I>(stored);
        }
    }
}

#[test]
fn widening_is_exact() {
    fn check<E: Element + Into<f32>>(all: Vec<E>) {
        for level in Level::available() {
            let mut out = vec![0.0; all.len()];
            run_at(
                level,
                Widen {
                    stored: &all,
                    out: &mut out,
                },
            );
            for (stored, out) in all.iter().zip(out) {
                let value: f32 = (*stored).into();
                assert!(out.to_bits() == value.to_bits() || out.is_nan() && value.is_nan());
                let value = stored.widen();
                assert!(out.to_bits() == value.to_bits() || out.is_nan() && value.is_nan());
            }
        }
    }
    check((0..=u16::MAX).map(f16::from_bits).collect());
    check((0..=u16::MAX).map(half::bf16::from_bits).collect());
}

#[test]
fn transposing_exchanges_rows_and_columns() {
    let mut rows = [[0.0; LANES]; LANES];
    for (i, v) in rows.as_flattened_mut().iter_mut().enumerate() {
        *v = i as f32;
    }
    simd::transpose(&mut rows);
    for (i, row) in rows.iter().enumerate() {
        for (j, v) in row.iter().enumerate() {
            assert_eq!(*v, (j * LANES + i) as f32);
        }
    }
}

/// Exponential and error function of numbers, on the instruction set it runs on.
struct Functions<'a> {
    x: &'a [f32],
    exp: &'a mut [f32],
    exp_down: &'a mut [f32],
    erf: &'a mut [f32],
}

impl Kernel for Functions<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let outs = self.exp.iter_mut().zip(self.exp_down).zip(self.erf);
        for (x, ((exp, exp_down), erf)) in self.x.iter().zip(outs) {
            *exp = math::exp::<I>(*x);
            *exp_down = math::exp_down::<I>(*x);
            *erf = math::erf::<I>(*x);
        }
    }
}

/// The error function by a series without cancellation.
fn exact_erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn polynomials_are_as_good_as_they_say() {
    let x: Vec<f32> = (-1_300_000..1_000_000).map(|i| i as f32 * 1e-4).collect();
    for level in Level::available() {
        let (mut exp, mut erf) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut exp_down = exp.clone();
        run_at(
            level,
            Functions {
                x: &x,
                exp: &mut exp,
                exp_down: &mut exp_down,
                erf: &mut erf,
            },
        );
        let (mut worst_exp, mut worst_erf) = (0.0f64, 0.0f64);
        for (x, ((exp, exp_down), erf)) in x.iter().zip(exp.iter().zip(&exp_down).zip(&erf)) {
            let expected = f64::from(*x).exp();
            match x {
                ..-87.7 => assert_eq!(*exp_down, 0.0),
                ..-87.6 => assert!(*exp_down <= f32::MIN_POSITIVE),
                ..=0.0 => assert_eq!(exp_down, exp),
                _ => {}
            }
            if expected > f64::from(f32::MAX) {
                assert_eq!(*exp, f32::INFINITY);
            } else {
                let unit = f64::from((expected as f32).next_up()) - f64::from(expected as f32);
                worst_exp = worst_exp.max((f64::from(*exp) - expected).abs() / unit);
            }
            if *x != 0.0 {
                let expected = exact_erf(f64::from(*x));
                worst_erf = worst_erf.max((f64::from(*erf) - expected).abs() / expected.abs());
            }
        }
        assert!(worst_exp <= 2.0, "{level:?}: exp is {worst_exp} units off");
        assert!(worst_erf <= 1.3e-7, "{level:?}: erf is {worst_erf} off");
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
        let (mut exp, mut exp_down, mut erf) = ([1.0; 4], [1.0; 4], [1.0; 4]);
        run_at(
            level,
            Functions {
                x: &x,
                exp: &mut exp,
                exp_down: &mut exp_down,
                erf: &mut erf,
            },
        );
        assert!(exp[0].is_nan() && exp_down[0].is_nan() && erf[0].is_nan());
        assert_eq!(exp[1..], [f32::INFINITY, 0.0, 1.0]);
        assert_eq!(exp_down[2..], [0.0, 1.0]);
        assert_eq!(erf[1..], [1.0, -1.0, 0.0]);
    }
}
