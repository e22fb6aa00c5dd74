//! Lists that agree, and every way in which they may not.

use super::*;

const TOML: &str = r#"
[features]
all-models = ["a", "b-c"]
a = ["dep:kiln-a"]
b-c = ["dep:kiln-b-c"]
cuda = ["kiln-engine/cuda", "kiln-a?/cuda"]

[dependencies]
anyhow.workspace = true
kiln-a = { workspace = true, optional = true }
kiln-b-c = { workspace = true, optional = true }
"#;

fn lists() -> Lists {
    let model = |feature: &str, cuda| Model {
        feature: feature.to_owned(),
        package: format!("kiln-{feature}"),
        architectures: vec![],
        modalities: vec![],
        parts: String::new(),
        cuda,
    };
    Lists {
        models: vec![model("a", true), model("b-c", false)],
        members: ["a", "b-c", "nn"].map(str::to_owned).into(),
        server: TOML.parse().unwrap(),
        generated: vec![("list.rs", "x\ny\n".to_owned(), "x\ny\n".to_owned())],
    }
}

/// The one fault of lists with a change.
fn fault(change: impl FnOnce(&mut Lists)) -> String {
    let mut lists = lists();
    change(&mut lists);
    let faults = check(&lists);
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults[0].to_string()
}

#[test]
fn lists_that_agree_pass() {
    assert_eq!(check(&lists()), []);
}

#[test]
fn a_generated_file_that_is_not_current() {
    let said = fault(|l| l.generated[0].2 = "x\nz\ny\n".to_owned());
    assert_eq!(
        said,
        "list.rs: has `y` where the model crates say `z`; run `cargo xtask generate`"
    );
    let said = fault(|l| l.generated[0].1.push('z'));
    assert!(
        said.contains("has `z` where the model crates say ``"),
        "{said}"
    );
}

#[test]
fn the_features_of_the_binary() {
    for (from, to, says) in [
        ("\"a\", ", "", "`all-models` leaves `a` out"),
        (
            "[\"dep:kiln-a\"]",
            "[]",
            "the feature `a` does not link kiln-a",
        ),
        (
            "[\"dep:kiln-b-c\"]",
            "[\"dep:kiln-b-c\", \"a\"]",
            "does not link kiln-b-c, and nothing else",
        ),
        (
            "kiln-a = { workspace = true, optional = true }",
            "kiln-a.workspace = true",
            "kiln-a is no optional dependency",
        ),
        (", \"kiln-a?/cuda\"", "", "`cuda` and kiln-a's own"),
        (
            "kiln-a?/cuda\"",
            "kiln-a?/cuda\", \"kiln-b-c?/cuda\"",
            "`cuda` and kiln-b-c's own",
        ),
    ] {
        let text = TOML.replacen(from, to, 1);
        let said = fault(|l| l.server = text.parse().unwrap());
        assert!(said.starts_with("server/Cargo.toml: "), "{said}");
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn what_is_no_crate() {
    let folder = fault(|l| l.members.retain(|member| member != "a"));
    assert!(
        folder.starts_with("models/a/Cargo.toml: is no member"),
        "{folder}"
    );
    let text = TOML.replacen("[\"a\",", "[\"z\", \"a\",", 1);
    let feature = fault(|l| l.server = text.parse().unwrap());
    assert!(
        feature.contains("server/Cargo.toml: names the model `z`"),
        "{feature}"
    );
}
