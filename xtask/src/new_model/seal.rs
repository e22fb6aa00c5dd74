//! What a scaffold looked like when it was made: a checksum in its manifest, so that removal can
//! tell a fresh crate from somebody's work.

use super::{Files, manifest, read_all};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use toml_edit::DocumentMut;

/// What the crate's own `tests/parity.py` writes anew is nobody's work.
const WRITTEN: &str = "tests/parity/";

/// Whether a crate is as it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seal {
    /// It is.
    Whole,
    /// It was edited.
    Broken,
    /// It was never sealed, or the seal was taken away.
    None,
}

/// Writes the seal of a folder into its manifest.
pub(super) fn seal(folder: &Path) -> Result<()> {
    let sum = checksum(folder)?;
    let mut manifest = read(folder)?;
    manifest::set_seal(&mut manifest, &sum);
    let path = folder.join("Cargo.toml");
    fs::write(&path, manifest.to_string()).with_context(|| path.display().to_string())
}

pub(super) fn check(folder: &Path) -> Result<Seal> {
    Ok(match manifest::seal(&read(folder)?) {
        None => Seal::None,
        Some(sum) if sum == checksum(folder)? => Seal::Whole,
        Some(_) => Seal::Broken,
    })
}

fn read(folder: &Path) -> Result<DocumentMut> {
    let path = folder.join("Cargo.toml");
    let at = || path.display().to_string();
    let text = fs::read_to_string(&path).with_context(at)?;
    text.parse().with_context(at)
}

/// Over all names and contents, but for the seal itself. FNV-1a: it guards against haste, not malice.
fn checksum(folder: &Path) -> Result<String> {
    let mut manifest = read(folder)?;
    manifest::set_seal(&mut manifest, "");
    let mut files = vec![("Cargo.toml".to_owned(), manifest.to_string().into_bytes())];
    let mut read = Files::new();
    read_all(folder, "", &mut read)?;
    let counts = |file: &str| file != "Cargo.toml" && !file.starts_with(WRITTEN);
    files.extend(read.into_iter().filter(|(file, _)| counts(file)));
    files.sort();
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    for (name, content) in &files {
        let lengths = [name.len(), content.len()].map(|n| (n as u64).to_le_bytes());
        let bytes = lengths.as_flattened().iter().chain(name.as_bytes());
        for byte in bytes.chain(content) {
            sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok(format!("{sum:016x}"))
}
