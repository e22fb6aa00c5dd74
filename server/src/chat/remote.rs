//! A running server as the partner: OpenAI's chat completions, streamed.

use super::args::ChatArgs;
use super::conversation::Conversation;
use super::partner::{Figures, Piece};
use anyhow::{Context, Result, anyhow, bail};
use kiln_engine::SamplingParams;
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use ureq::http::Response;
use ureq::{Agent, Body};

/// What a server that is there takes at most to say so.
const CONNECT: Duration = Duration::from_secs(10);

/// The most that an error's body may hold.
const MOST_ERROR: u64 = 64 << 10;

pub(super) struct Server {
    agent: Agent,
    /// With `/v1`.
    base: String,
    key: Option<String>,
    model: String,
    /// Sampling parameters, where they differ from the default.
    parameters: Map<String, Value>,
}

impl Server {
    /// Asks the server which model it has.
    ///
    /// # Errors
    /// When it can't be reached, wants another key, or has no model.
    pub(super) fn connect(args: &ChatArgs, sampling: &SamplingParams) -> Result<Self> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT));
        let url = args.model.trim_end_matches('/');
        let base = match url.ends_with("/v1") {
            true => url.to_owned(),
            false => format!("{url}/v1"),
        };
        let mut server = Self {
            agent: config.build().into(),
            base,
            key: args.api_key.clone(),
            model: String::new(),
            parameters: parameters(sampling),
        };
        server.model = match &args.model_name {
            Some(name) => name.clone(),
            None => server.first_model()?,
        };
        Ok(server)
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    fn first_model(&self) -> Result<String> {
        let url = format!("{}/models", self.base);
        let mut request = self.agent.get(&url);
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let answer = request.call().with_context(|| url.clone())?;
        let mut answer = accepted(answer)?;
        let list: Value = answer.body_mut().read_json().with_context(|| url.clone())?;
        match list.pointer("/data/0/id").and_then(Value::as_str) {
            Some(id) => Ok(id.to_owned()),
            None => bail!("{url} names no model"),
        }
    }

    /// Asks in a thread of its own: what it waits for can't be interrupted, so that a stopped answer
    /// keeps its connection until the next piece arrives.
    pub(super) fn ask(
        &self,
        conversation: &Conversation,
    ) -> Result<UnboundedReceiver<Result<Piece>>> {
        let mut body = self.parameters.clone();
        body.insert("model".to_owned(), json!(self.model));
        body.insert("messages".to_owned(), json!(conversation.messages()));
        body.insert("stream".to_owned(), json!(true));
        let options = json!({ "include_usage": true });
        body.insert("stream_options".to_owned(), options);
        let mut request = self.agent.post(format!("{}/chat/completions", self.base));
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let (pieces, receiver) = unbounded_channel();
        std::thread::Builder::new()
            .name("kiln-chat".to_owned())
            .spawn(move || {
                let read = request
                    .send_json(body)
                    .context("the server can't be reached")
                    .and_then(accepted)
                    .and_then(|answer| read(answer, &pieces));
                if let Err(error) = read {
                    // Nobody listens to an answer that was stopped.
                    let _ = pieces.send(Err(error));
                }
            })?;
        Ok(receiver)
    }
}

/// The answer, or the error that it is, in the server's words.
fn accepted(mut answer: Response<Body>) -> Result<Response<Body>> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = answer.body_mut().with_config().limit(MOST_ERROR);
    let words = body.read_json::<Value>().ok().and_then(|error| {
        let message = error.pointer("/error/message")?.as_str()?;
        Some(message.to_owned())
    });
    let words = words.unwrap_or_else(|| "no reason is given".to_owned());
    let hint = match status.as_u16() {
        401 => ": give the key with --api-key or KILN_API_KEY",
        _ => "",
    };
    bail!("the server answered {}: {words}{hint}", status.as_u16())
}

/// Passes the events of a stream on until it ends, or nobody listens.
fn read(answer: Response<Body>, pieces: &UnboundedSender<Result<Piece>>) -> Result<()> {
    let lines = BufReader::new(answer.into_body().into_reader()).lines();
    let mut end = Ending::default();
    for line in lines {
        let line = line.context("the connection broke in the midst of the answer")?;
        let Some(data) = line.strip_prefix("data:").map(str::trim) else {
            continue;
        };
        if data == "[DONE]" {
            let _ = pieces.send(Ok(Piece::End(end.figures)));
            return Ok(());
        }
        let event: Value =
            serde_json::from_str(data).context("the server sent what is no event")?;
        if let Some(text) = end.note(&event)?
            && pieces.send(Ok(Piece::Text(text))).is_err()
        {
            return Ok(());
        }
    }
    bail!("the connection ended in the midst of the answer")
}

