//! What is named in more than one place agrees: model crates, the list of linked crates, the
//! binary's features, the README's table.

use super::Fault;
use super::metadata::Member;
use super::tree::{Sources, lines_outside_tests};
use crate::linked;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use toml_edit::{DocumentMut, Item};

const SERVER: &str = "server/Cargo.toml";
const README: &str = "README.md";

/// A model crate of the workspace.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    folder: String,
    /// The folder's name: also the feature.
    feature: String,
    package: String,
    /// Those that it submits.
    architectures: Vec<String>,
    cuda: bool,
}

/// All lists.
#[derive(Debug, Clone)]
pub(crate) struct Lists {
    models: Vec<Model>,
    /// Folders under `models/` with a manifest.
    folders: BTreeSet<String>,
    linked: Vec<linked::Entry>,
    server: DocumentMut,
    readme: Vec<Row>,
}

/// A line of the README's table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    feature: String,
    architectures: Vec<String>,
}

impl Lists {
    /// # Errors
    /// When a file can't be read or parsed.
    pub(crate) fn read(root: &Path, members: &[Member], sources: &Sources) -> Result<Self> {
        let read = |file: &str| fs::read_to_string(root.join(file)).context(file.to_owned());
        let mut models = vec![];
        for member in members {
            let Some(feature) = model_of(&member.folder) else {
                continue;
            };
            let manifest = format!("{}/Cargo.toml", member.folder);
            let manifest: DocumentMut = read(&manifest)?.parse().context(manifest)?;
            let files = format!("{}/src/", member.folder);
            let own = sources.iter().filter(|(file, _)| file.starts_with(&files));
            models.push(Model {
                folder: member.folder.clone(),
                feature: feature.to_owned(),
                package: member.name.clone(),
                architectures: own.flat_map(|(_, text)| submitted(text)).collect(),
                cuda: at(&manifest, &["features", "cuda"]).is_some(),
            });
        }
        let listed = fs::read_dir(root.join("models")).context("models")?;
        let mut folders = BTreeSet::new();
        for entry in listed {
            let path = entry?.path();
            if path.join("Cargo.toml").is_file() {
                folders.insert(super::metadata::relative(root, &path));
            }
        }
        Ok(Self {
            models,
            folders,
            linked: linked::List::read(root)?.entries().to_vec(),
            server: read(SERVER)?.parse().context(SERVER)?,
            readme: table(&read(README)?),
        })
    }
}

/// The feature of a folder that is a model crate's.
fn model_of(folder: &str) -> Option<&str> {
    folder.strip_prefix("models/").filter(|name| *name != "nn")
}

/// The architectures of every `ModelEntry::new::<..>(name, &["..."])` outside tests.
fn submitted(source: &str) -> Vec<String> {
    let code: String = lines_outside_tests(source)
        .into_iter()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(_, line)| line)
        .collect();
    let entries = code.split("ModelEntry::new::<").skip(1);
    entries
        .filter_map(|rest| {
            let (_, list) = rest.split_once("&[")?;
            Some(list.split_once(']')?.0)
        })
        .flat_map(|list| list.split('"').skip(1).step_by(2).map(str::to_owned))
        .collect()
}

/// The rows of the table whose first column is `feature`.
fn table(readme: &str) -> Vec<Row> {
    let lines = readme
        .lines()
        .skip_while(|line| !line.starts_with("| feature |"));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let code = |cell: &str| -> Vec<String> {
        let quoted = cell.split('`').skip(1).step_by(2);
        quoted.map(str::to_owned).collect()
    };
    rows.map(|line| {
        let mut cells = line.split('|').skip(1);
        Row {
            feature: code(cells.next().unwrap_or_default()).concat(),
            architectures: code(cells.next().unwrap_or_default()),
        }
    })
    .collect()
}

fn at<'a>(document: &'a DocumentMut, path: &[&str]) -> Option<&'a Item> {
    let mut item = document.as_item();
    for key in path {
        item = item.get(key)?;
    }
    Some(item)
}

fn strings(item: Option<&Item>) -> Vec<&str> {
    let array = item.and_then(Item::as_array);
    let values = array.into_iter().flat_map(|array| array.iter());
    values.filter_map(|value| value.as_str()).collect()
}

fn sorted<T: Ord>(list: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut list: Vec<_> = list.into_iter().collect();
    list.sort();
    list
}

