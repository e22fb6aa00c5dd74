//! From the command line to a loaded model, with a progress bar where a person looks on.

use crate::builtin;
use crate::cli::MediaArgs;
use crate::hub::{self, ModelId};
use crate::linked;
use anyhow::{Context, Result};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_engine::{Checkpoint, LoadedModel, ModelOptions};
use kiln_registry::MediaCounts;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The checkpoint of a folder, the built-in one, or, where there is no such folder, one of the
/// Hugging Face Hub.
pub(crate) fn checkpoint(model: &Path) -> Result<Checkpoint> {
    if model.as_os_str() == builtin::NAME {
        return Ok(builtin::checkpoint());
    }
    match on_the_hub(model) {
        Some(id) => Ok(Checkpoint::open(hub::folder(&id)?)?),
        None => Ok(Checkpoint::open(model)?),
    }
}

/// The model of the hub that is meant, where there is no folder of this name.
pub(crate) fn on_the_hub(model: &Path) -> Option<ModelId> {
    let may_be = !model.exists() && model.as_os_str() != builtin::NAME;
    ModelId::parse(model.to_str().filter(|_| may_be)?)
}

/// How long a load may take before a bar is drawn.
const PATIENCE: Duration = Duration::from_millis(300);

/// Loads a checkpoint. The bar is drawn to a terminal only, and only when it takes a while.
pub(crate) fn load(checkpoint: &Checkpoint, options: &ModelOptions) -> Result<LoadedModel> {
    let bar = ProgressBar::hidden();
    if let Ok(style) = ProgressStyle::with_template("loading {wide_bar} {pos}/{len} tensors") {
        bar.set_style(style);
    }
    let progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        if bar.is_hidden() && bar.elapsed() > PATIENCE {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    };
    let loaded = LoadedModel::load(linked::registry()?, checkpoint, options, &progress);
    bar.finish_and_clear();
    loaded.with_context(|| format!("can't load {}", checkpoint.name()))
}

/// The bytes of media files, each with its modality, and how many there are of each.
pub(crate) fn read_media(media: &MediaArgs) -> Result<(Vec<(&'static str, Bytes)>, MediaCounts)> {
    let mut counts = MediaCounts::new();
    let items = media
        .files()
        .map(|(modality, file)| {
            counts.set(modality, counts.get(modality) + 1);
            Ok((modality, read(file)?))
        })
        .collect::<Result<_>>()?;
    Ok((items, counts))
}

fn read(file: &Path) -> Result<Bytes> {
    let bytes = fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
    Ok(Bytes::from(bytes))
}

/// The bytes of picture files.
pub(crate) fn read_images(files: &[PathBuf]) -> Result<Vec<(String, Bytes)>> {
    files
        .iter()
        .map(|file| Ok((file.display().to_string(), read(file)?)))
        .collect()
}
