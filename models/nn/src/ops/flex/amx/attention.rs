//! Attention over keys and values of `bf16` on tiles.
//!
//! As in the plain kernel, keys come in tiles of 64 that start at multiples of 64 in the sequence,
//! with a running maximum and sum for each row. Queries and the weights of a tile are rounded to
//! `bf16` for the matrix unit; scores, maxima, sums and results are `f32`. Scores are computed with
//! the keys down and 16 rows across: a row is a lane, which adds up over keys in the order of the
//! keys, and no row's bits depend on the others.

use super::{
    super::{
        attention::{TILE, Task},
        memory::{Line, lines},
    },
    Tiles,
    pack::{SIDE, STEP, pack_group, transpose},
};
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, __mmask16, _mm256_maskz_loadu_epi16, _mm512_add_ps,
    _mm512_cmpgt_epi32_mask, _mm512_cmple_epi32_mask, _mm512_cmplt_epi32_mask,
    _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_div_ps, _mm512_fmadd_ps, _mm512_fmsub_ps,
    _mm512_load_ps, _mm512_loadu_si512, _mm512_mask_mov_ps, _mm512_max_epi32, _mm512_max_ps,
    _mm512_min_epi32, _mm512_mul_ps, _mm512_or_si512, _mm512_permutexvar_epi16,
    _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_slli_epi32, _mm512_store_ps, _mm512_store_si512, _mm512_sub_epi32,
    _mm512_sub_ps, _mm512_test_epi32_mask,
};
use std::ops::Range;

/// Groups of 16 elements of a value that are multiplied together.
const GROUPS: usize = 4;

/// Attends for all rows of a task.
///
/// # Panics
/// When the machine has no tiles.
pub(in super::super) fn attend(mut task: Task<'_, bf16>) {
    assert!(super::available(), "a machine with a matrix unit");
    let group = task.group();
    let rows = task.out.len() * group;
    let mut work = Work::new(rows, task.op.head_dim);
    // SAFETY: the machine has tiles, and tasks do not nest.
    let _tiles = unsafe { Tiles::of([64; 8]) };
    work.look(&task);
    for (index, head) in task.kv_heads.clone().enumerate() {
        // SAFETY: the machine has the instructions.
        unsafe { work.head(&task, head) };
        for row in 0..rows {
            let dim = task.op.head_dim;
            let at = (index * group + row % group) * dim;
            let out = &mut task.out[row / group][at..at + dim];
            out.copy_from_slice(&work.result(row)[..dim]);
        }
    }
}

/// The buffers of one head.
struct Work {
    rows: usize,
    dim: usize,
    /// Steps of 32 elements of a query, and groups of 16 of a value.
    steps: usize,
    groups: usize,
    /// 16 rows at a time, as [`pack_group`] has them.
    queries: Vec<Line>,
    /// Key by key, whole steps.
    keys: Vec<Line>,
    /// Group by group, pairs of keys: 16 elements of one beside those of the next.
    values: Vec<Line>,
    /// Of two groups of 16 rows in turn: key by key, the scores of the rows.
    scores: Vec<Line>,
    /// Row by row, the weights of the keys.
    weights: Vec<Line>,
    /// Group by group and row by row, the weighted values of a tile.
    products: Vec<Line>,
    /// The first position that a row sees, and the one behind the last.
    begins: Vec<i32>,
    ends: Vec<i32>,
    /// Lane by lane, for each 16 rows. Maxima are of the products, before they are scaled.
    maxima: Vec<Line>,
    sums: Vec<Line>,
    /// Row by row, whole groups.
    results: Vec<Line>,
}

/// Whole lines of zeros.
fn zeros(bytes: usize) -> Vec<Line> {
    vec![Line::ZERO; bytes / 64]
}

