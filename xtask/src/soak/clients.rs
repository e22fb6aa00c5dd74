//! What the clients do: good requests, bad ones, some that leave, some that are slow.

use super::http::Exchange;
use super::picture;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";

/// Failures that are told in words; more are only counted.
const MOST_WORDS: usize = 5;

/// A picture that nobody sent before is asked about again after so many others.
const AGAIN: u64 = 12;

/// Manners of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Questions about the sample picture, in turn whole and streamed.
    Known,
    /// Pictures that are new, and once more later.
    Unique,
    /// Good requests, sent and read slowly.
    Slow,
    /// What must be refused.
    Bad,
    /// Leaves before the answer, or in its midst.
    Leaves,
}

const KINDS: [Kind; 5] = [
    Kind::Known,
    Kind::Unique,
    Kind::Slow,
    Kind::Bad,
    Kind::Leaves,
];

/// What came of one kind.
#[derive(Debug, Default, Clone)]
pub(super) struct Outcome {
    pub(super) requests: u64,
    /// Answered 429, and asked again.
    pub(super) busy: u64,
    pub(super) failures: u64,
    pub(super) words: Vec<String>,
    pub(super) seconds: Vec<f32>,
}

/// All that clients share.
pub(super) struct Work {
    address: SocketAddr,
    sample: String,
    questions: Vec<(String, String)>,
    /// The first answer to each request.
    first: Mutex<BTreeMap<String, String>>,
    outcomes: Mutex<BTreeMap<Kind, Outcome>>,
    numbers: AtomicU64,
    over: AtomicBool,
}

/// One client.
pub(super) struct Client<'a> {
    work: &'a Work,
    kind: Kind,
}

impl Work {
    pub(super) fn new(root: &Path, address: SocketAddr) -> Result<Self> {
        let assets = root.join("assets");
        let sample = std::fs::read(assets.join("sample.png")).context("assets/sample.png")?;
        let text = std::fs::read(assets.join("sample.json")).context("assets/sample.json")?;
        let record: Value = serde_json::from_slice(&text)?;
        let word = |q: &Value, key: &str| q[key].as_str().unwrap_or_default().to_owned();
        let questions = record["questions"].as_array().into_iter().flatten();
        let questions: Vec<_> = questions
            .map(|q| (word(q, "text"), word(q, "answer")))
            .collect();
        ensure!(!questions.is_empty(), "assets/sample.json has no questions");
        Ok(Self {
            address,
            sample: picture::data_url("image/png", &sample),
            questions,
            first: Mutex::default(),
            outcomes: Mutex::default(),
            numbers: AtomicU64::new(0),
            over: AtomicBool::new(false),
        })
    }

