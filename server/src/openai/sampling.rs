//! The parameters that choose tokens, under OpenAI's names and vLLM's, over the checkpoint's own
//! defaults.

use crate::openai::ApiError;
use crate::openai::json::{At, FromJson, Strings, wire};
use kiln_engine::{SamplingDefaults, SamplingParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;

wire! {
    /// What chat and text completions share.
    pub(crate) struct SamplingFields {
        /// 0: greedy. Default: what the checkpoint recommends, else 0.
        temperature: f32,
        /// Only the most likely tokens whose probabilities add up to this; 1: all.
        top_p: f32,
        /// Only the so many most likely tokens; 0 or -1: all.
        top_k: i64,
        /// Only tokens at least this fraction as likely as the most likely one; 0: all.
        min_p: f32,
        /// Above 1: tokens of prompt and answer become less likely.
        repetition_penalty: f32,
        /// Above 0: tokens of the answer become less likely.
        presence_penalty: f32,
        /// Above 0: tokens become less likely with each time they are in the answer.
        frequency_penalty: f32,
        /// Added to the logits: an object of token ids to numbers from -100 to 100.
        logit_bias: LogitBias,
        /// The same seed gives the same answer.
        seed: i64,
        /// Answers to draw.
        n: usize,
        /// New tokens at most. Default: as many as the context holds.
        max_tokens: usize,
        /// New tokens at least: no end-of-sequence token before.
        min_tokens: usize,
        /// Text that ends the answer, and is not part of it: one or several.
        stop: Strings,
        /// Tokens that end the answer, beside the model's own.
        stop_token_ids: Vec<u32>,
        /// Go on past the model's end-of-sequence token.
        ignore_eos: bool,
    }
}

/// Token ids to what is added to their logits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogitBias(pub(crate) BTreeMap<u32, f32>);

impl FromJson for LogitBias {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        let Value::Object(map) = value else {
            return Err(at.wanted("an object", &value));
        };
        map.into_iter()
            .map(|(id, bias)| {
                let token = id.parse().map_err(|_| {
                    ApiError::field(At::Field(at, &id), "the key must be a token id")
                })?;
                Ok((token, f32::from_json(bias, &At::Field(at, &id))?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn schema() -> Value {
        json!({"type": "object", "additionalProperties": {"type": "number"}})
    }
}

/// The most stop strings, and the most bytes of one: each is searched for at every token.
const MAX_STOPS: (usize, usize) = (32, 1024);

impl SamplingFields {
    /// As the engine takes them.
    ///
    /// # Errors
    /// 400 for what only the wire form can get wrong; the engine checks the ranges.
    pub(crate) fn params(self, defaults: SamplingDefaults) -> Result<SamplingParams, ApiError> {
        let n = self.n.unwrap_or(1);
        // As transformers: a checkpoint that says nothing is greedy.
        let recommended = match defaults.do_sample {
            Some(true) => defaults.temperature.unwrap_or(1.0),
            _ => 0.0,
        };
        let temperature = match self.temperature {
            Some(temperature) => temperature,
            // Several answers of one greedy choice make no sense; OpenAI's default does.
            None if n > 1 && recommended == 0.0 => 1.0,
            None => recommended,
        };
        let stop = self.stop.map(|stop| stop.0).unwrap_or_default();
        if stop.len() > MAX_STOPS.0 || stop.iter().any(|s| s.len() > MAX_STOPS.1) {
            return Err(ApiError::field(
                "stop",
                format!(
                    "at most {} strings of at most {} bytes",
                    MAX_STOPS.0, MAX_STOPS.1
                ),
            ));
        }
        let top_k = match self.top_k {
            None => defaults.top_k.unwrap_or(0),
            Some(-1) => 0,
            Some(k) => usize::try_from(k)
                .map_err(|_| ApiError::field("top_k", "it must be -1, 0, or above"))?,
        };
        Ok(SamplingParams {
            temperature,
            top_k,
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self
                .repetition_penalty
                .or(defaults.repetition_penalty)
                .unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: self.logit_bias.map(|bias| bias.0).unwrap_or_default(),
            // Two's complement, so that each number that JSON clients send is a seed of its own.
            seed: self.seed.map(|seed| seed as u64),
            n,
            max_tokens: self.max_tokens,
            stop,
            stop_token_ids: self.stop_token_ids.unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            min_tokens: self.min_tokens.unwrap_or(0),
            ..SamplingParams::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::json::parse;

    fn params(body: &str, defaults: SamplingDefaults) -> Result<SamplingParams, ApiError> {
        parse::<SamplingFields>(body.as_bytes())?.params(defaults)
    }

    #[test]
    fn the_request_goes_before_the_checkpoint() {
        let defaults = SamplingDefaults {
            do_sample: Some(true),
            temperature: Some(0.6),
            top_k: Some(20),
            ..SamplingDefaults::default()
        };
        let own = params("{}", defaults).unwrap();
        assert_eq!((own.temperature, own.top_k, own.top_p), (0.6, 20, 1.0));
        let asked = params(r#"{"temperature": 0, "top_k": -1}"#, defaults).unwrap();
        assert_eq!((asked.temperature, asked.top_k), (0.0, 0));
        let silent = params("{}", SamplingDefaults::default()).unwrap();
        assert_eq!(silent.temperature, 0.0);
        let several = params(r#"{"n": 2}"#, SamplingDefaults::default()).unwrap();
        assert_eq!(several.temperature, 1.0);
    }

    #[test]
    fn what_the_wire_gets_wrong_is_named() {
        for (body, param) in [
            (r#"{"logit_bias": {"x": 1}}"#, "logit_bias.x"),
            (r#"{"logit_bias": {"3": "much"}}"#, "logit_bias.3"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"n": -1}"#, "n"),
            (r#"{"max_tokens": -5}"#, "max_tokens"),
        ] {
            let error = params(body, SamplingDefaults::default()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
        let stops = format!(r#"{{"stop": "{}"}}"#, "x".repeat(2000));
        assert!(params(&stops, SamplingDefaults::default()).is_err());
    }
}
