//! Penalties, bias, temperature, min-p, top-k, top-p, in vLLM's order, then one draw.

use super::SamplingParams;
use kiln_registry::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::collections::BTreeMap;

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// Its id.
    pub id: u32,
    /// The logarithm of its probability under the model's own logits, before any processing.
    pub logprob: f32,
    /// The most likely tokens with theirs, most likely first; as many as were asked for.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// The sampler of sequence `index` of a request's `n`. `drawn_seed` serves where the request
    /// names none.
    pub fn new(params: &SamplingParams, index: usize, drawn_seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(params.seed.unwrap_or(drawn_seed));
        // Streams of one seed are independent, so that the n sequences differ.
        rng.set_stream(index as u64);
        Self {
            params: params.clone(),
            rng,
        }
    }

    /// Chooses the next token after `prompt` and `generated`. The logits are overwritten.
    ///
    /// # Errors
    /// [`Error::Internal`] when a logit is NaN or none is finite: this request fails, no other.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        prompt: &[u32],
        generated: &[u32],
    ) -> Result<SampledToken> {
        self.sample_within(logits, prompt, generated, |_| {})
    }

    /// The same among the tokens whose logits `restrict` leaves finite; it sees them after penalties
    /// and bias.
    ///
    /// # Errors
    /// As [`sample`](Self::sample), and when no token is left.
    pub(crate) fn sample_within(
        &mut self,
        logits: &mut [f32],
        prompt: &[u32],
        generated: &[u32],
        restrict: impl FnOnce(&mut [f32]),
    ) -> Result<SampledToken> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::internal("the model's logits hold NaN"));
        }
        let (model_max, model_log_sum) = log_sum_exp(logits)?;
        let original = |logit: f32| logit - model_max - model_log_sum;
        let before = logits.to_vec();
        self.penalise(logits, prompt, generated);
        for (token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        restrict(logits);
        let id = if self.params.temperature == 0.0 {
            let id = argmax(logits);
            if logits[id] == f32::NEG_INFINITY {
                return Err(Error::internal("no token is left to choose"));
            }
            id
        } else {
            self.draw(logits)?
        };
        let logprob = before.get(id).copied().map_or(f32::NEG_INFINITY, original);
        Ok(SampledToken {
            id: id as u32,
            logprob,
            top_logprobs: most_likely(&before, self.params.logprobs.unwrap_or(0))
                .map(|id| (id as u32, original(before[id])))
                .collect(),
        })
    }

    fn penalise(&self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) {
        let params = &self.params;
        let repetition = params.repetition_penalty;
        if repetition != 1.0 {
            let mut seen: Vec<u32> = prompt.iter().chain(generated).copied().collect();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = if *logit > 0.0 {
                        *logit / repetition
                    } else {
                        *logit * repetition
                    };
                }
            }
        }
        if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
            let mut counts = BTreeMap::<u32, f32>::new();
            for token in generated {
                *counts.entry(*token).or_default() += 1.0;
            }
            for (token, count) in counts {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit -= params.presence_penalty + params.frequency_penalty * count;
                }
            }
        }
    }

    fn draw(&mut self, logits: &[f32]) -> Result<usize> {
        let params = &self.params;
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !max.is_finite() {
            return Err(Error::internal("no logit is finite"));
        }
        // In f64 and relative to the most likely token, whose weight is 1.
        let mut kept: Vec<(usize, f64)> = logits
            .iter()
            .map(|logit| (f64::from(logit - max) / f64::from(params.temperature)).exp())
            .enumerate()
            .filter(|(_, weight)| *weight > 0.0 && *weight >= f64::from(params.min_p))
            .collect();
        // Most likely first; equals by id, so that the order is one.
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if params.top_k > 0 {
            kept.truncate(params.top_k);
        }
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        if params.top_p < 1.0 {
            let enough = total * f64::from(params.top_p);
            let mut sum = 0.0;
            let count = kept
                .iter()
                .take_while(|(_, weight)| {
                    let more = sum < enough;
                    sum += weight;
                    more
                })
                .count();
            kept.truncate(count.max(1));
        }
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        // 53 bits: every f64 in [0, 1) of that spacing is as likely.
        let unit = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = unit * total;
        for (id, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding may leave a sliver behind the last one.
        kept.last()
            .map(|(id, _)| *id)
            .ok_or_else(|| Error::internal("no token is left to draw"))
    }
}

/// The first of the largest: ties go to the lowest id.
pub(crate) fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best
}

/// The so many largest, largest first; ties go to the lowest id.
fn most_likely(logits: &[f32], count: usize) -> impl Iterator<Item = usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    let order = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let count = count.min(ids.len());
    if count == 0 {
        ids.clear();
    } else {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
        ids.sort_unstable_by(order);
    }
    ids.into_iter()
}

