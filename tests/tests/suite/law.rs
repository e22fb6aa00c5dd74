//! The placeholder law for every linked model on every fixture checkpoint: positions of the
//! processor = rows of the encoder <= the declared maximum, which dummy data reaches.

use crate::support::{ask, checkpoint, checkpoints, greedy, item, load, model_options, pattern};
use kiln_engine::{MediaInput, PromptInput, Request};
use kiln_registry::{MediaCounts, MediaKind, Prompt, PromptInputs, Registry};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Sides from one pixel to longer than any tile, exact multiples and their neighbours.
const SIDES: [usize; 13] = [1, 2, 3, 7, 13, 27, 28, 29, 56, 85, 140, 333, 4000];
/// Pictures of one prompt: as many as the tests' limit.
const AT_ONCE: usize = 3;

fn sizes() -> Vec<(usize, usize)> {
    let all = SIDES.iter().flat_map(|w| SIDES.map(|h| (*w, h)));
    all.filter(|(w, h)| w * h <= 600_000).collect()
}

/// Checkpoints whose model takes pictures, by folder.
fn with_images() -> Vec<(String, PathBuf)> {
    let all = checkpoints()
        .into_iter()
        .map(|name| (name.clone(), checkpoint(&name)));
    all.filter(|(_, folder)| {
        let loaded = load(folder, &model_options()).unwrap();
        loaded.pipeline().entry().supports("image")
    })
    .collect()
}

#[test]
fn positions_are_rows_and_no_more_than_declared() {
    let mut wrong = vec![];
    let mut refused = BTreeSet::new();
    for (name, folder) in with_images() {
        for sizes in sizes().chunks(AT_ONCE) {
            let loaded = load(&folder, &model_options()).unwrap();
            let most = loaded.pipeline().max_tokens()["image"];
            let pictures = sizes.iter().map(|(w, h)| pattern(*w, *h, 3));
            let text = "<image>".repeat(sizes.len());
            match loaded.trace(&ask(&text, pictures, greedy(1)), 1, true) {
                Ok(trace) => {
                    for (at, range) in trace.placeholders.iter().enumerate() {
                        let rows = trace.features[at].shape()[0];
                        if range.rows() != rows || rows > most || rows == 0 {
                            wrong.push(format!(
                                "{name} {:?}: {} positions, {rows} rows, at most {most}",
                                sizes[at],
                                range.rows()
                            ));
                        }
                    }
                    assert_eq!(trace.placeholders.len(), sizes.len());
                }
                Err(error) if error.is_callers_fault() => {
                    refused.insert(format!("{name} {sizes:?}: {error}"));
                }
                Err(error) => wrong.push(format!("{name} {sizes:?}: {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        refused.is_empty(),
        "refused, though the encoder could: {refused:#?}"
    );
}

#[test]
fn dummy_data_reaches_the_maximum() {
    for (name, folder) in with_images() {
        let loaded = load(&folder, &model_options()).unwrap();
        let (entry, context) = (
            *loaded.pipeline().entry(),
            loaded.pipeline().context().clone(),
        );
        let most = entry.max_tokens(&context, "image").unwrap();
        assert_eq!(most, loaded.pipeline().max_tokens()["image"], "{name}");
        let counts = MediaCounts::new().with("image", 2);
        let dummy = entry.make_dummy_data(&context, 512, &counts).unwrap();
        assert_eq!(dummy.items.len(), 2, "{name}");
        assert!(
            dummy.items.iter().all(|item| item.kind() == MediaKind::Raw),
            "{name}"
        );
        let token_ids = match dummy.prompt {
            Prompt::Tokens(ids) => ids,
            Prompt::Text {
                text,
                add_special_tokens,
            } => context
                .tokenizer()
                .encode(&text, add_special_tokens)
                .unwrap(),
        };
        let inputs = PromptInputs {
            token_ids: token_ids.clone(),
            items: &dummy.items,
        };
        let processed = entry.process(&context, inputs).unwrap();
        let rows: Vec<_> = processed.placeholders.iter().map(|p| p.rows()).collect();
        assert_eq!(rows, [most; 2], "{name}");
        // Through the real mapper and the real encoder.
        let media = dummy.items.into_iter().map(MediaInput::Item).collect();
        let request = Request::new(PromptInput::Tokens(token_ids), media).sampling(greedy(1));
        let trace = loaded.trace(&request, 1, true).unwrap();
        let rows: Vec<_> = trace.features.iter().map(|f| f.shape()[0]).collect();
        assert_eq!(rows, [most; 2], "{name}");
    }
}

#[test]
fn a_text_model_has_no_modality() {
    let registry = Registry::collect().unwrap();
    let text: Vec<_> = registry
        .models()
        .iter()
        .filter(|m| m.modalities().count() == 0)
        .collect();
    let names: Vec<_> = text.iter().map(|entry| entry.crate_name()).collect();
    assert_eq!(names, ["kiln-text"]);
    let folder = checkpoint("text-llama");
    let loaded = load(&folder, &model_options()).unwrap();
    let (entry, context) = (loaded.pipeline().entry(), loaded.pipeline().context());
    assert!(loaded.pipeline().max_tokens().is_empty());
    assert!(entry.max_tokens(context, "image").is_err());
    let picture = [item(pattern(4, 4, 1))];
    let inputs = PromptInputs {
        token_ids: vec![5],
        items: &picture,
    };
    assert!(entry.process(context, inputs).is_err());
    assert!(
        entry
            .make_dummy_data(context, 9, &MediaCounts::new().with("image", 1))
            .is_err()
    );
    entry
        .make_dummy_data(context, 9, &MediaCounts::new())
        .unwrap();
}

#[test]
fn every_linked_model_has_a_fixture() {
    let registry = Registry::collect().unwrap();
    let mut seen = BTreeSet::new();
    for name in checkpoints() {
        let loaded = load(&checkpoint(&name), &model_options()).unwrap();
        seen.insert(loaded.pipeline().entry().crate_name());
    }
    let linked: BTreeSet<_> = registry.models().iter().map(|m| m.crate_name()).collect();
    assert_eq!(seen, linked);
}
