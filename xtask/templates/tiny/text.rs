//! kiln-model on a tiny checkpoint with random weights: it loads and answers.
//! A second one, written by the reference, says what must come out.

// A crate that nothing names is not linked.
use kiln_model as _;

mod checkpoint;

use kiln_engine::{
    CacheOptions, Engine, EngineOptions, Event, ModelOptions, PromptInput, Request, SamplingParams,
};
use kiln_registry::WeightDType;

fn answer(engine: &Engine, prompt: &str) -> Vec<(u32, u32)> {
    let request = Request::new(PromptInput::Text(prompt.to_owned()), vec![]);
    let request = request.sampling(SamplingParams {
        max_tokens: Some(12),
        ignore_eos: true,
        ..SamplingParams::default()
    });
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

// Everything that the contract asks for: each finding names the piece at fault and the mend.
kiln_conformance::conforms!(kit, checkpoint::write(4));

/// `tests/parity.py` writes the checkpoint and what the reference computes from it.
#[test]
fn it_equals_the_reference() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let suite = kiln_conformance::Suite::linked(folder);
    let report = suite.unwrap_or_else(|error| panic!("{error}")).run();
    report.assert_clean();
    assert!(report.passed.contains(&"parity"), "{report}");
}
