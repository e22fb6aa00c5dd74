//! The files of a new crate: those of the crate it is like, under the new names, and a test with a
//! tiny checkpoint. What compiles today is what is scaffolded; there is no copy that could rot.

use super::name::Name;
use super::{Files, Like, Place, Texts, manifest, read_all};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;
use toml_edit::{DocumentMut, Item, Table, value};

const CHECKPOINT: &str = include_str!("../../templates/tiny/checkpoint.rs");
const IMAGE: &str = include_str!("../../templates/tiny/image.rs");
const TEXT: &str = include_str!("../../templates/tiny/text.rs");
/// What the tiny test needs beside the crate.
const DEV: [&str; 6] = [
    "kiln-conformance",
    "kiln-engine",
    "kiln-registry",
    "safetensors",
    "serde_json",
    "tempfile",
];
/// What its configuration needs.
const OWN: [&str; 2] = ["serde", "serde_json"];
const REGISTRATION: &str = "ModelEntry::new::<";
const SECTIONS: [&str; 5] = [
    "# Architecture",
    "# Inputs",
    "# Token layout",
    "# Weights",
    "# Source",
];

/// Texts by path in the crate's folder.
///
/// # Errors
/// When the crate it is like has another form than this expects.
pub(super) fn files(root: &Path, name: &Name, like: Like, place: Place) -> Result<Texts> {
    let folder = root.join("models").join(like.folder());
    let mut read = Files::new();
    read_all(&folder.join("src"), "src/", &mut read)?;
    let mut files = Texts::new();
    for (file, content) in read {
        let text = String::from_utf8(content).with_context(|| file.clone())?;
        files.insert(file, text);
    }
    let lib = files
        .get("src/lib.rs")
        .with_context(|| format!("models/{}/src/lib.rs is not there", like.folder()))?;
    let (old, from) = (registered(lib)?, like.folder());
    let lib = submit(lib, &name.architecture)?;
    files.insert("src/lib.rs".to_owned(), docs(&lib, name, from)?);
    for text in files.values_mut() {
        *text = renamed(text, &old, name, from);
    }
    let cargo = fs::read_to_string(folder.join("Cargo.toml"))
        .with_context(|| format!("models/{from}/Cargo.toml"))?;
    files.insert("Cargo.toml".to_owned(), package(&cargo, name, from, place)?);
    let test = if like == Like::Text { TEXT } else { IMAGE };
    let test = words(test, "kiln_model", &name.krate());
    let test = test.replacen("//! kiln-model", &format!("//! {}", name.package()), 1);
    files.insert("tests/tiny/main.rs".to_owned(), test);
    files.insert("tests/tiny/checkpoint.rs".to_owned(), CHECKPOINT.to_owned());
    Ok(files)
}

/// The type that a crate registers.
fn registered(lib: &str) -> Result<String> {
    let name = lib
        .split_once(REGISTRATION)
        .and_then(|(_, rest)| rest.split_once('>'));
    let name = name.map(|(name, _)| name.to_owned());
    name.with_context(|| format!("no `{REGISTRATION}..>` in the crate to start from"))
}

/// With the architecture in the registration.
fn submit(lib: &str, architecture: &str) -> Result<String> {
    let parts = || {
        let at = lib.find(REGISTRATION)?;
        let from = at + lib[at..].find("&[")? + 2;
        let to = from + lib[from..].find(']')?;
        Some((from, to))
    };
    let (from, to) = parts().context("the registration lists no architectures")?;
    Ok(format!("{}{architecture:?}{}", &lib[..from], &lib[to..]))
}

