//! A model by its name on the Hugging Face Hub, wherever a folder is taken: `org/name`, or
//! `org/name@revision`.
//!
//! Files lie in the standard cache, so that what other tools have fetched is not fetched again, and
//! the reverse. A branch's name is written down in the cache only when all files of its commit are
//! there: what was interrupted is never taken for whole, and the next run goes on with it.

mod failure;
mod needed;
mod progress;
mod settings;

use anyhow::{Result, bail};
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use progress::Bar;
use settings::Settings;
pub(crate) use settings::set_offline;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// The branch that is meant when none is named.
const MAIN: &str = "main";

/// Times that a download which broke off is taken up again.
const RETRIES: usize = 3;

/// A repository of the hub, and which state of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelId {
    /// `org/name`.
    id: String,
    /// A branch, a tag or a commit.
    revision: String,
}

impl ModelId {
    /// What a person wrote, if it can be a name on the hub.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (org, name) = id.split_once('/')?;
        let revision_is_plain = revision.split('/').all(is_plain);
        (is_plain(org) && is_plain(name) && revision_is_plain).then(|| Self {
            id: id.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// `org/name`.
    pub(crate) fn name(&self) -> &str {
        &self.id
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_owned())
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

/// One part of a name: what the hub allows, and nothing that would lead out of a folder.
fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with(['.', '-', '~'])
        && !part.contains("..")
        && part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// The folder of a model's files, fetched where they are not there yet.
///
/// # Errors
/// In words that say what to do: no such repository, one that wants a licence accepted or a token,
/// no connection and nothing in the cache, a file that can't be fetched or written.
pub(crate) fn folder(model: &ModelId) -> Result<PathBuf> {
    folder_by(model, &Settings::from_environment()?)
}

fn folder_by(model: &ModelId, settings: &Settings) -> Result<PathBuf> {
    let cached = cached(model, &settings.cache);
    if settings.offline {
        return match cached {
            Some(folder) => Ok(folder),
            None => bail!(
                "{model} is not in the cache ({}), and nothing is fetched while offline: run it \
                 once without --offline and HF_HUB_OFFLINE",
                settings.cache.display()
            ),
        };
    }
    let api = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
        .with_endpoint(settings.endpoint.clone())
        .with_token(settings.token.clone())
        .with_progress(false)
        .with_retries(RETRIES)
        .with_user_agent("kiln", env!("CARGO_PKG_VERSION"))
        .build()?;
    let info = match api.repo(model.at(&model.revision)).info() {
        Ok(info) => info,
        Err(error) => {
            if let (true, Some(folder)) = (failure::is_no_connection(&error), cached) {
                eprintln!(
                    "kiln: {} can't be reached; {model} is taken from the cache as it is",
                    settings.endpoint
                );
                return Ok(folder);
            }
            bail!(failure::words(&error, model, settings));
        }
    };
    if !is_plain(&info.sha) {
        bail!("{} names no commit of {model}", settings.endpoint);
    }
    let all: BTreeSet<String> = info.siblings.into_iter().map(|f| f.rfilename).collect();
    // By its commit, so that files of two states never lie in one folder.
    let repo = api.repo(model.at(&info.sha));
    let snapshot = Cache::new(settings.cache.clone())
        .repo(model.at(MAIN))
        .pointer_path(&info.sha);
    let fetch = |names: &[&str]| {
        for name in names {
            fetch(&repo, &snapshot, name, model, settings)?;
        }
        anyhow::Ok(())
    };
    if !all.contains("config.json") {
        bail!("{model} has no config.json: it is no model in the layout of transformers");
    }
    fetch(&needed::small(&all))?;
    let weights = needed::weights(&all, &snapshot)?;
    if weights.is_empty() {
        bail!(
            "{model} has no model.safetensors: weights in other formats are not read; convert \
             them with transformers' save_pretrained"
        );
    }
    fetch(&weights.iter().map(String::as_str).collect::<Vec<_>>())?;
    settle(model, &info.sha, &settings.cache)?;
    Ok(snapshot)
}

fn fetch(
    repo: &ApiRepo,
    snapshot: &Path,
    name: &str,
    model: &ModelId,
    settings: &Settings,
) -> Result<()> {
    if snapshot.join(name).exists() {
        return Ok(());
    }
    match repo.download_with_progress(name, Bar::default()) {
        Ok(_) => Ok(()),
        Err(error) => bail!("{name}: {}", failure::words(&error, model, settings)),
    }
}

/// The folder that a revision stands for in the cache.
fn cached(model: &ModelId, cache: &Path) -> Option<PathBuf> {
    let repo = || Cache::new(cache.to_owned()).repo(model.at(&model.revision));
    // A commit's folder bears its hash; `config.json` is the first file of all.
    let by_hash = repo().pointer_path(&model.revision);
    if by_hash.join("config.json").is_file() {
        return Some(by_hash);
    }
    let config = repo().get("config.json")?;
    config.parent().map(Path::to_owned)
}

/// Writes down which commit the revision stands for, now that its files are there.
fn settle(model: &ModelId, commit: &str, cache: &Path) -> Result<()> {
    if model.revision == commit {
        return Ok(());
    }
    let repo = model.at(&model.revision);
    // The downloads left a reference from the commit to itself, which no other tool has.
    let refs = cache.join(repo.folder_name()).join("refs");
    let _ = std::fs::remove_file(refs.join(commit));
    Ok(Cache::new(cache.to_owned()).repo(repo).create_ref(commit)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        let parsed = |text: &str| ModelId::parse(text).map(|m| (m.id, m.revision));
        let is = |id: &str, revision: &str| Some((id.to_owned(), revision.to_owned()));
        assert_eq!(
            parsed("llava-hf/llava-1.5-7b-hf"),
            is("llava-hf/llava-1.5-7b-hf", "main")
        );
        assert_eq!(parsed("a/b@v1.0"), is("a/b", "v1.0"));
        assert_eq!(parsed("a/b@refs/pr/3"), is("a/b", "refs/pr/3"));
        for path in [
            "builtin", "./a", "../a", "/a/b", "a/b/c", "a/", "/b", "~/b", "a/..", "a/b@",
            "a/b@../x", "a\\b", "a b/c", "", "a/.b",
        ] {
            assert_eq!(parsed(path), None, "{path}");
        }
        assert_eq!(ModelId::parse("a/b").unwrap().to_string(), "a/b");
        assert_eq!(ModelId::parse("a/b@c").unwrap().to_string(), "a/b@c");
    }
}