/// The largest logit, and the logarithm of the sum of exponentials relative to it.
fn log_sum_exp(logits: &[f32]) -> Result<(f32, f32)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return Err(Error::internal("the model gave no finite logit"));
    }
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .sum();
    Ok((max, sum.ln() as f32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(params: &SamplingParams, logits: &[f32], times: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(params, 0, 7);
        let mut counts = vec![0; logits.len()];
        for _ in 0..times {
            counts[sampler.sample(&mut logits.to_vec(), &[], &[]).unwrap().id as usize] += 1;
        }
        counts
    }

    fn hot() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            ..SamplingParams::default()
        }
    }

    #[test]
    fn greedy_takes_the_largest_and_the_lowest_id_of_equals() {
        let mut sampler = Sampler::new(&SamplingParams::default(), 0, 0);
        let token = sampler.sample(&mut [0.0, 2.0, 2.0], &[], &[]).unwrap();
        assert_eq!(token.id, 1);
        let probability = 2f32.exp() / (1.0 + 2.0 * 2f32.exp());
        assert!((token.logprob - probability.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_most_likely_come_along_before_processing() {
        let params = SamplingParams {
            logprobs: Some(2),
            logit_bias: [(0, 50.0)].into(),
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(&params, 0, 0);
        let token = sampler.sample(&mut [0.0, 2.0, 3.0, 2.0], &[], &[]).unwrap();
        assert_eq!(token.id, 0);
        let ids: Vec<u32> = token.top_logprobs.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [2, 1]);
        let sum = 1.0 + 2.0 * 2f32.exp() + 3f32.exp();
        assert!((token.top_logprobs[0].1 - (3.0 - sum.ln())).abs() < 1e-6);
        assert!((token.logprob + sum.ln()).abs() < 1e-6);
    }

    #[test]
    fn what_is_left_out_is_never_chosen() {
        for params in [SamplingParams::default(), hot()] {
            let mut sampler = Sampler::new(&params, 0, 0);
            let only = |at: usize| {
                move |logits: &mut [f32]| {
                    for (id, logit) in logits.iter_mut().enumerate() {
                        if id != at {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            };
            for at in 0..3 {
                let mut logits = [5.0, 0.0, -5.0];
                let token = sampler.sample_within(&mut logits, &[], &[], only(at));
                assert_eq!(token.unwrap().id, at as u32);
            }
            let nothing = sampler.sample_within(&mut [1.0, 2.0], &[], &[], only(7));
            assert!(nothing.is_err());
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let counts = drawn(&hot(), &[3f32.ln(), 0.0], 20_000);
        let share = counts[0] as f64 / 20_000.0;
        assert!((share - 0.75).abs() < 0.02, "{share}");
        let cold = SamplingParams {
            temperature: 0.5,
            ..hot()
        };
        let share = drawn(&cold, &[3f32.ln(), 0.0], 20_000)[0] as f64 / 20_000.0;
        assert!((share - 0.9).abs() < 0.02, "{share}");
    }

    #[test]
    fn each_filter_keeps_what_it_says() {
        // Probabilities 1/2, 1/4, 1/8, 1/8.
        let logits = [4f32.ln(), 2f32.ln(), 0.0, 0.0];
        let kept = |params| {
            drawn(&params, &logits, 2000)
                .iter()
                .filter(|c| **c > 0)
                .count()
        };
        assert_eq!(kept(hot()), 4);
        assert_eq!(kept(SamplingParams { top_k: 2, ..hot() }), 2);
        assert_eq!(
            kept(SamplingParams {
                top_p: 0.5,
                ..hot()
            }),
            1
        );
        assert_eq!(
            kept(SamplingParams {
                top_p: 0.6,
                ..hot()
            }),
            2
        );
        assert_eq!(
            kept(SamplingParams {
                min_p: 0.4,
                ..hot()
            }),
            2
        );
        assert_eq!(
            kept(SamplingParams {
                top_p: f32::MIN_POSITIVE,
                ..hot()
            }),
            1
        );
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let greedy = |params: SamplingParams, prompt: &[u32], generated: &[u32]| {
            Sampler::new(&params, 0, 0)
                .sample(&mut [1.0, 0.9, -0.5], prompt, generated)
                .unwrap()
                .id
        };
        let base = SamplingParams::default();
        assert_eq!(greedy(base.clone(), &[0], &[0]), 0);
        let repetition = SamplingParams {
            repetition_penalty: 1.5,
            ..base.clone()
        };
        assert_eq!(greedy(repetition, &[0], &[]), 1, "the prompt counts");
        let presence = SamplingParams {
            presence_penalty: 0.2,
            ..base.clone()
        };
        assert_eq!(
            greedy(presence.clone(), &[0], &[]),
            0,
            "the prompt does not count"
        );
        assert_eq!(greedy(presence, &[], &[0]), 1);
        let frequency = SamplingParams {
            frequency_penalty: 0.06,
            ..base.clone()
        };
        assert_eq!(greedy(frequency.clone(), &[], &[0]), 0);
        assert_eq!(greedy(frequency, &[], &[0, 0]), 1);
        assert_eq!(
            greedy(
                SamplingParams {
                    logit_bias: [(2, 5.0)].into(),
                    ..base
                },
                &[],
                &[]
            ),
            2
        );
    }

    #[test]
    fn a_seed_repeats_and_the_sequences_of_a_request_differ() {
        let params = SamplingParams {
            seed: Some(3),
            n: 2,
            ..hot()
        };
        let run = |index| {
            let mut sampler = Sampler::new(&params, index, 99);
            (0..32)
                .map(|_| sampler.sample(&mut [0.0; 50], &[], &[]).unwrap().id)
                .collect::<Vec<_>>()
        };
        assert_eq!(run(0), run(0));
        assert_ne!(run(0), run(1));
    }

    #[test]
    fn logits_that_are_no_numbers_fail_this_request() {
        let mut sampler = Sampler::new(&hot(), 0, 0);
        for mut logits in [
            vec![0.0, f32::NAN],
            vec![f32::NEG_INFINITY; 2],
            vec![],
            vec![f32::INFINITY, 0.0],
        ] {
            assert!(sampler.sample(&mut logits, &[], &[]).is_err(), "{logits:?}");
        }
        let masked = sampler
            .sample(&mut [f32::NEG_INFINITY, 0.0], &[], &[])
            .unwrap();
        assert_eq!(masked.id, 1, "a masked token is never drawn");
    }
}
