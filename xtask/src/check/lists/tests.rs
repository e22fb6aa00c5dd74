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

const TABLE: &str = "# X\n\n| other |\n|---|\n| `x` |\n\n\
    | feature | architectures | parts |\n|---|---|---|\n\
    | `a` | `AForCausalLM` | {x} |\n\
    | `b-c` | `BForCausalLM`, `CForCausalLM` | `y` |\n\nAll.\n";

fn lists() -> Lists {
    let model = |feature: &str, architectures: &[&str], cuda| Model {
        folder: format!("models/{feature}"),
        feature: feature.to_owned(),
        package: format!("kiln-{feature}"),
        architectures: architectures.iter().map(|a| (*a).to_owned()).collect(),
        cuda,
    };
    let models = vec![
        model("a", &["AForCausalLM"], true),
        model("b-c", &["BForCausalLM", "CForCausalLM"], false),
    ];
    let linked = models.iter().map(|m| linked::Entry {
        feature: m.feature.clone(),
        krate: m.package.replace('-', "_"),
        architectures: m.architectures.clone(),
    });
    Lists {
        folders: models
            .iter()
            .map(|m| m.folder.clone())
            .chain(["models/nn".to_owned()])
            .collect(),
        linked: linked.collect(),
        server: TOML.parse().unwrap(),
        readme: table(TABLE),
        models,
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
fn the_list_of_linked_crates() {
    let removed = fault(|l| drop(l.linked.remove(0)));
    assert!(
        removed.contains("linked.rs: does not link kiln-a;"),
        "{removed}"
    );
    assert!(
        removed.contains("`\"a\" kiln_a [\"AForCausalLM\"];`"),
        "{removed}"
    );
    let twice = fault(|l| l.linked.push(l.linked[0].clone()));
    assert!(twice.contains("2 lines for kiln-a"), "{twice}");
    let other = fault(|l| l.linked[1].architectures[0] = "XForCausalLM".to_owned());
    assert!(other.contains("but the crate submits"), "{other}");
    let mixed = fault(|l| l.linked[0].krate = "kiln_x".to_owned());
    assert!(mixed.contains("links kiln_x by the feature `a`"), "{mixed}");
    // Their order is free.
    let mut swapped = lists();
    swapped.linked[1].architectures.reverse();
    assert_eq!(check(&swapped), []);
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
fn the_table_of_the_readme() {
    for (from, to, says) in [
        ("| `a` | `AForCausalLM` | {x} |\n", "", "no row for `a`"),
        ("`BForCausalLM`, ", "", "gives `b-c` the architectures"),
        (
            "| `b-c`",
            "| `a` | `AForCausalLM` | |\n| `b-c`",
            "has `a` twice",
        ),
        (
            "| `b-c`",
            "| `z` | `Z` | |\n| `b-c`",
            "there is no crate models/z",
        ),
    ] {
        let text = TABLE.replacen(from, to, 1);
        let said = fault(|l| l.readme = table(&text));
        assert!(said.starts_with("README.md: "), "{said}");
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn what_is_no_crate() {
    let folder = fault(|l| l.folders.extend(["models/lost".to_owned()]));
    assert!(
        folder.starts_with("models/lost/Cargo.toml: is no member"),
        "{folder}"
    );
    let stranger = linked::Entry {
        feature: "z".to_owned(),
        krate: "kiln_z".to_owned(),
        architectures: vec!["Z".to_owned()],
    };
    let listed = fault(|l| l.linked.push(stranger));
    assert!(listed.contains("no crate models/z"), "{listed}");
    let text = TOML.replacen("[\"a\",", "[\"z\", \"a\",", 1);
    let feature = fault(|l| l.server = text.parse().unwrap());
    assert!(
        feature.contains("server/Cargo.toml: names the model `z`"),
        "{feature}"
    );
}

#[test]
fn architectures_are_read_from_the_registration() {
    let source = "//! ModelEntry::new::<X>(a, &[\"Doc\"])\ninventory::submit! {\n    \
        ModelEntry::new::<Y>(\n        env!(\"CARGO_PKG_NAME\"),\n        &[\"A\", \"B\"],\n    )\n}\n\
        #[cfg(test)]\nmod tests {\n    ModelEntry::new::<Z>(x, &[\"Test\"])\n}\n";
    assert_eq!(submitted(source), ["A", "B"]);
    assert_eq!(submitted("fn main() {}"), [] as [&str; 0]);
}
