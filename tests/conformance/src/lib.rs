//! The conformance kit: does a model crate keep the contract of `kiln-registry`?
//!
//! It takes a registration and a tiny checkpoint with random weights, drives the model as the
//! engine does, and answers with [`Finding`]s: which check failed, which piece of the crate is at
//! fault, and the mend. It trusts nothing that the entry says about itself, since a crate under
//! development is wrong somewhere; a panic is a finding like any other.
//!
//! One line in a model crate's tests:
//!
//! ```no_run
//! # mod my_model { pub struct Model; }
//! use my_model as _; // a crate that nothing names is not linked
//! kiln_conformance::conforms!("tests/checkpoint");
//! ```
//!
//! # What is checked
//! - `registration`: the registry's own rules, limits, defaults, and what the loaded model says of
//!   itself.
//! - `law`: positions of the input processor = rows of the encoder, for each item: over a sweep of
//!   sizes, file modes and item counts, and as a property of drawn prompts, made smaller where it
//!   fails.
//! - `maximum`: nothing takes more rows than declared, over a dense sweep of shapes through the input
//!   processor alone and a coarse one through the encoder; and dummy data reaches it.
//! - `repeat`: a prompt as text and as ids, a call once and twice: equal.
//! - `identity`: another item is another one to decoder, hash, mapper, encoder and logits; the same
//!   bytes in another shape, type, name, mode or with other processor arguments share no hash.
//! - `placeholders`: fewer, more and typed placeholders are the caller's errors.
//! - `batch`: a request has the same bits alone, mixed and permuted, and an item whole and in pieces;
//!   neighbours are not seen.
//! - `chunks`: the same bits wherever a prompt is cut, inside an item too.
//! - `weights`: missing, surplus, misshapen and mistyped tensors are errors that name the tensor;
//!   a NaN is not hidden.
//! - `engine`: the whole engine starts with it and gives the same bits however it batches.
//! - `parity`: the numbers of a reference, where one lies beside the checkpoint ([`parity`] tells its
//!   form); the first tensor that differs names the piece.
//! - `memory`, in a process of its own, because the counting allocator sees the whole process: no
//!   step of an adversarial load takes more than start-up profiling measured.
//!
//! Bits are compared on the CPU, where the operators of `kiln-nn` promise them. Pictures are drawn;
//! of a modality that the kit can't draw it sees dummy data.

mod alone;
mod checks;
mod drive;
mod fault;
mod media;
pub mod parity;
mod report;
mod subject;
mod sweep;

pub use alone::alone;
pub use report::{Finding, Piece, Report, Skipped};

use kiln_registry::{Registry, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use subject::Subject;

/// The kit over one checkpoint.
#[derive(Debug, Clone)]
pub struct Suite {
    registry: Arc<Registry>,
    folder: PathBuf,
}

impl Suite {
    /// Over the checkpoint in a folder; its architecture picks the entry.
    pub fn new(registry: Registry, folder: impl AsRef<Path>) -> Self {
        Self {
            registry: Arc::new(registry),
            folder: folder.as_ref().to_owned(),
        }
    }

    /// Over a checkpoint and whatever is linked.
    ///
    /// # Errors
    /// As [`Registry::collect`].
    pub fn linked(folder: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::new(Registry::collect()?, folder))
    }

    /// Runs every check. A check that builds on one that failed is left out, so that a fault is
    /// reported where it is and not wherever it shows.
    pub fn run(&self) -> Report {
        let mut report = Report::default();
        match Subject::open(self.registry.clone(), &self.folder) {
            Ok(subject) => checks::run_all(&subject, &mut report),
            Err(problem) => report.add("load", vec![problem]),
        }
        report
    }

    /// Whether any step of an adversarial load takes more memory than start-up profiling measured.
    /// What the whole process allocates is counted: to be run where nothing else runs, by
    /// [`alone`].
    pub fn memory(&self) -> Report {
        let mut report = Report::default();
        match Subject::open(self.registry.clone(), &self.folder) {
            Ok(subject) => checks::run_memory(&subject, &mut report),
            Err(problem) => report.add("load", vec![problem]),
        }
        report
    }
}

/// Two tests of the linked model of a checkpoint: `conforms`, and `memory` in a process of its own.
/// They stand in a module of the name that is given; `conforms` where none is.
///
/// The folder is whatever is a path: relative ones start at the crate's `Cargo.toml`. Link the model
/// crate with `use my_model as _;`.
#[macro_export]
macro_rules! conforms {
    ($folder:expr $(,)?) => {
        $crate::conforms!(conforms, $folder);
    };
    ($name:ident, $folder:expr $(,)?) => {
        mod $name {
            #[allow(unused_imports, reason = "the folder may be named by what is in scope")]
            use super::*;

            #[test]
            fn conforms() {
                let folder = $folder;
                $crate::Suite::linked($crate::from_manifest(env!("CARGO_MANIFEST_DIR"), &folder))
                    .unwrap_or_else(|error| panic!("{error}"))
                    .run()
                    .assert_clean();
            }

            #[test]
            fn memory() {
                $crate::alone(concat!(module_path!(), "::memory"), || {
                    let folder = $folder;
                    $crate::Suite::linked($crate::from_manifest(
                        env!("CARGO_MANIFEST_DIR"),
                        &folder,
                    ))
                    .unwrap_or_else(|error| panic!("{error}"))
                    .memory()
                    .assert_clean();
                });
            }
        }
    };
}

/// A folder, relative to that of a crate.
#[doc(hidden)]
pub fn from_manifest(manifest: &str, folder: &impl AsRef<Path>) -> PathBuf {
    Path::new(manifest).join(folder)
}
