//! Run-time choice of an instruction set. A kernel is written once, as plain loops over arrays of
//! 16 lanes, and compiled for each set; the compiler does the vectorising.

use half::f16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m128, __m256, __m512, _MM_HINT_T0, _MM_HINT_T1, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32,
    _mm_loadu_si128, _mm_max_ps, _mm_max_ss, _mm_movehdup_ps, _mm_movehl_ps, _mm_prefetch,
    _mm256_add_ps, _mm256_and_si256, _mm256_broadcast_ss, _mm256_castpd_ps, _mm256_castps_pd,
    _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cvtph_ps,
    _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_ps,
    _mm256_permute2f128_ps, _mm256_set1_epi32, _mm256_slli_epi32, _mm256_storeu_ps,
    _mm256_unpackhi_pd, _mm256_unpackhi_ps, _mm256_unpacklo_pd, _mm256_unpacklo_ps, _mm512_add_ps,
    _mm512_and_si512, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps_si512,
    _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cvtph_ps, _mm512_extractf32x8_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_shuffle_f32x4,
    _mm512_slli_epi32, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
    _mm512_unpacklo_pd, _mm512_unpacklo_ps,
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
pub(in crate::ops) struct Line(pub(super) Lanes);

/// What an instruction set gives to a kernel.
pub(in crate::ops) trait Isa {
    /// Whether registers hold 24 sums of 16 lanes beside their operands.
    const WIDE: bool;

    /// Rows of a block of products, by four groups of 16 outputs where registers are wide and by one
    /// where they are not: its sums are in registers.
    const ROWS: usize;

    /// 16 lanes, in registers.
    type Vector: Copy;

    /// 16 numbers, anywhere; on the start of a line it costs least.
    ///
    /// # Safety
    /// They are there, and the machine has this set.
    unsafe fn load(from: *const f32) -> Self::Vector;

    /// # Safety
    /// As [`load`](Self::load).
    unsafe fn store(to: *mut f32, lanes: Self::Vector);

    /// The same number in all lanes.
    ///
    /// # Safety
    /// A number, and a machine that has this set.
    unsafe fn splat(from: *const f32) -> Self::Vector;

