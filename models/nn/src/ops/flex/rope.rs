//! Rotary position embedding in Hugging Face's layout, in place: a head's first half turns with
//! its second.

use rayon::prelude::*;

/// Elements of one task; fewer run on the calling thread.
const CHUNK: usize = 1 << 14;

/// Turns `x`: `[tokens, heads, 2 * half]` by `cos` and `sin`: `[tokens, half]`.
pub(super) fn rotary(x: &mut [f32], cos: &[f32], sin: &[f32], heads: usize, half: usize) {
    let width = heads * 2 * half;
    if x.is_empty() {
        return;
    }
    let token = |((x, cos), sin): ((&mut [f32], &[f32]), &[f32])| {
        for head in x.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    };
    if x.len() <= CHUNK {
        let rows = x.chunks_exact_mut(width).zip(cos.chunks_exact(half));
        rows.zip(sin.chunks_exact(half)).for_each(token);
    } else {
        x.par_chunks_exact_mut(width)
            .zip(cos.par_chunks_exact(half))
            .zip(sin.par_chunks_exact(half))
            .with_min_len((CHUNK / width).max(1))
            .for_each(token);
    }
}
