//! The pieces together: the engine loads the checkpoint, runs requests as text and as ids, alone
//! and together, in large steps and small ones, and each has the same bits.

use super::Ran;
use crate::report::{Piece, Problem};
use crate::subject::{ITEMS, Subject};
use kiln_engine::{
    CacheOptions, Engine, EngineOptions, Event, Generation, LoadedModel, MediaInput, ModelOptions,
    PromptInput, Request, SamplingParams,
};
use kiln_registry::{Error, MediaCounts, Result, WeightDType};

/// New tokens of a request.
const NEW: usize = 4;
const BLOCK: usize = 4;

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    let found = runs(subject, problems);
    if let Err(error) = found {
        problems.push(Problem::new(
            Piece::Engine,
            error,
            "the checks before this one found nothing: look at what the message names",
        ));
    }
    Ok(())
}

fn runs(subject: &Subject, problems: &mut Vec<Problem>) -> Result<()> {
    let requests = requests(subject)?;
    let calm = start(subject, CacheOptions::default().max_batched_tokens)?;
    let alone: Vec<_> = requests
        .iter()
        .map(|request| finish(calm.generate(request.clone())?))
        .collect::<Result<_>>()?;
    for (engine, what) in [
        (calm, "together"),
        (start(subject, 5)?, "in steps of 5 tokens"),
    ] {
        let running = requests.iter().map(|r| engine.generate(r.clone()));
        let running: Vec<_> = running.collect::<Result<_>>()?;
        for (at, generation) in running.into_iter().enumerate() {
            if finish(generation)? != alone[at] {
                problems.push(Problem::new(
                    Piece::Forward,
                    format!("request {at} {what} has other tokens or logprobs than alone"),
                    "see the checks `batch` and `chunks`",
                ));
            }
        }
        forms(subject, &engine, problems)?;
    }
    Ok(())
}

fn start(subject: &Subject, max_batched_tokens: usize) -> Result<Engine> {
    let limits = subject.entry.modalities();
    let limits = limits.fold(MediaCounts::new(), |limits, m| limits.with(m, ITEMS));
    let options = EngineOptions {
        model: ModelOptions {
            dtype: WeightDType::F32,
            limit_mm_per_prompt: limits,
            media_threads: 1,
            ..ModelOptions::default()
        },
        cache: CacheOptions {
            max_batched_tokens,
            block_size: BLOCK,
            kv_blocks: Some((subject.context.max_model_len().min(1024) * 4).div_ceil(BLOCK)),
            ..CacheOptions::default()
        },
        ..EngineOptions::default()
    };
    let registry = subject.registry.clone();
    let loaded = LoadedModel::load(registry, &subject.checkpoint, &options.model, &|_, _| {})?;
    Engine::start(loaded, &options)
}

/// Texts and prompts with items that the context has room for.
fn requests(subject: &Subject) -> Result<Vec<Request>> {
    let mut requests = vec![];
    for seed in 0..4 {
        let items = match seed {
            0 => vec![],
            _ => subject.items(seed).unwrap_or_default(),
        };
        let ids = subject.prompt(seed as usize, &items);
        let processed = subject.process(ids.clone(), &items).map_err(|f| f.error)?;
        if processed.token_ids.len() + NEW <= subject.context.max_model_len() {
            let media = items.into_iter().map(MediaInput::Item).collect();
            let request = Request::new(PromptInput::Tokens(ids), media);
            requests.push(request.sampling(SamplingParams {
                max_tokens: Some(NEW),
                ignore_eos: true,
                ..SamplingParams::default()
            }));
        }
    }
    Ok(requests)
}

/// A prompt as text is the prompt as ids, once and twice; and one item too many is refused.
fn forms(subject: &Subject, engine: &Engine, problems: &mut Vec<Problem>) -> Result<()> {
    let tokenizer = subject.context.tokenizer();
    for (modality, id) in &subject.placeholders {
        let items = subject.items(1).unwrap_or_default();
        let item = items.into_iter().find(|i| i.modality() == modality);
        let (Some(token), Some(item)) = (tokenizer.id_to_token(*id), item) else {
            continue;
        };
        let text = format!("One {token} two");
        let ids = tokenizer.encode(&text, false)?;
        let ask = |prompt: PromptInput, items: usize| {
            let media = vec![MediaInput::Item(item.clone()); items];
            Request::new(prompt, media).sampling(SamplingParams {
                max_tokens: Some(1),
                ..SamplingParams::default()
            })
        };
        let mut forms = vec![];
        for prompt in [PromptInput::Text(text), PromptInput::Tokens(ids)] {
            for _ in 0..2 {
                let prepared = engine.pipeline().prepare(&ask(prompt.clone(), 1))?;
                forms.push(format!("{prepared:?}"));
            }
        }
        if forms.iter().any(|form| *form != forms[0]) {
            problems.push(Problem::new(
                Piece::Processor,
                format!("a prompt with an {modality} item differs as text and as ids"),
                "work on ids alone, and keep nothing between calls",
            ));
        }
        let many = ask(PromptInput::Tokens(vec![*id; ITEMS + 1]), ITEMS + 1);
        match engine.pipeline().prepare(&many) {
            Err(Error::TooManyItems { .. }) => {}
            other => problems.push(Problem::new(
                Piece::Registration,
                format!(
                    "more {modality} items than the limit: {:?}",
                    other.map(|_| "accepted")
                ),
                "leave limits to the engine",
            )),
        }
    }
    Ok(())
}

/// Tokens and the bits of their logprobs, to the end.
fn finish(generation: Generation) -> Result<Vec<(u32, u32)>> {
    let mut tokens = vec![];
    for event in generation {
        if let Event::Token { token, .. } = event? {
            tokens.push((token.id, token.logprob.to_bits()));
        }
    }
    Ok(tokens)
}
