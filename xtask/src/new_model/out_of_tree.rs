//! A model outside Kiln's tree: a workspace of its own with the model crate and a binary of three
//! lines that links it beside Kiln's own. Versions, profile and lints are those of Kiln's manifest,
//! so that the two trees build the same dependencies.

use super::name::Name;
use super::{Files, Like, Made, Modality, Place, Texts, bytes, crate_files, manifest, write};
use crate::linked;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use toml_edit::{Array, DocumentMut, Item, Table, value};

/// The binary's folder, and the last word of its package.
const SERVER: &str = "server";

/// Everything but the last word on Cargo.lock.
///
/// # Errors
/// For a folder that holds something, a name or architecture of a model in the tree, and as in the
/// tree. Nothing is left behind then.
pub(super) fn scaffold(
    root: &Path,
    folder: &Path,
    name: &str,
    like: Option<Like>,
    modalities: &[Modality],
    config: Option<&serde_json::Value>,
) -> Result<Made> {
    let at = || folder.display().to_string();
    let was_there = folder.exists();
    ensure!(
        !was_there || fs::read_dir(folder).with_context(at)?.next().is_none(),
        "{} is not empty: name a folder that is not there yet",
        folder.display()
    );
    fs::create_dir_all(folder).with_context(at)?;
    let made = fill(root, folder, name, like, modalities, config);
    if made.is_err() && !was_there {
        fs::remove_dir_all(folder).ok();
    }
    made
}

fn fill(
    root: &Path,
    folder: &Path,
    name: &str,
    like: Option<Like>,
    modalities: &[Modality],
    config: Option<&serde_json::Value>,
) -> Result<Made> {
    let list = linked::List::read(root)?;
    let kiln = relative(folder, root)?;
    let from_tests = posix(&Path::new("../..").join(&kiln));
    let (made, mut model) = crate_files(
        root,
        name,
        like,
        modalities,
        config,
        Place::Outside,
        &from_tests,
    )?;
    take_fixtures(root, &mut model)?;
    let name = &made.name;
    if list.entries().iter().any(|e| e.feature == name.kebab) {
        bail!(
            "`{}` is one of Kiln's own models: take another name",
            name.kebab
        );
    }
    list.ensure_free(&name.architecture)?;
    let manifest = model.get("Cargo.toml").context("the model's manifest")?;
    let needed = dependencies(std::str::from_utf8(manifest)?)?;
    let mut files: Files = bytes(workspace(root, &made.name, &kiln, &needed, &list)?).collect();
    let inside = |(file, content)| (format!("{}/{file}", name.kebab), content);
    files.extend(model.into_iter().map(inside));
    write(folder, &files)?;
    Ok(made)
}

/// Gives the crate a copy of what its own tests read of Kiln's fixtures.
fn take_fixtures(root: &Path, model: &mut Files) -> Result<()> {
    const THERE: &str = "../../../tests/fixtures/";
    let mut taken = Files::new();
    for (file, content) in model
        .iter_mut()
        .filter(|(file, _)| file.starts_with("src/"))
    {
        let text = String::from_utf8_lossy(content).into_owned();
        for part in text.split(THERE).skip(1) {
            let name = part.split('"').next().unwrap_or_default();
            let at = root.join("tests/fixtures").join(name);
            let bytes = fs::read(&at).with_context(|| format!("{file} reads {}", at.display()))?;
            taken.insert(format!("tests/fixtures/{name}"), bytes);
        }
        *content = text.replace(THERE, "../tests/fixtures/").into_bytes();
    }
    model.extend(taken);
    Ok(())
}

/// The files around the model crate.
fn workspace(
    root: &Path,
    name: &Name,
    kiln: &Path,
    needed: &BTreeSet<String>,
    list: &linked::List,
) -> Result<Texts> {
    let read = |file: &str| fs::read_to_string(root.join(file)).context(file.to_owned());
    let manifest = root_manifest(&read("Cargo.toml")?, name, kiln, needed)?;
    Ok(Texts::from([
        ("Cargo.toml".to_owned(), manifest),
        // The versions that Kiln is tested with.
        ("Cargo.lock".to_owned(), read("Cargo.lock")?),
        ("rustfmt.toml".to_owned(), read("rustfmt.toml")?),
        (".gitignore".to_owned(), "/target\n".to_owned()),
        ("README.md".to_owned(), readme(name)),
        (format!("{SERVER}/Cargo.toml"), server_manifest(name, list)),
        (format!("{SERVER}/src/main.rs"), main(name)),
    ]))
}

/// What a manifest takes from its workspace.
fn dependencies(manifest: &str) -> Result<BTreeSet<String>> {
    let mut document: DocumentMut = manifest.parse()?;
    let mut needed = BTreeSet::new();
    for table in ["dependencies", "dev-dependencies"] {
        let table = manifest::table(&mut document, &[table])?;
        needed.extend(table.iter().map(|(key, _)| key.to_owned()));
    }
    Ok(needed)
}

