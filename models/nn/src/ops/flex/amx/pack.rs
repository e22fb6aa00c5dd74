//! Activations as the matrix unit reads them, and tiles of sums as rows of a result.

use super::super::{
    activation::Apply,
    memory::{Line, Raw, lines},
    norm::Norm,
    pool, simd,
};
use crate::ops::Activation;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtne2ps_pbh,
    _mm512_load_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi32,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_store_ps, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

/// Rows of a tile, and its columns of four bytes.
pub(super) const SIDE: usize = 16;
/// Elements of K of one step: what a row of a tile holds.
pub(super) const STEP: usize = 32;

/// Rows of activations rounded to `bf16`, in groups of up to 16: of each group step by step of K,
/// of each step the pairs of K one after the other, of each pair the rows side by side.
pub(in super::super) struct Columns {
    /// Not empty only in capacity.
    bytes: Vec<Line>,
    /// Rows in all.
    pub(in super::super) rows: usize,
    /// Elements of a row.
    pub(in super::super) k: usize,
    /// Rows of each group; the last is filled with zeros.
    pub(super) width: usize,
    pub(super) groups: usize,
    /// Steps of K; the last is filled with zeros.
    pub(super) steps: usize,
}

impl Columns {
    /// Packs `x`: `[rows, k]`, neither of them 0; normalised first if so wished.
    ///
    /// # Panics
    /// When the rows are not whole.
    pub(in super::super) fn new(x: &[f32], k: usize, norm: Option<Norm<'_>>) -> Self {
        assert_eq!(x.len() % k, 0, "whole rows");
        let rows = x.len() / k;
        let groups = rows.div_ceil(SIDE);
        let width = rows.div_ceil(groups);
        let steps = k.div_ceil(STEP);
        let mut columns = Self {
            bytes: lines(groups * steps * STEP * width * 2),
            rows,
            k,
            width,
            groups,
            steps,
        };
        let size = columns.group_bytes();
        let start = Raw(columns.bytes.as_mut_ptr().cast::<u8>());
        let group = |g: usize| {
            let x = &x[g * width * k..rows.min((g + 1) * width) * k];
            let normed = norm.map(|norm| {
                let mut x = x.to_vec();
                norm.apply(&mut x);
                x
            });
            // SAFETY: kernels of this module run where `available` said yes; the group's bytes
            // lie within the capacity and no other group's do.
            unsafe {
                let to = start.get().add(g * size);
                pack_group(normed.as_deref().unwrap_or(x), k, width, to);
            }
        };
        if groups < 4 {
            (0..groups).for_each(group);
        } else {
            pool::each(groups, group);
        }
        columns
    }

    /// Bytes of one step of a group.
    pub(super) fn step_bytes(&self) -> usize {
        STEP * self.width * 2
    }

    /// Bytes of a group.
    pub(super) fn group_bytes(&self) -> usize {
        self.steps * self.step_bytes()
    }

    /// Where a step of a group lies.
    pub(super) fn at(&self, group: usize, step: usize) -> *const u8 {
        let bytes = self.bytes.as_ptr().cast::<u8>();
        bytes.wrapping_add(group * self.group_bytes() + step * self.step_bytes())
    }
}

/// Packs up to 16 rows.
///
/// # Safety
/// `to` has room for the steps of `width` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_group(x: &[f32], k: usize, width: usize, to: *mut u8) {
    let columns = (1u32 << width) - 1;
    for s in 0..k.div_ceil(STEP) {
        let mut rows = [_mm512_setzero_si512(); SIDE];
        for (row, x) in rows.iter_mut().zip(x.chunks_exact(k)) {
            let x = &x[s * STEP..k.min((s + 1) * STEP)];
            // SAFETY: masked to the elements of the slice; both types are 64 plain bytes.
            *row = unsafe {
                let (low, high) = if x.len() == STEP {
                    let x = x.as_ptr();
                    (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(SIDE)))
                } else {
                    let mask = (1u32 << x.len()) - 1;
                    let x = x.as_ptr();
                    (
                        _mm512_maskz_loadu_ps(mask as u16, x),
                        _mm512_maskz_loadu_ps((mask >> SIDE) as u16, x.wrapping_add(SIDE)),
                    )
                };
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
            };
        }
        // SAFETY: the step has 16 pairs of `width` rows.
        unsafe {
            let to = to.add(s * STEP * width * 2);
            if width == 1 {
                // One row's pairs are in order as they are.
                _mm512_mask_storeu_epi32(to.cast(), u16::MAX, rows[0]);
                continue;
            }
            transpose(&mut rows);
            for (pair, row) in rows.iter().enumerate() {
                let to = to.add(pair * width * 4);
                _mm512_mask_storeu_epi32(to.cast(), columns as u16, *row);
            }
        }
    }
}

