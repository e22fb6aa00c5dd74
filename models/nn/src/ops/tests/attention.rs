//! Attention: its twin, the definition, and batches and chunks that change no bit.

use super::*;
use kiln_registry::SequenceSpan;

/// Whether attention to values of a type, in -1..1, is the same but for rounding: weights may be
/// rounded to `bf16` for values of it.
fn assert_attends<const D: usize>(native: Tensor<D>, twin: Tensor<D>, dtype: FloatDType) {
    match dtype {
        FloatDType::BF16 => assert_near(native, twin, 1.0 / 256.0, "attention"),
        _ => assert_close(native, twin, "attention"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn attention_is_its_twin(
        batch in 1usize..3,
        tokens in 1usize..140,
        context in 1usize..140,
        kv_heads in 1usize..3,
        group in 1usize..4,
        dim in 1usize..100,
        dtype in 0usize..3,
    ) {
        let dtype = DTYPES[dtype];
        let q = random(12, [batch, tokens, kv_heads * group, dim]) * 4.0;
        let k = random(13, [batch, context, kv_heads, dim]).cast(dtype);
        let v = random(14, [batch, context, kv_heads, dim]).cast(dtype);
        let turned = |x: &Tensor<4>| {
            let (dtype, x) = (FloatDType::from(x.dtype()), x.clone().swap_dims(1, 2));
            let shape = x.dims();
            tensor(host(x), shape).cast(dtype).swap_dims(1, 2)
        };
        let twin = portable::attention(q.clone(), k.clone(), v.clone(), 0.3);
        let native = attention(turned(&q), k.clone(), turned(&v), 0.3);
        assert_attends(native, twin.clone(), dtype);
        assert_attends(attention(q, k, v, 0.3), twin, dtype);
    }
}

/// Sequences over one cache, and what their tokens give.
#[derive(Debug, Clone)]
struct Paged {
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    kv_heads: usize,
    group: usize,
    dim: usize,
    block_size: usize,
    dtype: FloatDType,
    window: Option<usize>,
}

impl Paged {
    /// Tokens `part` of sequence `s`, as queries (`heads` = all) or as keys or values.
    fn rows(&self, s: usize, kind: u64, heads: usize, part: (usize, usize)) -> Vec<f32> {
        let width = heads * self.dim;
        let all = numbers(100 + 3 * s as u64 + kind, self.lengths[s] * width);
        all[part.0 * width..part.1 * width].to_vec()
    }

    /// Runs batches of `(sequence, new tokens)` over a cache whose block `b` is `order[b]`-th of
    /// the memory, and collects each sequence's rows.
    fn run(
        &self,
        batches: &[Vec<(usize, usize)>],
        order: &[u32],
        attend: impl Fn(Tensor<3>, Tensor<4>, Tensor<4>, &BatchLayout, Option<usize>) -> Tensor<3>,
    ) -> Vec<Vec<f32>> {
        let device = Device::flex();
        let heads = self.kv_heads * self.group;
        let shape = [order.len(), self.block_size, self.kv_heads, self.dim];
        // What is not written must not be read: a NaN would spread.
        let unwritten = || tensor(vec![f32::NAN; shape.iter().product()], shape).cast(self.dtype);
        let (mut keys, mut values) = (unwritten(), unwritten());
        let mut free = order.iter().copied();
        let mut tables: Vec<Vec<u32>> = vec![Vec::new(); self.lengths.len()];
        let mut done = vec![0; self.lengths.len()];
        let mut out = vec![Vec::new(); self.lengths.len()];
        for batch in batches {
            let mut spans = Vec::new();
            let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
            for &(s, n) in batch {
                let part = (done[s], done[s] + n);
                done[s] = part.1;
                while tables[s].len() * self.block_size < part.1 {
                    tables[s].push(free.next().expect("enough blocks"));
                }
                q.extend(self.rows(s, 0, heads, part));
                k.extend(self.rows(s, 1, self.kv_heads, part));
                v.extend(self.rows(s, 2, self.kv_heads, part));
                spans.push(SequenceSpan {
                    query_len: n,
                    context_len: part.1,
                    prompt_len: self.lengths[s],
                    blocks: tables[s].clone(),
                });
            }
            let layout = BatchLayout::new(spans, self.block_size, &device).expect("a layout");
            let tokens = layout.tokens();
            let new = |rows| tensor(rows, [tokens, self.kv_heads, self.dim]);
            keys = kv_write(keys, new(k), layout.slots.clone());
            values = kv_write(values, new(v), layout.slots.clone());
            let q = tensor(q, [tokens, heads, self.dim]);
            let rows = host(attend(
                q,
                keys.clone(),
                values.clone(),
                &layout,
                self.window,
            ));
            let mut rows = rows.as_slice();
            for &(s, n) in batch {
                let (part, rest) = rows.split_at(n * heads * self.dim);
                out[s].extend_from_slice(part);
                rows = rest;
            }
        }
        out
    }

    fn native(&self, batches: &[Vec<(usize, usize)>], order: &[u32]) -> Vec<Vec<f32>> {
        self.run(batches, order, |q, k, v, layout, window| {
            paged_attention(q, k, v, layout, 0.2, window)
        })
    }

    fn blocks(&self) -> u32 {
        let blocks: usize = self
            .lengths
            .iter()
            .map(|n| n.div_ceil(self.block_size))
            .sum();
        blocks as u32
    }

    /// Every sequence whole, in one batch of its own.
    fn whole(&self) -> Vec<Vec<(usize, usize)>> {
        self.lengths
            .iter()
            .enumerate()
            .map(|(s, n)| vec![(s, *n)])
            .collect()
    }
}

fn same(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    let bits = |x: &[Vec<f32>]| -> Vec<Vec<u32>> {
        x.iter()
            .map(|x| x.iter().map(|v| v.to_bits()).collect())
            .collect()
    };
    bits(a) == bits(b)
}

fn paged() -> impl Strategy<Value = Paged> {
    (
        prop::collection::vec(1usize..150, 1..4),
        1usize..3,
        1usize..5,
        1usize..70,
        1usize..40,
        0usize..3,
        prop::option::of(1usize..100),
    )
        .prop_map(
            |(lengths, kv_heads, group, dim, block_size, dtype, window)| Paged {
                lengths,
                kv_heads,
                group,
                dim,
                block_size,
                dtype: DTYPES[dtype],
                window,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn paged_attention_is_its_twin_in_any_batch(paged in paged(), sizes in prop::collection::vec(1usize..60, 1..9)) {
        let order: Vec<u32> = (0..paged.blocks()).collect();
        let whole = paged.native(&paged.whole(), &order);
        let twin = paged.run(&paged.whole(), &order, |q, k, v, layout, window| {
            portable::paged_attention(q, k, v, layout, 0.2, window)
        });
        for (whole, twin) in whole.iter().zip(&twin) {
            let n = whole.len();
            let (whole, twin) = (tensor(whole.clone(), [n]), tensor(twin.clone(), [n]));
            assert_attends(whole, twin, paged.dtype);
        }
        // All sequences at once, in chunks of drawn sizes, blocks back to front.
        let mut left = paged.lengths.clone();
        let mut sizes = sizes.iter().cycle();
        let mut batches = Vec::new();
        while left.iter().any(|n| *n > 0) {
            let mut batch = Vec::new();
            for (s, left) in left.iter_mut().enumerate().rev() {
                let n = (*sizes.next().expect("a cycle")).min(*left);
                if n > 0 {
                    batch.push((s, n));
                    *left -= n;
                }
            }
            batches.push(batch);
        }
        let order: Vec<u32> = order.into_iter().rev().collect();
        prop_assert!(same(&whole, &paged.native(&batches, &order)));
    }
}

#[test]
fn a_prompt_cut_anywhere_is_the_whole_prompt() {
    for (window, dtype) in [
        (None, FloatDType::F32),
        (None, FloatDType::BF16),
        (Some(33), FloatDType::F32),
        (Some(33), FloatDType::BF16),
    ] {
        let paged = Paged {
            lengths: vec![131],
            kv_heads: 1,
            group: 3,
            dim: 20,
            block_size: 16,
            dtype,
            window,
        };
        let order: Vec<u32> = (0..paged.blocks()).collect();
        let whole = paged.native(&paged.whole(), &order);
        for cut in 1..131 {
            let cut = paged.native(&[vec![(0, cut)], vec![(0, 131 - cut)]], &order);
            assert!(same(&whole, &cut));
        }
        let steps: Vec<Vec<(usize, usize)>> = vec![vec![(0, 1)]; 131];
        assert!(same(&whole, &paged.native(&steps, &order)));
    }
}

/// The twin itself, against the definition in `f64`.
#[test]
fn the_twin_of_paged_attention_is_the_definition() {
    let paged = Paged {
        lengths: vec![9, 5],
        kv_heads: 2,
        group: 2,
        dim: 6,
        block_size: 4,
        dtype: FloatDType::F32,
        window: Some(3),
    };
    let twin = paged.run(
        &[vec![(0, 9), (1, 5)]],
        &[3, 1, 4, 0, 2],
        |q, k, v, layout, window| portable::paged_attention(q, k, v, layout, 0.2, window),
    );
    for (s, &n) in paged.lengths.iter().enumerate() {
        let [q, k, v] = [(0, 4), (1, 2), (2, 2)].map(|(kind, h)| paged.rows(s, kind, h, (0, n)));
        for p in 0..n {
            for h in 0..4 {
                let row = |x: &[f32], heads: usize, at: usize, head: usize| -> Vec<f64> {
                    x[(at * heads + head) * 6..][..6]
                        .iter()
                        .map(|v| f64::from(*v))
                        .collect()
                };
                let query = row(&q, 4, p, h);
                let seen = (p + 1).saturating_sub(3)..p + 1;
                let weights: Vec<f64> = seen
                    .clone()
                    .map(|j| {
                        let key = row(&k, 2, j, h / 2);
                        (query.iter().zip(&key).map(|(a, b)| a * b).sum::<f64>() * 0.2).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for e in 0..6 {
                    let expected: f64 = seen
                        .clone()
                        .zip(&weights)
                        .map(|(j, w)| w / total * row(&v, 2, j, h / 2)[e])
                        .sum();
                    let got = f64::from(twin[s][(p * 4 + h) * 6 + e]);
                    assert!((got - expected).abs() < 1e-6, "{got} is not {expected}");
                }
            }
        }
    }
}
