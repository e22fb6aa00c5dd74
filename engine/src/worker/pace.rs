//! How much of the prompts' work a step takes beside sequences that run: their next tokens are not to
//! come much later for it. Kernels and machines differ, so it goes by how long steps took.
//!
//! Only when work is done hangs on it. What it gives has the same bits.

use std::time::Duration;

/// Prompt tokens that a step always may have: fewer gain little, and no prompt may starve.
const LEAST: usize = 16;
/// So many prompts are no crowd, however few sequences run.
const FEW: usize = 3;
/// How fast estimates follow.
const RATE: f64 = 0.2;

/// Estimates in seconds.
#[derive(Debug)]
pub(super) struct Pace {
    /// How much longer than a step of running sequences alone one may take, as a part of it;
    /// infinite: prompts take what they need.
    slack: f64,
    /// A step in which every sequence has one token.
    alone: Option<f64>,
    /// What a token of a prompt adds to it.
    token: Option<f64>,
    /// Whether `token` was seen beside running sequences, and not guessed from a step without.
    beside: bool,
}

/// What a step may have of prompts' work.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Allowance {
    /// For tokens and encoder together.
    seconds: f64,
    /// What a token takes of them; 0 while that is not known.
    token: f64,
}

impl Allowance {
    /// Prompt tokens; `most` while nothing is known.
    pub(super) fn prompt_tokens(&self, most: usize) -> usize {
        let fit = match self.token > 0.0 {
            true => (self.seconds / self.token) as usize,
            false => most,
        };
        fit.max(LEAST).min(most)
    }

    /// Seconds of the encoder beside so many tokens of prompts; none while nothing is known.
    pub(super) fn encoder(&self, prompt_tokens: usize) -> f64 {
        (self.seconds - self.token * prompt_tokens as f64).max(0.0)
    }
}

impl Pace {
    /// A step with prompts takes at most so many times as long as one without, or whatever it takes.
    pub(super) fn new(ratio: Option<f64>) -> Self {
        Self {
            slack: ratio.map_or(f64::INFINITY, |ratio| (ratio - 1.0).max(0.0)),
            alone: None,
            token: None,
            beside: false,
        }
    }

    /// What the step to come may have beside its streams, given how many there are and how many
    /// prompts are in their midst or wait.
    pub(super) fn next(&self, streams: usize, prompts: usize) -> Allowance {
        // Where more wait for their first token than have it, they are the ones to be served.
        let crowd = prompts as f64 / streams.max(FEW) as f64;
        Allowance {
            seconds: match self.slack.is_finite() {
                true => self.slack * crowd.max(1.0) * self.alone.unwrap_or(0.0),
                false => f64::INFINITY,
            },
            token: self.token.filter(|_| self.alone.is_some()).unwrap_or(0.0),
        }
    }

    /// Notes how long a step took, the encoder's part left out.
    pub(super) fn observe(&mut self, streams: usize, prompt_tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        let tokens = prompt_tokens as f64;
        match (streams, prompt_tokens) {
            (_, 0) => follow(&mut self.alone, took),
            (0, _) if !self.beside => follow(&mut self.token, took / tokens),
            (0, _) => {}
            _ => {
                let Some(alone) = self.alone else { return };
                if !std::mem::replace(&mut self.beside, true) {
                    self.token = None;
                }
                follow(&mut self.token, (took - alone).max(0.0) / tokens);
                // Streams that are never alone again grow longer all the same.
                let expected = self.token.unwrap_or(0.0) * tokens;
                let alone = self.alone.insert(alone);
                *alone += RATE * RATE * (took - expected - *alone);
            }
        }
    }
}

fn follow(estimate: &mut Option<f64>, seen: f64) {
    match estimate {
        Some(value) => *value += RATE * (seen - *value),
        None => *estimate = Some(seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: f64 = 1e-3;

    fn ms(n: f64) -> Duration {
        Duration::from_secs_f64(n * MS)
    }

    #[test]
    fn steps_beside_streams_stay_within_their_slack() {
        let mut pace = Pace::new(Some(1.7));
        let next = pace.next(4, 1);
        assert_eq!((next.prompt_tokens(128), next.encoder(0)), (128, 0.0));
        pace.observe(0, 500, ms(300.0));
        for _ in 0..20 {
            pace.observe(4, 0, ms(40.0));
        }
        // Guessed from the whole prompt: 0.6 ms a token. In truth it is one.
        let mut tokens = pace.next(4, 1).prompt_tokens(128);
        assert_eq!(tokens, 46);
        for _ in 0..40 {
            pace.observe(4, tokens, ms(40.0 + tokens as f64));
            tokens = pace.next(4, 1).prompt_tokens(128);
        }
        assert!((26..=30).contains(&tokens), "{tokens}");
        let left = pace.next(4, 1).encoder(14) / MS;
        assert!((12.0..16.0).contains(&left), "{left}");
        assert_eq!(pace.next(4, 1).encoder(100), 0.0);
    }

    #[test]
    fn where_more_wait_than_run_they_have_more() {
        let mut pace = Pace::new(Some(1.5));
        pace.observe(2, 0, ms(20.0));
        pace.observe(2, 10, ms(30.0));
        let tokens = |streams, prompts| pace.next(streams, prompts).prompt_tokens(512);
        // 10 ms of slack, and about a token each.
        assert_eq!((tokens(4, 1), tokens(4, 4)), (LEAST, LEAST));
        assert_eq!(tokens(1, 3), LEAST);
        assert!((19..=21).contains(&tokens(2, 6)), "{}", tokens(2, 6));
        assert!((48..=51).contains(&tokens(4, 20)), "{}", tokens(4, 20));
    }

    #[test]
    fn estimates_follow_what_changes() {
        let mut pace = Pace::new(Some(1.7));
        pace.observe(1, 0, ms(10.0));
        // More streams, which never run alone: a step takes 30 ms and one a token.
        for _ in 0..400 {
            let tokens = pace.next(8, 1).prompt_tokens(64);
            pace.observe(8, tokens, ms(30.0 + tokens as f64));
        }
        let tokens = |pace: &Pace, most| pace.next(8, 1).prompt_tokens(most);
        assert_eq!(tokens(&pace, 64), LEAST, "a prompt never starves");
        for _ in 0..40 {
            pace.observe(8, 0, ms(100.0));
        }
        assert!(tokens(&pace, 64) > LEAST);
        assert_eq!(tokens(&pace, 8), 8, "what was asked for bounds it");
    }

    #[test]
    fn without_a_bound_prompts_take_what_they_need() {
        let mut pace = Pace::new(None);
        pace.observe(1, 0, ms(10.0));
        pace.observe(1, 100, ms(200.0));
        let next = pace.next(8, 1);
        assert_eq!(next.prompt_tokens(4096), 4096);
        assert!(next.encoder(4096).is_infinite());
    }
}
