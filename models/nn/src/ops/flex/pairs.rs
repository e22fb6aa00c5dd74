//! `x * weight^T` with AVX-512's instruction for pairs of `bf16`, on weights as they lie in the file.
//!
//! Lane `l` of an output adds the products of elements `2l` and `2l + 1`, then of those 32 further
//! on, and so on along K; at the end the lanes are summed as a tree. How rows and outputs are
//! blocked and where K is cut change no bit of that.

use super::{
    gemm::Affine,
    memory::{Floats, Line, Raw, Room, lines},
    pool,
    simd::height,
};
use half::bf16;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm_add_ps, _mm_storeu_ps, _mm256_add_ps, _mm256_castps256_ps128,
    _mm256_extractf128_ps, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd,
    _mm512_castps512_ps256, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_extractf32x8_ps,
    _mm512_load_ps, _mm512_loadu_si512, _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps,
    _mm512_setzero_ps, _mm512_store_ps, _mm512_store_si512, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
    _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};
use std::ops::Range;

/// Elements of K of one instruction.
const GROUP: usize = 32;
/// Groups of K of one pass: a block of rows stays in the first-level cache.
const DEPTH: usize = 32;
/// Rows of a block, and outputs of one: 24 sums, in as many registers.
const ROWS: usize = 6;
const OUTPUTS: usize = 4;
/// Outputs whose weights stay in the second-level cache while all rows pass.
const PANEL: usize = 32;
/// Rows that pass before the next panel, where K takes several passes: their lanes are kept.
const KEPT: usize = 16 * ROWS;
/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL: usize = 1 << 17;

/// Whether the machine has the instruction, and with it all that is used here.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

/// Whether it is faster than the instructions for `f32`: Intel's processors, which have a matrix
/// unit beside it, start one every other cycle.
pub(super) fn fast() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    let bytes = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    bytes.as_flattened() != b"GenuineIntel"
}

/// The result, `[m, n]`, one task for each range of outputs.
///
/// # Panics
/// When the machine does not have the instruction, or the operands do not fit each other.
pub(super) fn linear(x: &[f32], op: Affine<'_, bf16>) -> Floats {
    assert!(available(), "a machine with AVX512-BF16");
    op.fits();
    assert_eq!(x.len() % op.k, 0, "whole rows");
    let m = x.len() / op.k;
    let mut result = Room::new(m * op.n);
    let out = result.start();
    let groups = op.k.div_ceil(GROUP);
    let mut rounded = lines(m * groups * 64);
    let to = Raw(rounded.as_mut_ptr());
    let serial = m * op.n * op.k < SERIAL;
    let round = |row: usize| {
        let from = &x[row * op.k..][..op.k];
        // SAFETY: the machine has the instructions; a row of the buffer for each row.
        unsafe { round(from, to.get().add(row * groups)) }
    };
    if serial || m < ROWS {
        (0..m).for_each(round);
    } else {
        pool::each(m.div_ceil(ROWS), |block| {
            (block * ROWS..m.min((block + 1) * ROWS)).for_each(round);
        });
    }
    let threads = if serial { 1 } else { pool::threads() };
    // A few tasks for each thread, so that one that is held up holds up little.
    let width = match threads {
        1 => op.n,
        _ => op.n.div_ceil(threads * 4).next_multiple_of(PANEL / 2),
    };
    let range = |task: usize| {
        let first = task * width;
        let task = Task {
            op,
            x: to.get(),
            groups,
            rows: m,
            out: out.get(),
        };
        // SAFETY: the machine has the instructions, and no other task has these outputs.
        unsafe { task.run(first..op.n.min(first + width)) }
    };
    pool::each(op.n.div_ceil(width), range);
    // SAFETY: the tasks wrote every output of every row.
    unsafe { result.written() }
}

/// Rounds a row to whole groups of `bf16`, filled with zeros.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round(x: &[f32], to: *mut Line) {
    for (g, x) in x.chunks(GROUP).enumerate() {
        let mask = u32::MAX >> (GROUP - x.len());
        let x = x.as_ptr();
        // SAFETY: masked to the elements of the chunk; the line is there.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask as u16, x);
            let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, x.wrapping_add(16));
            let pairs = _mm512_cvtne2ps_pbh(high, low);
            _mm512_store_si512(
                to.add(g).cast(),
                std::mem::transmute::<__m512bh, __m512i>(pairs),
            );
        }
    }
}

/// The rows, and where their result goes.
struct Task<'a> {
    op: Affine<'a, bf16>,
    /// `[rows, groups]`
    x: *const Line,
    groups: usize,
    rows: usize,
    out: *mut f32,
}

/// A pass over K.
#[derive(Clone, Copy)]
struct Pass {
    first: usize,
    /// One past its last group.
    end: usize,
    /// Where the lanes are kept between passes: a line for each output of a panel, row by row,
    /// starting with this row.
    lanes: *mut f32,
    first_row: usize,
}

