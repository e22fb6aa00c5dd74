//! What a contributor types: `cargo xtask COMMAND`. Each command runs the one script or tool that
//! does the work; what needs Python stays out of the tests and out of CI.

mod bench;
mod check;
mod generate;
mod linked;
mod new_model;
mod page_test;
mod soak;
mod trace_parity;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of Kiln's contributors")]
struct Cli {
    /// The Python that has xtask/python/requirements.txt installed.
    #[arg(long, global = true, env = "KILN_PYTHON", default_value = "python3")]
    python: PathBuf,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run what CI runs: formatting, structure, lints, docs, tests.
    Ci,
    /// Check the tree's structure: arrows between crates, documented modules, no architecture in
    /// the core, lists that agree.
    Check(check::Args),
    /// Write the list of linked crates and the README's table anew, from the model crates.
    Generate,
    /// Scaffold a model crate that compiles, registers and passes its own test.
    NewModel(new_model::NewArgs),
    /// Take a scaffolded model crate out again, to the byte.
    RemoveModel(new_model::RemoveArgs),
    /// Write tests/fixtures anew with transformers (needs Python).
    Fixtures(Rest),
    /// Write the image crate's golden pictures anew with Pillow (needs Python).
    PillowGoldens(Rest),
    /// Write the video crate's goldens anew with Pillow and transformers (needs Python).
    VideoGoldens(Rest),
    /// Write the goldens of the audio crate and of the audio tower anew (needs Python).
    AudioGoldens(Rest),
    /// Train the built-in model (needs Python; resumes where it was interrupted).
    TrainDemo(Rest),
    /// Measure the built-in model through the engine: accuracy by kind of question on fresh scenes.
    DemoEval(Rest),
    /// Compare `kiln trace` with transformers on random checkpoints off the fixtures (needs Python).
    TraceParity(trace_parity::Args),
    /// What narrower weights cost: perplexity on a text, or the built-in model's answers.
    Quality(Rest),
    /// Measure Kiln and the rivals that are installed in turn, and write docs/benchmarks.md.
    Bench(bench::Args),
    /// Try the web page in headless Chromium (needs Node and Chromium).
    PageTest(page_test::Args),
    /// Keep the server under good, bad, slow and fickle clients, and look at what comes of it.
    Soak(soak::Args),
    /// Measure the exported built-in model with transformers (needs Python).
    EvalDemo(Rest),
}

#[derive(clap::Args)]
struct Rest {
    /// Handed to the script as they are; `-- --help` shows what it takes.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let root = root();
    let script = |name: &str, rest: &Rest, defaults: &[&str]| {
        let mut command = Command::new(&cli.python);
        command.arg(root.join("xtask/python").join(name));
        if rest.args.is_empty() {
            command.args(defaults)
        } else {
            command.args(&rest.args)
        };
        command
    };
    // Paths that somebody typed are from where they stand.
    match &cli.task {
        Task::NewModel(args) => return new_model::create(root, args),
        Task::RemoveModel(args) => return new_model::remove(root, args),
        _ => env::set_current_dir(root)?,
    }
    let mut command = match &cli.task {
        Task::Ci => {
            let mut bash = Command::new("bash");
            bash.arg(".ci/run");
            bash
        }
        Task::NewModel(_) | Task::RemoveModel(_) => return Ok(()),
        Task::Check(args) => return check::run(root, args),
        Task::Generate => return generate::run(root),
        Task::Fixtures(rest) => script("fixtures.py", rest, &["--out", "tests/fixtures"]),
        Task::PillowGoldens(rest) => script("pillow_goldens.py", rest, &[]),
        Task::VideoGoldens(rest) => script("video_goldens.py", rest, &[]),
        Task::AudioGoldens(rest) => script("audio_goldens.py", rest, &[]),
        Task::TrainDemo(rest) => script("train_demo.py", rest, &[]),
        Task::DemoEval(rest) => program("kiln-demo-eval", rest),
        Task::Quality(rest) => program("kiln-quality", rest),
        Task::EvalDemo(rest) => script("eval_demo.py", rest, &[]),
        Task::Bench(args) => return bench::run(&cli.python, args),
        Task::PageTest(args) => return page_test::run(root, args),
        Task::Soak(args) => return soak::run(root, args),
        Task::TraceParity(args) => return trace_parity::run(&cli.python, args),
    };
    // The reference must answer from the checkpoints given, never from the network.
    succeed(command.env("HF_HUB_OFFLINE", "1"))
}

/// Runs a command to its end.
fn succeed(command: &mut Command) -> Result<()> {
    let program = format!("{:?}", command.get_program());
    let status = command
        .status()
        .with_context(|| format!("can't start {program}"))?;
    if !status.success() {
        bail!("{program}: {status}");
    }
    Ok(())
}

/// A program of the workspace.
fn program(package: &str, rest: &Rest) -> Command {
    let mut command = Command::new(cargo());
    command.args([
        "run",
        "--release",
        "--quiet",
        "--locked",
        "-p",
        package,
        "--",
    ]);
    command.args(&rest.args);
    command
}

/// The Cargo that runs this, or else the one on the path.
fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The repository's root: one above this package.
fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}
