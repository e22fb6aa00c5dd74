//! The reference beside the checkpoint, where there is one: the form is told in [`crate::parity`].

use super::Ran;
use crate::parity::{compare, greedy_tokens};
use crate::report::{Piece, Problem};
use crate::subject::Subject;
use bytes::Bytes;
use kiln_engine::{LoadedModel, MediaInput, ModelOptions, PromptInput, Request, SamplingParams};
use kiln_registry::{Error, MediaCounts, Result, WeightDType};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const FOLDER: &str = "reference";
const MAKE: &str = "no folder `reference` in the checkpoint's folder or beside it: \
                    `xtask/python/fixtures.py --reference CHECKPOINT` makes one";

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    let inside = subject.folder.join(FOLDER);
    let beside = subject.folder.parent().map(|parent| parent.join(FOLDER));
    // A folder of this name that is beside by chance has no cases.
    let beside = beside.filter(|folder| !cases(folder).is_empty());
    let Some(folder) = Some(inside).filter(|f| f.is_dir()).or(beside) else {
        return Err(MAKE.to_owned());
    };
    let cases = cases(&folder);
    if cases.is_empty() {
        problems.push(broken(&folder, "has no NAME.json with a NAME.safetensors"));
    }
    for case in cases {
        match differs(subject, &folder, &case) {
            Ok(problem) => problems.extend(problem),
            Err(error) => problems.push(broken(&folder.join(case), &error.to_string())),
        }
    }
    Ok(())
}

fn broken(path: &Path, what: &str) -> Problem {
    Problem::new(
        Piece::Engine,
        format!("{}: {what}", path.display()),
        "write the reference in the form that kiln_conformance::parity tells",
    )
}

/// Names of the cases.
fn cases(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .filter(|path| path.with_extension("safetensors").is_file())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

/// The first tensor of a case that differs; those behind it follow from it.
fn differs(subject: &Subject, folder: &Path, case: &str) -> Result<Option<Problem>> {
    let json = read(folder.join(format!("{case}.json")))?;
    let json: Value = serde_json::from_slice(&json).map_err(|e| Error::checkpoint(case, e))?;
    let bytes = read(folder.join(format!("{case}.safetensors")))?;
    let expected = SafeTensors::deserialize(&bytes).map_err(|e| Error::checkpoint(case, e))?;
    let request = request(folder, &json)?;
    let loaded = load(subject, &request)?;
    let context = loaded.pipeline().context().clone();
    let trace = loaded.trace(&request, greedy_tokens(&expected)?, true)?;
    let found = compare(&trace, &context, &expected)?;
    Ok(found.first().map(|first| {
        let behind = match found.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} tensor(s) behind it)"),
        };
        Problem::new(
            first.piece,
            format!("{case}: {first}{behind}"),
            "compare this piece with the reference's: what comes before it is equal",
        )
    }))
}

fn request(folder: &Path, json: &Value) -> Result<Request> {
    let text = |value: &Value, key: &str| match value[key].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::checkpoint(key, "must be a text")),
    };
    let media = json["media"].as_array().into_iter().flatten().map(|item| {
        let bytes = Bytes::from(read(folder.join(text(item, "file")?))?);
        Ok(MediaInput::bytes(text(item, "modality")?, bytes))
    });
    let prompt = PromptInput::Text(text(json, "prompt")?);
    let request = Request::new(prompt, media.collect::<Result<_>>()?);
    Ok(request.sampling(SamplingParams {
        ignore_eos: true,
        ..SamplingParams::default()
    }))
}

fn read(path: PathBuf) -> Result<Vec<u8>> {
    fs::read(&path).map_err(|error| Error::checkpoint(path.display().to_string(), error))
}

fn load(subject: &Subject, request: &Request) -> Result<LoadedModel> {
    let limits = subject.entry.modalities();
    let limits = limits.fold(MediaCounts::new(), |limits, m| {
        limits.with(m, request.media.len().max(1))
    });
    let options = ModelOptions {
        dtype: WeightDType::F32,
        limit_mm_per_prompt: limits,
        media_threads: 1,
        ..ModelOptions::default()
    };
    let registry = subject.registry.clone();
    LoadedModel::load(registry, &subject.checkpoint, &options, &|_, _| {})
}
