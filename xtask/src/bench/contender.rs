//! Who is measured, by which command, and the figures that come back.

use super::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROMPT_TOKENS: &str = "32";
const OUTPUT_TOKENS: &str = "64";

/// Whether rivals compute in `bf16` at its own speed on this machine.
pub(crate) fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// Runs within one process, behind one that warms up: of several requests at once one is many, and so
/// is one of thirteen tiles.
fn repeat(shape: &str, concurrency: usize) -> &'static str {
    match (shape, concurrency) {
        ("A" | "C", 1) => "3",
        _ => "1",
    }
}

/// An engine with its weights in one width.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    engine: Engine,
    /// As the page shows it: `bf16`, `int8`, `Q4_K_M`.
    pub(crate) weights: &'static str,
    /// Bits of a weight: rivals are compared at the same.
    pub(crate) bits: u8,
}

#[derive(Debug, Clone)]
enum Engine {
    Kiln,
    /// An engine of bench_rivals.py with the Python that has it.
    Python(&'static str, PathBuf),
    LlamaCpp(PathBuf, PathBuf),
}

/// One run's figures, in seconds and bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) version: String,
    pub(crate) load: f64,
    pub(crate) peak_rss: Option<f64>,
    pub(crate) first_token: f64,
    pub(crate) per_token: f64,
    pub(crate) total: f64,
    pub(crate) tokens_per_second: f64,
    /// Kiln's own account of phases and limits.
    pub(crate) details: Option<Value>,
}

impl Measured {
    /// From what `kiln bench --json` or bench_rivals.py printed.
    pub(crate) fn parse(output: &str) -> Option<Self> {
        let whole: Option<Value> = serde_json::from_str(output).ok();
        let last = || output.lines().rev().find(|line| line.starts_with('{'));
        let value = whole.or_else(|| serde_json::from_str(last()?).ok())?;
        let run = value.get("run").or_else(|| value.get("runs")?.get(0))?;
        let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_f64);
        Some(Self {
            version: value
                .get("version")
                .and_then(Value::as_str)
                .unwrap_or("Kiln, this commit")
                .to_owned(),
            load: number(&value, "load")?,
            peak_rss: number(&value, "peak_rss_bytes"),
            first_token: number(run, "time_to_first_token")?,
            per_token: number(run, "time_per_output_token")?,
            total: number(run, "total")?,
            tokens_per_second: number(run, "output_tokens_per_second")?,
            details: value
                .get("phases")
                .and_then(Value::as_array)
                .is_some_and(|phases| !phases.is_empty())
                .then(|| value.clone()),
        })
    }
}

/// Everyone whom the arguments name, Kiln first.
pub(crate) fn all(python: &Path, args: &Args) -> Vec<Contender> {
    let one = |engine: Engine, weights, bits| Contender {
        engine,
        weights,
        bits,
    };
    // What has no instructions for `bf16` emulates it, at a multiple of what `f32` costs.
    let float = if has_bf16() { "bf16" } else { "f32" };
    let mut out: Vec<_> = [("bf16", 16), ("q8", 8), ("q4", 4)]
        .map(|(weights, bits)| one(Engine::Kiln, weights, bits))
        .into();
    if let Some(python) = &args.transformers {
        let engine = Engine::Python("transformers", python.clone());
        out.push(one(engine, float, 16));
    }
    if let Some(python) = &args.openvino {
        for (weights, bits) in [("fp16", 16), ("int8", 8), ("int4", 4)] {
            let engine = Engine::Python("openvino", python.clone());
            out.push(one(engine, weights, bits));
        }
    }
    if let Some(python) = &args.vllm {
        let engine = Engine::Python("vllm", python.clone());
        out.push(one(engine, float, 16));
    }
    if let Some(bin) = &args.llama_cpp {
        for (weights, bits) in [("bf16", 16), ("Q8_0", 8), ("Q4_K_M", 4)] {
            let engine = Engine::LlamaCpp(python.to_owned(), bin.clone());
            out.push(one(engine, weights, bits));
        }
    }
    out
}

impl Contender {
    pub(crate) fn is_kiln(&self) -> bool {
        matches!(self.engine, Engine::Kiln)
    }

