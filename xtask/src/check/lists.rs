//! What is named in more than one place agrees: model crates, the list of linked crates, the
//! binary's features, the README's table.

use super::Fault;
use super::metadata::Member;
use crate::generate::{self, Model};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use toml_edit::{DocumentMut, Item};

const SERVER: &str = "server/Cargo.toml";

/// All lists.
#[derive(Debug, Clone)]
pub(crate) struct Lists {
    models: Vec<Model>,
    /// Members of the workspace under `models/`.
    members: BTreeSet<String>,
    server: DocumentMut,
    /// Generated files: what they hold and what they should.
    generated: Vec<(&'static str, String, String)>,
}

impl Lists {
    /// # Errors
    /// When a file can't be read or parsed.
    pub(crate) fn read(root: &Path, members: &[Member]) -> Result<Self> {
        let server = fs::read_to_string(root.join(SERVER)).context(SERVER)?;
        let folders = members
            .iter()
            .filter_map(|m| m.folder.strip_prefix("models/"));
        Ok(Self {
            models: generate::models(root)?,
            members: folders.map(str::to_owned).collect(),
            server: server.parse().context(SERVER)?,
            generated: generate::files(root)?,
        })
    }
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

/// Every place where two lists differ.
pub(crate) fn check(lists: &Lists) -> Vec<Fault> {
    let mut faults = vec![];
    for model in &lists.models {
        if !lists.members.contains(&model.feature) {
            faults.push(Fault::new(
                format!("models/{}/Cargo.toml", model.feature),
                "is no member of the workspace",
                "add the folder to `members` of Cargo.toml, or delete it",
            ));
        }
        faults.extend(server(model, &lists.server));
    }
    faults.extend(lists.generated.iter().filter_map(stale));
    faults.extend(strangers(lists));
    faults
}

/// A generated file that is not current, with the first line that differs.
fn stale((file, old, new): &(&'static str, String, String)) -> Option<Fault> {
    let (mut old, mut new) = (old.split('\n'), new.split('\n'));
    let (has, wants) = loop {
        match (old.next(), new.next()) {
            (None, None) => return None,
            (has, wants) if has != wants => break (has, wants),
            _ => {}
        }
    };
    let said =
        |line: Option<&str>| line.map_or("nothing".to_owned(), |l| format!("`{}`", l.trim()));
    Some(Fault::new(
        *file,
        format!(
            "has {} where the model crates say {}",
            said(has),
            said(wants)
        ),
        "run `cargo xtask generate`",
    ))
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

/// What `all-models` names and no crate is.
fn strangers(lists: &Lists) -> Vec<Fault> {
    let known: BTreeSet<_> = lists.models.iter().map(|m| m.feature.as_str()).collect();
    strings(at(&lists.server, &["features", "all-models"]))
        .into_iter()
        .filter(|feature| !known.contains(feature))
        .map(|feature| {
            Fault::new(
                SERVER,
                format!("names the model `{feature}`, but there is no crate models/{feature}"),
                "take it out",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests;