/// Turns 16 rows of 16 numbers of four bytes into the columns.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(rows: &mut [__m512i; SIDE]) {
    let mut t = [_mm512_setzero_si512(); SIDE];
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for i in (0..16).step_by(4) {
        rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for i in [0, 1, 2, 3, 8, 9, 10, 11] {
        t[i] = _mm512_shuffle_i32x4::<0x88>(rows[i], rows[i + 4]);
        t[i + 4] = _mm512_shuffle_i32x4::<0xdd>(rows[i], rows[i + 4]);
    }
    for i in 0..4 {
        rows[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 8]);
        rows[i + 8] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[i + 8]);
        rows[i + 4] = _mm512_shuffle_i32x4::<0x88>(t[i + 4], t[i + 12]);
        rows[i + 12] = _mm512_shuffle_i32x4::<0xdd>(t[i + 4], t[i + 12]);
    }
}

/// What is done to the sums of a layer before they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Then {
    /// Nothing.
    Write,
    /// They go through it; of a gate, its part alone.
    Activate(Activation),
    /// They are added to what is there.
    Add,
}

/// A tile turned into rows, which are side by side.
#[repr(C, align(64))]
struct Square([f32; SIDE * SIDE]);

/// Turns a tile of sums (16 outputs by 16 rows) into rows, and adds the biases.
///
/// # Safety
/// `tile` is 16 lines, `bias` has `outputs` elements if it is not null.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn rows_of(tile: *const f32, bias: *const f32, outputs: usize) -> [__m512; SIDE] {
    let mask = ((1u32 << outputs) - 1) as u16;
    let mut lines = [_mm512_setzero_si512(); SIDE];
    // SAFETY: what the caller promised.
    let bias = unsafe {
        for (i, line) in lines.iter_mut().enumerate() {
            *line = _mm512_loadu_si512(tile.add(i * SIDE).cast());
        }
        if bias.is_null() {
            _mm512_setzero_ps()
        } else {
            _mm512_maskz_loadu_ps(mask, bias)
        }
    };
    transpose(&mut lines);
    // Loops, not closures: a closure is compiled for the baseline.
    let mut rows = [_mm512_setzero_ps(); SIDE];
    for (row, line) in rows.iter_mut().zip(lines) {
        *row = _mm512_add_ps(_mm512_castsi512_ps(line), bias);
    }
    rows
}

/// Writes a tile of sums (16 outputs by `rows` rows) as rows: `outputs` elements each, `stride`
/// apart, after adding the biases and what is to be done then. `bounds`: rows, outputs, stride.
///
/// # Safety
/// As of [`rows_of`], and `out` may be written; with [`Then::Add`], read.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn write_rows(
    tile: *const f32,
    bias: *const f32,
    bounds: (usize, usize, usize),
    out: *mut f32,
    then: Then,
) {
    let (rows, outputs, stride) = bounds;
    let mask = ((1u32 << outputs) - 1) as u16;
    // SAFETY: what the caller promised.
    unsafe {
        let mut lines = rows_of(tile, bias, outputs);
        match then {
            Then::Write => {}
            Then::Activate(kind) => activate(&mut lines, rows, kind),
            Then::Add => {
                for (i, line) in lines.iter_mut().enumerate().take(rows) {
                    let before = _mm512_maskz_loadu_ps(mask, out.add(i * stride));
                    *line = _mm512_add_ps(before, *line);
                }
            }
        }
        for (i, line) in lines.iter().enumerate().take(rows) {
            _mm512_mask_storeu_ps(out.add(i * stride), mask, *line);
        }
    }
}

/// [`write_rows`] of a gate (a tile and its biases) by what it gates.
///
/// # Safety
/// As of [`write_rows`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn write_gated(
    gate: (*const f32, *const f32),
    gated: (*const f32, *const f32),
    bounds: (usize, usize, usize),
    out: *mut f32,
    then: Then,
) {
    let (rows, outputs, stride) = bounds;
    let mask = ((1u32 << outputs) - 1) as u16;
    // SAFETY: what the caller promised.
    unsafe {
        let mut lines = rows_of(gate.0, gate.1, outputs);
        let gated = rows_of(gated.0, gated.1, outputs);
        if let Then::Activate(kind) = then {
            activate(&mut lines, rows, kind);
        }
        for (i, (line, gated)) in lines.iter().zip(&gated).enumerate().take(rows) {
            let line = _mm512_mul_ps(*line, *gated);
            _mm512_mask_storeu_ps(out.add(i * stride), mask, line);
        }
    }
}

/// `rows` of the lines through an activation.
#[inline]
#[target_feature(enable = "avx512f")]
fn activate(lines: &mut [__m512; SIDE], rows: usize, kind: Activation) {
    let mut square = Square([0.0; SIDE * SIDE]);
    // SAFETY: 16 lines of 16 numbers.
    unsafe {
        for (i, line) in lines.iter().enumerate() {
            _mm512_store_ps(square.0.as_mut_ptr().add(i * SIDE), *line);
        }
        let values = &mut square.0[..rows * SIDE];
        simd::run(Apply { kind, values });
        for (i, line) in lines.iter_mut().enumerate() {
            *line = _mm512_load_ps(square.0.as_ptr().add(i * SIDE));
        }
    }
}
