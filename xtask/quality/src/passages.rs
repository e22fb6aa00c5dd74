//! What is read: windows of a text, or questions about scenes with their right answers.

use anyhow::{Context, Result};
use kiln_demo::{SIDE, Scene, Split};
use kiln_engine::{InputPipeline, MediaInput, Message, Prepared, PromptInput, Request};
use kiln_registry::{HostTensor, MediaItem, Tokenizer};
use std::fs;
use std::path::Path;

/// Tokens of which those from `from` on are predicted.
pub(crate) struct Passage {
    pub(crate) prepared: Prepared,
    pub(crate) from: usize,
}

fn request(prompt: PromptInput, media: Vec<MediaInput>) -> Request {
    Request::new(prompt, media)
}

/// A text in windows; what is left of the last one is left out.
pub(crate) fn of_text(
    pipeline: &InputPipeline,
    file: &Path,
    window: usize,
) -> Result<Vec<Result<Passage>>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let tokens = pipeline.tokenizer().encode(&text, false)?;
    let windows = tokens.chunks_exact(window);
    Ok(windows
        .map(|window| {
            let prompt = PromptInput::Tokens(window.to_vec());
            let prepared = pipeline.prepare(&request(prompt, vec![]))?;
            Ok(Passage { prepared, from: 1 })
        })
        .collect())
}

/// Every question about fresh scenes, its answer behind it.
pub(crate) fn of_scenes(pipeline: &InputPipeline, count: u64) -> Result<Vec<Result<Passage>>> {
    let mut passages = vec![];
    for index in 0..count {
        let scene = Scene::generate(1, index, Split::Eval);
        let side = SIDE as usize;
        let picture = HostTensor::u8([side, side, 3], scene.render())?;
        let item = MediaItem::raw("image", picture);
        for question in scene.questions() {
            let message = Message::user(question.text.clone(), ["image"]);
            let media = vec![MediaInput::Item(item.clone())];
            let request = request(PromptInput::Chat(vec![message]), media);
            let mut prepared = pipeline.prepare(&request)?;
            let from = prepared.token_ids.len();
            let answer = pipeline.tokenizer().encode(&question.answer, false)?;
            prepared.token_ids.extend(answer);
            passages.push(Ok(Passage { prepared, from }));
        }
    }
    Ok(passages)
}