/// With a first line and a source of its own; what the other sections say is what the code does.
fn docs(lib: &str, name: &Name, like: &str) -> Result<String> {
    let (docs, code): (Vec<_>, Vec<_>) = {
        let len = lib
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .count();
        (
            lib.lines().take(len).collect(),
            lib.lines().skip(len).collect(),
        )
    };
    let mut at = vec![];
    for section in SECTIONS {
        let line = docs.iter().position(|line| line[3..].trim() == section);
        at.push(line.with_context(|| {
            format!("models/{like} has no section `//! {section}`: put it back")
        })?);
    }
    if !at.is_sorted() {
        bail!("the sections of models/{like} are not in their order");
    }
    let kept = &docs[at[0]..=at[SECTIONS.len() - 1]];
    let first = format!(
        "//! {} for Kiln, scaffolded as {like} is: say what is its own.",
        name.camel()
    );
    let source = "//! The paper and the reference implementation belong here.";
    let lines = [first.as_str(), "//!"]
        .into_iter()
        .chain(kept.iter().copied());
    let lines: Vec<_> = lines.chain([source]).chain(code).collect();
    Ok(lines.join("\n") + "\n")
}

/// The model's type and name in messages.
fn renamed(text: &str, old: &str, name: &Name, like: &str) -> String {
    let shown = match like {
        "llava" => "LLaVA",
        "llava-next" => "LLaVA-NeXT",
        _ => return words(text, old, &name.camel()),
    };
    let message = format!("input by {shown}");
    let text = text.replace(&message, &format!("input by {}", name.kebab));
    words(&text, old, &name.camel())
}

/// Replaces an identifier, as a whole word.
fn words(text: &str, from: &str, to: &str) -> String {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        let (before, behind) = (&rest[..at], &rest[at + from.len()..]);
        let whole = !out.ends_with(part) || !before.is_empty();
        let whole = whole && !before.ends_with(part) && !behind.starts_with(part);
        out.push_str(before);
        out.push_str(if whole { to } else { from });
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// The manifest of the crate it is like, under the new name, with what its test needs.
fn package(manifest: &str, name: &Name, like: &str, place: Place) -> Result<String> {
    let mut document: DocumentMut = manifest.parse().context("the manifest to start from")?;
    let package = manifest::table(&mut document, &["package"])?;
    package["name"] = value(name.package());
    package["description"] = value(format!("{} for Kiln", name.camel()));
    let kiln = manifest::table(&mut document, &["package", "metadata", "kiln"])?;
    ensure!(
        kiln.get("scaffold").is_none(),
        "the crate to start from is a scaffold itself"
    );
    kiln["parts"] = value(format!("as `{like}`"));
    match place {
        Place::Tree => add_seal(kiln),
        // There is no table to say it in.
        Place::Outside => {
            manifest::table(&mut document, &["package"])?.remove("metadata");
        }
    }
    let dependencies: Vec<String> = manifest::table(&mut document, &["dependencies"])?
        .iter()
        .map(|(key, _)| key.to_owned())
        .collect();
    for key in OWN {
        if !dependencies.iter().any(|d| d == key) {
            let table = manifest::table(&mut document, &["dependencies"])?;
            manifest::add_entry(table, key, from_workspace(), |other| other < key)?;
        }
    }
    let mut dev = Table::new();
    dev.decor_mut().set_prefix("\n");
    let own = |key: &&str| !OWN.contains(key) && !dependencies.iter().any(|d| d == *key);
    for key in DEV.into_iter().filter(own) {
        dev.insert(key, from_workspace());
    }
    // Those of the crate it is like serve its own tests.
    document.insert("dev-dependencies", Item::Table(dev));
    Ok(document.to_string())
}

/// `.workspace = true`
fn from_workspace() -> Item {
    let mut dependency = Table::new();
    dependency.set_dotted(true);
    dependency.insert("workspace", value(true));
    Item::Table(dependency)
}

/// The line that holds the seal.
fn add_seal(kiln: &mut Table) {
    kiln.insert("scaffold", value(""));
    if let Some(mut key) = kiln.key_mut("scaffold") {
        key.leaf_decor_mut().set_prefix(
            "# Lets `cargo xtask remove-model` tell an untouched crate. Take the line out when the crate \
             is yours.\n",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_replaced_as_whole_words() {
        let text = "Llava, LlavaNext, MyLlava Llava(Llava) Llava_ kiln_Llava";
        let expected = "X, LlavaNext, MyLlava X(X) Llava_ kiln_Llava";
        assert_eq!(words(text, "Llava", "X"), expected);
        assert_eq!(words("LlavaLlava", "Llava", "X"), "LlavaLlava");
    }
}