impl Work {
    fn new(rows: usize, dim: usize) -> Self {
        let (steps, groups) = (dim.div_ceil(STEP), dim.div_ceil(SIDE));
        let tiles = rows.div_ceil(SIDE);
        Self {
            rows,
            dim,
            steps,
            groups,
            queries: lines(tiles * steps * 1024),
            keys: zeros(TILE * steps * 64),
            values: zeros(groups * TILE * 32),
            scores: lines(2 * TILE * 64),
            weights: lines(SIDE * TILE * 2),
            products: lines(GROUPS * 1024),
            // Rows beyond the last one see all, so that they are in nobody's way.
            begins: vec![0; tiles * SIDE],
            ends: vec![i32::MAX; tiles * SIDE],
            maxima: zeros(tiles * 64),
            sums: zeros(tiles * 64),
            results: zeros(tiles * SIDE * groups * 64),
        }
    }

    /// Notes what the rows see.
    fn look(&mut self, task: &Task<'_, bf16>) {
        let group = task.group();
        let bound = |position: usize| i32::try_from(position).unwrap_or(i32::MAX);
        for token in 0..task.out.len() {
            let (begin, end) = task.seen(token);
            self.begins[token * group..(token + 1) * group].fill(bound(begin));
            self.ends[token * group..(token + 1) * group].fill(bound(end));
        }
    }

    /// A row's result.
    fn result(&self, row: usize) -> &[f32] {
        let lines = &self.results[row * self.groups..][..self.groups];
        // SAFETY: whole lines of plain numbers.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), self.groups * SIDE) }
    }

