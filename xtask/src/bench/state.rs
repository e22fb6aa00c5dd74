//! What was measured so far, in the working folder: all of it takes hours, and a run that was stopped
//! goes on where it was.

use super::{Args, contender::Measured, page};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// Figures of one machine and one build of Kiln.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    /// A hash of the binary.
    build: u64,
    pub(crate) machine: String,
    /// The commit that was checked out at the beginning.
    pub(crate) commit: String,
    /// When something was measured.
    pub(crate) days: BTreeSet<String>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) growth: Option<Value>,
    /// By the server's name, Kiln's first.
    pub(crate) servers: Vec<(String, Value)>,
}

/// One contender's figures in one round.
#[derive(Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) at: Place,
    pub(crate) measured: Measured,
    /// Of a rival: Kiln's at the same width, just before.
    pub(crate) beside: Option<Measured>,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) round: usize,
    pub(crate) shape: String,
    pub(crate) contender: String,
    pub(crate) concurrency: usize,
}

impl State {
    /// Nothing yet, or what an earlier run left where that is asked for.
    ///
    /// # Errors
    /// When there is no binary, and when what is left is of another one or of another machine.
    pub(crate) fn open(binary: &Path, args: &Args) -> Result<Self> {
        let bytes = fs::read(binary).with_context(|| binary.display().to_string())?;
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let new = Self {
            build: hasher.finish(),
            machine: page::machine(),
            commit: page::commit(),
            days: BTreeSet::new(),
            entries: vec![],
            growth: None,
            servers: vec![],
        };
        let file = file(args);
        if !args.resume || !file.exists() {
            return Ok(new);
        }
        let left = fs::read(&file).with_context(|| file.display().to_string())?;
        let left: Self =
            serde_json::from_slice(&left).with_context(|| file.display().to_string())?;
        if (left.build, &left.machine) != (new.build, &new.machine) {
            bail!(
                "{} is of another build of Kiln ({}) or of another machine ({}): nothing is compared across \
                 these; begin again without --resume",
                file.display(),
                left.commit,
                left.machine,
            );
        }
        Ok(left)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(crate) fn save(&mut self, args: &Args) -> Result<()> {
        self.days.insert(page::today());
        let file = file(args);
        // A run may be stopped at any time.
        let beside = file.with_extension("json.new");
        fs::write(&beside, serde_json::to_vec(self)?)
            .and_then(|()| fs::rename(&beside, &file))
            .with_context(|| file.display().to_string())
    }

    pub(crate) fn has(&self, at: &Place) -> bool {
        self.entries.iter().any(|entry| entry.at == *at)
    }

    /// A contender's entries, one of each round.
    pub(crate) fn of<'a, 'b>(
        &'a self,
        shape: &'b str,
        contender: &'b str,
        concurrency: usize,
    ) -> impl Iterator<Item = &'a Entry> + use<'a, 'b> {
        self.entries.iter().filter(move |Entry { at, .. }| {
            (at.shape.as_str(), at.contender.as_str(), at.concurrency)
                == (shape, contender, concurrency)
        })
    }
}

fn file(args: &Args) -> PathBuf {
    args.work.join("measured.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_run_goes_on_with_the_same_build_alone() {
        let work = std::env::temp_dir().join(format!("kiln-bench-{}", std::process::id()));
        fs::create_dir_all(&work).unwrap();
        let binary = work.join("kiln");
        fs::write(&binary, "one build").unwrap();
        let args = |flags: &[&str]| {
            let line = ["bench", "--work", work.to_str().unwrap()];
            Line::parse_from(line.iter().chain(flags)).args
        };
        let resumed = args(&["--resume"]);
        let at = || Place {
            round: 1,
            shape: "A".to_owned(),
            contender: "Kiln bf16".to_owned(),
            concurrency: 8,
        };
        let mut state = State::open(&binary, &resumed).unwrap();
        let run = r#"{"load": 1, "runs": [{"time_to_first_token": 0.25, "time_per_output_token": 0.1,
            "total": 2, "output_tokens_per_second": 9}]}"#;
        state.entries.push(Entry {
            at: at(),
            measured: Measured::parse(run).unwrap(),
            beside: None,
        });
        state.save(&resumed).unwrap();
        let left = State::open(&binary, &resumed).unwrap();
        assert!(left.has(&at()) && !left.days.is_empty());
        assert_eq!(left.of("A", "Kiln bf16", 8).count(), 1);
        assert_eq!(left.of("A", "Kiln bf16", 1).count(), 0);
        assert!(!State::open(&binary, &args(&[])).unwrap().has(&at()));
        fs::write(&binary, "another build").unwrap();
        assert!(State::open(&binary, &resumed).is_err());
        fs::remove_dir_all(&work).unwrap();
    }
}
