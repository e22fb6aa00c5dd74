//! `cargo xtask new-model` and `remove-model`: a crate under `models/` that compiles, registers and
//! passes a test of its own at once, and the four lists that name it. Nothing else changes, and
//! removal gives every byte back.

mod config;
mod edits;
mod manifest;
mod name;
mod readme;
mod seal;
mod sources;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail, ensure};
use edits::Edits;
use name::Name;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A crate whose shape a new one may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Like {
    /// A tower, a projector, a decoder; every image takes the same number of tokens.
    Llava,
    /// The same with tiles: an image takes as many tokens as its size asks for.
    LlavaNext,
    /// A decoder alone.
    Text,
}

impl Like {
    fn folder(self) -> &'static str {
        match self {
            Self::Llava => "llava",
            Self::LlavaNext => "llava-next",
            Self::Text => "text",
        }
    }
}

/// The new crate.
#[derive(clap::Args)]
pub(crate) struct NewArgs {
    /// In kebab case: `shiny-vl` makes models/shiny-vl, crate kiln-shiny-vl, feature shiny-vl.
    name: String,
    /// The crate whose shape it takes. Without it: what the config asks for, else `llava`.
    #[arg(long, value_enum)]
    like: Option<Like>,
    /// A checkpoint's config.json: its keys, with small sizes, become those of the crate's tiny
    /// test; its architecture the crate's; its `model_type`s must be known to models/nn.
    #[arg(long, value_name = "CONFIG.JSON")]
    from: Option<PathBuf>,
}

/// The crate that goes.
#[derive(clap::Args)]
pub(crate) struct RemoveArgs {
    /// As it was given to `new-model`.
    name: String,
    /// Remove it though it was edited by hand since.
    #[arg(long)]
    force: bool,
}

/// Scaffolds a model crate.
///
/// # Errors
/// For a name that is none or is taken, a config that models/nn has no parts for, lists of another
/// form. Nothing is left behind then.
pub(crate) fn create(root: &Path, args: &NewArgs) -> Result<()> {
    let config = args.from.as_deref().map(config::read).transpose()?;
    let made = scaffold(root, &args.name, args.like, config.as_ref())?;
    refresh_lock(root)?;
    println!(
        "{} is models/{}, architecture {}, feature `{}`. Now:\n  \
         cargo test --release --workspace --test tiny    its own test, on tiny random weights\n  \
         cargo run --release -p kiln -- models           it is listed\n  \
         cargo xtask check                               the lists agree\n\
         Then replace in models/{}/src what is {}'s.",
        made.package, made.kebab, made.architecture, made.kebab, made.kebab, made.like
    );
    Ok(())
}

/// Takes a scaffolded crate out again.
///
/// # Errors
/// For a crate that `new-model` did not make, and for one edited since, unless forced.
pub(crate) fn remove(root: &Path, args: &RemoveArgs) -> Result<()> {
    let name = unscaffold(root, &args.name, args.force)?;
    refresh_lock(root)?;
    println!("models/{} is gone, and so is every line of it", name.kebab);
    Ok(())
}

struct Made {
    kebab: String,
    package: String,
    architecture: String,
    like: &'static str,
}

/// Everything but Cargo.lock.
fn scaffold(
    root: &Path,
    name: &str,
    like: Option<Like>,
    config: Option<&serde_json::Value>,
) -> Result<Made> {
    let like = like.unwrap_or_else(|| config.map_or(Like::Llava, config::like));
    let name = Name::new(name, like, config)?;
    let folder = root.join("models").join(&name.kebab);
    ensure!(
        !folder.exists(),
        "models/{0} is there already: `cargo xtask remove-model {0}` undoes it, or take another name",
        name.kebab
    );
    let config = config::tiny(root, &name, like, config)?;
    let mut files = sources::files(root, &name, like)?;
    files.insert("tests/tiny/config.json".to_owned(), config);
    let before = Edits::read(root)?;
    let after = before.with(&name, like)?;
    if let Err(error) = write(&folder, &files).and_then(|()| after.write(root)) {
        // Half a crate helps nobody, and this one was not there before.
        fs::remove_dir_all(&folder).ok();
        before.write(root).ok();
        return Err(error);
    }
    Ok(Made {
        package: name.package(),
        kebab: name.kebab,
        architecture: name.architecture,
        like: like.folder(),
    })
}

fn unscaffold(root: &Path, name: &str, force: bool) -> Result<Name> {
    let name = Name::parse(name)?;
    let folder = root.join("models").join(&name.kebab);
    let at = format!("models/{}", name.kebab);
    ensure!(folder.is_dir(), "there is no {at}");
    match seal::check(&folder)? {
        seal::Seal::Whole => {}
        seal::Seal::None => bail!(
            "{at} was not made by `cargo xtask new-model`, or is a crate of its own by now: delete \
             it by hand"
        ),
        seal::Seal::Broken if force => {}
        seal::Seal::Broken => bail!(
            "{at} was edited since it was made: save what you want to keep, then add `--force`"
        ),
    }
    let edits = Edits::read(root)?.without(&name)?;
    edits.write(root)?;
    fs::remove_dir_all(&folder).with_context(|| at)?;
    Ok(name)
}

/// Writes the crate, formats it, and seals what came out.
fn write(folder: &Path, files: &BTreeMap<String, String>) -> Result<()> {
    for (file, text) in files {
        let path = folder.join(file);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    // Another name has another length: lines break elsewhere.
    let rust = files.keys().filter(|file| file.ends_with(".rs"));
    let output = Command::new("rustfmt")
        .args(["--edition", "2024"])
        .args(rust.map(|file| folder.join(file)))
        .output()
        .context("can't start rustfmt: `rustup component add rustfmt`")?;
    ensure!(
        output.status.success(),
        "rustfmt: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    seal::seal(folder)
}

/// Brings Cargo.lock up to date with the members; no other version changes.
fn refresh_lock(root: &Path) -> Result<()> {
    let status = Command::new(crate::cargo())
        .args(["update", "--workspace", "--offline", "--quiet"])
        .current_dir(root)
        .status()
        .context("can't start cargo update")?;
    ensure!(
        status.success(),
        "Cargo.lock is not up to date: run `cargo update --workspace`"
    );
    Ok(())
}
