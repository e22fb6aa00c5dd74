//! Requests, line by line: the file may be larger than memory.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Paths that a line may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
}

/// A line.
#[derive(Debug)]
pub(super) enum Line {
    Request {
        custom_id: String,
        endpoint: Endpoint,
        body: Value,
    },
    /// What is no request, and why; the identity is known where the line has one of its own.
    Bad {
        custom_id: Option<String>,
        code: &'static str,
        message: String,
    },
}

#[derive(Deserialize)]
struct Fields {
    custom_id: String,
    method: String,
    url: String,
    body: Value,
}

/// Lines that hold something.
///
/// # Errors
/// When the file can't be read.
pub(super) fn count(path: &Path) -> Result<u64> {
    let mut count = 0;
    for line in lines(path)? {
        count += u64::from(!line?.trim_ascii().is_empty());
    }
    Ok(count)
}

/// All lines in turn that are not answered yet.
pub(super) struct Input {
    lines: Box<dyn Iterator<Item = Result<Vec<u8>>>>,
    /// Identities, and messages of lines without one.
    answered: HashSet<String>,
    seen: HashSet<String>,
    number: u64,
    skipped: u64,
}

impl Input {
    pub(super) fn open(path: &Path, answered: HashSet<String>) -> Result<Self> {
        Ok(Self {
            lines: Box::new(lines(path)?),
            answered,
            seen: HashSet::new(),
            number: 0,
            skipped: 0,
        })
    }

    /// Lines that were answered before.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The next line to answer; `None` at the end.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(super) fn next(&mut self) -> Result<Option<Line>> {
        for line in self.lines.by_ref() {
            let line = line?;
            self.number += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let line = parse(&line, self.number, &mut self.seen);
            let is_answered = match &line {
                Line::Request { custom_id, .. } => self.answered.contains(custom_id),
                Line::Bad {
                    custom_id: Some(id),
                    ..
                } => self.answered.contains(id),
                Line::Bad { message, .. } => self.answered.contains(message),
            };
            if !is_answered {
                return Ok(Some(line));
            }
            self.skipped += 1;
        }
        Ok(None)
    }
}

fn lines(path: &Path) -> Result<impl Iterator<Item = Result<Vec<u8>>> + use<>> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("can't read {name}"))?;
    let lines = BufReader::new(file).split(b'\n');
    Ok(lines.map(move |line| line.with_context(|| format!("can't read {name}"))))
}

fn parse(line: &[u8], number: u64, seen: &mut HashSet<String>) -> Line {
    let bad = |custom_id, code, what: String| Line::Bad {
        custom_id,
        code,
        message: format!("line {number}: {what}"),
    };
    let fields: Fields = match serde_json::from_slice(line) {
        Ok(fields) => fields,
        Err(error) => return bad(None, "invalid_line", error.to_string()),
    };
    if !seen.insert(fields.custom_id.clone()) {
        let what = format!("custom_id {} is there already", fields.custom_id);
        return bad(None, "duplicate_custom_id", what);
    }
    let id = Some(fields.custom_id.clone());
    if !fields.method.eq_ignore_ascii_case("POST") {
        let what = format!("the method is {}, not POST", fields.method);
        return bad(id, "invalid_method", what);
    }
    let endpoint = match fields.url.as_str() {
        "/v1/chat/completions" => Endpoint::Chat,
        "/v1/completions" => Endpoint::Completions,
        other => {
            let what = format!("the url is {other}: /v1/chat/completions or /v1/completions");
            return bad(id, "invalid_url", what);
        }
    };
    Line::Request {
        custom_id: fields.custom_id,
        endpoint,
        body: fields.body,
    }
}
