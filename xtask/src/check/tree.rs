//! The Rust files of the members.

use super::metadata::{Member, relative};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Text by path relative to the root.
pub(crate) type Sources = BTreeMap<String, String>;

/// All Rust files of the members, but for what is no module: broken programs that a test compiles,
/// benches.
///
/// # Errors
/// When a file can't be read.
pub(crate) fn sources(root: &Path, members: &[Member]) -> Result<Sources> {
    let mut sources = Sources::new();
    for member in members {
        walk(root, &root.join(&member.folder), &mut sources)?;
    }
    Ok(sources)
}

fn walk(root: &Path, folder: &Path, sources: &mut Sources) -> Result<()> {
    let listed = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in listed {
        let path = entry?.path();
        let at = relative(root, &path);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            let skipped = name.starts_with('.') || ["target", "benches"].contains(&&*name);
            if !skipped && !at.ends_with("tests/ui") {
                walk(root, &path, sources)?;
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).with_context(|| at.clone())?;
            sources.insert(at, text);
        }
    }
    Ok(())
}

/// A file's lines with their numbers, without what only tests compile: what a `#[cfg(test)]` stands
/// over, up to the next line that ends a statement or a block at its indentation.
pub(crate) fn lines_outside_tests(text: &str) -> Vec<(usize, &str)> {
    let mut kept = vec![];
    let mut lines = text.lines().zip(1usize..);
    while let Some((line, number)) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            let ends = |l: &str| indent(l) == indent(line) && l.ends_with(['}', ';']);
            lines.find(|(line, _)| ends(line));
        } else {
            kept.push((number, line));
        }
    }
    kept
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_tests_are_left_out() {
        let text = "use a;\n#[cfg(test)]\nmod tests {\n    fn f() {\n    }\n    x;\n}\nfn b() {}\n\
                    #[cfg(test)]\nmod more;\nfn c() {}\n#[cfg(test)]\nuse x::{y};\nlast\n";
        let kept: Vec<_> = lines_outside_tests(text);
        let expected = [
            (1, "use a;"),
            (8, "fn b() {}"),
            (11, "fn c() {}"),
            (14, "last"),
        ];
        assert_eq!(kept, expected);
    }
}
