//! The promise of start-up profiling: no step takes more than was measured on dummy data, whatever
//! the requests. A load made to break it: items at their maximum and at extreme sizes, several to a
//! prompt and several sequences to a request, prompts as long as the context, all sequences at once,
//! in large steps and small ones, in a cache that is too small for them.
//!
//! The engine counts what the whole process allocates, so this runs alone in a process, and all
//! requests are prepared before the first one runs.

use super::Ran;
use crate::media::drawn;
use crate::report::{Piece, Problem};
use crate::subject::{ITEMS, Subject};
use kiln_engine::{
    CacheOptions, Engine, EngineOptions, LoadedModel, MediaInput, MemoryProfile, ModelOptions,
    Prepared, PromptInput, Request, SamplingParams,
};
use kiln_registry::{Error, MediaCounts, MediaItem, Result, WeightDType};
use std::time::{Duration, Instant};

/// New tokens of a request: enough to outgrow the blocks of its prompt.
const NEW: usize = 24;
/// Tokens that a sequence may have here.
const LONGEST: usize = 2048;
/// Tokens of a step and sequences that run.
const STEPS: [(usize, usize); 3] = [(512, 16), (40, 16), (7, 3)];
/// What is not the step's: now and then the thread pool takes a new block for its queue.
const BESIDE: usize = 4 << 10;
const PATIENCE: Duration = Duration::from_secs(300);

/// A request, and what it is in words.
struct Load {
    what: String,
    media: usize,
    request: Request,
}

pub(crate) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    for (tokens, sequences) in STEPS {
        match exceeded(subject, tokens, sequences) {
            Ok(None) => {}
            Ok(Some(problem)) => {
                problems.push(problem);
                break;
            }
            Err(Error::Unsupported(why)) => return Err(why),
            Err(error) => {
                problems.push(Problem::new(
                    Piece::Engine,
                    format!("in steps of {tokens} tokens: {error}"),
                    "run the other checks first: one of them says more",
                ));
                break;
            }
        }
    }
    Ok(())
}

/// Runs the load; where a step takes too much, each request alone says whose it is.
fn exceeded(subject: &Subject, tokens: usize, sequences: usize) -> Result<Option<Problem>> {
    let cache = CacheOptions {
        max_batched_tokens: tokens,
        max_num_seqs: sequences,
        block_size: 4,
        ..CacheOptions::default()
    };
    let profile = load(subject)?.profile(&cache)?;
    let Some(activations) = profile.activation_bytes else {
        return Err(Error::unsupported("the profile measures nothing here"));
    };
    // Two long sequences fit beside the other caches: the others come and go.
    let cache = CacheOptions {
        memory: Some(
            profile.weight_bytes
                + activations
                + activations / 8
                + 3 * LONGEST.min(profile.max_model_len) * profile.kv_bytes_per_token,
        ),
        ..cache
    };
    let loads = loads(subject)?;
    let all: Vec<&Load> = loads.iter().collect();
    let (profile, peak) = peak(subject, &cache, &all)?;
    let most = profile.activation_bytes.unwrap_or(0) + BESIDE;
    if peak <= most {
        return Ok(None);
    }
    let mut worst: Option<(usize, &Load)> = None;
    for load in &loads {
        let (_, alone) = self::peak(subject, &cache, &[load])?;
        // A text that takes too much says more than an item that does.
        let rank = |bytes: usize, load: &Load| (load.media == 0, bytes);
        if alone > most && worst.is_none_or(|(b, w)| rank(alone, load) > rank(b, w)) {
            worst = Some((alone, load));
        }
    }
    let measured = format!("the profile allows {most}, in steps of {tokens} tokens");
    Ok(Some(match worst {
        Some((bytes, load)) if load.media > 0 => Problem::new(
            Piece::Encoder,
            format!("{} takes {bytes} bytes in a step; {measured}", load.what),
            "let dummy data be the item that costs the encoder the most, and let `encode` allocate \
             by the number of rows alone",
        ),
        Some((bytes, load)) => Problem::new(
            Piece::Forward,
            format!("{} takes {bytes} bytes in a step; {measured}", load.what),
            "write the KV cache in place (a clone of a layer copies it), and allocate by the number \
             of tokens in the step alone",
        ),
        None => Problem::new(
            Piece::Forward,
            format!(
                "{} requests together take {peak} bytes in a step; {measured}",
                loads.len()
            ),
            "allocate by the number of tokens in the step alone, not by sequences times tokens",
        ),
    }))
}

