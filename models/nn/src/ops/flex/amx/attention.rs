//! Attention over keys and values of `bf16` on tiles.
//!
//! As in the plain kernel, keys come in tiles of 64 that start at multiples of 64 in the sequence,
//! with a running maximum and sum for each row. Queries and the weights of a tile are rounded to
//! `bf16` for the matrix unit; scores, maxima, sums and results are `f32`. Scores are computed with
//! the keys down and 16 rows across, results with their elements down and the same rows across: a
//! row is a lane from its scores to its result, nothing is turned round in between, and no row's
//! bits depend on the others. What the unit multiplies is waited for one tile of rows later.

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
    __m512, __m512bh, __m512i, __mmask16, _mm256_maskz_loadu_epi16, _mm512_add_epi32,
    _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmpgt_epi32_mask,
    _mm512_cmple_epi32_mask, _mm512_cmplt_epi32_mask, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh,
    _mm512_div_ps, _mm512_fmadd_ps, _mm512_fmsub_ps, _mm512_load_ps, _mm512_loadu_si512,
    _mm512_mask_fmadd_ps, _mm512_mask_mov_ps, _mm512_mask_storeu_epi32, _mm512_maskz_mov_ps,
    _mm512_max_epi32, _mm512_max_ps, _mm512_min_epi32, _mm512_mul_ps, _mm512_or_si512,
    _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_slli_epi32, _mm512_store_ps, _mm512_store_si512, _mm512_sub_epi32,
    _mm512_sub_ps, _mm512_test_epi32_mask,
};
use std::ops::Range;

/// Attends for all rows of a task.
///
/// # Panics
/// When the machine has no tiles.
pub(in super::super) fn attend(mut task: Task<'_, bf16>) {
    assert!(super::available(), "a machine with a matrix unit");
    let rows = task.out.len() * task.group();
    let mut work = Work::new(rows, task.op.head_dim);
    // SAFETY: the machine has tiles, and tasks do not nest.
    let _tiles = unsafe { Tiles::of([64; 8]) };
    work.look(&task);
    for (index, head) in task.kv_heads.clone().enumerate() {
        // SAFETY: the machine has the instructions.
        unsafe {
            work.head(&task, head);
            work.write(&mut task, index);
        }
    }
}

/// The buffers of one head.
struct Work {
    rows: usize,
    /// Elements of a head.
    dim: usize,
    /// Steps of 32 elements of a query, and groups of 16 of a value.
    steps: usize,
    groups: usize,
    /// 16 rows at a time, as [`pack_group`] has them.
    queries: Vec<Line>,
    /// Key by key, whole steps.
    keys: Vec<Line>,
    /// Group by group, of both halves of the keys: element by element, the keys.
    values: Vec<Line>,
    /// Of two groups of 16 rows in turn: key by key, the scores of the rows.
    scores: Vec<Line>,
    /// Pair by pair of keys, the weights of both for each row.
    weights: Vec<Line>,
    /// Element by element, the weighted values of a tile for each row.
    products: Vec<Line>,
    /// The first position that a row sees, and the one behind the last.
    begins: Vec<i32>,
    ends: Vec<i32>,
    /// Lane by lane, for each 16 rows. Maxima are of the products, before they are scaled.
    maxima: Vec<Line>,
    sums: Vec<Line>,
    /// As the products, for each 16 rows.
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
            values: lines(groups * TILE * 32),
            scores: lines(2 * TILE * 64),
            weights: lines(TILE / 2 * 64),
            products: lines(groups * 1024),
            // Rows beyond the last one see all, so that they are in nobody's way.
            begins: vec![0; tiles * SIDE],
            ends: vec![i32::MAX; tiles * SIDE],
            maxima: zeros(tiles * 64),
            sums: zeros(tiles * 64),
            results: zeros(tiles * groups * 1024),
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

