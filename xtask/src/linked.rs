//! The one list of linked crates, `server/src/linked.rs`, read line by line: a line a model, in the
//! form that its macro takes.

use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::fs;
use std::path::Path;

/// Where the list is.
pub(crate) const FILE: &str = "server/src/linked.rs";

const BEGIN: &str = "models! {";
const END: &str = "}";

/// `"feature" krate ["Architecture", ...];`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) feature: String,
    /// As Rust writes it: `kiln_llava`.
    pub(crate) krate: String,
    pub(crate) architectures: Vec<String>,
}

impl Entry {
    fn parse(line: &str) -> Result<Self> {
        let form = || {
            format!(
                "`{line}` is not of the form `\"feature\" krate [\"Architecture\", ...];`, in a line of its own"
            )
        };
        let parts = || {
            let (head, list) = line.strip_suffix("];")?.split_once('[')?;
            let (feature, krate) = head.trim().split_once(' ')?;
            let architectures = list.split(',').map(quoted).collect::<Option<_>>()?;
            Some(Self {
                feature: quoted(feature)?,
                krate: krate.trim().to_owned(),
                architectures,
            })
        };
        let entry = parts().with_context(form)?;
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        ensure!(
            !entry.krate.is_empty() && entry.krate.chars().all(word),
            form()
        );
        Ok(entry)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<_> = self
            .architectures
            .iter()
            .map(|a| format!("{a:?}"))
            .collect();
        write!(
            f,
            "{:?} {} [{}];",
            self.feature,
            self.krate,
            list.join(", ")
        )
    }
}

/// What stands between the quotes of a literal without escapes.
fn quoted(text: &str) -> Option<String> {
    let inner = text.trim().strip_prefix('"')?.strip_suffix('"')?;
    (!inner.is_empty() && !inner.contains(['"', '\\'])).then(|| inner.to_owned())
}

/// The file with its list.
#[derive(Debug, Clone)]
pub(crate) struct List {
    lines: Vec<String>,
    /// The line after `models! {`.
    first: usize,
    entries: Vec<Entry>,
}

impl List {
    /// The list of a tree.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and when the file can't be read.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join(FILE)).context(FILE)?;
        Self::parse(&text).context(FILE)
    }

    /// # Errors
    /// When there is not exactly one list, or a line has another form: the line and the form.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        let mut begins = (0..lines.len()).filter(|at| lines[*at] == BEGIN);
        let (Some(begin), None) = (begins.next(), begins.next()) else {
            bail!("wants exactly one line `{BEGIN}`");
        };
        let first = begin + 1;
        let Some(len) = lines[first..].iter().position(|line| line == END) else {
            bail!("`{BEGIN}` has no line `{END}` that ends it");
        };
        let entries = lines[first..first + len].iter();
        let entries = entries
            .map(|line| Entry::parse(line.trim()))
            .collect::<Result<_>>()?;
        Ok(Self {
            lines,
            first,
            entries,
        })
    }

    /// In the order of the file.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// # Errors
    /// When a linked crate loads the architecture already: its name.
    pub(crate) fn ensure_free(&self, architecture: &str) -> Result<()> {
        let serves = |entry: &&Entry| entry.architectures.iter().any(|a| a == architecture);
        if let Some(owner) = self.entries.iter().find(serves) {
            bail!(
                "the architecture {architecture} is {}'s: that crate serves the checkpoint; for \
                 another one, correct `architectures` in the config",
                owner.krate
            );
        }
        Ok(())
    }

    /// The file with other lines.
    pub(crate) fn replaced(&self, entries: &[Entry]) -> String {
        let (before, rest) = self.lines.split_at(self.first);
        let behind = rest.iter().skip(self.entries.len()).cloned();
        let lines = entries.iter().map(|entry| format!("    {entry}"));
        let all = before.iter().cloned().chain(lines).chain(behind);
        all.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "//! X\nmodels! {\n    \"b\" kiln_b [\"BForCausalLM\"];\n    \
                        \"d-e\" kiln_d_e [\"DForCausalLM\", \"EForCausalLM\"];\n}\nfn f() {\n}\n";

    #[test]
    fn lines_are_read_and_written_alike() {
        let list = List::parse(TEXT).unwrap();
        assert_eq!(list.entries()[1].krate, "kiln_d_e");
        assert_eq!(
            list.entries()[1].architectures,
            ["DForCausalLM", "EForCausalLM"]
        );
        for (entry, line) in list.entries().iter().zip(&list.lines[list.first..]) {
            assert_eq!(entry.to_string(), line.trim());
        }
    }

    #[test]
    fn lines_are_replaced() {
        let list = List::parse(TEXT).unwrap();
        assert_eq!(list.replaced(list.entries()), TEXT);
        let one = list.replaced(&list.entries()[1..]);
        assert_eq!(List::parse(&one).unwrap().entries(), &list.entries()[1..]);
        assert!(one.ends_with("\n}\nfn f() {\n}\n"), "{one}");
    }

    #[test]
    fn another_form_is_refused() {
        for line in [
            "\"b\" kiln_b [\"A\"]",
            "\"b\" kiln_b [];",
            "\"b\" kiln-b [\"A\"];",
            "b kiln_b [\"A\"];",
            "\"b\" kiln_b [A];",
            "\"b\" [\"A\"];",
            "// a comment",
        ] {
            let text = format!("models! {{\n    {line}\n}}\n");
            let error = List::parse(&text).unwrap_err().to_string();
            assert!(error.contains("is not of the form"), "{line}: {error}");
        }
        for text in ["", "models! {\n", "models! {\n}\nmodels! {\n}\n"] {
            assert!(List::parse(text).is_err(), "{text}");
        }
    }
}
