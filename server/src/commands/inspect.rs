//! `kiln inspect`: what a model sees, as a picture and in words.

use crate::cli::InspectArgs;
use crate::load::{checkpoint, load, read_images};
use anyhow::{Context, Result};
use kiln_registry::MediaCounts;
use std::io::Write;

pub(crate) fn inspect(args: &InspectArgs) -> Result<()> {
    let images = read_images(&args.image)?;
    let counts = MediaCounts::new().with("image", images.len());
    let options = args.load.options(&counts)?;
    let loaded = load(&checkpoint(&args.model_dir)?, &options)?;
    let inspection = crate::inspect::inspect(loaded.pipeline(), &images)?;
    write!(std::io::stdout(), "{}", inspection.words())?;
    if let Some(out) = &args.out {
        inspection
            .sheet()
            .save_with_format(out, image::ImageFormat::Png)
            .with_context(|| format!("can't write {}", out.display()))?;
    }
    Ok(())
}