/// What the end of a stream is made of.
#[derive(Default)]
struct Ending {
    cut: bool,
    figures: Option<Figures>,
}

impl Ending {
    /// An event's text, if it has some.
    fn note(&mut self, event: &Value) -> Result<Option<String>> {
        if let Some(error) = event.get("error") {
            let message = error.get("message").and_then(Value::as_str);
            return Err(anyhow!("{}", message.unwrap_or("the answer failed")));
        }
        let choice = event.pointer("/choices/0");
        let text = |key: &str| choice.and_then(|c| c.pointer(key)).and_then(Value::as_str);
        self.cut |= text("/finish_reason") == Some("length");
        if let Some(usage) = event.get("usage").filter(|usage| !usage.is_null()) {
            let count = |key: &str| {
                usage
                    .pointer(key)
                    .and_then(Value::as_u64)
                    .map(|n| n as usize)
            };
            let of = |kind: &str| count(&format!("/prompt_tokens_details/{kind}_tokens"));
            self.figures = Some(Figures {
                prompt_tokens: count("/prompt_tokens").unwrap_or(0),
                media_tokens: ["image", "audio", "video"].into_iter().filter_map(of).sum(),
                cached_tokens: of("cached"),
                completion_tokens: count("/completion_tokens").unwrap_or(0),
                cut: self.cut,
            });
        }
        Ok(text("/delta/content").map(str::to_owned))
    }
}

/// Parameters as the API names them. The API's default temperature is 1, the command line's is 0: it
/// is always sent. Others only where they were given, for a server need not know them all.
fn parameters(sampling: &SamplingParams) -> Map<String, Value> {
    let default = SamplingParams::default();
    let mut map = Map::new();
    let mut add = |name: &str, given: bool, value: Value| {
        if given {
            map.insert(name.to_owned(), value);
        }
    };
    let s = sampling;
    add("temperature", true, json!(s.temperature));
    add("max_tokens", s.max_tokens.is_some(), json!(s.max_tokens));
    add("top_k", s.top_k != default.top_k, json!(s.top_k));
    add("top_p", s.top_p != default.top_p, json!(s.top_p));
    add("min_p", s.min_p != default.min_p, json!(s.min_p));
    let penalties = [
        (
            "repetition_penalty",
            s.repetition_penalty,
            default.repetition_penalty,
        ),
        (
            "presence_penalty",
            s.presence_penalty,
            default.presence_penalty,
        ),
        (
            "frequency_penalty",
            s.frequency_penalty,
            default.frequency_penalty,
        ),
    ];
    for (name, value, usual) in penalties {
        add(name, value != usual, json!(value));
    }
    let bias: Map<String, Value> = s
        .logit_bias
        .iter()
        .map(|(id, bias)| (id.to_string(), json!(bias)))
        .collect();
    add("logit_bias", !bias.is_empty(), json!(bias));
    add("seed", s.seed.is_some(), json!(s.seed));
    add("stop", !s.stop.is_empty(), json!(s.stop));
    add(
        "stop_token_ids",
        !s.stop_token_ids.is_empty(),
        json!(s.stop_token_ids),
    );
    add("ignore_eos", s.ignore_eos, json!(true));
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_is_sent() {
        let plain = parameters(&SamplingParams::default());
        assert_eq!(plain.keys().collect::<Vec<_>>(), ["temperature"]);
        let given = parameters(&SamplingParams {
            top_k: 3,
            seed: Some(7),
            stop: vec!["x".to_owned()],
            ..SamplingParams::default()
        });
        assert_eq!(given["top_k"], 3);
        assert_eq!(given["seed"], 7);
        assert_eq!(given["stop"], json!(["x"]));
        assert!(!given.contains_key("top_p"));
    }

    #[test]
    fn events_of_a_stream_are_read() {
        let mut end = Ending::default();
        let text = |end: &mut Ending, event: Value| end.note(&event).unwrap();
        let delta = json!({ "choices": [{ "delta": { "content": "red" } }], "usage": null });
        assert_eq!(text(&mut end, delta).as_deref(), Some("red"));
        let last = json!({ "choices": [{ "delta": {}, "finish_reason": "length" }] });
        assert_eq!(text(&mut end, last), None);
        let usage = json!({ "choices": [], "usage": {
            "prompt_tokens": 9, "completion_tokens": 2,
            "prompt_tokens_details": { "cached_tokens": 4, "image_tokens": 5 },
        } });
        assert_eq!(text(&mut end, usage), None);
        let figures = end.figures.take().unwrap();
        assert_eq!((figures.media_tokens, figures.cached_tokens), (5, Some(4)));
        assert!(figures.cut);
        let failed = end.note(&json!({ "error": { "message": "no memory" } }));
        assert_eq!(failed.unwrap_err().to_string(), "no memory");
    }
}