impl Task<'_> {
    /// # Safety
    /// The machine has the instructions, and nothing else writes these outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn run(&self, outputs: Range<usize>) {
        let (kept, depth) = if self.groups > DEPTH {
            (KEPT, DEPTH)
        } else {
            (self.rows, self.groups)
        };
        let mut lanes = lines(if self.groups > DEPTH {
            kept * PANEL * 64
        } else {
            0
        });
        let lanes: *mut f32 = lanes.as_mut_ptr().cast();
        for first_row in (0..self.rows).step_by(kept) {
            let rows = first_row..self.rows.min(first_row + kept);
            for panel in outputs.clone().step_by(PANEL) {
                let panel = panel..outputs.end.min(panel + PANEL);
                for first in (0..self.groups).step_by(depth) {
                    let pass = Pass {
                        first,
                        end: self.groups.min(first + depth),
                        lanes,
                        first_row,
                    };
                    // SAFETY: the lanes have room for these rows and a panel.
                    unsafe { self.pass(rows.clone(), panel.clone(), pass) };
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pass(&self, rows: Range<usize>, panel: Range<usize>, pass: Pass) {
        let height = height(rows.len(), ROWS);
        for i in rows.clone().step_by(height) {
            let mut j = panel.start;
            while j < panel.end {
                let whole = j + OUTPUTS <= panel.end;
                // SAFETY: rows and outputs that are there.
                unsafe {
                    match (whole, height.min(rows.end - i)) {
                        (true, ROWS..) => self.block::<ROWS, OUTPUTS>(i, j, panel.start, pass),
                        (true, 5) => self.block::<5, OUTPUTS>(i, j, panel.start, pass),
                        (true, 4) => self.block::<4, OUTPUTS>(i, j, panel.start, pass),
                        (true, 3) => self.block::<3, OUTPUTS>(i, j, panel.start, pass),
                        (true, 2) => self.block::<2, OUTPUTS>(i, j, panel.start, pass),
                        (true, _) => self.block::<1, OUTPUTS>(i, j, panel.start, pass),
                        (false, high) => {
                            for i in i..i + high {
                                self.block::<1, 1>(i, j, panel.start, pass);
                            }
                        }
                    }
                }
                j += if whole { OUTPUTS } else { 1 };
            }
        }
    }

    /// Rows `i..i + M` by outputs `j..j + N`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn block<const M: usize, const N: usize>(
        &self,
        i: usize,
        j: usize,
        panel: usize,
        pass: Pass,
    ) {
        let k = self.op.k;
        let lanes = |r: usize, c: usize| {
            let line = (i + r - pass.first_row) * PANEL + j + c - panel;
            pass.lanes.wrapping_add(line * 16)
        };
        let mut acc = [[_mm512_setzero_ps(); N]; M];
        // SAFETY: the groups of a pass are there; the last of K may be cut, and is masked then.
        unsafe {
            if pass.first > 0 {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (c, acc) in acc.iter_mut().enumerate() {
                        *acc = _mm512_load_ps(lanes(r, c));
                    }
                }
            }
            let x: [*const Line; M] = std::array::from_fn(|r| self.x.add((i + r) * self.groups));
            let weight: [*const bf16; N] =
                std::array::from_fn(|c| self.op.weight.as_ptr().add((j + c) * k));
            let whole = pass.end.min(k / GROUP);
            for g in pass.first..whole {
                let w: [__m512bh; N] = std::array::from_fn(|c| pairs(weight[c].add(g * GROUP)));
                for r in 0..M {
                    let x = pairs(x[r].add(g).cast());
                    for c in 0..N {
                        acc[r][c] = _mm512_dpbf16_ps(acc[r][c], x, w[c]);
                    }
                }
            }
            if whole < pass.end {
                let mask = u32::MAX >> (GROUP - k % GROUP);
                for c in 0..N {
                    let w = _mm512_maskz_loadu_epi16(mask, weight[c].add(whole * GROUP).cast());
                    let w = std::mem::transmute::<__m512i, __m512bh>(w);
                    for r in 0..M {
                        let x = pairs(x[r].add(whole).cast());
                        acc[r][c] = _mm512_dpbf16_ps(acc[r][c], x, w);
                    }
                }
            }
            if pass.end < self.groups {
                for (r, acc) in acc.iter().enumerate() {
                    for (c, acc) in acc.iter().enumerate() {
                        _mm512_store_ps(lanes(r, c), *acc);
                    }
                }
                return;
            }
            for (r, acc) in acc.iter().enumerate() {
                let mut four = [_mm512_setzero_ps(); OUTPUTS];
                four[..N].copy_from_slice(acc);
                let mut sums = sum(four);
                for (c, sum) in sums[..N].iter_mut().enumerate() {
                    *sum += self.op.bias.map_or(0.0, |bias| bias[j + c]);
                }
                let out = self.out.add((i + r) * self.op.n + j);
                out.copy_from_nonoverlapping(sums.as_ptr(), N);
            }
        }
    }
}

/// 32 numbers.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pairs(from: *const bf16) -> __m512bh {
    // SAFETY: both types are 64 plain bytes; the rest is the caller's promise.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
}

/// The sum of each one's lanes, as a tree.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sum([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    let abcd = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
    );
    let half = _mm256_add_ps(
        _mm512_castps512_ps256(abcd),
        _mm512_extractf32x8_ps::<1>(abcd),
    );
    let quarter = _mm_add_ps(
        _mm256_castps256_ps128(half),
        _mm256_extractf128_ps::<1>(half),
    );
    let mut sums = [0.0; 4];
    // SAFETY: four numbers.
    unsafe { _mm_storeu_ps(sums.as_mut_ptr(), quarter) };
    sums
}
