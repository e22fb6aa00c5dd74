//! What narrower weights or arithmetic cost, through the real engine: perplexity on a text, or the
//! built-in model's answers about fresh scenes; each variant beside the first one, by the mean
//! Kullback-Leibler divergence of its next-token distribution and by how often the two agree on the
//! likeliest token.

mod passages;
mod score;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use kiln_engine::{Checkpoint, LoadedModel, ModelOptions, Stages};
use kiln_llava as _;
use kiln_llava_next as _;
use kiln_registry::{Quantization, Registry, WeightDType};
use kiln_text as _;
use passages::Passage;
use score::Score;
use std::path::PathBuf;
use std::sync::Arc;

/// Perplexity and divergence of variants of a checkpoint.
#[derive(Parser)]
#[command(name = "cargo xtask quality")]
struct Args {
    /// The checkpoint's folder.
    model: PathBuf,
    /// The text; without it, the answers about scenes that the built-in model was made for.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of the text that are read at a time, each from a fresh context.
    #[arg(long, default_value_t = 512, value_name = "N")]
    window: usize,
    /// Scenes, where there is no text.
    #[arg(long, default_value_t = 50, value_name = "N")]
    scenes: u64,
    /// What to compare: f32, bf16, f16, q8, q4. The first is what the others are measured against.
    #[arg(long, value_delimiter = ',', default_value = "bf16,q8,q4")]
    variants: Vec<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.window > 1, "a window needs two tokens at least");
    let mut variants = args
        .variants
        .iter()
        .map(|name| Ok((name, load(&args, name)?, Score::default())))
        .collect::<Result<Vec<_>>>()?;
    let (_, first, _) = variants.first().context("no variant is named")?;
    let passages = match &args.text {
        Some(file) => passages::of_text(first.pipeline(), file, args.window)?,
        None => passages::of_scenes(first.pipeline(), args.scenes)?,
    };
    for passage in passages {
        let Passage { prepared, from } = passage?;
        let tokens = prepared.token_ids.clone();
        let mut reference = None;
        for (_, stages, score) in &mut variants {
            let logits = stages.logits(prepared.clone())?;
            score.add(
                &tokens,
                from,
                &logits,
                reference.as_deref().unwrap_or(&logits),
            );
            reference.get_or_insert(logits);
        }
    }
    println!(
        "{:<8}{:>12}{:>12}{:>16}{:>12}{:>10}",
        "weights", "perplexity", "rise", "mean KL, nats", "agreement", "tokens"
    );
    let base = variants[0].2.perplexity();
    for (name, _, score) in &variants {
        println!(
            "{name:<8}{:>12.4}{:>11.2}%{:>16.6}{:>11.2}%{:>10}",
            score.perplexity(),
            100.0 * (score.perplexity() / base - 1.0),
            score.divergence(),
            100.0 * score.agreement(),
            score.tokens(),
        );
    }
    Ok(())
}

fn load(args: &Args, variant: &str) -> Result<Stages> {
    let (dtype, quantize) = match variant.parse::<Quantization>() {
        Ok(quantize) => (WeightDType::Auto, Some(quantize)),
        Err(_) => (variant.parse::<WeightDType>()?, None),
    };
    let options = ModelOptions {
        dtype,
        quantize,
        ..ModelOptions::default()
    };
    let registry = Arc::new(Registry::collect()?);
    let checkpoint = Checkpoint::open(&args.model)?;
    let loaded = LoadedModel::load(registry, &checkpoint, &options, &|_, _| {})?;
    let positions = match &args.text {
        Some(_) => args.window,
        None => loaded.pipeline().context().max_model_len(),
    };
    Ok(loaded.stages(positions, 512)?)
}