    /// Computes the weighted sums of a head, and what they are to be divided by.
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
        let mut due = None;
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
                    let weighed = self.weigh_part(task, t, base);
                    // Only now: the products of the rows before had until here.
                    self.add(due.replace(weighed));
                    self.multiply();
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.add(due) };
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
        let places = task.places(seen.clone());
        let mut at = [None; TILE];
        for position in seen {
            at[position - base] = Some(places[position - base] + head * dim);
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
            for half in 0..2 {
                let mut lines = [_mm512_setzero_si512(); SIDE];
                for (i, pair) in lines.iter_mut().enumerate() {
                    let j = half * STEP + 2 * i;
                    let (low, high) = (value(at[j]), value(at[j + 1]));
                    *pair = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                }
                transpose(&mut lines);
                for (e, line) in lines.iter().enumerate() {
                    // SAFETY: two tiles for each group.
                    unsafe {
                        let to = self.values.as_mut_ptr().add((2 * g + half) * SIDE + e);
                        _mm512_store_si512(to.cast(), *line);
                    }
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

    /// Turns the scores of 16 rows into weights.
    ///
    /// # Safety
    /// The scores of these rows are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn weigh_part(&mut self, task: &Task<'_, bf16>, t: usize, base: usize) -> Weighed {
        // SAFETY: the scores of these rows are there, and a bound for each of them.
        unsafe {
            let from = _mm512_set1_epi32(base as i32);
            let most = _mm512_set1_epi32(TILE as i32);
            let low = _mm512_loadu_si512(self.begins.as_ptr().add(t * SIDE).cast());
            let low = _mm512_max_epi32(_mm512_sub_epi32(low, from), _mm512_setzero_si512());
            let low = _mm512_min_epi32(low, most);
            let high = _mm512_loadu_si512(self.ends.as_ptr().add(t * SIDE).cast());
            let high = _mm512_max_epi32(_mm512_sub_epi32(high, from), _mm512_setzero_si512());
            let high = _mm512_min_epi32(high, most);
            let some = _mm512_cmplt_epi32_mask(low, high);
            let less = _mm512_test_epi32_mask(low, low) | _mm512_cmplt_epi32_mask(high, most);
            let scale = task.op.scale;
            let rescale = match less {
                0 => self.weigh::<true>(t, (low, high), some, scale),
                _ => self.weigh::<false>(t, (low, high), some, scale),
            };
            Weighed { t, rescale, some }
        }
    }

    /// Adds the products to what the rows have so far.
    ///
    /// # Safety
    /// The products are those of the rows.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add(&mut self, weighed: Option<Weighed>) {
        let Some(Weighed { t, rescale, some }) = weighed else {
            return;
        };
        let count = self.groups * SIDE;
        // SAFETY: as many lines of products, and of results for each 16 rows.
        unsafe {
            let products: *const f32 = self.products.as_ptr().cast();
            let results: *mut f32 = self.results.as_mut_ptr().add(t * count).cast();
            for e in 0..count {
                let result = results.add(e * SIDE);
                let product = _mm512_load_ps(products.add(e * SIDE));
                // What sees nothing of this tile stays as it is.
                let before = _mm512_load_ps(result);
                let sum = _mm512_mask_fmadd_ps(before, some, rescale, product);
                _mm512_store_ps(result, sum);
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
    ) -> __m512 {
        // Of a power of two.
        let scale = _mm512_set1_ps(scale * std::f32::consts::LOG2_E);
        let nothing = _mm512_set1_ps(f32::NEG_INFINITY);
        // SAFETY: lines of 16 lanes: the scores of 64 keys, and a state of each row.
        unsafe {
            let scores: *mut f32 = self.scores.as_mut_ptr().add(t % 2 * TILE).cast();
            let before = _mm512_load_ps(self.maxima(t));
            // Four at a time, so that one does not wait for the other; which is greatest does
            // not depend on the order.
            let [mut a, mut b, mut c, mut d] = [before; 4];
            for j in (0..TILE).step_by(4) {
                let mut four = [before; 4];
                for (i, score) in four.iter_mut().enumerate() {
                    let at = scores.add((j + i) * SIDE);
                    *score = _mm512_load_ps(at);
                    if !ALL {
                        let position = _mm512_set1_epi32((j + i) as i32);
                        let seen = _mm512_cmple_epi32_mask(low, position)
                            & _mm512_cmpgt_epi32_mask(high, position);
                        *score = _mm512_mask_mov_ps(nothing, seen, *score);
                        _mm512_store_ps(at, *score);
                    }
                }
                a = _mm512_max_ps(a, four[0]);
                b = _mm512_max_ps(b, four[1]);
                c = _mm512_max_ps(c, four[2]);
                d = _mm512_max_ps(d, four[3]);
            }
            let most = _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d));
            // A row that has seen nothing yet: any number will do, and infinity would not.
            let safe = match ALL {
                true => most,
                false => _mm512_mask_mov_ps(_mm512_setzero_ps(), some, most),
            };
            let safe = _mm512_mul_ps(safe, scale);
            let rescale = power_of_2(_mm512_fmsub_ps(before, scale, safe));
            let rescale = _mm512_mask_mov_ps(_mm512_set1_ps(1.0), some, rescale);
            let [mut a, mut b, mut c, mut d] = [_mm512_setzero_ps(); 4];
            for j in (0..TILE).step_by(4) {
                let mut four = [before; 4];
                for (i, weight) in four.iter_mut().enumerate() {
                    let score = _mm512_load_ps(scores.add((j + i) * SIDE));
                    *weight = power_of_2(_mm512_fmsub_ps(score, scale, safe));
                    if !ALL {
                        // What is not seen has no weight at all.
                        let position = _mm512_set1_epi32((j + i) as i32);
                        let seen = _mm512_cmple_epi32_mask(low, position)
                            & _mm512_cmpgt_epi32_mask(high, position);
                        *weight = _mm512_maskz_mov_ps(seen, *weight);
                    }
                }
                a = _mm512_add_ps(a, four[0]);
                b = _mm512_add_ps(b, four[1]);
                c = _mm512_add_ps(c, four[2]);
                d = _mm512_add_ps(d, four[3]);
                let to = self.weights.as_mut_ptr().add(j / 2);
                _mm512_store_si512(to.cast(), side_by_side(four[0], four[1]));
                _mm512_store_si512(to.add(1).cast(), side_by_side(four[2], four[3]));
            }
            let sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
            let sum = _mm512_fmadd_ps(_mm512_load_ps(self.sums(t)), rescale, sum);
            // What sees nothing of this tile stays as it is.
            let sum = _mm512_mask_mov_ps(_mm512_load_ps(self.sums(t)), some, sum);
            let most = _mm512_mask_mov_ps(before, some, most);
            _mm512_store_ps(self.sums(t), sum);
            _mm512_store_ps(self.maxima(t), most);
            rescale
        }
    }

    /// The values, weighted for 16 rows.
    ///
    /// # Safety
    /// The tiles are whole; weights and values are there.
    #[inline]
    unsafe fn multiply(&mut self) {
        // SAFETY: what the caller promised; two tiles of values and one of products for each group.
        unsafe {
            asm!(
                "tileloadd tmm4, [{weights} + {line}]",
                "tileloadd tmm5, [{weights} + {line} + 1024]",
                "2:",
                "tilezero tmm0",
                "tileloadd tmm6, [{values} + {line}]",
                "tdpbf16ps tmm0, tmm6, tmm4",
                "tileloadd tmm7, [{values} + {line} + 1024]",
                "tdpbf16ps tmm0, tmm7, tmm5",
                "tilestored [{products} + {line}], tmm0",
                "add {values}, 2048",
                "add {products}, 1024",
                "dec {groups}",
                "jnz 2b",
                weights = in(reg) self.weights.as_ptr(),
                values = inout(reg) self.values.as_ptr() => _,
                products = inout(reg) self.products.as_mut_ptr() => _,
                groups = inout(reg) self.groups => _,
                line = in(reg) 64usize,
                options(nostack),
            );
        }
    }

    /// Divides each row by its sum and writes it where it belongs: to the head `index` of the task.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f")]
    unsafe fn write(&mut self, task: &mut Task<'_, bf16>, index: usize) {
        let group = task.group();
        for t in 0..self.rows.div_ceil(SIDE) {
            // SAFETY: a sum for each lane.
            let sums = unsafe { _mm512_load_ps(self.sums(t)) };
            for g in 0..self.groups {
                let mut lines = [_mm512_setzero_si512(); SIDE];
                for (e, line) in lines.iter_mut().enumerate() {
                    let at = (t * self.groups + g) * SIDE + e;
                    // SAFETY: a line for each element of the group.
                    let result = unsafe { _mm512_load_ps((&raw const self.results[at]).cast()) };
                    *line = _mm512_castps_si512(_mm512_div_ps(result, sums));
                }
                transpose(&mut lines);
                let count = SIDE.min(self.dim - g * SIDE);
                let mask = u16::MAX >> (SIDE - count);
                for (row, line) in (t * SIDE..self.rows).zip(lines) {
                    let at = (index * group + row % group) * self.dim + g * SIDE;
                    let out = &mut task.out[row / group][at..at + count];
                    // SAFETY: masked to the elements of the slice.
                    unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), mask, line) };
                }
            }
        }
    }
}