fn load(subject: &Subject) -> Result<LoadedModel> {
    let limits = subject.entry.modalities();
    let limits = limits.fold(MediaCounts::new(), |limits, m| limits.with(m, ITEMS));
    let options = ModelOptions {
        dtype: WeightDType::F32,
        limit_mm_per_prompt: limits,
        max_model_len: Some(LONGEST.min(subject.context.max_model_len())),
        media_threads: 1,
        ..ModelOptions::default()
    };
    let registry = subject.registry.clone();
    LoadedModel::load(registry, &subject.checkpoint, &options, &|_, _| {})
}

/// The largest step of some requests that run at once, and what was profiled.
fn peak(
    subject: &Subject,
    cache: &CacheOptions,
    loads: &[&Load],
) -> Result<(MemoryProfile, usize)> {
    let options = EngineOptions {
        cache: *cache,
        max_queue: 4096,
        measure_steps: true,
        ..EngineOptions::default()
    };
    let engine = Engine::start(load(subject)?, &options)?;
    let prepared: Vec<(Prepared, SamplingParams)> = loads
        .iter()
        .map(|load| {
            let prepared = engine.pipeline().prepare(&load.request)?;
            Ok((prepared, load.request.sampling.clone()))
        })
        .collect::<Result<_>>()?;
    let wanted = prepared.len() as u64;
    let running = engine.generate_prepared(prepared)?;
    // Events wait in their channels: reading them now would be counted, too.
    let start = Instant::now();
    loop {
        let stats = engine.stats();
        if stats.finished + stats.failed >= wanted {
            break;
        }
        if start.elapsed() > PATIENCE {
            return Err(Error::internal(format!("requests do not end: {stats:?}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let peak = engine.stats().largest_step_bytes as usize;
    for event in running.into_iter().flatten() {
        event?;
    }
    Ok((*engine.profile(), peak))
}

/// Everything that may be large, and what is small beside it.
fn loads(subject: &Subject) -> Result<Vec<Load>> {
    let context = LONGEST.min(subject.context.max_model_len());
    let mut loads = vec![];
    let mut push = |what: String, n: usize, ids: Vec<u32>, items: Vec<MediaItem>| {
        let Ok(processed) = subject.process(ids.clone(), &items) else {
            return; // Refused: another check says whether rightly.
        };
        if processed.token_ids.len() + NEW > context {
            return;
        }
        loads.push(Load {
            what,
            media: items.len(),
            request: Request::new(
                PromptInput::Tokens(ids),
                items.into_iter().map(MediaInput::Item).collect(),
            )
            .sampling(SamplingParams {
                max_tokens: Some(NEW),
                ignore_eos: true,
                n,
                temperature: if n > 1 { 1.0 } else { 0.0 },
                seed: Some(1),
                ..SamplingParams::default()
            }),
        });
    };
    for seed in 0..4 {
        for tokens in [1, 9, context / 3, context.saturating_sub(NEW)] {
            let what = format!("a text of {tokens} tokens");
            push(
                what,
                1 + seed % 2,
                subject.words(seed, tokens.max(1)),
                vec![],
            );
        }
    }
    for modality in subject.entry.modalities() {
        let mut kinds = vec![];
        if let Ok((_, mut items)) = subject.dummy(modality, 1) {
            kinds.extend(items.pop().map(|item| ("dummy data".to_owned(), item)));
        }
        if let Some(draw) = drawn(modality) {
            for shape in draw.extremes(subject.configs()) {
                if let Ok(item) = draw.draw(&shape, 7) {
                    kinds.push((draw.name(&shape), item));
                }
            }
        }
        for (at, (what, item)) in kinds.iter().enumerate() {
            for count in 1..=ITEMS {
                let others = kinds.iter().cycle().skip(at + 1).take(count - 1);
                let items: Vec<_> = others
                    .map(|(_, other)| other)
                    .chain([item])
                    .cloned()
                    .collect();
                let what = match count {
                    1 => what.clone(),
                    _ => format!("a prompt of {count} items, the last {what},"),
                };
                push(what, count, subject.prompt(at, &items), items);
            }
        }
    }
    Ok(loads)
}
