//! `cargo xtask generate`: what is written down of every model crate in another place, made of the
//! crates themselves: the list of linked crates and the README's table. `check` wants both current.

use crate::linked;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use toml_edit::DocumentMut;

pub(crate) const README: &str = "README.md";
const HEAD: &str = "| feature | architectures | modalities | parts |";
const REGISTRATION: &str = "ModelEntry::new::<";

/// A model crate of the tree, as its manifest and its registration have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Model {
    /// The folder's name: also the feature.
    pub(crate) feature: String,
    pub(crate) package: String,
    /// Those that it submits.
    pub(crate) architectures: Vec<String>,
    /// Those beside text.
    pub(crate) modalities: Vec<String>,
    /// `package.metadata.kiln.parts`: what it is made of, in the README's words.
    pub(crate) parts: String,
    /// Whether it has a feature `cuda`.
    pub(crate) cuda: bool,
}

impl Model {
    pub(crate) fn entry(&self) -> linked::Entry {
        linked::Entry {
            feature: self.feature.clone(),
            krate: self.package.replace('-', "_"),
            architectures: self.architectures.clone(),
        }
    }

    /// What a crate's manifest and sources say.
    ///
    /// # Errors
    /// For a manifest without a name or `parts`.
    pub(crate) fn parse(feature: &str, manifest: &str, sources: &[String]) -> Result<Self> {
        let manifest: DocumentMut = manifest.parse()?;
        let at = |path: &[&str]| {
            let item = path
                .iter()
                .try_fold(manifest.as_item(), |item, key| item.get(key))?;
            item.as_str().map(str::to_owned)
        };
        let registered: Vec<_> = sources.iter().flat_map(|s| registrations(s)).collect();
        Ok(Self {
            feature: feature.to_owned(),
            package: at(&["package", "name"]).context("no package.name")?,
            architectures: registered.iter().flat_map(|r| architectures(r)).collect(),
            modalities: registered.iter().flat_map(|r| modalities(r)).collect(),
            parts: at(&["package", "metadata", "kiln", "parts"]).context(
                "no `parts` under [package.metadata.kiln]: say what the model is made of, for the \
                 README's table",
            )?,
            cuda: manifest
                .get("features")
                .and_then(|features| features.get("cuda"))
                .is_some(),
        })
    }
}

/// The model crates of a tree, by feature.
///
/// # Errors
/// When a file can't be read, or a manifest lacks what the lists say.
pub(crate) fn models(root: &Path) -> Result<Vec<Model>> {
    let mut models = vec![];
    for entry in fs::read_dir(root.join("models")).context("models")? {
        let folder = entry?.path();
        let feature = folder.file_name().unwrap_or_default().to_string_lossy();
        let file = folder.join("Cargo.toml");
        if feature == "nn" || !file.is_file() {
            continue;
        }
        let at = || file.display().to_string();
        let manifest = fs::read_to_string(&file).with_context(at)?;
        let sources = sources(&folder.join("src"))?;
        models.push(Model::parse(&feature, &manifest, &sources).with_context(at)?);
    }
    models.sort_by(|a, b| a.feature.cmp(&b.feature));
    Ok(models)
}

fn sources(folder: &Path) -> Result<Vec<String>> {
    let mut texts = vec![];
    let mut paths: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let listed = fs::read_dir(&path).with_context(|| path.display().to_string())?;
            let inside: Result<Vec<_>, _> = listed.map(|e| e.map(|e| e.path())).collect();
            paths.extend(inside?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path);
            texts.push(text.with_context(|| path.display().to_string())?);
        }
    }
    Ok(texts)
}

/// The text of each registration outside comments and tests.
fn registrations(source: &str) -> Vec<String> {
    let lines = crate::check::lines_outside_tests(source).into_iter();
    let code: Vec<_> = lines
        .map(|(_, line)| line)
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let code = code.join("\n");
    let behind = code.split(REGISTRATION).skip(1);
    // The macro's call ends in a line of its own.
    behind
        .map(|rest| rest.split("\n}").next().unwrap_or(rest).to_owned())
        .collect()
}

fn architectures(registration: &str) -> Vec<String> {
    let list = registration
        .split_once("&[")
        .and_then(|(_, rest)| rest.split_once(']'));
    let quoted = list.into_iter().flat_map(|(list, _)| list.split('"'));
    quoted.skip(1).step_by(2).map(str::to_owned).collect()
}

fn modalities(registration: &str) -> Vec<String> {
    let calls = registration.split('.').skip(1);
    calls
        .filter_map(|call| {
            let (name, rest) = call.split_once('(')?;
            match name {
                "image" | "video" | "audio" => Some(name.to_owned()),
                "modality" => rest.split('"').nth(1).map(str::to_owned),
                _ => None,
            }
        })
        .collect()
}