/// Rows whose weights are there.
#[derive(Clone, Copy)]
struct Weighed {
    t: usize,
    /// By what each row has so far is to be multiplied.
    rescale: __m512,
    /// Who sees any of the tile.
    some: __mmask16,
}

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
/// What is below `2^-125` becomes that: beside a weight of 1 it is nothing, and a number too small to
/// be normal would cost more than all the rest.
#[inline]
#[target_feature(enable = "avx512f")]
fn power_of_2(x: __m512) -> __m512 {
    let set = |x: f32| _mm512_set1_ps(x);
    // Added to a number, it leaves the nearest whole one in the last bits.
    let whole = set(12_582_912.0);
    // In this order a NaN stays one.
    let x = _mm512_max_ps(set(-125.0), x);
    let n = _mm512_add_ps(x, whole);
    let r = _mm512_sub_ps(x, _mm512_sub_ps(n, whole));
    let p = _mm512_fmadd_ps(set(0.009_582_853), r, set(0.055_906_426));
    let p = _mm512_fmadd_ps(p, r, set(0.240_240_99));
    let p = _mm512_fmadd_ps(p, r, set(0.693_124_2));
    let p = _mm512_fmadd_ps(p, r, set(1.0));
    // Into the exponent. Of a NaN nothing is left to add: one that comes of numbers of `bf16` has
    // no last bits.
    let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), n))
}
