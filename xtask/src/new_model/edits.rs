//! The lists that name every model, before and after: manifests, the linked crates, the README.

use super::manifest;
use super::name::Name;
use crate::generate::{self, Model, README};
use crate::linked;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use toml_edit::{DocumentMut, Item, Table};

const ROOT: &str = "Cargo.toml";
const SERVER: &str = "server/Cargo.toml";

/// The texts of the four files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edits {
    root: String,
    server: String,
    linked: String,
    readme: String,
    models: Vec<Model>,
}

impl Edits {
    /// # Errors
    /// When a file can't be read.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let read = |file: &str| fs::read_to_string(root.join(file)).context(file.to_owned());
        Ok(Self {
            root: read(ROOT)?,
            server: read(SERVER)?,
            linked: read(linked::FILE)?,
            readme: read(README)?,
            models: generate::models(root)?,
        })
    }

    /// # Errors
    /// When a file can't be written.
    pub(super) fn write(&self, root: &Path) -> Result<()> {
        for (file, text) in [
            (ROOT, &self.root),
            (SERVER, &self.server),
            (linked::FILE, &self.linked),
            (README, &self.readme),
        ] {
            fs::write(root.join(file), text).context(file)?;
        }
        Ok(())
    }

    /// With a model's lines.
    ///
    /// # Errors
    /// When a file has another form, or names the model or its architecture already.
    pub(super) fn with(&self, name: &Name, new: Model) -> Result<Self> {
        let list = linked::List::parse(&self.linked).context(linked::FILE)?;
        list.ensure_free(&name.architecture)?;
        let features: Vec<_> = self.models.iter().map(|m| m.feature.clone()).collect();
        let mut models = self.models.clone();
        let at = models.partition_point(|m| m.feature < new.feature);
        models.insert(at, new);
        self.made(
            models,
            edit(&self.root, |document| add_member(document, name)).context(ROOT)?,
            edit(&self.server, |document| {
                add_feature(document, name, &features)
            })
            .context(SERVER)?,
        )
    }

    /// Without a model's lines.
    ///
    /// # Errors
    /// When a file has another form, or does not name the model.
    pub(super) fn without(&self, name: &Name) -> Result<Self> {
        let mut models = self.models.clone();
        models.retain(|model| model.feature != name.kebab);
        self.made(
            models,
            edit(&self.root, |document| take_member(document, name)).context(ROOT)?,
            edit(&self.server, |document| take_feature(document, name)).context(SERVER)?,
        )
    }

    fn made(&self, models: Vec<Model>, root: String, server: String) -> Result<Self> {
        Ok(Self {
            root,
            server,
            linked: generate::list(&self.linked, &models).context(linked::FILE)?,
            readme: generate::readme(&self.readme, &models).context(README)?,
            models,
        })
    }
}

fn edit(text: &str, change: impl FnOnce(&mut DocumentMut) -> Result<()>) -> Result<String> {
    let mut document: DocumentMut = text.parse()?;
    change(&mut document)?;
    Ok(document.to_string())
}

fn folder(name: &Name) -> String {
    format!("models/{}", name.kebab)
}

fn workspace_dependencies(document: &mut DocumentMut) -> Result<&mut Table> {
    manifest::table(document, &["workspace", "dependencies"])
}

fn add_member(document: &mut DocumentMut, name: &Name) -> Result<()> {
    let workspace = manifest::table(document, &["workspace"])?;
    let members = manifest::array(workspace, "members")?;
    manifest::add(members, &folder(name), |member| {
        member.starts_with("models/")
    });
    let dependencies = workspace_dependencies(document)?;
    let of_models: Vec<String> = dependencies
        .iter()
        .filter(|(_, item)| {
            let path = item.get("path").and_then(Item::as_str);
            path.is_some_and(|path| path.starts_with("models/"))
        })
        .map(|(key, _)| key.to_owned())
        .collect();
    let item = manifest::inline([("path", folder(name).into())]);
    manifest::add_entry(dependencies, &name.package(), item, |key| {
        of_models.iter().any(|model| model == key)
    })
}

fn take_member(document: &mut DocumentMut, name: &Name) -> Result<()> {
    let workspace = manifest::table(document, &["workspace"])?;
    manifest::take(manifest::array(workspace, "members")?, &folder(name))?;
    manifest::take_entry(workspace_dependencies(document)?, &name.package())
}

fn cuda(name: &Name) -> String {
    format!("{}?/cuda", name.package())
}

fn add_feature(document: &mut DocumentMut, name: &Name, models: &[String]) -> Result<()> {
    let own = name.kebab.as_str();
    let earlier = |feature: &str| feature < own && models.iter().any(|m| m == feature);
    let features = manifest::table(document, &["features"])?;
    manifest::add(manifest::array(features, "all-models")?, own, earlier);
    let own_cuda = cuda(name);
    let last = |link: &str| !link.contains('?') || link < own_cuda.as_str();
    manifest::add(manifest::array(features, "cuda")?, &own_cuda, last);
    let link = [format!("dep:{}", name.package())];
    let link = toml_edit::value(link.into_iter().collect::<toml_edit::Array>());
    manifest::add_entry(features, own, link, |key| {
        key == "all-models" || earlier(key)
    })?;
    let item = manifest::inline([("workspace", true.into()), ("optional", true.into())]);
    let dependencies = manifest::table(document, &["dependencies"])?;
    manifest::add_entry(dependencies, &name.package(), item, |key| {
        let model = key.strip_prefix("kiln-").unwrap_or_default();
        key == "kiln-image" || earlier(model)
    })
}

fn take_feature(document: &mut DocumentMut, name: &Name) -> Result<()> {
    let features = manifest::table(document, &["features"])?;
    manifest::take(manifest::array(features, "all-models")?, &name.kebab)?;
    manifest::take(manifest::array(features, "cuda")?, &cuda(name))?;
    manifest::take_entry(features, &name.kebab)?;
    let dependencies = manifest::table(document, &["dependencies"])?;
    manifest::take_entry(dependencies, &name.package())
}
