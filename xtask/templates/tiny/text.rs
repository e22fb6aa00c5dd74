//! kiln-model on a tiny checkpoint with random weights: it loads and answers.
//!
//! Parity with the reference belongs beside it: trace a real checkpoint with `kiln trace`, compare
//! with the reference's tensors.

// A crate that nothing names is not linked.
use kiln_model as _;

mod checkpoint;

use kiln_engine::{
    CacheOptions, Engine, EngineOptions, Event, ModelOptions, PromptInput, Request, SamplingParams,
};
use kiln_registry::WeightDType;

fn answer(engine: &Engine, prompt: &str) -> Vec<(u32, u32)> {
    let request = Request {
        prompt: PromptInput::Text(prompt.to_owned()),
        media: vec![],
        sampling: SamplingParams {
            max_tokens: Some(12),
            ignore_eos: true,
            ..SamplingParams::default()
        },
    };
    let events = engine.generate(request).unwrap();
    let tokens = events.filter_map(|event| match event.unwrap() {
        Event::Token { token, .. } => Some((token.id, token.logprob.to_bits())),
        _ => None,
    });
    tokens.collect()
}

#[test]
fn it_answers() {
    let folder = checkpoint::write(1);
    let options = EngineOptions {
        model: ModelOptions {
            dtype: WeightDType::F32,
            ..ModelOptions::default()
        },
        cache: CacheOptions {
            kv_blocks: Some(128),
            ..CacheOptions::default()
        },
        ..EngineOptions::default()
    };
    let engine = Engine::load(folder.path(), &options).unwrap();
    let first = answer(&engine, "Once upon a time");
    assert_eq!(first.len(), 12);
    assert_eq!(answer(&engine, "Once upon a time"), first, "bits");
    assert_ne!(
        answer(&engine, "In another country"),
        first,
        "no prompt changes the answer"
    );
}