    /// Computes the results of a head.
    ///
    /// # Safety
    /// The machine has the instructions, and all tiles are whole.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn head(&mut self, task: &Task<'_, bf16>, head: usize) {
        let tiles = self.rows.div_ceil(SIDE);
        self.results.fill(Line::ZERO);
        // SAFETY: the buffers have a place for every tile of rows.
        unsafe {
            for t in 0..tiles {
                self.pack_queries(task, head, t);
                _mm512_store_ps(self.maxima(t), _mm512_set1_ps(f32::NEG_INFINITY));
                _mm512_store_ps(self.sums(t), _mm512_setzero_ps());
            }
        }
        // Positions only grow with the row, and so do both ends of what a row sees.
        let begin = task.seen(0).0;
        let end = task.seen(task.out.len() - 1).1;
        for base in (begin / TILE * TILE..end).step_by(TILE) {
            let seen = begin.max(base)..end.min(base + TILE);
            // The rows that see any of it are side by side.
            let sees = |t: usize| {
                let last = self.rows.min((t + 1) * SIDE) - 1;
                let (begin, end) = (self.begins[t * SIDE], self.ends[last]);
                (begin as usize) < base + TILE && end as usize > base
            };
            let first = (0..tiles).find(|t| sees(*t)).unwrap_or(tiles);
            let last = (first..tiles).take_while(|t| sees(*t)).count() + first;
            // SAFETY: as above; a tile's scores are there before it is weighted.
            unsafe {
                self.load(task, head, seen, base);
                if first < last {
                    self.score(first);
                }
                for t in first..last {
                    // The matrix unit has the next rows while these are weighted.
                    if t + 1 < last {
                        self.score(t + 1);
                    }
                    self.add(task, t, base);
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.divide() };
    }

    fn maxima(&mut self, t: usize) -> *mut f32 {
        (&raw mut self.maxima[t]).cast()
    }

    fn sums(&mut self, t: usize) -> *mut f32 {
        (&raw mut self.sums[t]).cast()
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack_queries(&mut self, task: &Task<'_, bf16>, head: usize, t: usize) {
        let count = SIDE.min(self.rows - t * SIDE);
        let mut rows = Vec::with_capacity(count * self.dim);
        for row in t * SIDE..t * SIDE + count {
            rows.extend_from_slice(task.query(head, row));
        }
        // SAFETY: a place for 16 rows.
        unsafe {
            let to = self.queries.as_mut_ptr().add(t * self.steps * SIDE);
            pack_group(&rows, self.dim, SIDE, to.cast());
        }
    }

    /// Loads the positions of a tile that any row sees; the others become zeros.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(&mut self, task: &Task<'_, bf16>, head: usize, seen: Range<usize>, base: usize) {
        let dim = self.dim;
        let mut at = [None; TILE];
        for position in seen {
            at[position - base] = Some(task.place(position, head));
        }
        let width = self.steps * STEP;
        let keys: *mut bf16 = self.keys.as_mut_ptr().cast();
        for (j, at) in at.iter().enumerate() {
            // SAFETY: a row for each key; what is behind the head's elements stays zero.
            let to = unsafe { std::slice::from_raw_parts_mut(keys.add(j * width), dim) };
            match at {
                Some(at) => to.copy_from_slice(&task.op.keys[*at..][..dim]),
                None => to.fill(bf16::ZERO),
            }
        }
        for g in 0..self.groups {
            let mask = u16::MAX >> (SIDE - SIDE.min(dim - g * SIDE));
            let value = |at: Option<usize>| -> __m512i {
                let Some(at) = at else {
                    return _mm512_setzero_si512();
                };
                let value = &task.op.values[at..][..dim][g * SIDE..];
                // SAFETY: masked to the elements of the head.
                let value = unsafe { _mm256_maskz_loadu_epi16(mask, value.as_ptr().cast()) };
                _mm512_cvtepu16_epi32(value)
            };
            for pair in 0..TILE / 2 {
                let (low, high) = (value(at[2 * pair]), value(at[2 * pair + 1]));
                let both = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                // SAFETY: a line for each pair of a group.
                unsafe {
                    let to = self.values.as_mut_ptr().add(g * TILE / 2 + pair);
                    _mm512_store_si512(to.cast(), both);
                }
            }
        }
    }

    /// The products of all keys of a tile with the queries of 16 rows.
    ///
    /// # Safety
    /// The tiles are whole, the keys are loaded and the queries packed.
    #[inline]
    unsafe fn score(&mut self, t: usize) {
        let stride = self.steps * 64;
        let keys = self.keys.as_ptr().cast::<u8>();
        // SAFETY: what the caller promised.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{queries} + {line}]",
                "tileloadd tmm5, [{k0} + {stride}]",
                "tdpbf16ps tmm0, tmm5, tmm4",
                "tileloadd tmm6, [{k1} + {stride}]",
                "tdpbf16ps tmm1, tmm6, tmm4",
                "tileloadd tmm5, [{k2} + {stride}]",
                "tdpbf16ps tmm2, tmm5, tmm4",
                "tileloadd tmm6, [{k3} + {stride}]",
                "tdpbf16ps tmm3, tmm6, tmm4",
                "add {queries}, 1024",
                "add {k0}, 64",
                "add {k1}, 64",
                "add {k2}, 64",
                "add {k3}, 64",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{scores} + {line}], tmm0",
                "tilestored [{scores} + {line} + 1024], tmm1",
                "tilestored [{scores} + {line} + 2048], tmm2",
                "tilestored [{scores} + {line} + 3072], tmm3",
                queries = inout(reg) self.queries.as_ptr().add(t * self.steps * SIDE) => _,
                k0 = inout(reg) keys => _,
                k1 = inout(reg) keys.add(SIDE * stride) => _,
                k2 = inout(reg) keys.add(2 * SIDE * stride) => _,
                k3 = inout(reg) keys.add(3 * SIDE * stride) => _,
                stride = in(reg) stride,
                line = in(reg) 64usize,
                steps = inout(reg) self.steps => _,
                scores = in(reg) self.scores.as_mut_ptr().add(t % 2 * TILE),
                options(nostack),
            );
        }
    }

    /// Turns the scores of 16 rows into weights, and adds the values by them.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn add(&mut self, task: &Task<'_, bf16>, t: usize, base: usize) {
        let scale = task.op.scale;
        // SAFETY: the scores of these rows are there, and a bound for each of them.
        unsafe {
            let part = |bounds: &[i32]| {
                let bound = _mm512_loadu_si512(bounds.as_ptr().add(t * SIDE).cast());
                let from = _mm512_sub_epi32(bound, _mm512_set1_epi32(base as i32));
                let most = _mm512_set1_epi32(TILE as i32);
                _mm512_min_epi32(_mm512_max_epi32(from, _mm512_setzero_si512()), most)
            };
            let (low, high) = (part(&self.begins), part(&self.ends));
            let some = _mm512_cmplt_epi32_mask(low, high);
            let less = _mm512_test_epi32_mask(low, low)
                | _mm512_cmplt_epi32_mask(high, _mm512_set1_epi32(TILE as i32));
            let rescale = match less {
                0 => self.weigh::<true>(t, (low, high), some, scale),
                _ => self.weigh::<false>(t, (low, high), some, scale),
            };
            for first in (0..self.groups).step_by(GROUPS) {
                let count = GROUPS.min(self.groups - first);
                for g in 0..count {
                    self.multiply(first + g, g);
                }
                for r in 0..SIDE {
                    // What sees nothing of this tile stays as it is.
                    if some >> r & 1 == 0 {
                        continue;
                    }
                    let factor = _mm512_set1_ps(rescale.0[r]);
                    for g in 0..count {
                        let products = self.products.as_ptr().add(g * SIDE + r).cast();
                        let row = (t * SIDE + r) * self.groups + first + g;
                        let result: *mut f32 = self.results.as_mut_ptr().add(row).cast();
                        let before = _mm512_load_ps(result);
                        let sum = _mm512_fmadd_ps(before, factor, _mm512_load_ps(products));
                        _mm512_store_ps(result, sum);
                    }
                }
            }
        }
    }

    /// Turns the scores of 16 rows into weights against their new maxima; by what each row has so
    /// far is to be multiplied. `ALL`: every row sees the whole tile. Otherwise it sees a part, and
    /// `some` do see any of it.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn weigh<const ALL: bool>(
        &mut self,
        t: usize,
        (low, high): (__m512i, __m512i),
        some: __mmask16,
        scale: f32,
    ) -> Lanes {
        // Of a power of two.
        let scale = _mm512_set1_ps(scale * std::f32::consts::LOG2_E);
        let nothing = _mm512_set1_ps(f32::NEG_INFINITY);
        // SAFETY: lines of 16 lanes: the scores of 64 keys, and a state of each row.
        unsafe {
            let scores: *mut f32 = self.scores.as_mut_ptr().add(t % 2 * TILE).cast();
            let before = _mm512_load_ps(self.maxima(t));
            // Four at a time, so that one does not wait for the other; which is greatest does
            // not depend on the order.
            let mut most = [before; 4];
            for j in 0..TILE {
                let mut score = _mm512_load_ps(scores.add(j * SIDE));
                if !ALL {
                    let position = _mm512_set1_epi32(j as i32);
                    let seen = _mm512_cmple_epi32_mask(low, position)
                        & _mm512_cmpgt_epi32_mask(high, position);
                    score = _mm512_mask_mov_ps(nothing, seen, score);
                    _mm512_store_ps(scores.add(j * SIDE), score);
                }
                most[j % 4] = _mm512_max_ps(most[j % 4], score);
            }
            let [a, b, c, d] = most;
            let most = _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d));
            // A row that has seen nothing yet: any number will do, and infinity would not.
            let safe = match ALL {
                true => most,
                false => _mm512_mask_mov_ps(_mm512_setzero_ps(), some, most),
            };
            let safe = _mm512_mul_ps(safe, scale);
            let rescale = power_of_2(_mm512_fmsub_ps(before, scale, safe));
            let rescale = _mm512_mask_mov_ps(_mm512_set1_ps(1.0), some, rescale);
            let mut sums = [_mm512_setzero_ps(); 4];
            for half in 0..2 {
                let mut pairs = [_mm512_setzero_si512(); SIDE];
                for (i, pair) in pairs.iter_mut().enumerate() {
                    let j = half * STEP + 2 * i;
                    let score = _mm512_load_ps(scores.add(j * SIDE));
                    let first = power_of_2(_mm512_fmsub_ps(score, scale, safe));
                    let score = _mm512_load_ps(scores.add((j + 1) * SIDE));
                    let second = power_of_2(_mm512_fmsub_ps(score, scale, safe));
                    sums[j % 4] = _mm512_add_ps(sums[j % 4], first);
                    sums[(j + 1) % 4] = _mm512_add_ps(sums[(j + 1) % 4], second);
                    *pair = side_by_side(first, second);
                }
                transpose(&mut pairs);
                for (r, row) in pairs.iter().enumerate() {
                    let to = self.weights.as_mut_ptr().add(r * 2 + half);
                    _mm512_store_si512(to.cast(), *row);
                }
            }
            let [a, b, c, d] = sums;
            let sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
            let sum = _mm512_fmadd_ps(_mm512_load_ps(self.sums(t)), rescale, sum);
            // What sees nothing of this tile stays as it is.
            let sum = _mm512_mask_mov_ps(_mm512_load_ps(self.sums(t)), some, sum);
            let most = _mm512_mask_mov_ps(before, some, most);
            _mm512_store_ps(self.sums(t), sum);
            _mm512_store_ps(self.maxima(t), most);
            let mut lanes = Lanes([0.0; SIDE]);
            _mm512_store_ps(lanes.0.as_mut_ptr(), rescale);
            lanes
        }
    }

    /// The values' group `g`, weighted for 16 rows.
    ///
    /// # Safety
    /// The tiles are whole; weights and values are there.
    #[inline]
    unsafe fn multiply(&mut self, g: usize, to: usize) {
        // SAFETY: what the caller promised.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tileloadd tmm4, [{weights} + 2 * {line}]",
                "tileloadd tmm6, [{values} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{weights} + 2 * {line} + 64]",
                "tileloadd tmm7, [{values} + {line} + 1024]",
                "tdpbf16ps tmm0, tmm5, tmm7",
                "tilestored [{products} + {line}], tmm0",
                weights = in(reg) self.weights.as_ptr(),
                values = in(reg) self.values.as_ptr().add(g * TILE / 2),
                products = in(reg) self.products.as_mut_ptr().add(to * SIDE),
                line = in(reg) 64usize,
                options(nostack),
            );
        }
    }

    /// Divides each row by its sum.
    #[target_feature(enable = "avx512f")]
    unsafe fn divide(&mut self) {
        for row in 0..self.rows {
            // SAFETY: a sum for each row, and whole lines of its result.
            unsafe {
                let sum = *self.sums(row / SIDE).add(row % SIDE);
                for g in 0..self.groups {
                    let at: *mut f32 = self.results.as_mut_ptr().add(row * self.groups + g).cast();
                    let result = _mm512_div_ps(_mm512_load_ps(at), _mm512_set1_ps(sum));
                    _mm512_store_ps(at, result);
                }
            }
        }
    }
}

