//! The machine's limits as this process finds them: operations a second by type of operand, and
//! bytes read a second, on all threads of the pool. A benchmark measures them in the same run as
//! what it compares with them.

use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Operations (a multiplication with an addition is two) and bytes a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// f32, fused multiply-add.
    pub f32_ops: f64,
    /// bf16 operands summed in f32.
    pub bf16_ops: f64,
    /// The instructions that did it.
    pub bf16_by: &'static str,
    /// int8 operands summed in int32.
    pub int8_ops: f64,
    /// The instructions that did it.
    pub int8_by: &'static str,
    /// Memory, read in a row.
    pub read_bytes: f64,
}

impl Limits {
    /// The higher of each: two moments of one machine.
    #[must_use]
    pub fn best_of(&self, other: &Self) -> Self {
        Self {
            f32_ops: self.f32_ops.max(other.f32_ops),
            bf16_ops: self.bf16_ops.max(other.bf16_ops),
            int8_ops: self.int8_ops.max(other.int8_ops),
            read_bytes: self.read_bytes.max(other.read_bytes),
            ..*self
        }
    }
}

/// More than any cache, and no more than a small machine has.
const READ: usize = 512 << 20;
/// A burst: some milliseconds.
const BURST: usize = 200_000;
const TRIES: usize = 12;

/// Measures each: the best of several bursts. Takes about two seconds.
pub fn measure() -> Limits {
    let (bf16, bf16_by) = kernels::bf16();
    let (int8, int8_by) = kernels::int8();
    let f32_ops = rate(kernels::f32());
    Limits {
        f32_ops,
        // Without instructions of their own, types are widened.
        bf16_ops: bf16.map_or(f32_ops, rate),
        bf16_by,
        int8_ops: int8.map_or(f32_ops, rate),
        int8_by,
        read_bytes: read(),
    }
}

/// A loop of so many turns, and the operations of a turn.
pub(super) type Burst = (fn(usize), f64);

pub(super) fn rate((burst, ops): Burst) -> f64 {
    let threads = rayon::current_num_threads();
    let best = best(|| {
        (0..threads)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|_| burst(BURST))
    });
    ops * (BURST * threads) as f64 / best
}

fn read() -> f64 {
    let buffer = vec![1u64; READ / 8];
    let part = buffer.len().div_ceil(8 * rayon::current_num_threads());
    let best = best(|| {
        let sum: u64 = buffer.par_chunks(part).map(kernels::read).sum();
        black_box(sum);
    });
    READ as f64 / best
}

