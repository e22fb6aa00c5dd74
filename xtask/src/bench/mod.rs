//! `cargo xtask bench`: Kiln and each rival that is installed, in turn in one run on the same weights,
//! and what came of it as docs/benchmarks.md. A rival is compared with what Kiln took just before it, on
//! the same machine: that may be another one the next time, or busier.

mod contender;
mod page;
mod state;

use crate::succeed;
use anyhow::{Context, Result, bail};
use contender::{Contender, Measured};
use serde_json::Value;
use state::{Entry, Place, State};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const KILN: &str = "target/release/kiln";

/// What is run. Weights of rivals that have a format of their own lie in the work folder:
/// `openvino/SHAPE-fp16`, `-int8`, `-int4` (optimum-cli export openvino), `gguf/SHAPE-bf16.gguf`,
/// `-Q8_0`, `-Q4_K_M` and `gguf/mmproj-SHAPE-bf16.gguf` (llama.cpp's converters). What is not there
/// is left out, and the page says so.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the checkpoints are; those of random weights are written where they are not.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    work: PathBuf,
    /// A: LLaVA 1.5's layout; C: LLaVA-NeXT's, five tiles a picture; D: the same with 13.
    #[arg(long, value_delimiter = ',', default_value = "A,C")]
    shapes: Vec<String>,
    /// Rounds; of each figure the middle one is told.
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Requests at once, of the first shape; of the others the first number is run.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    concurrency: Vec<usize>,
    /// Threads of Kiln [default: one a core, as the rivals].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// A Python with transformers, or none.
    #[arg(long, value_name = "PYTHON")]
    transformers: Option<PathBuf>,
    /// A Python with openvino-genai.
    #[arg(long, value_name = "PYTHON")]
    openvino: Option<PathBuf>,
    /// A Python with vLLM for CPUs.
    #[arg(long, value_name = "PYTHON")]
    vllm: Option<PathBuf>,
    /// The folder of llama.cpp's llama-server.
    #[arg(long, value_name = "DIR")]
    llama_cpp: Option<PathBuf>,
    /// Also what a token costs Kiln in bf16 as contexts and batches grow, with a chart beside the
    /// page.
    #[arg(long)]
    growth: bool,
    /// Also `kiln serve` on the first shape, seen by clients over HTTP.
    #[arg(long)]
    server: bool,
    /// Go on with what an earlier run measured, of the same build and on the same machine: it lies in the
    /// working folder.
    #[arg(long)]
    resume: bool,
    /// The page to write.
    #[arg(long, value_name = "FILE", default_value = "docs/benchmarks.md")]
    out: PathBuf,
}

impl Args {
    fn at_once(&self, shape: &str) -> &[usize] {
        match self.shapes.first() {
            Some(first) if first == shape => &self.concurrency,
            _ => &self.concurrency[..self.concurrency.len().min(1)],
        }
    }
}

/// Runs everything.
///
/// # Errors
/// When the checkpoints can't be written, Kiln can't be built or fails. A rival that fails is left
/// out with its words.
pub(crate) fn run(python: &Path, args: &Args) -> Result<()> {
    let models = args.work.join("models");
    succeed(
        Command::new(python)
            .arg("xtask/python/bench_models.py")
            .arg("--out")
            .arg(&models)
            .args(&args.shapes),
    )?;
    succeed(Command::new(crate::cargo()).args([
        "build",
        "--release",
        "--quiet",
        "--locked",
        "-p",
        "kiln",
    ]))?;
    let mut run = Run {
        contenders: contender::all(python, args),
        state: State::open(Path::new(KILN), args)?,
        failed: BTreeMap::new(),
        args,
    };
    for round in 1..=args.rounds {
        for shape in &args.shapes {
            run.round(round, shape)?;
        }
    }
    if let Some(first) = args.shapes.first() {
        if args.growth {
            run.growth(first)?;
        }
        if args.server {
            run.servers(python, first)?;
        }
    }
    fs::write(&args.out, page::page(&run)?).with_context(|| args.out.display().to_string())
}

/// A run of it all.
struct Run<'a> {
    contenders: Vec<Contender>,
    state: State,
    /// What was left out, and why.
    failed: BTreeMap<String, String>,
    args: &'a Args,
}

