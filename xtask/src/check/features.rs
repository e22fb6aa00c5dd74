//! The binary compiles with each model's feature alone.

use super::Fault;
use crate::linked;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// Compiles one feature after the other. Slow.
///
/// # Errors
/// When the list can't be read or Cargo can't be started.
pub(crate) fn check(root: &Path) -> Result<Vec<Fault>> {
    let mut faults = vec![];
    for entry in linked::List::read(root)?.entries() {
        let feature = &entry.feature;
        let status = Command::new(crate::cargo())
            .args(["check", "--release", "--locked", "-p", "kiln"])
            .args(["--no-default-features", "--features", feature])
            .current_dir(root)
            .status()
            .context("can't start cargo check")?;
        if !status.success() {
            faults.push(Fault::new(
                "server/Cargo.toml",
                format!("the feature `{feature}` alone does not compile"),
                format!("see `cargo check -p kiln --no-default-features --features {feature}`"),
            ));
        }
    }
    Ok(faults)
}