/// Kiln's manifest with other members, what is needed of its dependencies, and paths that lead to it.
fn root_manifest(
    text: &str,
    name: &Name,
    kiln: &Path,
    needed: &BTreeSet<String>,
) -> Result<String> {
    let mut document: DocumentMut = text.parse().context("Cargo.toml")?;
    let workspace = manifest::table(&mut document, &["workspace"])?;
    let members: Array = [name.kebab.as_str(), SERVER].into_iter().collect();
    workspace.insert("members", value(members));
    // `cargo run` runs the binary.
    let default: Array = [SERVER].into_iter().collect();
    workspace.insert("default-members", value(default));
    workspace.remove("exclude");
    let table = manifest::table(&mut document, &["workspace", "dependencies"])?;
    let keys: Vec<String> = table.iter().map(|(key, _)| key.to_owned()).collect();
    for key in keys.iter().filter(|key| !needed.contains(*key)) {
        table.remove(key);
    }
    reroot(table, kiln);
    // What stands above a dependency that went is not about the one that follows.
    for (mut key, _) in table.iter_mut() {
        key.leaf_decor_mut().clear();
    }
    let server = [
        ("path", posix(&kiln.join("server")).into()),
        ("default-features", false.into()),
    ];
    table.insert("kiln", manifest::inline(server));
    table.insert(
        &name.package(),
        manifest::inline([("path", name.kebab.as_str().into())]),
    );
    reroot(
        manifest::table(&mut document, &["patch", "crates-io"])?,
        kiln,
    );
    let about = format!(
        "# {} for Kiln, outside Kiln's tree. Kiln's crates come from a checkout beside it; a git\n\
         # dependency does as well: `kiln-nn = {{ git = \"...\", rev = \"...\" }}`.\n",
        name.camel()
    );
    Ok(about + &document.to_string())
}

/// Paths in a table of dependencies, from elsewhere.
fn reroot(table: &mut Table, kiln: &Path) {
    for (_, item) in table.iter_mut() {
        let path = item.get("path").and_then(Item::as_str).map(str::to_owned);
        if let Some(path) = path {
            item["path"] = value(posix(&kiln.join(path)));
        }
    }
}

fn server_manifest(name: &Name, list: &linked::List) -> String {
    let package = name.package();
    let own: String = list
        .entries()
        .iter()
        .map(|e| format!("{0} = [\"kiln/{0}\"]\n", e.feature))
        .collect();
    format!(
        "[package]\n\
         name = \"{kebab}-{SERVER}\"\n\
         description = \"kiln with {camel}\"\n\
         version.workspace = true\n\
         edition.workspace = true\n\
         rust-version.workspace = true\n\
         license.workspace = true\n\
         publish.workspace = true\n\n\
         [lints]\n\
         workspace = true\n\n\
         [[bin]]\n\
         name = \"kiln\"\n\
         path = \"src/main.rs\"\n\n\
         [features]\n\
         default = [\"all-models\"]\n\
         # Kiln's own models beside this one; the built-in model is `llava`'s.\n\
         all-models = [\"kiln/all-models\"]\n\
         {own}\
         cuda = [\"kiln/cuda\", \"{package}/cuda\"]\n\n\
         [dependencies]\n\
         kiln.workspace = true\n\
         {package}.workspace = true\n",
        kebab = name.kebab,
        camel = name.camel(),
    )
}

fn main(name: &Name) -> String {
    format!(
        "//! `kiln` with {} beside Kiln's own models.\n\n\
         use {} as _; // a crate that is only a dependency is not linked\n\n\
         fn main() -> std::process::ExitCode {{\n    kiln::main()\n}}\n",
        name.camel(),
        name.krate()
    )
}

fn readme(name: &Name) -> String {
    let kebab = &name.kebab;
    format!(
        "# {} for Kiln\n\n\
         `{kebab}/` is the model, `{SERVER}/` a `kiln` that links it beside Kiln's own.\n\n\
         ```sh\n\
         cargo test --release --workspace\n\
         cargo run --release -- models\n\
         cargo run --release -- run MODEL_DIR --image FILE 'What is this?'\n\
         ```\n\n\
         `docs/adding-a-model.md` in Kiln's tree says what to replace in `{kebab}/src`.\n",
        name.camel()
    )
}

/// The way from one folder to another.
///
/// # Errors
/// When one is not there, or there is no way.
fn relative(from: &Path, to: &Path) -> Result<PathBuf> {
    let absolute = |path: &Path| {
        path.canonicalize()
            .with_context(|| path.display().to_string())
    };
    let (from, to) = (absolute(from)?, absolute(to)?);
    let (from, to): (Vec<_>, Vec<_>) = (from.components().collect(), to.components().collect());
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    ensure!(
        shared > 0,
        "the folder and Kiln's tree are on two drives: no relative path leads from one to the other"
    );
    let up = from[shared..].iter().map(|_| Component::ParentDir);
    Ok(up.chain(to[shared..].iter().copied()).collect())
}

/// As manifests write paths everywhere.
fn posix(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_from_one_folder_to_another() {
        let root = crate::root();
        let way = relative(&root.join("xtask/src"), root).unwrap();
        assert_eq!(way, Path::new("../.."));
        let way = relative(&root.join("xtask"), &root.join("models/nn")).unwrap();
        assert_eq!(posix(&way), "../models/nn");
        assert!(relative(&root.join("no folder"), root).is_err());
    }
}
