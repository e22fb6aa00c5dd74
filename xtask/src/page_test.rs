//! `cargo xtask page-test`: the web page in headless Chromium, against the release binary on the
//! built-in model. What it checks is in xtask/page/test.mjs.

use crate::succeed;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which browser.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Chromium, or Chrome.
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/chromium")]
    browser: PathBuf,
    /// Where to write pictures of the page.
    #[arg(long, value_name = "DIR", default_value = "target/page")]
    out: PathBuf,
    /// The binary [default: target/release/kiln, built first].
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Runs it.
///
/// # Errors
/// When Node or Chromium is not there, or a check fails.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    if !args.browser.exists() {
        bail!(
            "there is no {}: install Chromium (on Debian: apt-get install chromium), or name one \
             with --browser",
            args.browser.display()
        );
    }
    let folder = root.join("xtask/page");
    if !folder.join("node_modules").exists() {
        let mut install = Command::new("npm");
        install.args(["install", "--no-audit", "--no-fund", "--no-package-lock"]);
        succeed(install.current_dir(&folder))
            .context("installing playwright-core needs Node and npm (nodejs.org)")?;
    }
    let binary = match &args.binary {
        Some(binary) => std::path::absolute(binary)?,
        None => {
            let mut build = Command::new(crate::cargo());
            succeed(build.args(["build", "--release", "--quiet", "--locked", "--workspace"]))?;
            root.join("target/release/kiln")
        }
    };
    let out = std::path::absolute(&args.out)?;
    std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    succeed(
        Command::new("node")
            .arg("test.mjs")
            .args([&binary, &args.browser, &out])
            .arg(root.join("assets/sample.png"))
            .current_dir(folder),
    )
}
