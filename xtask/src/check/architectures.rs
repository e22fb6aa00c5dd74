//! No architecture has a name in the core: the engine and the server treat all models alike. The
//! one list of linked crates is the exception.

use super::Fault;
use super::tree::{Sources, lines_outside_tests};
use crate::linked;

const ENDS: [&str; 2] = ["ForConditionalGeneration", "ForCausalLM"];

/// Names of architectures in `engine/` and `server/src`, tests aside.
pub(crate) fn check(sources: &Sources) -> Vec<Fault> {
    let mut faults = vec![];
    for (file, text) in sources {
        let core = file.starts_with("engine/") || file.starts_with("server/src/");
        let tests = file.contains("/tests/") || file.ends_with("/tests.rs");
        if !core || tests || file == linked::FILE {
            continue;
        }
        for (number, line) in lines_outside_tests(text) {
            if let Some(name) = architecture(line) {
                faults.push(Fault::new(
                    format!("{file}:{number}"),
                    format!("names the architecture {name}"),
                    "let the model crate say what differs, through the registry's contract",
                ));
            }
        }
    }
    faults
}

/// The first word in a line that is the name of an architecture.
fn architecture(line: &str) -> Option<&str> {
    let words = line.split(|c: char| !c.is_ascii_alphanumeric());
    words.into_iter().find(|word| {
        let at = ENDS.iter().filter_map(|end| word.find(end)).min();
        let stem = at.map_or("", |at| &word[..at]);
        // A name of its own before the end: an upper-case letter and more.
        let begins = stem.find(|c: char| c.is_ascii_uppercase());
        begins.is_some_and(|at| stem.len() - at > 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(file: &str, text: &str) -> Vec<Fault> {
        check(&Sources::from([(file.to_owned(), text.to_owned())]))
    }

    #[test]
    fn a_name_in_the_core_is_found_with_its_line() {
        let text = "//! X\nif arch == \"Qwen2VLForConditionalGeneration\" {\n";
        for file in ["engine/src/executor.rs", "server/src/load.rs"] {
            let faults = faults(file, text);
            assert_eq!(faults[0].file, format!("{file}:2"));
            assert!(faults[0].what.contains("Qwen2VLForConditionalGeneration"));
        }
        assert_eq!(faults("engine/src/a.rs", "// LlamaForCausalLM\n").len(), 1);
    }

    #[test]
    fn lists_models_and_tests_may_name_them() {
        let text = "//! X\n\"LlamaForCausalLM\"\n";
        for file in [
            "server/src/linked.rs",
            "models/text/src/lib.rs",
            "engine/src/template/tests.rs",
            "engine/tests/a.rs",
            "server/tests/cli.rs",
        ] {
            assert_eq!(faults(file, text), []);
        }
        let in_tests = "#[cfg(test)]\nmod tests {\n    \"LlamaForCausalLM\"\n}\n";
        assert_eq!(faults("engine/src/a.rs", in_tests), []);
        assert_eq!(
            faults("engine/src/a.rs", "`*ForCausalLM`, ForCausalLM\n"),
            []
        );
    }
}