/// A number for each of 16 rows.
#[repr(C, align(64))]
struct Lanes([f32; SIDE]);

/// The nearest `bf16` of both, those of a lane side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn side_by_side(first: __m512, second: __m512) -> __m512i {
    // First all of one, then all of the other: element `l` and `l + 16` belong together.
    const PLACES: [u16; 32] = {
        let mut places = [0; 32];
        let mut l = 0;
        while l < 16 {
            places[2 * l] = l as u16;
            places[2 * l + 1] = l as u16 + 16;
            l += 1;
        }
        places
    };
    // SAFETY: types of 64 plain bytes.
    unsafe {
        let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
        let places = _mm512_loadu_si512(PLACES.as_ptr().cast());
        _mm512_permutexvar_epi16(places, both)
    }
}

/// `2^x` for `x` up to 0, within 3e-6 of it and exact for whole `x`: the weights are rounded to eight
/// bits anyway. The polynomial is that of degree 4 with the least relative error over a unit around 0.
#[inline]
#[target_feature(enable = "avx512f")]
fn power_of_2(x: __m512) -> __m512 {
    let set = |x: f32| _mm512_set1_ps(x);
    // In this order a NaN stays one.
    let x = _mm512_max_ps(set(-150.0), x);
    let n = _mm512_roundscale_ps::<0>(x);
    let r = _mm512_sub_ps(x, n);
    let p = _mm512_fmadd_ps(set(0.009_582_853), r, set(0.055_906_426));
    let p = _mm512_fmadd_ps(p, r, set(0.240_240_99));
    let p = _mm512_fmadd_ps(p, r, set(0.693_124_2));
    let p = _mm512_fmadd_ps(p, r, set(1.0));
    _mm512_scalef_ps(p, n)
}
