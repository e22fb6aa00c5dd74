//! Every module opens with `//!`: why it exists.

use super::Fault;
use super::tree::Sources;

/// Files whose first lines are not their documentation.
pub(crate) fn check(sources: &Sources) -> Vec<Fault> {
    let undocumented = sources.iter().filter(|(_, text)| !opens_with_docs(text));
    undocumented
        .map(|(file, _)| {
            Fault::new(
                file,
                "does not open with `//!`",
                "say in one to five lines why the module exists",
            )
        })
        .collect()
}

/// Attributes, a shebang and plain comments may stand before.
fn opens_with_docs(text: &str) -> bool {
    let before = |line: &&str| {
        let line = line.trim();
        let plain = line.starts_with("//") && !line.starts_with("///") && !line.starts_with("//!");
        line.is_empty() || line.starts_with("#!") || plain
    };
    let first = text.lines().find(|line| !before(line));
    first.is_some_and(|line| line.starts_with("//!") && line.trim() != "//!")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_without_docs_is_named() {
        let sources = Sources::from([
            ("good.rs".to_owned(), "//! Why.\n".to_owned()),
            ("bad.rs".to_owned(), "use x;\n//! Late.\n".to_owned()),
        ]);
        let faults = check(&sources);
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].file, "bad.rs");
    }

    #[test]
    fn what_may_stand_before_docs() {
        for good in [
            "//! Why.",
            "#!/usr/bin/env run\n//! Why.",
            "#![allow(x, reason = \"y\")]\n\n//! Why.",
            "// Licence.\n//! Why.",
        ] {
            assert!(opens_with_docs(good), "{good}");
        }
        for bad in [
            "",
            "//!",
            "/// Of an item.\nstruct X;",
            "fn main() {}",
            "mod x;\n//! No.",
        ] {
            assert!(!opens_with_docs(bad), "{bad}");
        }
    }
}