    /// `a * b + c`, as [`mul_add`](Self::mul_add) of each lane.
    ///
    /// # Safety
    /// A machine that has this set.
    unsafe fn fma(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;

    /// # Safety
    /// As [`fma`](Self::fma).
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// Asks for what is there, or is not, to come into the second-level cache.
    #[inline(always)]
    fn fetch<T>(at: *const T) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: does nothing else, wherever it points.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(at.cast());
        }
        let _ = at;
    }

    /// [`fetch`](Self::fetch) into the first-level cache.
    #[inline(always)]
    fn fetch_near<T>(at: *const T) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: does nothing else, wherever it points.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
        let _ = at;
    }

    /// Turns 16 rows of 16 into the columns.
    ///
    /// # Safety
    /// A machine that has this set.
    unsafe fn transpose(rows: [Self::Vector; LANES]) -> [Self::Vector; LANES];

    /// Of each lane the lower and the higher 16 bits, as the upper halves of lanes of their own: two
    /// numbers of `bf16` that lie side by side, widened.
    ///
    /// # Safety
    /// A machine that has this set.
    unsafe fn widen_pairs(pairs: Self::Vector) -> [Self::Vector; 2];

    /// `a * b + c`, rounded once where the machine has the instruction.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;

    /// [`sum`] of the lanes.
    #[inline(always)]
    fn sum(a: Lanes) -> f32 {
        sum(a)
    }

    /// [`max`] of the lanes.
    #[inline(always)]
    fn max(a: Lanes) -> f32 {
        max(a)
    }

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
    const ROWS: usize = 6;

    type Vector = __m512;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, lanes: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, lanes) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_set1_ps(*from) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn transpose(rows: [__m512; LANES]) -> [__m512; LANES] {
        // SAFETY: the caller's promise.
        unsafe {
            // Pairs of rows, then fours of them, within the quarters of a register; then quarters.
            let mut twos = rows;
            for i in (0..LANES).step_by(2) {
                let (a, b) = (rows[i], rows[i + 1]);
                twos[i] = _mm512_unpacklo_ps(a, b);
                twos[i + 1] = _mm512_unpackhi_ps(a, b);
            }
            let mut fours = rows;
            for i in (0..LANES).step_by(4) {
                for half in 0..2 {
                    let a = _mm512_castps_pd(twos[i + half]);
                    let b = _mm512_castps_pd(twos[i + 2 + half]);
                    fours[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    fours[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            let mut columns = rows;
            for c in 0..4 {
                let [first, second] = [[fours[c], fours[4 + c]], [fours[8 + c], fours[12 + c]]];
                let even = [
                    _mm512_shuffle_f32x4::<0x88>(first[0], first[1]),
                    _mm512_shuffle_f32x4::<0x88>(second[0], second[1]),
                ];
                let odd = [
                    _mm512_shuffle_f32x4::<0xdd>(first[0], first[1]),
                    _mm512_shuffle_f32x4::<0xdd>(second[0], second[1]),
                ];
                columns[c] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
                columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
                columns[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
                columns[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
            }
            columns
        }
    }

    #[inline(always)]
    unsafe fn widen_pairs(pairs: __m512) -> [__m512; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = _mm512_castps_si512(pairs);
            let mask = _mm512_set1_epi32(0xffff_0000u32 as i32);
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)),
                _mm512_castsi512_ps(_mm512_and_si512(pairs, mask)),
            ]
        }
    }

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    // The compiler would move lanes one by one.
    #[inline(always)]
    fn sum(a: Lanes) -> f32 {
        // SAFETY: a kernel has this type only inside of `avx512`, where the features are there.
        unsafe {
            let [low, high] = halves(_mm512_loadu_ps(a.as_ptr()));
            let [low, high] = quarters(_mm256_add_ps(low, high));
            let four = _mm_add_ps(low, high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn max(a: Lanes) -> f32 {
        // SAFETY: as above.
        unsafe {
            let [low, high] = halves(_mm512_loadu_ps(a.as_ptr()));
            let [low, high] = quarters(_mm256_max_ps(low, high));
            let four = _mm_max_ps(low, high);
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
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
    const ROWS: usize = 6;

    type Vector = [__m256; 2];

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, [low, high]: [__m256; 2]) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(to, low);
            _mm256_storeu_ps(to.add(8), high);
        }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_broadcast_ss(&*from); 2] }
    }

    #[inline(always)]
    unsafe fn fma(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn transpose(rows: [[__m256; 2]; LANES]) -> [[__m256; 2]; LANES] {
        let mut columns = rows;
        for (r, c) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut square = [rows[0][0]; 8];
            for i in 0..8 {
                square[i] = rows[r * 8 + i][c];
            }
            // SAFETY: the caller's promise.
            let turned = unsafe { transpose_eight(square) };
            for i in 0..8 {
                columns[c * 8 + i][r] = turned[i];
            }
        }
        columns
    }

    #[inline(always)]
    unsafe fn widen_pairs(pairs: [__m256; 2]) -> [[__m256; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = [_mm256_castps_si256(pairs[0]), _mm256_castps_si256(pairs[1])];
            let mask = _mm256_set1_epi32(0xffff_0000u32 as i32);
            [
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs[0])),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs[1])),
                ],
                [
                    _mm256_castsi256_ps(_mm256_and_si256(pairs[0], mask)),
                    _mm256_castsi256_ps(_mm256_and_si256(pairs[1], mask)),
                ],
            ]
        }
    }

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
    // NEON has 32 registers, but of four lanes; SSE has 16.
    const WIDE: bool = false;
    const ROWS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 2 };

    type Vector = Lanes;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Lanes {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<Lanes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, lanes: Lanes) {
        // SAFETY: as above.
        unsafe { to.cast::<Lanes>().write_unaligned(lanes) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Lanes {
        // SAFETY: the caller's promise.
        unsafe { [*from; LANES] }
    }

    #[inline(always)]
    unsafe fn fma(a: Lanes, b: Lanes, mut c: Lanes) -> Lanes {
        fma::<Self>(&mut c, &a, &b);
        c
    }

    #[inline(always)]
    unsafe fn add(mut a: Lanes, b: Lanes) -> Lanes {
        for l in 0..LANES {
            a[l] += b[l];
        }
        a
    }

    #[inline(always)]
    unsafe fn transpose(mut rows: [Lanes; LANES]) -> [Lanes; LANES] {
        transpose(&mut rows);
        rows
    }

    #[inline(always)]
    unsafe fn widen_pairs(pairs: Lanes) -> [Lanes; 2] {
        let bits = pairs.map(f32::to_bits);
        [
            bits.map(|bits| f32::from_bits(bits << 16)),
            bits.map(|bits| f32::from_bits(bits & 0xffff_0000)),
        ]
    }

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

/// The lower and the higher eight lanes.
///
/// # Safety
/// The machine has AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn halves(a: __m512) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    unsafe { [_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)] }
}

/// The lower and the higher four lanes.
///
/// # Safety
/// The machine has AVX.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn quarters(a: __m256) -> [__m128; 2] {
    // SAFETY: the caller's promise.
    unsafe { [_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a)] }
}

/// Turns eight rows of eight into the columns.
///
/// # Safety
/// The machine has AVX.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn transpose_eight(rows: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut twos = rows;
        for i in (0..8).step_by(2) {
            let (a, b) = (rows[i], rows[i + 1]);
            twos[i] = _mm256_unpacklo_ps(a, b);
            twos[i + 1] = _mm256_unpackhi_ps(a, b);
        }
        let mut fours = rows;
        for i in (0..8).step_by(4) {
            for half in 0..2 {
                let a = _mm256_castps_pd(twos[i + half]);
                let b = _mm256_castps_pd(twos[i + 2 + half]);
                fours[i + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                fours[i + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
            }
        }
        let mut columns = rows;
        for c in 0..4 {
            columns[c] = _mm256_permute2f128_ps::<0x20>(fours[c], fours[4 + c]);
            columns[4 + c] = _mm256_permute2f128_ps::<0x31>(fours[c], fours[4 + c]);
        }
        columns
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

/// The height of the highest of [`blocks`]; 1 where there are no rows.
#[inline(always)]
pub(super) fn height(count: usize, most: usize) -> usize {
    count.div_ceil(count.div_ceil(most).max(1)).max(1)
}

/// Splits rows into as few blocks as there can be, of about the same height: the first row and the
/// height of each.
#[inline(always)]
pub(super) fn blocks(count: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let blocks = count.div_ceil(most);
    let (low, higher) = (count / blocks.max(1), count % blocks.max(1));
    (0..blocks).map(move |block| {
        let height = low + usize::from(block < higher);
        (block * low + block.min(higher), height)
    })
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
