//! Sampling parameters, under the names that OpenAI's API and vLLM use, and what is refused.

use super::Grammar;
use kiln_registry::{Error, Result};
use std::collections::BTreeMap;

/// The most tokens beside each chosen one whose probabilities may be asked for.
const MAX_LOGPROBS: usize = 20;
/// The most sequences that one request may ask for.
const MAX_N: usize = 64;

/// What a request asks of the sampler. The default is greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0: greedy. Otherwise logits are divided by it.
    pub temperature: f32,
    /// Only the so many most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities add up to this; 1: all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one; 0: all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1: off.
    pub repetition_penalty: f32,
    /// Taken from the logit of every token that is in the output; 0: off.
    pub presence_penalty: f32,
    /// Taken from a token's logit once for each time that it is in the output; 0: off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The same seed gives the same tokens; `None`: one is drawn by the engine.
    pub seed: Option<u64>,
    /// Sequences to generate.
    pub n: usize,
    /// New tokens of a sequence; `None`: as many as the context holds.
    pub max_tokens: Option<usize>,
    /// New tokens before which neither the model's end-of-sequence tokens nor `stop_token_ids` are
    /// chosen.
    pub min_tokens: usize,
    /// Text that ends a sequence, and is not sent.
    pub stop: Vec<String>,
    /// Tokens that end a sequence, beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Go on past the model's end-of-sequence token.
    pub ignore_eos: bool,
    /// With each token, the so many most likely ones; `None` and 0: the chosen one alone.
    pub logprobs: Option<usize>,
    /// What the text must be.
    pub guide: Option<Grammar>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
            n: 1,
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            guide: None,
        }
    }
}

impl SamplingParams {
    /// Refuses what makes no sense for a vocabulary of `vocab_size`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] that names the parameter and its range.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        // `contains` is false for NaN, and the bounds refuse the infinities.
        let range = |name: &str, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid(format!(
                "{name} is {value}; it lies between {low} and {high}"
            )))
        };
        range("temperature", self.temperature, 0.0, 100.0)?;
        range("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        for (token, bias) in &self.logit_bias {
            range("logit_bias", *bias, -100.0, 100.0)?;
            self.in_vocabulary("logit_bias", *token, vocab_size)?;
        }
        for token in &self.stop_token_ids {
            self.in_vocabulary("stop_token_ids", *token, vocab_size)?;
        }
        if !(1..=MAX_N).contains(&self.n) {
            return Err(Error::invalid(format!(
                "n is {}; it lies between 1 and {MAX_N}",
                self.n
            )));
        }
        if self.n > 1 && self.temperature == 0.0 {
            return Err(Error::invalid(
                "n > 1 needs a temperature above 0: greedy has one answer",
            ));
        }
        if self.max_tokens == Some(0) {
            return Err(Error::invalid(
                "max_tokens is 0; ask for at least one token",
            ));
        }
        if self.max_tokens.is_some_and(|most| self.min_tokens > most) {
            return Err(Error::invalid(format!(
                "min_tokens is {}; it lies between 0 and max_tokens",
                self.min_tokens
            )));
        }
        if self.logprobs.is_some_and(|n| n > MAX_LOGPROBS) {
            return Err(Error::invalid(format!(
                "logprobs are asked for {} tokens; at most {MAX_LOGPROBS}",
                self.logprobs.unwrap_or(0)
            )));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::invalid("a stop string is empty"));
        }
        Ok(())
    }

    fn in_vocabulary(&self, name: &str, token: u32, vocab_size: usize) -> Result<()> {
        if (token as usize) < vocab_size {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{name}: there is no token {token}, only {vocab_size}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_nonsense_is_named() {
        let good = SamplingParams::default();
        good.validate(10).unwrap();
        let cases: [(&str, SamplingParams); 10] = [
            (
                "temperature",
                SamplingParams {
                    temperature: f32::NAN,
                    ..good.clone()
                },
            ),
            (
                "temperature",
                SamplingParams {
                    temperature: f32::INFINITY,
                    ..good.clone()
                },
            ),
            (
                "top_p",
                SamplingParams {
                    top_p: 0.0,
                    ..good.clone()
                },
            ),
            (
                "min_p",
                SamplingParams {
                    min_p: -0.1,
                    ..good.clone()
                },
            ),
            (
                "repetition_penalty",
                SamplingParams {
                    repetition_penalty: 0.0,
                    ..good.clone()
                },
            ),
            (
                "presence_penalty",
                SamplingParams {
                    presence_penalty: 3.0,
                    ..good.clone()
                },
            ),
            (
                "logit_bias",
                SamplingParams {
                    logit_bias: [(10, 1.0)].into(),
                    ..good.clone()
                },
            ),
            (
                "n is",
                SamplingParams {
                    n: 1_000_000_000,
                    temperature: 1.0,
                    ..good.clone()
                },
            ),
            (
                "max_tokens",
                SamplingParams {
                    max_tokens: Some(0),
                    ..good.clone()
                },
            ),
            (
                "stop_token_ids",
                SamplingParams {
                    stop_token_ids: vec![99],
                    ..good.clone()
                },
            ),
        ];
        for (name, params) in cases {
            let message = params.validate(10).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
