//! Linear layers on weights of `bf16`: activations are rounded to `bf16` as well, products are summed
//! in `f32`. Which instructions do it is the machine's; on one machine it is always the same.

#[cfg(target_arch = "x86_64")]
use super::{
    amx::{
        self,
        linear::Layer,
        pack::{Columns, Then},
    },
    pairs,
};
use super::{
    gemm::{self, Affine},
    memory::Floats,
    simd::{self, Isa, Kernel, Level},
};
use half::bf16;
use std::sync::OnceLock;

/// What multiplies numbers of `bf16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Both widened to `f32`, which is exact, for the instructions that `f32` has.
    Widened(Level),
    /// AVX-512's product of pairs.
    #[cfg(target_arch = "x86_64")]
    Pairs,
    /// A matrix unit.
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Unit {
    /// All that this machine has, the best last.
    pub(super) fn available() -> Vec<Self> {
        let mut units: Vec<Self> = Level::available().into_iter().map(Self::Widened).collect();
        #[cfg(target_arch = "x86_64")]
        {
            if pairs::available() {
                // Half as fast as products of `f32` on Intel's processors, twice on AMD's.
                let last = if pairs::fast() { units.len() } else { 0 };
                units.insert(last, Self::Pairs);
            }
            if amx::available() {
                units.push(Self::Tiles);
            }
        }
        units
    }

    /// The best of this machine.
    pub(super) fn best() -> Self {
        static BEST: OnceLock<Unit> = OnceLock::new();
        *BEST.get_or_init(|| {
            let best = Self::available().pop();
            best.unwrap_or(Self::Widened(Level::Baseline))
        })
    }
}

/// The result, `[m, n]`.
pub(super) fn linear(x: &[f32], op: Affine<'_, bf16>) -> Floats {
    linear_at(Unit::best(), x, op)
}

/// [`linear`] by one unit, which comes from [`Unit::available`].
pub(super) fn linear_at(unit: Unit, x: &[f32], op: Affine<'_, bf16>) -> Floats {
    match unit {
        Unit::Widened(level) => gemm::linear_at(level, x, op, true),
        #[cfg(target_arch = "x86_64")]
        Unit::Pairs => pairs::linear(x, op),
        #[cfg(target_arch = "x86_64")]
        Unit::Tiles => {
            let x = Columns::new(x, op.k, None);
            let layer = Layer {
                affine: amx::linear::Affine {
                    weight: op.weight,
                    bias: op.bias,
                },
                gated: None,
                n: op.n,
                then: Then::Write,
            };
            let [out] = amx::linear::linear(&x, [layer]);
            out
        }
    }
}

/// The nearest numbers of `bf16`.
pub(super) fn rounded(level: Level, x: &[f32]) -> Vec<f32> {
    let mut x = x.to_vec();
    simd::run_at(level, Round(&mut x));
    x
}

/// Rounds to the nearest `bf16`, ties to even.
struct Round<'a>(&'a mut [f32]);

impl Kernel for Round<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        round(self.0);
    }
}

/// The nearest numbers of `bf16`, in place.
#[inline(always)]
pub(super) fn round(x: &mut [f32]) {
    for x in x {
        let bits = x.to_bits();
        // Infinity and NaN have no bits to round away that matter.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
        let special = bits & 0x7f80_0000 == 0x7f80_0000;
        *x = f32::from_bits(if special {
            bits & 0xffff_0000 | (bits & 0xffff != 0) as u32
        } else {
            rounded
        });
    }
}
