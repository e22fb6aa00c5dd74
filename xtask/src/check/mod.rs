//! `cargo xtask check`: what ARCHITECTURE.md and the lists promise, held against the tree. Each check
//! is a function from text to faults, so that a wrong tree can be made up in a test.

mod architectures;
mod arrows;
mod docs;
mod features;
mod lists;
mod metadata;
mod one_build;
mod tree;

use anyhow::{Result, bail};
use std::fmt;
use std::path::Path;
pub(crate) use tree::lines_outside_tests;

/// What is checked.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also compile the binary with each model's feature alone. Minutes on a cold target folder,
    /// seconds behind clippy; CI does.
    #[arg(long)]
    features: bool,
}

/// What is wrong, where, and the mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    file: String,
    what: String,
    mend: String,
}

impl Fault {
    fn new(file: impl Into<String>, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            what: what.into(),
            mend: mend.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.file, self.what, self.mend)
    }
}

/// Prints a line for each fault.
///
/// # Errors
/// When there is one, or when the tree can't be read.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let mut faults = faults(root)?;
    if args.features {
        faults.extend(features::check(root)?);
    }
    for fault in &faults {
        println!("{fault}");
    }
    if !faults.is_empty() {
        bail!("{} fault(s) in the tree's structure", faults.len());
    }
    Ok(())
}

/// Everything that needs no compiler.
fn faults(root: &Path) -> Result<Vec<Fault>> {
    let members = metadata::members(root)?;
    let sources = tree::sources(root, &members)?;
    let mut faults = arrows::check(&members);
    faults.extend(arrows::check_vendor(root, &members)?);
    faults.extend(docs::check(&sources));
    faults.extend(one_build::check(root)?);
    faults.extend(architectures::check(&sources));
    faults.extend(lists::check(&lists::Lists::read(root, &members)?));
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_as_it_is_passes() {
        let faults = faults(crate::root()).unwrap();
        let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }

    #[test]
    fn a_fault_is_one_line() {
        let fault = Fault::new("a/b.rs", "wrong", "mend it");
        assert_eq!(fault.to_string(), "a/b.rs: wrong; mend it");
    }
}
