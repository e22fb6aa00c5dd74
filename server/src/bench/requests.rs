//! The requests that a benchmark makes, and what they take through the engine.

use super::{Run, median};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use kiln_engine::{Engine, Event, InputPipeline, MediaInput, PromptInput, Request, SamplingParams};
use kiln_registry::{MediaCounts, Prompt, Tokenizer};
use std::thread;
use std::time::{Duration, Instant};

/// Words whose tokens fill a prompt.
const TEXT: &str = "The quick brown fox jumps over the lazy dog while forty zebras graze nearby. ";

/// One kind of request.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    pub(crate) images: Vec<Bytes>,
    /// Beside those of the pictures.
    pub(crate) prompt_tokens: usize,
    pub(crate) output_tokens: usize,
}

impl Workload {
    /// A request: the pictures' placeholders, then text of exactly so many tokens. It answers with
    /// exactly as many tokens as it should.
    pub(crate) fn request(&self, pipeline: &InputPipeline) -> Result<Request> {
        let tokenizer = pipeline.tokenizer();
        let mut ids = vec![];
        if !self.images.is_empty() {
            // The model's own dummy data knows what stands for a picture.
            let counts = MediaCounts::new().with(kiln_image::MODALITY, self.images.len());
            let entry = pipeline.entry();
            ids = match entry
                .make_dummy_data(pipeline.context(), 1, &counts)?
                .prompt
            {
                Prompt::Tokens(ids) => ids,
                Prompt::Text { text, .. } => tokenizer.encode(&text, false)?,
            };
        }
        let words = tokenizer.encode(TEXT, false)?;
        if words.is_empty() {
            bail!("the tokenizer makes nothing of English text");
        }
        ids.extend(words.iter().cycle().take(self.prompt_tokens));
        let images = self.images.iter();
        let media = images.map(|bytes| MediaInput::bytes(kiln_image::MODALITY, bytes.clone()));
        let request = Request::new(PromptInput::Tokens(ids), media.collect());
        Ok(request.sampling(SamplingParams {
            max_tokens: Some(self.output_tokens),
            ignore_eos: true,
            ..SamplingParams::default()
        }))
    }
}

/// What one request took.
struct Taken {
    first: Duration,
    last: Duration,
    tokens: usize,
}

/// So many requests at once, `repeat` times over.
pub(crate) fn run_at_once(
    engine: &Engine,
    workload: &Workload,
    concurrency: usize,
    repeat: usize,
) -> Result<Run> {
    let request = workload.request(engine.pipeline())?;
    let (mut first, mut each, mut totals) = (vec![], vec![], vec![]);
    let mut tokens = 0;
    for _ in 0..repeat {
        let began = Instant::now();
        let taken: Vec<Result<Taken>> = thread::scope(|scope| {
            let one = || scope.spawn(|| follow(engine, request.clone(), began));
            let running: Vec<_> = (0..concurrency).map(|_| one()).collect();
            let end = running.into_iter().map(|run| run.join());
            end.map(|end| end.unwrap_or_else(|_| bail!("a request's thread panicked")))
                .collect()
        });
        totals.push(began.elapsed().as_secs_f64());
        tokens = 0;
        for taken in taken {
            let Taken {
                first: to_first,
                last,
                tokens: made,
            } = taken?;
            first.push(to_first.as_secs_f64());
            if made > 1 {
                each.push((last - to_first).as_secs_f64() / (made - 1) as f64);
            }
            tokens += made;
        }
    }
    let total = median(totals);
    Ok(Run {
        concurrency,
        time_to_first_token: median(first),
        time_per_output_token: median(each),
        total,
        output_tokens_per_second: tokens as f64 / total,
    })
}

fn follow(engine: &Engine, request: Request, began: Instant) -> Result<Taken> {
    let (mut first, mut last, mut tokens) = (None, Duration::ZERO, 0);
    for event in engine.generate(request)? {
        if let Event::Token { .. } = event? {
            last = began.elapsed();
            first.get_or_insert(last);
            tokens += 1;
        }
    }
    Ok(Taken {
        first: first.context("a request made no token")?,
        last,
        tokens,
    })
}
