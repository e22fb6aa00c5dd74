//! The README's table of models.

use anyhow::{Result, ensure};

const HEAD: &str = "| feature |";

/// Where the rows begin, and how many they are.
fn rows(lines: &[&str]) -> Option<(usize, usize)> {
    let first = lines.iter().position(|line| line.starts_with(HEAD))? + 2;
    let rows = lines.get(first..)?.iter();
    Some((first, rows.take_while(|line| line.starts_with('|')).count()))
}

fn feature(row: &str) -> &str {
    row.split('`').nth(1).unwrap_or_default()
}

/// With a row, where the order of features puts it.
///
/// # Errors
/// When there is no such table, or the row is there.
pub(super) fn with(text: &str, name: &str, architecture: &str, like: &str) -> Result<String> {
    let mut lines: Vec<_> = text.split('\n').collect();
    let found = rows(&lines);
    ensure!(
        found.is_some(),
        "there is no table that begins with `{HEAD}`: put it back"
    );
    let (first, len) = found.unwrap_or_default();
    let table = &lines[first..first + len];
    ensure!(
        table.iter().all(|row| feature(row) != name),
        "the table has a row for `{name}` already: take it out"
    );
    let before = table.iter().filter(|row| feature(row) < name).count();
    let row = format!("| `{name}` | `{architecture}` | as `{like}` |");
    lines.insert(first + before, &row);
    Ok(lines.join("\n"))
}

/// Without the row; without change where there is none.
pub(super) fn without(text: &str, name: &str) -> String {
    let lines: Vec<_> = text.split('\n').collect();
    let (first, len) = rows(&lines).unwrap_or_default();
    let own = |at: usize| (first..first + len).contains(&at) && feature(lines[at]) == name;
    let kept = lines.iter().enumerate().filter(|(at, _)| !own(*at));
    let kept: Vec<_> = kept.map(|(_, line)| *line).collect();
    kept.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_and_goes() {
        let text = "# X\n\n| feature | a | p |\n|---|---|---|\n| `b` | `B` | x |\n| `d` | `D` | x |\n\nEnd";
        for (name, at) in [("a", 4), ("c", 5), ("z", 6)] {
            let longer = with(text, name, "XForCausalLM", "text").unwrap();
            let row = format!("| `{name}` | `XForCausalLM` | as `text` |");
            assert_eq!(longer.lines().nth(at), Some(&*row));
            assert_eq!(without(&longer, name), text);
            assert!(with(&longer, name, "X", "text").is_err());
        }
        assert_eq!(without(text, "other"), text);
        assert!(with("no table", "a", "A", "text").is_err());
    }
}
