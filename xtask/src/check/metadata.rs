//! The workspace's members and what they depend on, as Cargo sees them.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A package of the workspace.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    /// Relative to the root, with `/`.
    pub(crate) folder: String,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a `[dependencies]` table.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `None`, `dev` or `build`.
    pub(crate) kind: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

/// All members. Neither resolves nor downloads.
///
/// # Errors
/// When Cargo can't read a manifest: its own words.
pub(crate) fn members(root: &Path) -> Result<Vec<Member>> {
    let output = Command::new(crate::cargo())
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("can't start cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("the answer of cargo metadata")?;
    // Cargo resolves links in paths, where the root may have one.
    let root = root.canonicalize().context("the repository's root")?;
    let member = |package: Package| {
        let folder = package.manifest_path.parent().unwrap_or(&root).to_owned();
        let folder = folder.canonicalize().unwrap_or(folder);
        Member {
            folder: relative(&root, &folder),
            name: package.name,
            dependencies: package.dependencies,
        }
    };
    Ok(metadata.packages.into_iter().map(member).collect())
}

/// A path as messages and rules have it.
pub(crate) fn relative(root: &Path, path: &Path) -> String {
    let path = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}