/// Every place where two lists differ.
pub(crate) fn check(lists: &Lists) -> Vec<Fault> {
    let mut faults = vec![];
    for folder in &lists.folders {
        let member = lists.models.iter().any(|m| m.folder == *folder);
        if model_of(folder).is_some() && !member {
            faults.push(Fault::new(
                format!("{folder}/Cargo.toml"),
                "is no member of the workspace",
                "add the folder to `members` of Cargo.toml, or delete it",
            ));
        }
    }
    for model in &lists.models {
        faults.extend(linked_once(model, &lists.linked));
        faults.extend(server(model, &lists.server));
        faults.extend(readme(model, &lists.readme));
    }
    faults.extend(strangers(lists));
    faults
}

fn linked_once(model: &Model, linked: &[linked::Entry]) -> Option<Fault> {
    let krate = model.package.replace('-', "_");
    let of: Vec<_> = linked
        .iter()
        .filter(|entry| entry.krate == krate || entry.feature == model.feature)
        .collect();
    let wanted = linked::Entry {
        feature: model.feature.clone(),
        krate: krate.clone(),
        architectures: model.architectures.clone(),
    };
    let mend = format!("let exactly one line be `{wanted}`");
    let what = match of[..] {
        [] => format!("does not link {}", model.package),
        [entry] if entry.krate != krate || entry.feature != model.feature => format!(
            "links {} by the feature `{}`, but {} is {}",
            entry.krate, entry.feature, model.folder, model.package
        ),
        [entry] if sorted(&entry.architectures) != sorted(&model.architectures) => format!(
            "gives {} the architectures {:?}, but the crate submits {:?}",
            model.package, entry.architectures, model.architectures
        ),
        [_] => return None,
        _ => format!("has {} lines for {}", of.len(), model.package),
    };
    Some(Fault::new(linked::FILE, what, mend))
}

fn server(model: &Model, server: &DocumentMut) -> Vec<Fault> {
    let (feature, package) = (&model.feature, &model.package);
    let mut faults = vec![];
    let mut wants = |holds: bool, what: String, mend: String| {
        if !holds {
            faults.push(Fault::new(SERVER, what, mend));
        }
    };
    let link = format!("dep:{package}");
    wants(
        strings(at(server, &["features", feature])) == [&*link],
        format!("the feature `{feature}` does not link {package}, and nothing else"),
        format!("write `{feature} = [\"{link}\"]` under [features]"),
    );
    wants(
        strings(at(server, &["features", "all-models"])).contains(&feature.as_str()),
        format!("`all-models` leaves `{feature}` out"),
        format!("add \"{feature}\" to it"),
    );
    let optional = at(server, &["dependencies", package, "optional"]);
    wants(
        optional.and_then(Item::as_bool) == Some(true),
        format!("{package} is no optional dependency"),
        format!("write `{package} = {{ workspace = true, optional = true }}`"),
    );
    let cuda = format!("{package}?/cuda");
    let listed = strings(at(server, &["features", "cuda"])).contains(&&*cuda);
    wants(
        listed == model.cuda,
        format!("the feature `cuda` and {package}'s own `cuda` disagree"),
        format!("list \"{cuda}\" exactly where the crate has the feature"),
    );
    faults
}

fn readme(model: &Model, rows: &[Row]) -> Option<Fault> {
    let of: Vec<_> = rows.iter().filter(|r| r.feature == model.feature).collect();
    let what = match of[..] {
        [] => format!("the table of models has no row for `{}`", model.feature),
        [row] if sorted(&row.architectures) != sorted(&model.architectures) => format!(
            "the table of models gives `{}` the architectures {:?}, but the crate submits {:?}",
            model.feature, row.architectures, model.architectures
        ),
        [_] => return None,
        _ => format!("the table of models has `{}` twice", model.feature),
    };
    let mend = format!(
        "write one row `| \\`{}\\` | architectures | parts |`",
        model.feature
    );
    Some(Fault::new(README, what, mend.replace('\\', "")))
}

/// What the lists name and no crate is.
fn strangers(lists: &Lists) -> Vec<Fault> {
    let known: BTreeMap<&str, &str> = lists
        .models
        .iter()
        .map(|m| (m.feature.as_str(), m.package.as_str()))
        .collect();
    let all_models = strings(at(&lists.server, &["features", "all-models"]));
    let of_list = lists
        .linked
        .iter()
        .map(|e| (linked::FILE, e.feature.as_str()));
    let of_readme = lists.readme.iter().map(|r| (README, r.feature.as_str()));
    let of_server = all_models.into_iter().map(|feature| (SERVER, feature));
    of_list
        .chain(of_readme)
        .chain(of_server)
        .filter(|(_, feature)| !known.contains_key(feature))
        .map(|(file, feature)| {
            Fault::new(
                file,
                format!("names the model `{feature}`, but there is no crate models/{feature}"),
                "take it out",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests;
