//! Run-time choice of an instruction set. A kernel is written once, as plain loops over arrays of
//! 16 lanes, and compiled for each set; the compiler does the vectorising.

use half::f16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    _mm_loadu_si128, _mm256_cvtph_ps, _mm256_loadu_si256, _mm256_storeu_ps, _mm512_cvtph_ps,
    _mm512_storeu_ps,
};
use std::sync::OnceLock;

/// Lanes of every accumulator, on every instruction set: the order of a sum does not depend on the
/// width of the machine's registers.
pub(super) const LANES: usize = 16;

/// One accumulator.
pub(super) type Lanes = [f32; LANES];

/// An accumulator that is one line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(pub(super) Lanes);

/// What an instruction set gives to a kernel.
pub(in crate::ops) trait Isa {
    /// Whether registers hold 24 accumulators, a block of six by four, beside its operands;
    /// otherwise they hold six, a block of three by two.
    const WIDE: bool;

    /// `a * b + c`, rounded once where the machine has the instruction.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;

    /// The values of 16 numbers.
    #[inline(always)]
    fn widen_f16(stored: &[f16; LANES]) -> Lanes {
        let mut lanes = [0.0; LANES];
        for l in 0..LANES {
            lanes[l] = stored[l].to_f32();
        }
        lanes
    }
}

/// AVX-512.
#[cfg(target_arch = "x86_64")]
struct Avx512;

/// AVX2 with FMA and F16C.
#[cfg(target_arch = "x86_64")]
struct Avx2;

/// What every target has.
struct Baseline;

#[cfg(target_arch = "x86_64")]
impl Isa for Avx512 {
    const WIDE: bool = true;

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn widen_f16(stored: &[f16; LANES]) -> Lanes {
        let mut lanes = [0.0; LANES];
        // SAFETY: a kernel has this type only inside of `avx512`, where the features are there;
        // 16 numbers are read and written.
        unsafe {
            let stored = _mm256_loadu_si256(stored.as_ptr().cast());
            _mm512_storeu_ps(lanes.as_mut_ptr(), _mm512_cvtph_ps(stored));
        }
        lanes
    }
}

#[cfg(target_arch = "x86_64")]
impl Isa for Avx2 {
    const WIDE: bool = false;

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn widen_f16(stored: &[f16; LANES]) -> Lanes {
        let mut lanes = [0.0; LANES];
        for (stored, lanes) in stored.chunks_exact(8).zip(lanes.chunks_exact_mut(8)) {
            // SAFETY: a kernel has this type only inside of `avx2`, where the features are there;
            // 8 numbers are read and written.
            unsafe {
                let stored = _mm_loadu_si128(stored.as_ptr().cast());
                _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_cvtph_ps(stored));
            }
        }
        lanes
    }
}

impl Isa for Baseline {
    // NEON has 32 registers, but of four lanes.
    const WIDE: bool = false;

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        // Without the instruction `f32::mul_add` is a slow library call.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            a.mul_add(b, c)
        } else {
            a * b + c
        }
    }
}

/// A loop that is compiled for each instruction set.
pub(in crate::ops) trait Kernel {
    /// Runs it. Implementations are `#[inline(always)]`, and so is all they call: what is not
    /// inlined is compiled for the baseline.
    fn run<I: Isa>(self);
}

/// The instruction sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// What every target has.
    Baseline,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// All that this machine has, the best last.
    pub(super) fn available() -> Vec<Self> {
        let mut levels = vec![Self::Baseline];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                levels.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    levels.push(Self::Avx512);
                }
            }
        }
        levels
    }
}

/// The best instruction set of this machine.
pub(super) fn best() -> Level {
    static BEST: OnceLock<Level> = OnceLock::new();
    *BEST.get_or_init(|| Level::available().pop().unwrap_or(Level::Baseline))
}

/// Runs a kernel on the best instruction set of this machine.
pub(in crate::ops) fn run(kernel: impl Kernel) {
    run_at(best(), kernel);
}

/// Runs a kernel on one instruction set; `level` comes from [`Level::available`].
pub(super) fn run_at(level: Level, kernel: impl Kernel) {
    match level {
        Level::Baseline => kernel.run::<Baseline>(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Level::available` lists this level only where the machine has its features.
        Level::Avx2 => unsafe { avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512 => unsafe { avx512(kernel) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2(kernel: impl Kernel) {
    kernel.run::<Avx2>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(kernel: impl Kernel) {
    kernel.run::<Avx512>();
}

/// `acc + a * b`, lane by lane.
#[inline(always)]
pub(super) fn fma<I: Isa>(acc: &mut Lanes, a: &Lanes, b: &Lanes) {
    for l in 0..LANES {
        acc[l] = I::mul_add(a[l], b[l], acc[l]);
    }
}

/// The sum of the lanes, as a tree that is the same everywhere.
#[inline(always)]
pub(super) fn sum(mut a: Lanes) -> f32 {
    for l in 0..8 {
        a[l] += a[l + 8];
    }
    for l in 0..4 {
        a[l] += a[l + 4];
    }
    (a[0] + a[2]) + (a[1] + a[3])
}

/// The greater number; the second if one is none.
#[inline(always)]
pub(super) fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The greatest lane.
#[inline(always)]
pub(super) fn max(mut a: Lanes) -> f32 {
    for l in 0..8 {
        a[l] = greater(a[l], a[l + 8]);
    }
    for l in 0..4 {
        a[l] = greater(a[l], a[l + 4]);
    }
    greater(greater(a[0], a[2]), greater(a[1], a[3]))
}

/// Turns 16 rows of 16 into the columns, by exchanging ever larger squares beside the diagonal.
#[inline(always)]
pub(super) fn transpose(rows: &mut [Lanes; LANES]) {
    exchange::<1>(rows);
    exchange::<2>(rows);
    exchange::<4>(rows);
    exchange::<8>(rows);
}

#[inline(always)]
fn exchange<const S: usize>(rows: &mut [Lanes; LANES]) {
    for i in 0..LANES {
        if i & S == 0 {
            let (a, b) = (rows[i], rows[i + S]);
            for l in 0..LANES {
                rows[i][l] = if l & S == 0 { a[l] } else { b[l - S] };
            }
            for l in 0..LANES {
                rows[i + S][l] = if l & S == 0 { a[l + S] } else { b[l] };
            }
        }
    }
}

/// The lanes of `values`, zero beyond its end.
#[inline(always)]
pub(super) fn padded(values: &[f32]) -> Lanes {
    let mut lanes = [0.0; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}
