//! Sums over predicted tokens.

/// What a variant has shown so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Score {
    tokens: usize,
    surprise: f64,
    divergence: f64,
    agreed: usize,
}

impl Score {
    /// The logits `[tokens, vocabulary]` of a passage, beside the reference's; the tokens from `from`
    /// on are predicted, each by the row before it.
    pub(crate) fn add(&mut self, tokens: &[u32], from: usize, logits: &[f32], reference: &[f32]) {
        let vocabulary = logits.len() / tokens.len();
        for at in from..tokens.len() {
            let row = (at - 1) * vocabulary..at * vocabulary;
            let own = log_softmax(&logits[row.clone()]);
            let other = log_softmax(&reference[row]);
            self.tokens += 1;
            self.surprise -= own[tokens[at] as usize];
            let pairs = other.iter().zip(&own);
            self.divergence += pairs.map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            self.agreed += usize::from(largest(&own) == largest(&other));
        }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(crate) fn perplexity(&self) -> f64 {
        (self.surprise / self.tokens as f64).exp()
    }

    /// Mean of KL(reference || this), in nats.
    pub(crate) fn divergence(&self) -> f64 {
        self.divergence / self.tokens as f64
    }

    pub(crate) fn agreement(&self) -> f64 {
        self.agreed as f64 / self.tokens as f64
    }
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = row.iter().map(|x| f64::from(*x) - f64::from(most));
    let sum: f64 = shifted.clone().map(f64::exp).sum();
    shifted.map(|x| x - sum.ln()).collect()
}

fn largest(row: &[f64]) -> Option<usize> {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distributions_give_known_scores() {
        // Two tokens predicted over a vocabulary of two: p = 1/2 and 3/4.
        let ln = |p: f64| p.ln() as f32;
        let logits = [0.0, 0.0, ln(0.25), ln(0.75), 9.0, 9.0];
        let flat = [0.0; 6];
        let mut score = Score::default();
        score.add(&[0, 0, 1], 1, &logits, &flat);
        assert_eq!(score.tokens(), 2);
        let perplexity = (0.5f64 * 0.75).powf(-0.5);
        assert!((score.perplexity() - perplexity).abs() < 1e-6);
        let kl = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((score.divergence() - kl / 2.0).abs() < 1e-6);
        let mut same = Score::default();
        same.add(&[0, 0, 1], 1, &logits, &logits);
        assert_eq!((same.divergence(), same.agreement()), (0.0, 1.0));
    }
}
