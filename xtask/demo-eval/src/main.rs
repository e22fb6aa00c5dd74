//! Exact-match accuracy of the built-in model, by kind of question, through the real engine:
//! pictures are drawn fresh, asked about by the chat template, and answered greedily.
//!
//! The counterpart of `xtask/python/eval_demo.py`, which asks transformers.

use anyhow::{Context, Result};
use clap::Parser;
use kiln_demo::{Kind, Question, SIDE, Scene, Split};
use kiln_engine::{
    Engine, EngineOptions, Generation, MediaInput, Message, PromptInput, Request, SamplingParams,
};
use kiln_llava as _;
use kiln_registry::{HostTensor, MediaItem, Quantization};
use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;

/// Answers that are awaited at a time: enough to fill the engine's steps.
const AHEAD: usize = 64;

/// Accuracy of the built-in model on fresh scenes.
#[derive(Parser)]
#[command(name = "cargo xtask demo-eval")]
struct Args {
    /// The checkpoint's folder.
    #[arg(long, default_value = "assets/kiln-demo")]
    model: PathBuf,
    /// Of the scenes: another seed, other scenes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Scenes.
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// Weights rounded as they are loaded: q8 or q4.
    #[arg(long, value_name = "KIND")]
    quantize: Option<Quantization>,
    /// Wrong answers to print.
    #[arg(long, default_value_t = 0)]
    show: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut options = EngineOptions::default();
    options.model.quantize = args.quantize;
    let engine = Engine::load(&args.model, &options)?;
    let mut tally = Tally::new(args.show);
    let mut awaited = VecDeque::new();
    for index in 0..args.count {
        let scene = Scene::generate(args.seed, index, Split::Eval);
        let side = SIDE as usize;
        let picture = HostTensor::u8([side, side, 3], scene.render())?;
        let item = MediaItem::raw("image", picture);
        for question in scene.questions() {
            if awaited.len() == AHEAD {
                tally.take(awaited.pop_front())?;
            }
            awaited.push_back((ask(&engine, &item, &question)?, question, index));
        }
    }
    while !awaited.is_empty() {
        tally.take(awaited.pop_front())?;
    }
    tally.print()
}

fn ask(engine: &Engine, item: &MediaItem, question: &Question) -> Result<Generation> {
    let message = Message::user(question.text.clone(), ["image"]);
    let media = vec![MediaInput::Item(item.clone())];
    let request = Request::new(PromptInput::Chat(vec![message]), media);
    Ok(engine.generate(request.sampling(SamplingParams {
        max_tokens: Some(80),
        ..SamplingParams::default()
    }))?)
}

/// Right and asked, by kind.
struct Tally {
    counts: [(usize, usize); Kind::ALL.len()],
    show: usize,
}

impl Tally {
    fn new(show: usize) -> Self {
        Self {
            counts: [(0, 0); Kind::ALL.len()],
            show,
        }
    }

    fn take(&mut self, awaited: Option<(Generation, Question, u64)>) -> Result<()> {
        let Some((generation, question, scene)) = awaited else {
            return Ok(());
        };
        let answer = generation
            .text()
            .with_context(|| format!("scene {scene}"))?;
        let right = answer.trim() == question.answer;
        for (kind, (good, asked)) in Kind::ALL.iter().zip(&mut self.counts) {
            if *kind == question.kind {
                *good += usize::from(right);
                *asked += 1;
            }
        }
        if !right && self.show > 0 {
            self.show -= 1;
            println!(
                "scene {scene}: {:?}: {:?}, not {:?}",
                question.text, answer, question.answer
            );
        }
        Ok(())
    }

    fn print(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let share = |good: usize, asked: usize| 100.0 * good as f64 / asked.max(1) as f64;
        let (mut all_good, mut all_asked) = (0, 0);
        for (kind, (good, asked)) in Kind::ALL.iter().zip(&self.counts) {
            writeln!(
                out,
                "{:10} {good:5} / {asked:5}  {:.1}%",
                kind.name(),
                share(*good, *asked)
            )?;
            all_good += good;
            all_asked += asked;
        }
        writeln!(out, "overall {:.1}%", share(all_good, all_asked))?;
        Ok(())
    }
}
