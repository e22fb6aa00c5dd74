//! What holds of items of any modality: the model answers about them, otherwise of another one, and
//! keeps the placeholder law.

use super::{answer, checkpoint, load, model_options};
use kiln_engine::{
    CacheOptions, Engine, EngineOptions, MediaInput, PromptInput, Request, SamplingParams,
};
use kiln_registry::{MediaCounts, MediaItem};

fn about(token: &str, item: &MediaItem, max_tokens: usize) -> Request {
    let prompt = PromptInput::Text(format!("{token}\nWhat is this?"));
    let request = Request::new(prompt, vec![MediaInput::Item(item.clone())]);
    request.sampling(SamplingParams {
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..SamplingParams::default()
    })
}

/// `items`: different ones; an answer about the first is another than about the second.
pub(crate) fn check(modality: &str, token: &str, items: &[MediaItem]) {
    let folder = checkpoint::write(5);
    let loaded = load(folder.path());
    let most = loaded.pipeline().max_tokens()[modality];
    let rows = |item: &MediaItem| {
        let trace = load(folder.path()).trace(&about(token, item, 1), 1, true).unwrap();
        let [range] = &trace.placeholders[..] else {
            panic!("{} ranges of one item", trace.placeholders.len());
        };
        let rows = trace.features[0].shape()[0];
        assert_eq!(range.rows(), rows, "the input processor counts other rows than `encode` gives");
        rows
    };
    for item in items {
        assert!((1..=most).contains(&rows(item)));
    }
    let counts = MediaCounts::new().with(modality, 1);
    let (entry, context) = (*loaded.pipeline().entry(), loaded.pipeline().context());
    let dummy = entry.make_dummy_data(context, 256, &counts).unwrap();
    assert_eq!(rows(&dummy.items[0]), most, "dummy data does not reach the maximum");

    let options = EngineOptions {
        model: model_options(),
        cache: CacheOptions {
            kv_blocks: Some(128),
            ..CacheOptions::default()
        },
        ..EngineOptions::default()
    };
    let engine = Engine::load(folder.path(), &options).unwrap();
    let first = answer(&engine, about(token, &items[0], 12));
    assert_eq!(first.len(), 12);
    assert_eq!(answer(&engine, about(token, &items[0], 12)), first, "the same question again");
    assert_ne!(
        answer(&engine, about(token, &items[1], 12)),
        first,
        "another item changes nothing: do the encoder's rows depend on it?"
    );
}
