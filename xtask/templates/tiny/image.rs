//! kiln-model on a tiny checkpoint with random weights: it loads, answers about a picture, and
//! keeps the placeholder law.
//! A second one, written by the reference, says what must come out.

// A crate that nothing names is not linked.
use kiln_model as _;

mod checkpoint;

use kiln_engine::{
    CacheOptions, Checkpoint, Engine, EngineOptions, Event, LoadedModel, MediaInput, ModelOptions,
    PromptInput, Request, SamplingParams,
};
use kiln_registry::{HostTensor, MediaCounts, MediaItem, Registry, WeightDType};
use std::path::Path;
use std::sync::Arc;

fn model_options() -> ModelOptions {
    ModelOptions {
        dtype: WeightDType::F32,
        limit_mm_per_prompt: MediaCounts::new().with("image", 2),
        media_threads: 1,
        ..ModelOptions::default()
    }
}

fn load(folder: &Path) -> LoadedModel {
    let registry = Arc::new(Registry::collect().unwrap());
    let checkpoint = Checkpoint::open(folder).unwrap();
    LoadedModel::load(registry, &checkpoint, &model_options(), &|_, _| {}).unwrap()
}

/// A picture that is another one for each size and seed.
fn picture(width: usize, height: usize, seed: usize) -> MediaItem {
    let pixels = (0..width * height * 3).map(|at| (at * 31 + at / 7 * seed + seed * 53) as u8);
    let tensor = HostTensor::u8([height, width, 3], pixels.collect()).unwrap();
    MediaItem::raw("image", tensor)
}

fn ask(pictures: Vec<MediaItem>, max_tokens: usize) -> Request {
    let marks = "<image>\n".repeat(pictures.len());
    let prompt = PromptInput::Text(format!("{marks}What is this?"));
    let media = pictures.into_iter().map(MediaInput::Item).collect();
    Request::new(prompt, media).sampling(SamplingParams {
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..SamplingParams::default()
    })
}

/// Tokens and the bits of their logprobs: an untrained model may say the same of everything, but
/// not with the same numbers.
fn answer(engine: &Engine, request: Request) -> Vec<(u32, u32)> {
    let events = engine.generate(request).unwrap();
    let tokens = events.filter_map(|event| match event.unwrap() {
        Event::Token { token, .. } => Some((token.id, token.logprob.to_bits())),
        _ => None,
    });
    tokens.collect()
}

#[test]
fn it_answers_about_a_picture() {
    let folder = checkpoint::write(1);
    let options = EngineOptions {
        model: model_options(),
        cache: CacheOptions {
            kv_blocks: Some(128),
            ..CacheOptions::default()
        },
        ..EngineOptions::default()
    };
    let engine = Engine::load(folder.path(), &options).unwrap();
    let about = |seed| answer(&engine, ask(vec![picture(40, 30, seed)], 12));
    let first = about(1);
    assert_eq!(first.len(), 12);
    assert_eq!(about(1), first, "the same question again");
    assert_ne!(
        about(2),
        first,
        "another picture changes nothing: do the encoder's rows depend on it?"
    );
}

#[test]
fn positions_are_rows_and_no_more_than_declared() {
    let folder = checkpoint::write(2);
    for (width, height) in [(1, 1), (1, 90), (300, 7), (28, 28), (29, 57), (200, 133)] {
        let loaded = load(folder.path());
        let most = loaded.pipeline().max_tokens()["image"];
        let pictures = vec![picture(width, height, 1), picture(height, width, 2)];
        let trace = loaded.trace(&ask(pictures, 1), 1, true).unwrap();
        assert_eq!(trace.placeholders.len(), 2);
        for (range, rows) in trace.placeholders.iter().zip(&trace.features) {
            let (positions, rows) = (range.rows(), rows.shape()[0]);
            assert_eq!(
                positions, rows,
                "{width}x{height}: the input processor counts other rows than `encode` gives"
            );
            assert!(
                rows <= most,
                "{width}x{height}: {rows} rows, declared {most}"
            );
        }
    }
}

#[test]
fn dummy_data_reaches_the_maximum() {
    let folder = checkpoint::write(3);
    let loaded = load(folder.path());
    let (entry, context) = (*loaded.pipeline().entry(), loaded.pipeline().context());
    let counts = MediaCounts::new().with("image", 1);
    let dummy = entry.make_dummy_data(context, 256, &counts).unwrap();
    let most = loaded.pipeline().max_tokens()["image"];
    let request = ask(dummy.items, 1);
    let trace = loaded.trace(&request, 1, true).unwrap();
    let rows: Vec<_> = trace.features.iter().map(|f| f.shape()[0]).collect();
    assert_eq!(rows, [most]);
}

// Everything that the contract asks for: each finding names the piece at fault and the mend.
kiln_conformance::conforms!(kit, checkpoint::write(4));

/// `tests/parity.py` writes the checkpoint and what the reference computes from it.
#[test]
fn it_equals_the_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let suite = kiln_conformance::Suite::linked(folder);
    let report = suite.unwrap_or_else(|error| panic!("{error}")).run();
    report.assert_clean();
    assert!(report.passed.contains(&"parity"), "{report}");
}