    /// So many clients of each kind.
    pub(super) fn clients(&self, each: usize) -> Vec<Client<'_>> {
        let of = |kind| std::iter::repeat_with(move || Client { work: self, kind }).take(each);
        KINDS.into_iter().flat_map(of).collect()
    }

    pub(super) fn stop(&self) {
        self.over.store(true, Relaxed);
    }

    /// After all is over: every known question once more, alone.
    pub(super) fn ask_all_again(&self) {
        let client = Client {
            work: self,
            kind: Kind::Known,
        };
        for number in 0..self.questions.len() as u64 {
            self.note(Kind::Known, Instant::now(), client.known(number, None));
        }
    }

    pub(super) fn tally(&self) -> BTreeMap<Kind, Outcome> {
        lock(&self.outcomes).clone()
    }

    fn note(&self, kind: Kind, began: Instant, result: Result<u64>) {
        let mut outcomes = lock(&self.outcomes);
        let outcome = outcomes.entry(kind).or_default();
        outcome.requests += 1;
        match result {
            Ok(busy) => {
                outcome.busy += busy;
                outcome.seconds.push(began.elapsed().as_secs_f32());
            }
            Err(error) => {
                outcome.failures += 1;
                if outcome.words.len() < MOST_WORDS {
                    outcome.words.push(format!("{error:#}"));
                }
            }
        }
    }

    /// The answer must be the first one to this request.
    fn compare(&self, request: String, answer: &str) -> Result<()> {
        let mut all = lock(&self.first);
        let first = all.entry(request).or_insert_with(|| answer.to_owned());
        ensure!(
            first == answer,
            "answered `{answer}`, and at first `{first}`"
        );
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client<'_> {
    pub(super) fn run(&self, until: Instant) {
        while Instant::now() < until && !self.work.over.load(Relaxed) {
            let number = self.work.numbers.fetch_add(1, Relaxed);
            let began = Instant::now();
            let pause = Duration::from_millis(15);
            let result = match self.kind {
                Kind::Known => self.known(number, None),
                Kind::Unique => self.unique(number),
                Kind::Slow => self.known(number, Some(pause)),
                Kind::Bad => self.bad(number),
                Kind::Leaves => self.leaves(number),
            };
            let failed = result.is_err();
            self.work.note(self.kind, began, result);
            if failed {
                // A server that is down is not asked a thousand times a second.
                std::thread::sleep(Duration::from_millis(200));
            } else if self.kind == Kind::Bad {
                // Refusals take no time; they should not be all that there is.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn known(&self, number: u64, pause: Option<Duration>) -> Result<u64> {
        let work = self.work;
        let (question, expected) = &work.questions[number as usize % work.questions.len()];
        let mut body = body(question, &work.sample);
        let streams = number & 1 == 1 || pause.is_some();
        body["stream"] = streams.into();
        let (answer, busy) = self.ask(&body, pause)?;
        ensure!(
            answer.trim() == expected,
            "{question} {answer}, not {expected}"
        );
        work.compare(question.clone(), &answer)?;
        Ok(busy)
    }

    fn unique(&self, number: u64) -> Result<u64> {
        let mut busy = 0;
        // Each is asked about when it is new, and when caches may have dropped it.
        let seeds = [Some(number), number.checked_sub(AGAIN)];
        for (seed, streams) in seeds.into_iter().zip([true, false]) {
            let Some(seed) = seed else { continue };
            let mut body = body("Describe the picture.", &picture::unique(seed));
            body["stream"] = streams.into();
            body["max_tokens"] = 24.into();
            let (answer, waited) = self.ask(&body, None)?;
            busy += waited;
            self.work.compare(format!("picture {seed}"), &answer)?;
            if !streams {
                // Asked twice: it need not be kept.
                lock(&self.work.first).remove(&format!("picture {seed}"));
            }
        }
        Ok(busy)
    }

    /// Asks until the server has room. The text, and how often it had none.
    fn ask(&self, body: &Value, pause: Option<Duration>) -> Result<(String, u64)> {
        let text = body.to_string();
        for busy in 0.. {
            let sent = Exchange::post(self.work.address, CHAT, text.as_bytes(), pause)?;
            let answer = sent.answer(pause)?;
            if answer.status == 429 {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
            let said = String::from_utf8(answer.body).context("an answer that is no UTF-8")?;
            ensure!(answer.status == 200, "answered {}: {said}", answer.status);
            let streams = body["stream"] == true;
            let content = if streams {
                streamed(&said)?
            } else {
                whole(&said)?
            };
            return Ok((content, busy));
        }
        bail!("never reached")
    }

    fn bad(&self, number: u64) -> Result<u64> {
        let sample = &self.work.sample;
        let cut = &sample[..sample.len() / 2 / 4 * 4];
        let with = |key: &str, value: Value| {
            let mut body = body("What is it?", sample);
            body[key] = value;
            body.to_string()
        };
        let (status, text) = match number % 12 {
            0 => (400, "{\"messages\": [".to_owned()),
            1 => (400, body("x", "data:image/png;base64,@@@@").to_string()),
            2 => (400, body("x", cut).to_string()),
            3 => (400, body("x", &picture::bomb()).to_string()),
            4 => (400, body(&"long ".repeat(4000), sample).to_string()),
            5 => (404, with("model", "no-such-model".into())),
            6 => (400, with("n", 1_000_000_000.into())),
            7 => (400, with("temperature", (-1.0).into())),
            8 => (400, body("x", "http://169.254.169.254/latest").to_string()),
            9 => (400, body("x", "file:///etc/hostname").to_string()),
            10 => (400, with("messages", json!([]))),
            _ => (400, "[".repeat(100_000)),
        };
        let sent = Exchange::post(self.work.address, CHAT, text.as_bytes(), None)?;
        let answer = sent.answer(None)?;
        if answer.status == 429 {
            return Ok(1);
        }
        let said = String::from_utf8_lossy(&answer.body);
        let case = number % 12;
        ensure!(
            answer.status == status,
            "bad request {case}: {} {said}",
            answer.status
        );
        let error: Value = serde_json::from_str(&said).context("an error that is no JSON")?;
        let message = error.pointer("/error/message").and_then(Value::as_str);
        ensure!(
            message.is_some_and(|m| !m.is_empty()),
            "bad request {case}: {said}"
        );
        Ok(0)
    }

    fn leaves(&self, number: u64) -> Result<u64> {
        let picture = match number % 4 {
            0 => picture::unique(number),
            _ => self.work.sample.clone(),
        };
        let mut body = body("Describe the picture.", &picture);
        body["stream"] = (!number.is_multiple_of(3)).into();
        body["ignore_eos"] = true.into();
        body["max_tokens"] = 800.into();
        let text = body.to_string();
        let sent = Exchange::post(self.work.address, CHAT, text.as_bytes(), None)?;
        if number.is_multiple_of(3) {
            std::thread::sleep(Duration::from_millis(number % 40));
            sent.leave();
            return Ok(0);
        }
        match sent.leave_after(number as usize % 20)? {
            200 => Ok(0),
            429 => Ok(1),
            status => bail!("a request that was left in its midst was answered {status}"),
        }
    }
}

fn body(question: &str, picture: &str) -> Value {
    json!({
        "messages": [{ "role": "user", "content": [
            { "type": "image_url", "image_url": { "url": picture } },
            { "type": "text", "text": question },
        ] }],
        "temperature": 0,
    })
}

fn whole(text: &str) -> Result<String> {
    let answer: Value = serde_json::from_str(text).context("an answer that is no JSON")?;
    let content = answer.pointer("/choices/0/message/content");
    let content = content.and_then(Value::as_str).context("no content")?;
    Ok(content.to_owned())
}

/// The pieces put together; the stream must have come to its end.
fn streamed(text: &str) -> Result<String> {
    let mut content = String::new();
    let mut done = false;
    for line in text.lines() {
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let event: Value = serde_json::from_str(data).context("an event that is no JSON")?;
        if let Some(error) = event.get("error") {
            bail!("an error in the midst of a stream: {error}");
        }
        let piece = event.pointer("/choices/0/delta/content");
        content.push_str(piece.and_then(Value::as_str).unwrap_or_default());
    }
    ensure!(done, "a stream ended without [DONE]");
    Ok(content)
}
