//! `kiln batch`: a file of requests in OpenAI's batch format, answered by an engine in this process.
//!
//! A request goes the way that one over HTTP goes, from the same parser to the same answer. What
//! fails is an answer as well. Answers are appended as they come, each a whole line: a run that was
//! ended in the midst goes on where it stopped, because what is answered already is not asked again.

mod input;
mod output;
mod reply;

use crate::builtin;
use crate::cli::{CacheArgs, LoadArgs};
use crate::fetch::Fetcher;
use crate::load::{checkpoint, load};
use crate::openai::Api;
use crate::serve::{MediaArgs, name_of};
use anyhow::{Context, Result, ensure};
use clap::Args;
use futures_util::stream::{self, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use input::Input;
use kiln_engine::{Engine, EngineOptions};
use kiln_registry::MediaCounts;
use output::Output;
use reply::Counted;
use std::path::PathBuf;
use std::time::Instant;

/// What `kiln batch` takes on the command line.
#[derive(Args)]
pub(crate) struct BatchArgs {
    /// Requests, one a line: {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}.
    #[arg(value_name = "IN.jsonl")]
    input: PathBuf,
    /// Answers, in the order in which they come; lines that are there already are kept, and what they
    /// answer is not asked again.
    #[arg(value_name = "OUT.jsonl")]
    output: PathBuf,
    /// Folder of a checkpoint, a repository of the Hugging Face Hub (org/name), or `builtin`.
    #[arg(long, default_value = builtin::NAME, value_name = "MODEL")]
    model: PathBuf,
    /// What the requests call the model; may be repeated [default: the folder's name].
    #[arg(long, value_name = "NAME")]
    served_model_name: Vec<String>,
    /// Requests at a time.
    #[arg(long, default_value_t = 32, value_name = "N")]
    concurrency: usize,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Answers everything that is not answered yet.
///
/// # Errors
/// When a file can't be read or written, or the model can't be loaded. A request that fails is none.
pub(crate) fn batch(args: &BatchArgs) -> Result<()> {
    ensure!(
        args.concurrency > 0,
        "--concurrency is 0: at least one must be asked"
    );
    // Before the model is loaded: it takes longer.
    let lines = input::count(&args.input)?;
    let mut output = Output::open(&args.output)?;
    let api = api(args)?;
    let bar = bar(lines);
    let began = Instant::now();
    let mut tally = Counted::default();
    let answered = output.take_answered();
    let mut input = Input::open(&args.input, answered)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let requests = std::iter::from_fn(|| input.next().transpose());
        let mut replies = stream::iter(requests)
            .map(|line| reply::reply(&api, line))
            .buffer_unordered(args.concurrency);
        while let Some(reply) = replies.next().await {
            let (line, counted) = reply?;
            output.append(&line)?;
            tally += counted;
            bar.set_position(tally.lines() + output.before());
        }
        anyhow::Ok(())
    })?;
    output.sync()?;
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("{}", tally.words(input.skipped(), seconds));
    Ok(())
}

fn api(args: &BatchArgs) -> Result<Api> {
    let mut model = args.load.options(&MediaCounts::new())?;
    model.enable_mm_embeds = args.media.enable_mm_embeds;
    let options = EngineOptions {
        // --concurrency is the bound: a request that is refused now would not come again.
        max_queue: usize::MAX,
        max_queue_tokens: usize::MAX,
        media_queue: usize::MAX,
        // Nobody watches tokens come: what counts is the time of all.
        max_itl_ratio: None,
        ..args.cache.engine(model)
    };
    let loaded = load(&checkpoint(&args.model)?, &options.model)?;
    let engine = Engine::start(loaded, &options)?;
    let names = match args.served_model_name.as_slice() {
        [] => vec![name_of(&args.model)],
        names => names.to_vec(),
    };
    Api::new(engine, Fetcher::new(args.media.fetch()), names, None).context("the model's name")
}

fn bar(lines: u64) -> ProgressBar {
    // Hidden by itself where standard error is no terminal.
    let bar = ProgressBar::new(lines);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec} {eta}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}
