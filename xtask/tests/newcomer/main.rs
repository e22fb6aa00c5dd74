//! What a newcomer does: every command of `docs/adding-a-model.md`, in a copy of the tree, from the
//! scaffold to the answer, in the tree and outside it, and back to the same bytes.
//!
//! The copy and what is built in it stay in the target folder, so that a second run compiles little.

mod guide;
mod scratch;

use guide::Block;
use scratch::Scratch;
use std::path::Path;

const GUIDE: &str = "docs/adding-a-model.md";
const TRANSLATION: &str = "docs/adding-a-model.zh-CN.md";
/// A Python with the packages of `xtask/python/requirements.txt`: then what needs one runs, too.
const PYTHON: &str = "KILN_PYTHON";

fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap()
}

#[test]
fn every_command_of_the_guide_works() {
    let scratch = Scratch::new(root());
    // Somebody who followed the guide in this very tree has the crate already.
    if scratch.file("models/shiny-vl/Cargo.toml").exists() {
        let removed = scratch.run("cargo xtask remove-model shiny-vl --force");
        removed.unwrap_or_else(|error| panic!("{error}"));
    }
    let before = scratch.tree();
    let python = std::env::var_os(PYTHON).is_some();
    let mut said = vec![];
    for Block {
        script,
        needs_python,
    } in guide::blocks(&root().join(GUIDE))
    {
        if needs_python && !python {
            println!("not run, {PYTHON} is not set:\n{script}");
            continue;
        }
        let output = scratch.run(&script);
        let output = output.unwrap_or_else(|error| panic!("{error}"));
        said.push((script, output));
    }
    let find = |command: &str| {
        let block = said.iter().filter(|(script, _)| script.contains(command));
        let outputs: Vec<_> = block.map(|(_, output)| output.as_str()).collect();
        assert!(!outputs.is_empty(), "the guide has no `{command}`");
        outputs
    };
    for listed in find("-- models") {
        assert!(
            listed.contains("ShinyVlForConditionalGeneration") && listed.contains("kiln-shiny-vl"),
            "{listed}"
        );
        // Beside Kiln's own.
        assert!(
            listed.contains("LlavaNextForConditionalGeneration"),
            "{listed}"
        );
    }
    // The built-in model under another name: the new crate gives its answer, once in the tree and
    // once outside.
    let answers = find("-- run ");
    assert_eq!(answers.len(), 2);
    for answer in answers {
        assert!(answer.contains(&description()), "{answer}");
    }
    assert!(scratch.file("target/sheet.png").exists());
    for tests in find("cargo test") {
        for test in ["kit::conforms", "kit::memory", "it_equals_the_reference"] {
            assert!(tests.contains(&format!("test {test} ... ok")), "{tests}");
        }
    }
    assert!(
        scratch.tree() == before,
        "remove-model did not give every byte back"
    );
}

/// What the built-in model says of the built-in picture.
fn description() -> String {
    let text = std::fs::read_to_string(root().join("assets/sample.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let questions = record["questions"].as_array().unwrap();
    let about = questions.iter().find(|q| q["kind"] == "describe");
    about.unwrap()["answer"].as_str().unwrap().to_owned()
}

#[test]
fn the_translation_has_the_same_commands() {
    let commands = |file: &str| guide::blocks(&root().join(file));
    assert_eq!(commands(GUIDE), commands(TRANSLATION));
}
