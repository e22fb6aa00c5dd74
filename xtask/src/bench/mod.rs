//! `cargo xtask bench`: Kiln and each rival that is installed, in turn in one run on the same weights,
//! and what came of it as docs/benchmarks.md. Nothing is compared across runs: the machine may be
//! another one the next time, or busier.

mod contender;
mod page;

use crate::succeed;
use anyhow::{Context, Result, bail};
use contender::Measured;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Figures by shape, contender and concurrency, one of each round.
type Results = BTreeMap<(String, usize, usize), Vec<Measured>>;

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
    let mut beside = page::Beside {
        commit: page::commit(),
        growth: None,
        server: None,
    };
    let contenders = contender::all(python, args);
    let mut results = Results::new();
    let mut failed: BTreeMap<String, String> = BTreeMap::new();
    for round in 1..=args.rounds {
        for shape in &args.shapes {
            for (index, contender) in contenders.iter().enumerate() {
                for concurrency in args.at_once(shape) {
                    let Some(mut command) = contender.command(shape, *concurrency, args) else {
                        continue;
                    };
                    let label = format!("{} on {shape}, {concurrency} at once", contender.name());
                    eprintln!("round {round}: {label}");
                    match measure(&mut command) {
                        Ok(measured) => {
                            let key = (shape.clone(), index, *concurrency);
                            results.entry(key).or_default().push(measured);
                            let page = page::write(&contenders, &results, &failed, &beside, args)?;
                            unfinished(page, args)?;
                        }
                        Err(error) if contender.is_kiln() => return Err(error.context(label)),
                        Err(error) => {
                            eprintln!("left out: {error:#}");
                            failed.insert(label, format!("{error:#}"));
                        }
                    }
                }
            }
        }
    }
    // What was measured so far is not lost for what fails behind it.
    let first = args.shapes.first();
    let growth = first.filter(|_| args.growth).map(|shape| grow(shape, args));
    beside.growth = growth.and_then(|result| kept("growth", result, &mut failed));
    let page = page::write(&contenders, &results, &failed, &beside, args)?;
    unfinished(page, args)?;
    let server = first.filter(|_| args.server);
    let server = server.map(|shape| serve(python, shape, args));
    beside.server = server.and_then(|result| kept("the server", result, &mut failed));
    let page = page::write(&contenders, &results, &failed, &beside, args)?;
    fs::write(&args.out, page).with_context(|| args.out.display().to_string())
}

/// Keeps what is known so far in the working folder: all of it takes more than an hour, and a run that is
/// stopped should not have been for nothing.
fn unfinished(page: String, args: &Args) -> Result<()> {
    let place = args.work.join("unfinished.md");
    fs::write(&place, page).with_context(|| place.display().to_string())
}

fn kept<T>(label: &str, result: Result<T>, failed: &mut BTreeMap<String, String>) -> Option<T> {
    if let Err(error) = &result {
        eprintln!("left out: {error:#}");
        failed.insert(label.to_owned(), format!("{error:#}"));
    }
    result.ok()
}

/// What a token costs as contexts and batches grow, and a chart of it beside the page.
fn grow(shape: &str, args: &Args) -> Result<serde_json::Value> {
    eprintln!("growth on {shape}");
    let mut command = Command::new("target/release/kiln");
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

/// What clients see of the servers: Kiln's and those of the rivals that have one.
fn serve(
    python: &Path,
    shape: &str,
    args: &Args,
) -> Result<Vec<(&'static str, serde_json::Value)>> {
    let (models, gguf) = (args.work.join("models"), args.work.join("gguf"));
    let checkpoint = models.join(shape);
    let mut servers = vec![(
        "Kiln",
        "kiln",
        PathBuf::from("target/release/kiln"),
        checkpoint.clone(),
    )];
    if let Some(python) = &args.vllm {
        servers.push(("vLLM", "vllm", python.clone(), checkpoint));
    }
    if let Some(bin) = &args.llama_cpp {
        let model = gguf.join(format!("{shape}-bf16.gguf"));
        servers.push(("llama.cpp", "llama.cpp", bin.clone(), model));
    }
    let mut out = vec![];
    for (name, engine, bin, model) in servers {
        eprintln!("the server of {name} on {shape}");
        let mut command = Command::new(python);
        command.args(["xtask/python/bench_server.py", engine, "--bin"]);
        command.arg(bin).arg("--model").arg(model);
        let tower = gguf.join(format!("mmproj-{shape}-bf16.gguf"));
        command.arg("--mmproj").arg(tower);
        if !contender::has_bf16() {
            command.args(["--dtype", "float32"]);
        }
        command.arg("--picture").arg(models.join("picture.png"));
        let most = args.concurrency.iter().max().copied().unwrap_or(1);
        command.args(["--concurrency", &most.to_string()]);
        let output = command.output().context("can't start Python")?;
        let text = String::from_utf8_lossy(&output.stdout);
        match serde_json::from_str(text.lines().last().unwrap_or_default()) {
            Ok(figures) => out.push((name, figures)),
            Err(error) => {
                let words = String::from_utf8_lossy(&output.stderr);
                let error = anyhow::Error::new(error).context(words.into_owned());
                match name {
                    "Kiln" => return Err(error),
                    _ => eprintln!("left out: {error:#}"),
                }
            }
        }
    }
    Ok(out)
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