/// The list of linked crates with a line a model.
///
/// # Errors
/// When the file has no list.
pub(crate) fn list(text: &str, models: &[Model]) -> Result<String> {
    let entries: Vec<_> = models.iter().map(Model::entry).collect();
    Ok(linked::List::parse(text)?.replaced(&entries))
}

/// The README with a row a model.
///
/// # Errors
/// When there is no table.
pub(crate) fn readme(text: &str, models: &[Model]) -> Result<String> {
    let lines: Vec<_> = text.split('\n').collect();
    let head = lines.iter().position(|line| *line == HEAD);
    ensure!(head.is_some(), "there is no table `{HEAD}`: put it back");
    let first = head.unwrap_or_default() + 2;
    let behind = lines.get(first..).unwrap_or_default();
    let old = behind.iter().take_while(|line| line.starts_with('|'));
    let behind = &behind[old.count()..];
    let rows = models.iter().map(row);
    let before = lines[..first].iter().map(|line| (*line).to_owned());
    let behind = behind.iter().map(|line| (*line).to_owned());
    Ok(before
        .chain(rows)
        .chain(behind)
        .collect::<Vec<_>>()
        .join("\n"))
}

fn row(model: &Model) -> String {
    let names: Vec<_> = model
        .architectures
        .iter()
        .map(|a| format!("`{a}`"))
        .collect();
    let modalities = if model.modalities.is_empty() {
        "text".to_owned()
    } else {
        format!("text, {}", model.modalities.join(", "))
    };
    format!(
        "| `{}` | {} | {modalities} | {} |",
        model.feature,
        names.join(", "),
        model.parts
    )
}

/// The files made of the model crates: each with what it holds and what it should.
///
/// # Errors
/// When one can't be read or has another form.
pub(crate) fn files(root: &Path) -> Result<Vec<(&'static str, String, String)>> {
    let models = models(root)?;
    let make = [
        (linked::FILE, list as fn(&str, &[Model]) -> Result<String>),
        (README, readme),
    ];
    type Make = fn(&str, &[Model]) -> Result<String>;
    let file = |(file, make): (&'static str, Make)| {
        let old = fs::read_to_string(root.join(file)).context(file)?;
        let new = make(&old, &models).context(file)?;
        Ok((file, old, new))
    };
    make.into_iter().map(file).collect()
}

/// Writes what is not current.
///
/// # Errors
/// As [`files`], and when one can't be written.
pub(crate) fn run(root: &Path) -> Result<()> {
    for (file, old, new) in files(root)? {
        if old != new {
            fs::write(root.join(file), new).context(file)?;
            println!("{file} is current again");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[package]\nname = \"kiln-b\"\n\n[package.metadata.kiln]\nparts = \"x\"\n\n\
                            [features]\ncuda = []\n";
    const SOURCE: &str = "//! ModelEntry::new::<X>(a, &[\"Doc\"])\ninventory::submit! {\n    \
        ModelEntry::new::<Y>(\n        env!(\"CARGO_PKG_NAME\"),\n        &[\"A\", \"B\"],\n    )\n    \
        .image(ModalitySupport::new())\n    .modality(\"smell\", s)\n}\nfn f() { x.audio(1) }\n\
        #[cfg(test)]\nmod tests {\n    ModelEntry::new::<Z>(x, &[\"Test\"])\n}\n";

    fn model() -> Model {
        Model::parse("b", MANIFEST, &[SOURCE.to_owned()]).unwrap()
    }

    #[test]
    fn a_crate_says_what_the_lists_want() {
        let model = model();
        assert_eq!(model.package, "kiln-b");
        assert_eq!(model.architectures, ["A", "B"]);
        assert_eq!(model.modalities, ["image", "smell"]);
        assert!(model.cuda);
        let error = Model::parse("b", "[package]\nname = \"kiln-b\"\n", &[]).unwrap_err();
        assert!(error.to_string().contains("no `parts`"), "{error}");
    }

    #[test]
    fn rows_and_lines_are_replaced() {
        let table = |rows: &str| format!("# X\n\n{HEAD}\n|---|---|---|---|\n{rows}\nEnd |\n");
        let made = readme(&table("| `old` | | | |\n| `b` | `C` | | |\n"), &[model()]).unwrap();
        assert_eq!(made, table("| `b` | `A`, `B` | text, image, smell | x |\n"));
        assert_eq!(readme(&made, &[model()]).unwrap(), made);
        assert!(readme("no table", &[]).is_err());
        let file = |lines: &str| format!("//! X\nmodels! {{\n{lines}}}\nfn f() {{\n}}\n");
        let made = list(&file("    \"old\" kiln_old [\"O\"];\n"), &[model()]).unwrap();
        assert_eq!(made, file("    \"b\" kiln_b [\"A\", \"B\"];\n"));
    }

    #[test]
    fn the_tree_is_current() {
        for (file, old, new) in files(crate::root()).unwrap() {
            assert!(old == new, "{file}: run `cargo xtask generate`");
        }
    }
}
