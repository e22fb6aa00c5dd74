//! What `-p kiln` builds, `--workspace` and its tests build with the same features. Cargo unites the
//! features that the chosen packages ask for: a dependency that turns on one more, somewhere in a
//! test, has Burn compiled a second time.

use super::Fault;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// # Errors
/// When Cargo can't say: its own words.
pub(crate) fn check(root: &Path) -> Result<Vec<Fault>> {
    let binary = packages(root, &["-p", "kiln", "-e", "normal,build"])?;
    let all = packages(root, &["--workspace", "-e", "normal,build,dev"])?;
    Ok(differing(&binary, &all))
}

/// Each package with its version and features.
fn packages(root: &Path, what: &[&str]) -> Result<BTreeSet<String>> {
    let output = Command::new(crate::cargo())
        .args(["tree", "--locked", "--prefix", "none", "-f", "{p} [{f}]"])
        .args(what)
        .current_dir(root)
        .output()
        .context("can't start cargo tree")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("cargo tree: {}", words.trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // A package that was shown before is marked.
    let lines = text.lines().map(|line| line.trim_end_matches(" (*)"));
    Ok(lines.map(str::to_owned).collect())
}

fn differing(binary: &BTreeSet<String>, all: &BTreeSet<String>) -> Vec<Fault> {
    let package = |line: &str| line.split(" [").next().unwrap_or(line).to_owned();
    let alone = binary.difference(all).map(|line| {
        let other = all.iter().find(|other| package(other) == package(line));
        Fault::new(
            "models/nn/Cargo.toml",
            format!(
                "`-p kiln` builds `{line}`, but `--workspace` builds `{}`",
                other.map_or("none", String::as_str)
            ),
            "name the crate there with the features of both, so that Burn is compiled once",
        )
    });
    alone.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_only_one_has_is_named() {
        let set = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect();
        let binary: BTreeSet<String> = set(&["a v1 [std]", "b v1 []"]);
        assert_eq!(differing(&binary, &binary), []);
        let all = set(&["a v1 [default,std]", "b v1 []", "c v1 []"]);
        let faults = differing(&binary, &all);
        assert_eq!(faults.len(), 1, "{faults:?}");
        let said = faults[0].to_string();
        assert!(said.contains("builds `a v1 [std]`, but"), "{said}");
        assert!(said.contains("`a v1 [default,std]`"), "{said}");
    }
}