    pub(crate) fn name(&self) -> String {
        let engine = match &self.engine {
            Engine::Kiln => "Kiln",
            Engine::Python("openvino", _) => "OpenVINO GenAI",
            Engine::Python("vllm", _) => "vLLM",
            Engine::Python(name, _) => name,
            Engine::LlamaCpp(..) => "llama.cpp",
        };
        format!("{engine} {}", self.weights)
    }

    /// `None` where its weights are not there. `briefly`: of Kiln, whole requests alone.
    pub(crate) fn command(
        &self,
        shape: &str,
        concurrency: usize,
        args: &Args,
        briefly: bool,
    ) -> Option<Command> {
        let models = args.work.join("models");
        let picture = models.join("picture.png");
        let checkpoint = models.join(shape);
        let at_once = concurrency.to_string();
        match &self.engine {
            Engine::Kiln => {
                let mut command = Command::new("target/release/kiln");
                command.arg("bench").arg(&checkpoint);
                command.arg("--image").arg(&picture).arg("--json");
                command.args([
                    "--prompt-tokens",
                    PROMPT_TOKENS,
                    "--output-tokens",
                    OUTPUT_TOKENS,
                ]);
                let repeat = repeat(shape, concurrency);
                command.args(["--concurrency", &at_once, "--repeat", repeat]);
                // As the rivals are told.
                command.args(["--max-batched-tokens", "2048"]);
                if briefly {
                    command.arg("--runs-only");
                }
                if self.bits < 16 {
                    command.args(["--quantize", self.weights]);
                }
                if let Some(threads) = args.threads {
                    command.args(["--threads", &threads.to_string()]);
                }
                Some(command)
            }
            Engine::Python(name, python) => {
                let model = match *name {
                    "openvino" => args.work.join(format!("openvino/{shape}-{}", self.weights)),
                    _ => checkpoint,
                };
                let mut command = rival(python, name, &model, &picture, shape, concurrency);
                // OpenVINO's weights have a width of their own; this is what it computes in.
                command.args(["--dtype", if has_bf16() { "bf16" } else { "f32" }]);
                model.exists().then_some(command)
            }
            Engine::LlamaCpp(python, bin) => {
                let gguf = args.work.join("gguf");
                let model = gguf.join(format!("{shape}-{}.gguf", self.weights));
                let tower = gguf.join(format!("mmproj-{shape}-bf16.gguf"));
                let mut command = rival(python, "llama.cpp", &model, &picture, shape, concurrency);
                command.arg("--mmproj").arg(&tower).arg("--bin").arg(bin);
                (model.exists() && tower.exists()).then_some(command)
            }
        }
    }
}

fn rival(
    python: &Path,
    name: &str,
    model: &Path,
    picture: &Path,
    shape: &str,
    concurrency: usize,
) -> Command {
    let mut command = Command::new(python);
    command.args(["xtask/python/bench_rivals.py", name, "--model"]);
    command.arg(model).arg("--picture").arg(picture);
    command.args([
        "--prompt-tokens",
        PROMPT_TOKENS,
        "--output-tokens",
        OUTPUT_TOKENS,
    ]);
    let at_once = concurrency.to_string();
    command.args([
        "--concurrency",
        &at_once,
        "--repeat",
        repeat(shape, concurrency),
    ]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_either_side() {
        let rival = "a warning\n{\"engine\": \"x\", \"version\": \"x 1\", \"load\": 1.5, \
                     \"peak_rss_bytes\": 7, \"run\": {\"concurrency\": 1, \"time_to_first_token\": \
                     0.5, \"time_per_output_token\": 0.1, \"total\": 2, \
                     \"output_tokens_per_second\": 32}}\n";
        let measured = Measured::parse(rival).unwrap();
        assert_eq!((measured.version.as_str(), measured.load), ("x 1", 1.5));
        assert!(measured.details.is_none());
        let own = "{\n\"load\": 1, \"phases\": [{}], \"runs\": [{\"time_to_first_token\": 0.25, \
                   \"time_per_output_token\": 0.1, \"total\": 2,\n\"output_tokens_per_second\": 9}]}";
        let measured = Measured::parse(own).unwrap();
        assert_eq!(measured.first_token, 0.25);
        assert!(measured.details.is_some() && measured.peak_rss.is_none());
        assert!(Measured::parse("nothing\n{\"load\": 1}").is_none());
    }
}
