//! `cargo xtask new-model` and `remove-model`: a crate under `models/` that compiles, registers and
//! passes a test of its own at once, and the four lists that name it. Nothing else changes, and
//! removal gives every byte back. Out of the tree: a workspace of its own with a binary.

mod config;
mod edits;
mod manifest;
mod modality;
mod name;
mod out_of_tree;
mod own_config;
mod parity;
mod seal;
mod sources;
#[cfg(test)]
mod tests;

use crate::generate;
use anyhow::{Context, Result, bail, ensure};
use edits::Edits;
use modality::Modality;
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
    /// What it takes beside text, as in image,video,audio [default: image, where the shape has a
    /// tower].
    #[arg(long, value_enum, value_delimiter = ',')]
    modality: Vec<Modality>,
    /// A checkpoint's config.json: its keys, with small sizes, become those of the crate's tiny
    /// test; its architecture the crate's; its `model_type`s must be known to models/nn.
    #[arg(long, value_name = "CONFIG.JSON")]
    from: Option<PathBuf>,
    /// Not in this tree, but in a new workspace in this folder, with a `kiln` of its own that links
    /// the model beside Kiln's.
    #[arg(long, value_name = "DIR")]
    out_of_tree: Option<PathBuf>,
}

/// Where the crate goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// `models/`: listed, sealed, and removable.
    Tree,
    /// A workspace of its own.
    Outside,
}

/// Texts by path.
type Texts = BTreeMap<String, String>;

/// Files by path.
type Files = BTreeMap<String, Vec<u8>>;

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
    let config = config.as_ref();
    let modalities = &args.modality;
    if let Some(folder) = &args.out_of_tree {
        let made = out_of_tree::scaffold(root, folder, &args.name, args.like, modalities, config)?;
        refresh_lock(folder)?;
        println!("{}", made.outside(folder));
    } else {
        let made = scaffold(root, &args.name, args.like, modalities, config)?;
        refresh_lock(root)?;
        println!("{}", made.in_the_tree());
    }
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

/// What was made.
struct Made {
    name: Name,
    like: Like,
}

impl Made {
    /// The crate as the lists have it.
    fn model(&self, files: &Files) -> Result<generate::Model> {
        let text = |content: &[u8]| String::from_utf8_lossy(content).into_owned();
        let manifest = files.get("Cargo.toml").context("no manifest")?;
        let sources = files.iter().filter(|(file, _)| file.starts_with("src/"));
        let sources: Vec<_> = sources.map(|(_, content)| text(content)).collect();
        generate::Model::parse(&self.name.kebab, &text(manifest), &sources)
    }

    fn in_the_tree(&self) -> String {
        let (name, like) = (&self.name, self.like.folder());
        let kebab = &name.kebab;
        format!(
            "{} is models/{kebab}, architecture {}, feature `{kebab}`. Now:\n  \
             cargo test --release --workspace --test tiny    its own test, on tiny random weights\n  \
             cargo run --release -p kiln -- models           it is listed\n  \
             cargo xtask check                               the lists agree\n\
             Then replace in models/{kebab}/src what is {like}'s.",
            name.package(),
            name.architecture,
        )
    }

    fn outside(&self, folder: &Path) -> String {
        let (name, like, at) = (&self.name, self.like.folder(), folder.display());
        let kebab = &name.kebab;
        format!(
            "{} is {at}/{kebab}, architecture {}; {at}/server is a `kiln` that links it. Now, in {at}:\n  \
             cargo test --release --workspace     its own test, on tiny random weights\n  \
             cargo run --release -- models        it is listed\n\
             Then replace in {kebab}/src what is {like}'s.",
            name.package(),
            name.architecture,
        )
    }
}

/// The crate's files and its name. `kiln`: from the crate's `tests` to Kiln's tree.
fn crate_files(
    root: &Path,
    name: &str,
    like: Option<Like>,
    modalities: &[Modality],
    config: Option<&serde_json::Value>,
    place: Place,
    kiln: &str,
) -> Result<(Made, Files)> {
    let like = like.unwrap_or_else(|| config.map_or(Like::Llava, config::like));
    modality::check(like, modalities)?;
    let name = Name::new(name, like, config)?;
    let mut texts = sources::files(root, &name, like, place)?;
    modality::add(modalities, &mut texts)?;
    let unread = config.map(|config| modality::unread(config, modalities));
    own_config::add(root, &name, like, unread.as_ref(), &mut texts)?;
    let tiny = config::tiny(root, &name, like, config)?;
    let tiny = modality::config(&tiny, modalities)?;
    texts.insert("tests/tiny/config.json".to_owned(), tiny);
    let mut files = Files::new();
    // The reference has no model with other parts than those it is like.
    if !modality::more(modalities) {
        files = parity::files(root, &name, like, config, kiln)?;
    }
    files.extend(bytes(texts));
    Ok((Made { name, like }, files))
}

fn bytes(texts: Texts) -> impl Iterator<Item = (String, Vec<u8>)> {
    texts
        .into_iter()
        .map(|(file, text)| (file, text.into_bytes()))
}

/// Everything but Cargo.lock.
fn scaffold(
    root: &Path,
    name: &str,
    like: Option<Like>,
    modalities: &[Modality],
    config: Option<&serde_json::Value>,
) -> Result<Made> {
    let kebab = Name::parse(name)?.kebab;
    let folder = root.join("models").join(&kebab);
    ensure!(
        !folder.exists(),
        "models/{kebab} is there already: `cargo xtask remove-model {kebab}` undoes it, or take \
         another name"
    );
    let (made, files) = crate_files(
        root,
        name,
        like,
        modalities,
        config,
        Place::Tree,
        "../../..",
    )?;
    let before = Edits::read(root)?;
    let model = made.model(&files).context("the new crate")?;
    let after = before.with(&made.name, model)?;
    let written = write(&folder, &files).and_then(|()| seal::seal(&folder));
    if let Err(error) = written.and_then(|()| after.write(root)) {
        // Half a crate helps nobody, and this one was not there before.
        fs::remove_dir_all(&folder).ok();
        before.write(root).ok();
        return Err(error);
    }
    Ok(made)
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

/// Every file below a folder, by its path there behind `prefix`.
fn read_all(folder: &Path, prefix: &str, files: &mut Files) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            read_all(&path, &format!("{prefix}{name}/"), files)?;
        } else {
            let content = fs::read(&path).with_context(|| path.display().to_string())?;
            files.insert(format!("{prefix}{name}"), content);
        }
    }
    Ok(())
}

/// Writes files and formats them.
fn write(folder: &Path, files: &Files) -> Result<()> {
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
    Ok(())
}

/// Brings a workspace's Cargo.lock up to date with its members; no other version changes.
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
