//! How much of the prompts' work a step takes beside sequences that run: their next tokens are not to
//! come much later for it. Kernels and machines differ, so it goes by how long steps took.
//!
//! Only when work is done hangs on it. What it gives has the same bits.

use std::time::Duration;

/// Prompt tokens that a step always may have: fewer gain little, and no prompt may starve.
const LEAST: usize = 16;
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

    /// Prompt tokens of a step beside running sequences; `most` while nothing is known.
    pub(super) fn prompt_tokens(&self, most: usize) -> usize {
        let fit = match (self.alone, self.token) {
            (Some(alone), Some(token)) if token > 0.0 => (self.slack * alone / token) as usize,
            _ => most,
        };
        fit.max(LEAST).min(most)
    }

    /// Seconds that the encoder may take in a step beside running sequences and so many tokens of
    /// prompts; none while nothing is known.
    pub(super) fn encoder(&self, prompt_tokens: usize) -> f64 {
        if self.slack.is_infinite() {
            return f64::INFINITY;
        }
        let prompts = self.token.unwrap_or(0.0) * prompt_tokens as f64;
        (self.slack * self.alone.unwrap_or(0.0) - prompts).max(0.0)
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
        assert_eq!((pace.prompt_tokens(128), pace.encoder(0)), (128, 0.0));
        pace.observe(0, 500, ms(300.0));
        for _ in 0..20 {
            pace.observe(4, 0, ms(40.0));
        }
        // Guessed from the whole prompt: 0.6 ms a token. In truth it is one.
        let mut tokens = pace.prompt_tokens(128);
        assert_eq!(tokens, 46);
        for _ in 0..40 {
            pace.observe(4, tokens, ms(40.0 + tokens as f64));
            tokens = pace.prompt_tokens(128);
        }
        assert!((26..=30).contains(&tokens), "{tokens}");
        let left = pace.encoder(14) / MS;
        assert!((12.0..16.0).contains(&left), "{left}");
        assert_eq!(pace.encoder(100), 0.0);
    }

    #[test]
    fn estimates_follow_what_changes() {
        let mut pace = Pace::new(Some(1.7));
        pace.observe(1, 0, ms(10.0));
        // More streams, which never run alone: a step takes 30 ms and one a token.
        for _ in 0..400 {
            let tokens = pace.prompt_tokens(64);
            pace.observe(8, tokens, ms(30.0 + tokens as f64));
        }
        assert_eq!(pace.prompt_tokens(64), LEAST, "a prompt never starves");
        for _ in 0..40 {
            pace.observe(8, 0, ms(100.0));
        }
        assert!(pace.prompt_tokens(64) > LEAST);
        assert_eq!(pace.prompt_tokens(8), 8, "what was asked for bounds it");
    }

    #[test]
    fn without_a_bound_prompts_take_what_they_need() {
        let mut pace = Pace::new(None);
        pace.observe(1, 0, ms(10.0));
        pace.observe(1, 100, ms(200.0));
        assert_eq!(pace.prompt_tokens(4096), 4096);
        assert!(pace.encoder(4096).is_infinite());
    }
}
