//! Parity off the fixtures: random checkpoints by transformers, `kiln trace` of each, and the
//! reference's verdict.

use crate::succeed;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is drawn.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Checkpoints of each kind.
    #[arg(long, default_value_t = 4)]
    count: u64,
    /// Where to work.
    #[arg(long, default_value = "target/trace-parity")]
    work: PathBuf,
}

const KINDS: [&str; 3] = ["llava", "llava-next", "text"];

pub(crate) fn run(python: &Path, args: &Args) -> Result<()> {
    let build = ["build", "--release", "--quiet", "--locked", "-p", "kiln"];
    succeed(Command::new("cargo").args(build))?;
    let mut failed = Vec::new();
    for seed in args.seed..args.seed + args.count {
        for kind in KINDS {
            if !one(python, args, kind, seed)? {
                failed.push(format!("{kind} {seed}"));
            }
        }
    }
    if !failed.is_empty() {
        bail!("differs from the reference: {}", failed.join(", "));
    }
    println!("{} checkpoints agree", args.count * KINDS.len() as u64);
    Ok(())
}

/// Whether one checkpoint agrees.
fn one(python: &Path, args: &Args, kind: &str, seed: u64) -> Result<bool> {
    let folder = args.work.join(format!("{kind}-{seed}"));
    let images = if kind == "text" { 0 } else { 1 + seed % 3 };
    let script = || {
        let mut command = Command::new(python);
        // The reference must answer from the checkpoints given, never from the network.
        command
            .arg("xtask/python/fixtures.py")
            .env("HF_HUB_OFFLINE", "1");
        command
    };
    succeed(
        script()
            .arg("--random-checkpoint")
            .arg(&folder)
            .args(["--kind", kind, "--seed", &seed.to_string()])
            .args(["--images", &images.to_string()]),
    )?;
    let prompt = std::fs::read_to_string(folder.join("prompt.txt"))
        .with_context(|| folder.display().to_string())?;
    let (checkpoint, trace) = (folder.join("checkpoint"), folder.join("trace.safetensors"));
    let pictures: Vec<PathBuf> = (0..images)
        .map(|i| folder.join(format!("image-{i}.png")))
        .collect();
    let with_pictures = |mut command: Command| {
        for picture in &pictures {
            command.arg("--image").arg(picture);
        }
        command.args(["--prompt", &prompt]);
        command
    };
    let mut kiln = Command::new("target/release/kiln");
    kiln.arg("trace").arg(&checkpoint).arg("--out").arg(&trace);
    kiln.args([
        "--new-tokens",
        "32",
        "--ignore-eos",
        "--raw-prompt",
        "--dtype",
        "f32",
    ]);
    succeed(&mut with_pictures(kiln))?;
    let mut compare = script();
    compare
        .arg("--compare")
        .arg(&trace)
        .arg("--checkpoint")
        .arg(&checkpoint);
    let status = with_pictures(compare).status().context("the comparison")?;
    Ok(status.success())
}