/// The shortest of several runs, in seconds.
fn best(run: impl Fn()) -> f64 {
    let times = (0..TRIES).map(|_| {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

#[cfg(target_arch = "x86_64")]
pub(super) mod kernels {
    use super::Burst;
    use crate::ops::flex::amx;
    use std::arch::asm;
    use std::arch::x86_64::{__m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi64};
    use std::arch::x86_64::{
        _mm512_loadu_si512, _mm512_reduce_add_epi64, _mm512_set1_ps, _mm512_setzero_si512,
    };

    const LANES: f64 = 16.0;
    const IN_A_TURN: f64 = 16.0;
    /// Four tiles of 16 x 16, each over 64 bytes of operands.
    const TILES: f64 = 4.0 * 16.0 * 16.0;

    pub(in crate::ops::flex) fn f32() -> Burst {
        if is_x86_feature_detected!("avx512f") {
            (vector_f32, IN_A_TURN * LANES * 2.0)
        } else {
            super::plain::F32
        }
    }

    pub(in crate::ops::flex) fn pairs() -> Option<Burst> {
        is_x86_feature_detected!("avx512bf16").then_some((vector_bf16, IN_A_TURN * LANES * 4.0))
    }

    pub(in crate::ops::flex) fn fours() -> Option<Burst> {
        is_x86_feature_detected!("avx512vnni").then_some((vector_int8, IN_A_TURN * LANES * 8.0))
    }

    pub(in crate::ops::flex) fn tiles() -> Option<Burst> {
        amx::available().then_some((tile_bf16, TILES * 32.0 * 2.0))
    }

    pub(in crate::ops::flex) fn tiles_of_bytes() -> Option<Burst> {
        amx::available().then_some((tile_int8, TILES * 64.0 * 2.0))
    }

    pub(super) fn bf16() -> (Option<Burst>, &'static str) {
        match (tiles(), pairs()) {
            (Some(tiles), _) => (Some(tiles), "AMX"),
            (None, Some(pairs)) => (Some(pairs), "AVX-512 BF16"),
            _ => (None, "widened to f32"),
        }
    }

    pub(super) fn int8() -> (Option<Burst>, &'static str) {
        match (tiles_of_bytes(), fours()) {
            (Some(tiles), _) => (Some(tiles), "AMX"),
            (None, Some(fours)) => (Some(fours), "AVX-512 VNNI"),
            _ => (None, "widened to f32"),
        }
    }

    macro_rules! vector {
        ($name:ident, $of:ident, $instruction:literal) => {
            fn $name(turns: usize) {
                #[target_feature(enable = "avx512f")]
                fn turn(turns: usize) {
                    // SAFETY: handed out above only where the CPU has the instruction, and with it
                    // AVX-512, whose registers are all that it writes; each is declared.
                    unsafe {
                    asm!(
                        "2:",
                        concat!($instruction, " zmm0, zmm30, zmm31"),
                        concat!($instruction, " zmm1, zmm30, zmm31"),
                        concat!($instruction, " zmm2, zmm30, zmm31"),
                        concat!($instruction, " zmm3, zmm30, zmm31"),
                        concat!($instruction, " zmm4, zmm30, zmm31"),
                        concat!($instruction, " zmm5, zmm30, zmm31"),
                        concat!($instruction, " zmm6, zmm30, zmm31"),
                        concat!($instruction, " zmm7, zmm30, zmm31"),
                        concat!($instruction, " zmm8, zmm30, zmm31"),
                        concat!($instruction, " zmm9, zmm30, zmm31"),
                        concat!($instruction, " zmm10, zmm30, zmm31"),
                        concat!($instruction, " zmm11, zmm30, zmm31"),
                        concat!($instruction, " zmm12, zmm30, zmm31"),
                        concat!($instruction, " zmm13, zmm30, zmm31"),
                        concat!($instruction, " zmm14, zmm30, zmm31"),
                        concat!($instruction, " zmm15, zmm30, zmm31"),
                        "dec {turns}",
                        "jnz 2b",
                        turns = inout(reg) turns => _,
                        out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                        out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                        out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                        out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                        in("zmm30") _mm512_set1_ps(1.1), in("zmm31") _mm512_set1_ps(0.3),
                        options(nomem, nostack),
                    );
                    }
                }
                // SAFETY: as above.
                unsafe { turn(turns) }
            }
        };
    }
    vector!(vector_f32, avx512f, "vfmadd231ps");
    vector!(vector_bf16, avx512bf16, "vdpbf16ps");
    vector!(vector_int8, avx512vnni, "vpdpbusd");

    /// Steps of a round: their operands stay in the first-level cache.
    const STEPS: usize = 8;

    macro_rules! tile {
        ($name:ident, $instruction:literal) => {
            /// On random numbers that come from the cache: the clock is higher for zeros, and for
            /// tiles that never change.
            fn $name(turns: usize) {
                let operands = operands();
                // SAFETY: handed out above only where the matrix unit is, and nothing that this thread
                // runs meanwhile configures tiles.
                let tiles = unsafe { amx::Tiles::of([64; 8]) };
                for _ in 0..turns / STEPS {
                    // SAFETY: as above; each step reads its four tiles of 1024 bytes.
                    unsafe {
                        asm!(
                            "2:",
                            "tileloadd tmm4, [{from} + {line}]",
                            "tileloadd tmm6, [{from} + {line} + 1024]",
                            concat!($instruction, " tmm0, tmm4, tmm6"),
                            "tileloadd tmm7, [{from} + {line} + 2048]",
                            concat!($instruction, " tmm1, tmm4, tmm7"),
                            "tileloadd tmm5, [{from} + {line} + 3072]",
                            concat!($instruction, " tmm2, tmm5, tmm6"),
                            concat!($instruction, " tmm3, tmm5, tmm7"),
                            "add {from}, 4096",
                            "dec {steps}",
                            "jnz 2b",
                            from = inout(reg) operands.as_ptr() => _,
                            line = in(reg) 64usize,
                            steps = inout(reg) STEPS => _,
                            options(nostack, readonly),
                        );
                    }
                }
                drop(tiles);
            }
        };
    }
    tile!(tile_bf16, "tdpbf16ps");
    tile!(tile_int8, "tdpbssd");

    /// Numbers of all sizes whether they are read as bf16 or as bytes; 16 in a line of the cache.
    fn operands() -> Vec<[u32; 16]> {
        let pairs = |i: usize| 0x3f80_3f80 ^ ((i as u32).wrapping_mul(0x9e37_79b9) & 0x807f_807f);
        let lines = 0..STEPS * 64;
        lines
            .map(|line| std::array::from_fn(|at| pairs(line * 16 + at)))
            .collect()
    }

    pub(in crate::ops::flex) fn read(part: &[u64]) -> u64 {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has it.
            unsafe { wide_read(part) }
        } else {
            super::plain::read(part)
        }
    }

    /// In four places at once: one after the other does not keep memory as busy.
    #[target_feature(enable = "avx512f")]
    fn wide_read(part: &[u64]) -> u64 {
        const STREAMS: usize = 4;
        let mut sums: [[__m512i; STREAMS]; 2] = [[_mm512_setzero_si512(); STREAMS]; 2];
        let length = part.len() / STREAMS / 16 * 16;
        for at in (0..length).step_by(16) {
            for (l, sums) in sums.iter_mut().enumerate() {
                for (s, sum) in sums.iter_mut().enumerate() {
                    let at = part.as_ptr().wrapping_add(s * length + at + l * 8);
                    // SAFETY: eight words of this stream are one vector; what lies ahead is only asked
                    // for.
                    unsafe {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(512).cast());
                        *sum = _mm512_add_epi64(*sum, _mm512_loadu_si512(at.cast()));
                    }
                }
            }
        }
        let rest = &part[STREAMS * length..];
        let rest = rest.iter().fold(0, |a: u64, b| a.wrapping_add(*b));
        sums.into_iter().flatten().fold(rest, |total, sum| {
            total.wrapping_add(_mm512_reduce_add_epi64(sum) as u64)
        })
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod kernels {
    use super::Burst;

    pub(super) use super::plain::read;

    pub(super) fn f32() -> Burst {
        super::plain::F32
    }

    pub(super) fn bf16() -> (Option<Burst>, &'static str) {
        (None, "widened to f32")
    }

    pub(super) fn int8() -> (Option<Burst>, &'static str) {
        (None, "widened to f32")
    }
}

/// What the compiler makes of plain loops.
mod plain {
    use super::Burst;
    use std::hint::black_box;

    const LANES: usize = 64;
    pub(super) const F32: Burst = (multiply_add, 2.0 * LANES as f64);

    fn multiply_add(turns: usize) {
        let mut sums = [0.5f32; LANES];
        let factor = black_box(0.999f32);
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = *sum * factor + factor;
            }
        }
        black_box(sums);
    }

    pub(super) fn read(part: &[u64]) -> u64 {
        part.iter().fold(0, |sum, word| sum.wrapping_add(*word))
    }
}
