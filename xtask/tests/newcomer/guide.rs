//! The commands of a guide: its fenced blocks of shell.

use std::fs;
use std::path::Path;

/// A block of commands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) script: String,
    /// Marked so: the block's info string is `sh python`.
    pub(crate) needs_python: bool,
}

/// The blocks in their order.
pub(crate) fn blocks(file: &Path) -> Vec<Block> {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut blocks = vec![];
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let script: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        if info == "sh" || info == "sh python" {
            blocks.push(Block {
                script: script.join("\n"),
                needs_python: info != "sh",
            });
        }
    }
    assert!(!blocks.is_empty(), "{}: no commands", file.display());
    blocks
}