impl Run<'_> {
    /// Every contender on a shape.
    fn round(&mut self, round: usize, shape: &str) -> Result<()> {
        for contender in self.contenders.clone() {
            for &concurrency in self.args.at_once(shape) {
                let at = Place {
                    round,
                    shape: shape.to_owned(),
                    contender: contender.name(),
                    concurrency,
                };
                if self.state.has(&at) {
                    continue;
                }
                let label = format!("{} on {shape}, {concurrency} at once", at.contender);
                let Some((measured, beside)) = self.measure(&contender, &at, &label)? else {
                    continue;
                };
                self.state.entries.push(Entry {
                    at,
                    measured,
                    beside,
                });
                self.state.save(self.args)?;
            }
        }
        Ok(())
    }

    /// What a contender takes, and of a rival what Kiln takes just before: neighbours slow a shared machine
    /// for minutes, and should slow both. `None` where it fails or its weights are not there.
    fn measure(
        &mut self,
        contender: &Contender,
        at: &Place,
        label: &str,
    ) -> Result<Option<(Measured, Option<Measured>)>> {
        let command = |contender: &Contender, briefly| {
            contender.command(&at.shape, at.concurrency, self.args, briefly)
        };
        let Some(mut own) = command(contender, false) else {
            return Ok(None);
        };
        let kiln = self
            .contenders
            .iter()
            .find(|c| c.is_kiln() && c.bits == contender.bits);
        let kiln = kiln.filter(|_| !contender.is_kiln());
        eprintln!("round {}: {label}", at.round);
        let mut beside = None;
        if let Some(mut kiln) = kiln.and_then(|kiln| command(kiln, true)) {
            beside = Some(measure(&mut kiln).context("Kiln beside it")?);
        }
        match measure(&mut own) {
            Ok(measured) => Ok(Some((measured, beside))),
            Err(error) if contender.is_kiln() => Err(error.context(label.to_owned())),
            Err(error) => {
                self.leave_out(label, &error);
                Ok(None)
            }
        }
    }

    fn leave_out(&mut self, label: &str, error: &anyhow::Error) {
        eprintln!("left out: {error:#}");
        self.failed.insert(label.to_owned(), format!("{error:#}"));
    }

    /// What a token costs as contexts and batches grow, and a chart of it beside the page.
    fn growth(&mut self, shape: &str) -> Result<()> {
        if self.state.growth.is_some() {
            return Ok(());
        }
        match grow(shape, self.args) {
            Ok(growth) => {
                self.state.growth = Some(growth);
                self.state.save(self.args)
            }
            Err(error) => {
                self.leave_out("growth", &error);
                Ok(())
            }
        }
    }

    /// What clients see of the servers: Kiln's and those of the rivals that have one.
    fn servers(&mut self, python: &Path, shape: &str) -> Result<()> {
        let checkpoint = self.args.work.join("models").join(shape);
        let mut servers = vec![("Kiln", "kiln", PathBuf::from(KILN), checkpoint.clone())];
        if let Some(python) = &self.args.vllm {
            servers.push(("vLLM", "vllm", python.clone(), checkpoint));
        }
        if let Some(bin) = &self.args.llama_cpp {
            let model = self.args.work.join(format!("gguf/{shape}-bf16.gguf"));
            servers.push(("llama.cpp", "llama.cpp", bin.clone(), model));
        }
        for (name, engine, bin, model) in servers {
            if self.state.servers.iter().any(|(known, _)| known == name) {
                continue;
            }
            let label = format!("the server of {name} on {shape}");
            eprintln!("{label}");
            match serve(python, shape, engine, &bin, &model, self.args) {
                Ok(figures) => {
                    self.state.servers.push((name.to_owned(), figures));
                    self.state.save(self.args)?;
                }
                // The page has it in the first column.
                Err(error) if name == "Kiln" => return Err(error.context(label)),
                Err(error) => self.leave_out(&label, &error),
            }
        }
        Ok(())
    }
}

/// What a token costs as contexts and batches grow, and a chart of it beside the page.
fn grow(shape: &str, args: &Args) -> Result<Value> {
    eprintln!("growth on {shape}");
    let mut command = Command::new(KILN);
    command
        .arg("bench")
        .arg(args.work.join("models").join(shape));
    command.args(["--growth", "--json", "--concurrency", "0", "--text-only"]);
    command.args(["--chart"]);
    command.arg(args.out.with_extension("svg"));
    if let Some(threads) = args.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    let output = command.output().context("can't start Kiln")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("the output holds no figures")
}

/// What clients see of one server.
fn serve(
    python: &Path,
    shape: &str,
    engine: &str,
    bin: &Path,
    model: &Path,
    args: &Args,
) -> Result<Value> {
    let mut command = Command::new(python);
    command.args(["xtask/python/bench_server.py", engine, "--bin"]);
    command.arg(bin).arg("--model").arg(model);
    let tower = args.work.join(format!("gguf/mmproj-{shape}-bf16.gguf"));
    command.arg("--mmproj").arg(tower);
    if !contender::has_bf16() {
        command.args(["--dtype", "float32"]);
    }
    let picture = args.work.join("models/picture.png");
    command.arg("--picture").arg(picture);
    let most = args.concurrency.iter().max().copied().unwrap_or(1);
    command.args(["--concurrency", &most.to_string()]);
    let output = command.output().context("can't start Python")?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The JSON that a contender's output ends with.
fn measure(command: &mut Command) -> Result<Measured> {
    let output = command
        .output()
        .with_context(|| format!("can't start {:?}", command.get_program()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last = words.trim().lines().last().unwrap_or_default().to_owned();
        bail!("{}: {last}", output.status);
    }
    Measured::parse(&text).context("the output holds no figures")
}
