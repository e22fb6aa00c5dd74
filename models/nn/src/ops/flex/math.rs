//! Exponential, sigmoid and error function without branches or calls, so that loops over them
//! vectorise. The polynomials are minimax fits made for this file.

use super::simd::Isa;

// Adding and taking away 1.5 * 2^23 rounds to a whole number, whose value is in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `e^x`, within 2 units in the last place; 0 and infinity beyond the range of `f32`.
#[inline(always)]
pub(super) fn exp<I: Isa>(x: f32) -> f32 {
    // Comparisons that keep NaN, unlike `f32::clamp`'s vector form.
    let x = if x < -106.0 { -106.0 } else { x };
    let x = if x > 90.0 { 90.0 } else { x };
    let (p, n) = reduced::<I>(x);
    // 2^n as two factors: the result may be subnormal, or n 128.
    let half = n >> 1;
    p * power(half) * power(n - half)
}

/// [`exp`] of what is not above 0; below -87.7, where it would be subnormal, 0. One factor less.
#[inline(always)]
pub(super) fn exp_down<I: Isa>(x: f32) -> f32 {
    // There n is -127, and that power is 0.
    let x = if x < -88.0 { -88.0 } else { x };
    let (p, n) = reduced::<I>(x);
    p * power(n)
}

/// `e^x` as a number in about 0.7 to 1.4 and a power of 2.
#[inline(always)]
fn reduced<I: Isa>(x: f32) -> (f32, i32) {
    // ln 2 in two parts; the product of the first and a whole number of the range is exact.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    let shifted = I::mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = I::mul_add(n, -LN2_HIGH, x);
    let r = I::mul_add(n, -LN2_LOW, r);
    let q = 0.001_381_446_5;
    let q = I::mul_add(q, r, 0.008_368_781);
    let q = I::mul_add(q, r, 0.041_668_393);
    let q = I::mul_add(q, r, 0.166_665_2);
    let q = I::mul_add(q, r, 0.499_999_94);
    let p = I::mul_add(q * r, r, r) + 1.0;
    (p, shifted.to_bits() as i32 - ROUND.to_bits() as i32)
}

/// `2^n` for -127 (which gives 0) to 127.
#[inline(always)]
fn power(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(super) fn sigmoid<I: Isa>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<I>(-x))
}

/// The error function, within 1e-7.
#[inline(always)]
pub(super) fn erf<I: Isa>(x: f32) -> f32 {
    let t = x.abs();
    // Up to 1: x times a polynomial in x^2.
    let u = x * x;
    let p = 7.889_119e-5;
    let p = I::mul_add(p, u, -0.000_802_084_1);
    let p = I::mul_add(p, u, 0.005_189_535);
    let p = I::mul_add(p, u, -0.026_854_444);
    let p = I::mul_add(p, u, 0.112_836);
    let p = I::mul_add(p, u, -0.376_126_26);
    let p = I::mul_add(p, u, 0.128_379_17);
    let near = I::mul_add(p, x, x);
    // From 1: 1 - e^-q(|x|); from 4 on the second term is below half a unit.
    let v = if t > 4.0 { 4.0 } else { t };
    let q = 2.149_611_5e-5;
    let q = I::mul_add(q, v, -0.000_439_106_37);
    let q = I::mul_add(q, v, 0.004_193_611);
    let q = I::mul_add(q, v, -0.025_178_967);
    let q = I::mul_add(q, v, 0.108_372_48);
    let q = I::mul_add(q, v, 0.633_262_63);
    let q = I::mul_add(q, v, 1.129_556_8);
    let q = I::mul_add(q, v, -0.000_183_444_15);
    let far = (1.0 - exp::<I>(-q)).copysign(x);
    if t > 1.0 { far } else { near }
}
