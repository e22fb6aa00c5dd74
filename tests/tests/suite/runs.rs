//! Engines over fixture checkpoints, and requests through them with everything that comes back.

use crate::broken::Copy;
use crate::support::model_options;
use kiln_engine::{
    CacheOptions, Engine, EngineOptions, Event, FinishReason, Generation, Request, SampledToken,
    Timing, Usage,
};
use kiln_registry::Result;
use std::path::Path;
use std::time::{Duration, Instant};

/// One sequence's end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    /// The bits of each token's logprob: equal only when nothing was computed otherwise.
    pub(crate) logprobs: Vec<u32>,
    pub(crate) text: String,
    pub(crate) reason: Option<FinishReason>,
}

/// All that a request came to.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) answers: Vec<Answer>,
    pub(crate) usage: Usage,
    pub(crate) timing: Timing,
}

/// Equal but for what caches may change: where the work went, and how long it took.
impl PartialEq for Outcome {
    fn eq(&self, other: &Self) -> bool {
        let tokens = |o: &Self| {
            let (prompt, new) = (o.usage.prompt_tokens, o.usage.completion_tokens);
            (prompt, o.usage.media.clone(), new)
        };
        self.answers == other.answers && tokens(self) == tokens(other)
    }
}

impl Outcome {
    /// The one sequence.
    pub(crate) fn answer(&self) -> &Answer {
        assert_eq!(self.answers.len(), 1);
        &self.answers[0]
    }
}

/// Reads a request to its end. Events must come in the order that their documentation has.
pub(crate) fn finish(generation: Generation) -> Result<Outcome> {
    let mut answers: Vec<Answer> = vec![];
    let mut accepted = false;
    let mut done = None;
    for event in generation {
        assert_eq!(done, None, "an event after the last");
        match event? {
            Event::Accepted { usage } => {
                assert!(!accepted, "accepted twice");
                assert_eq!(usage.completion_tokens, 0);
                accepted = true;
            }
            Event::Token { index, token, text } => {
                assert!(accepted);
                let answer = at(&mut answers, index);
                assert_eq!(answer.reason, None, "a token after the end");
                let SampledToken { id, logprob, .. } = token;
                assert!(logprob <= 0.0, "{logprob}");
                answer.tokens.push(id);
                answer.logprobs.push(logprob.to_bits());
                answer.text.push_str(&text);
            }
            Event::Finished {
                index,
                reason,
                text,
            } => {
                let answer = at(&mut answers, index);
                assert_eq!(answer.reason.replace(reason), None, "finished twice");
                answer.text.push_str(&text);
            }
            Event::Done { usage, timing } => done = Some((usage, timing)),
        }
    }
    assert!(answers.iter().all(|answer| answer.reason.is_some()));
    let (usage, timing) = done.expect("the last event says what was used");
    let moments = [
        timing.prepared,
        timing.queued,
        timing.first_token,
        timing.finished,
    ];
    assert!(moments.is_sorted(), "{timing:?}");
    Ok(Outcome {
        answers,
        usage,
        timing,
    })
}

fn at(answers: &mut Vec<Answer>, index: usize) -> &mut Answer {
    while answers.len() <= index {
        answers.push(Answer {
            tokens: vec![],
            logprobs: vec![],
            text: String::new(),
            reason: None,
        });
    }
    &mut answers[index]
}

/// As the tests run: nothing is measured, since other tests allocate meanwhile.
pub(crate) fn options() -> EngineOptions {
    EngineOptions {
        model: model_options(),
        cache: CacheOptions {
            kv_blocks: Some(128),
            ..CacheOptions::default()
        },
        ..EngineOptions::default()
    }
}

/// The engine of a checkpoint whose model has room for so many tokens that a request for all of
/// them does not end by itself while a test runs.
pub(crate) fn start_roomy(name: &str, mut options: EngineOptions) -> Engine {
    let copy = Copy::of(name);
    copy.edit("config.json", |config| {
        config["text_config"]["max_position_embeddings"] = 200_000.into();
    });
    options.cache.kv_blocks = Some(12_500);
    start(copy.path(), &options)
}

/// The engine of a checkpoint.
pub(crate) fn start(folder: &Path, options: &EngineOptions) -> Engine {
    Engine::load(folder, options).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// The engine of the model that the binary brings along.
pub(crate) fn builtin(options: &EngineOptions) -> Engine {
    start(&crate::support::asset("kiln-demo"), options)
}

/// All requests at once, each read to its end.
pub(crate) fn together(engine: &Engine, requests: &[Request]) -> Vec<Result<Outcome>> {
    let running: Vec<_> = requests
        .iter()
        .map(|request| engine.generate(request.clone()))
        .collect();
    running
        .into_iter()
        .map(|generation| generation.and_then(finish))
        .collect()
}

/// One request alone.
pub(crate) fn alone(engine: &Engine, request: &Request) -> Result<Outcome> {
    engine.generate(request.clone()).and_then(finish)
}

/// Waits for what another thread is about to do; a minute is an error.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "waited for: {what}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Nothing runs, nothing waits, and every block is free.
pub(crate) fn assert_idle(engine: &Engine) {
    let blocks = engine.profile().kv_blocks as u64;
    wait_until("an idle engine with all blocks free", || {
        let stats = engine.stats();
        (
            stats.preparing,
            stats.running,
            stats.waiting,
            stats.free_blocks,
        ) == (0, 0, 0, blocks)
    });
}
