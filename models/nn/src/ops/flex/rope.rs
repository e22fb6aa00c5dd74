//! Rotary position embedding in Hugging Face's layout, in place: a head's first half turns with
//! its second.

use super::pool;

/// Elements of one task; fewer run on the calling thread.
const CHUNK: usize = 1 << 14;

/// Turns `x`: `[tokens, heads, 2 * half]` by `cos` and `sin`: `[tokens, half]`.
pub(super) fn rotary(x: &mut [f32], cos: &[f32], sin: &[f32], heads: usize, half: usize) {
    let width = heads * 2 * half;
    if x.is_empty() {
        return;
    }
    let tokens = if x.len() <= CHUNK {
        x.len() / width
    } else {
        (CHUNK / width).max(1)
    };
    pool::chunks_mut(x, tokens * width, |i, x| {
        let (cos, sin) = (&cos[i * tokens * half..], &sin[i * tokens * half..]);
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for (token, (cos, sin)) in x.chunks_exact_mut(width).zip(angles) {
            for head in token.chunks_exact_mut(2 * half) {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    });
}
