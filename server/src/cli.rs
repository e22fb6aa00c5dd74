//! The command line: every flag with what it does. Flags carry the names that vLLM and OpenAI's API
//! use.

use crate::batch::BatchArgs;
use crate::chat::ChatArgs;
use crate::serve::{ServeArgs, config_file};
use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use kiln_engine::{CacheOptions, EngineOptions, ModelOptions, SamplingParams, open_device};
use kiln_registry::{MediaCounts, Quantization, WeightDType};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  kiln run                                       the built-in model about the built-in picture
  kiln run builtin --image p.png 'How many circles are there?'
  kiln run ./llava-1.5-7b --image cat.jpg 'What is this?'
  kiln run llava-hf/llava-1.5-7b-hf --image cat.jpg 'What is this?'
  kiln run ./llava-1.5-7b --image a.jpg --image b.png --limit-mm-per-prompt image=2 'Compare.'
  kiln inspect ./llava-v1.6 --image wide.jpg --out sheet.png
  kiln bench ./llava-1.5-7b --image cat.jpg --concurrency 1,8
  kiln chat ./llava-1.5-7b                       then /image cat.jpg, and questions
  kiln serve                                     the built-in model on http://127.0.0.1:8000
  kiln models

Exit codes: 0 done, 1 failed, 2 the command line or the input can't be served as given.";

/// Serves multimodal language models; a model is a crate.
#[derive(Parser)]
#[command(name = "kiln", version, about, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Threads that compute [default: one a core].
    #[arg(long, global = true, env = "KILN_THREADS", value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Fetch nothing from the Hugging Face Hub: what is in its cache, or an error. HF_HUB_OFFLINE=1
    /// says the same.
    #[arg(long, global = true)]
    pub(crate) offline: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Ask a model; the answer streams to stdout, figures to stderr.
    ///
    /// Without arguments the built-in model describes the built-in picture. Greedy unless a
    /// temperature is given.
    Run(Box<RunArgs>),
    /// Talk with a model, or with a running server, in the terminal.
    Chat(Box<ChatArgs>),
    /// List what is linked into this binary.
    Models(ModelsArgs),
    /// Draw what a model sees of pictures, and say it in words.
    Inspect(InspectArgs),
    /// Measure what a model takes: weights, activations at the largest step, KV cache.
    Profile(ProfileArgs),
    /// Write what happens inside to a safetensors file, for comparison with the reference.
    ///
    /// Keys: `input_ids` (after expansion), `placeholders` (rows of item, offset, length), each
    /// mapped tensor under its Hugging Face name, `tower.I` and `image_features.I` per item,
    /// `logits` ([prompt, vocabulary]), `greedy`.
    Trace(TraceArgs),
    /// Measure where the time goes, and how near the machine's limits that is.
    ///
    /// Each stage of one request with its operations, the bytes it reads, and the fraction of this
    /// machine's limit, measured in the same run, that it reaches; then whole requests at once.
    /// Times are medians behind a run that warms up. Close other programs.
    Bench(BenchArgs),
    /// Serve a model over HTTP, as OpenAI's API does.
    ///
    /// Every option can also stand in the environment (KILN_PORT, ...) or in a file (--config).
    Serve(Box<ServeArgs>),
    /// Answer a file of requests in OpenAI's batch format.
    ///
    /// A run that was ended in the midst goes on where it stopped. What fails is an answer as well:
    /// the exit code is 0 when every line has one.
    Batch(Box<BatchArgs>),
}

/// The command line, with what a configuration file adds.
///
/// # Errors
/// For a file that can't be followed. A command line that can't be ends the process, as clap does.
pub(crate) fn parse() -> Result<Cli> {
    let cli = Cli::parse();
    let Command::Serve(args) = &cli.command else {
        return Ok(cli);
    };
    let Some(file) = &args.config else {
        return Ok(cli);
    };
    let command = config_file::with_defaults_of(Cli::command(), file)?;
    Ok(Cli::from_arg_matches(&command.get_matches())?)
}

/// Which checkpoint, and how it is loaded.
#[derive(Args)]
#[command(next_help_heading = "Loading")]
pub(crate) struct LoadArgs {
    /// Type of weights: auto (as stored), f32, bf16 or f16.
    #[arg(long, default_value = "auto", value_name = "TYPE", env = "KILN_DTYPE")]
    pub(crate) dtype: String,
    /// Narrow the weights of linear layers as they are loaded: q8 or q4.
    #[arg(long, value_name = "BITS", env = "KILN_QUANTIZE")]
    pub(crate) quantize: Option<String>,
    /// Folder to keep narrowed weights in, so that the next start maps them instead of making them;
    /// `none`: nowhere [default: kiln in the user's cache folder].
    #[arg(long, env = "KILN_CACHE_DIR", value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Where to run: cpu, cuda or cuda:N.
    #[arg(
        long,
        default_value = "cpu",
        value_name = "DEVICE",
        env = "KILN_DEVICE"
    )]
    pub(crate) device: String,
    /// Items per prompt, as in image=4,video=0 [default: 1 image].
    #[arg(long, value_name = "LIMITS", value_parser = parse_limits, env = "KILN_LIMIT_MM_PER_PROMPT")]
    pub(crate) limit_mm_per_prompt: Option<MediaCounts>,
    /// Tokens of one sequence [default: as many as the model was made for].
    #[arg(long, value_name = "N", env = "KILN_MAX_MODEL_LEN")]
    pub(crate) max_model_len: Option<usize>,
    /// JSON object laid over the processor's configuration.
    #[arg(long, value_name = "JSON", env = "KILN_MM_PROCESSOR_KWARGS")]
    pub(crate) mm_processor_kwargs: Option<String>,
}

/// What bounds a step and the KV cache.
#[derive(Args)]
#[command(next_help_heading = "Memory")]
pub(crate) struct CacheArgs {
    /// Bytes for weights, activations and KV cache together, as in 4GiB [default: half of what is
    /// free].
    #[arg(long, value_name = "SIZE", value_parser = parse_size, env = "KILN_MEMORY")]
    pub(crate) memory: Option<usize>,
    /// KV blocks; given, nothing is measured at start-up.
    #[arg(long, value_name = "N", env = "KILN_KV_BLOCKS")]
    pub(crate) kv_blocks: Option<usize>,
    /// Tokens that one step may run.
    #[arg(long, value_name = "N", default_value_t = CacheOptions::default().max_batched_tokens, env = "KILN_MAX_BATCHED_TOKENS")]
    pub(crate) max_batched_tokens: usize,
    /// Sequences that may run at a time.
    #[arg(long, value_name = "N", default_value_t = CacheOptions::default().max_num_seqs, env = "KILN_MAX_NUM_SEQS")]
    pub(crate) max_num_seqs: usize,
}

#[derive(Args)]
pub(crate) struct RunArgs {
    /// Folder of a checkpoint, a repository of the Hugging Face Hub (org/name, org/name@revision), or
    /// `builtin`.
    pub(crate) model_dir: Option<PathBuf>,
    /// The question.
    pub(crate) prompt: Option<String>,
    #[command(flatten)]
    pub(crate) media: MediaArgs,
    /// Take the prompt as it is, special tokens and placeholders included, without chat template.
    #[arg(long)]
    pub(crate) raw_prompt: bool,
    /// Text of a system message before the question.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw_prompt")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
}

/// What the question is about. A chat template gets all pictures, then all videos, then all sounds,
/// then the question; with --raw-prompt each placeholder takes the next file of its modality.
#[derive(Args)]
pub(crate) struct MediaArgs {
    /// A picture file, in the order of the prompt; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Vec<PathBuf>,
    /// A video file (behind the pictures); may be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) video: Vec<PathBuf>,
    /// A sound file (behind pictures and videos); may be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) audio: Vec<PathBuf>,
}

impl MediaArgs {
    /// Modalities and files, in the order of the prompt.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let kinds = [
            ("image", &self.image),
            ("video", &self.video),
            ("audio", &self.audio),
        ];
        kinds
            .into_iter()
            .flat_map(|(modality, files)| files.iter().map(move |file| (modality, file)))
    }
}

/// How tokens are chosen.
#[derive(Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// New tokens at most [default: as many as the context holds].
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// 0: greedy; higher: more varied.
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    pub(crate) temperature: f32,
    /// Only the N most likely tokens; 0: all.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) top_k: usize,
    /// Only the most likely tokens that add up to this probability.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub(crate) top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    pub(crate) min_p: f32,
    /// Above 1: tokens of prompt and answer become less likely.
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    pub(crate) repetition_penalty: f32,
    /// Above 0: tokens of the answer become less likely.
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "X",
        allow_negative_numbers = true
    )]
    pub(crate) presence_penalty: f32,
    /// Above 0: tokens become less likely with each time they are in the answer.
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "X",
        allow_negative_numbers = true
    )]
    pub(crate) frequency_penalty: f32,
    /// Added to a token's logit, as in 42=-5; may be repeated.
    #[arg(long, value_name = "ID=X", value_parser = parse_bias, allow_hyphen_values = true)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same answer.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Answers to draw (needs a temperature).
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) n: usize,
    /// Text that ends the answer, and is not shown; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// A token that ends the answer; may be repeated.
    #[arg(long, value_name = "ID")]
    pub(crate) stop_token_id: Vec<u32>,
    /// Go on past the model's end-of-sequence token.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

#[derive(Args)]
pub(crate) struct ModelsArgs {
    /// As JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct InspectArgs {
    /// Folder of a checkpoint, a repository of the Hugging Face Hub (org/name, org/name@revision), or
    /// `builtin`.
    pub(crate) model_dir: PathBuf,
    /// A picture file; may be repeated.
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) image: Vec<PathBuf>,
    /// The picture to write; left out: words alone.
    #[arg(long, value_name = "FILE.png")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
}

#[derive(Args)]
pub(crate) struct ProfileArgs {
    /// Folder of a checkpoint, a repository of the Hugging Face Hub (org/name, org/name@revision), or
    /// `builtin`.
    pub(crate) model_dir: PathBuf,
    /// As JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
}

#[derive(Args)]
pub(crate) struct TraceArgs {
    /// Folder of a checkpoint, a repository of the Hugging Face Hub (org/name, org/name@revision), or
    /// `builtin`.
    pub(crate) model_dir: PathBuf,
    /// A picture file, in the order of the prompt; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Vec<PathBuf>,
    /// The question.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// The file to write.
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) out: PathBuf,
    /// Greedy tokens to make.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) new_tokens: usize,
    /// Go on past the model's end-of-sequence token.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Take the prompt as it is, special tokens and placeholders included, without chat template.
    #[arg(long)]
    pub(crate) raw_prompt: bool,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
}

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Folder of a checkpoint, a repository of the Hugging Face Hub (org/name, org/name@revision), or
    /// `builtin`.
    pub(crate) model_dir: PathBuf,
    /// A picture file; may be repeated [default: the built-in one, where the model takes pictures].
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Vec<PathBuf>,
    /// No picture at all.
    #[arg(long, conflicts_with = "image")]
    pub(crate) text_only: bool,
    /// Tokens of text in the prompt.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub(crate) prompt_tokens: usize,
    /// New tokens of each answer.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = at_least_one)]
    pub(crate) output_tokens: usize,
    /// Requests at once, a list; 0: no whole requests are run.
    #[arg(
        long,
        default_value = "1,8",
        value_name = "LIST",
        value_delimiter = ','
    )]
    pub(crate) concurrency: Vec<usize>,
    /// Runs of which the middle one is told.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = at_least_one)]
    pub(crate) repeat: usize,
    /// Whole requests alone, not the stages of one.
    #[arg(long, conflicts_with = "chart")]
    pub(crate) runs_only: bool,
    /// Also what a token costs at contexts from 512 to 32768 and in batches from 1 to 64.
    #[arg(long)]
    pub(crate) growth: bool,
    /// As JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
    /// A chart to write: a bar a phase, and the growth where it is measured.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) chart: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
}

impl LoadArgs {
    /// As the engine takes them. `given`: as many items as the command line names are always allowed
    /// where it sets no limit itself.
    pub(crate) fn options(&self, given: &MediaCounts) -> Result<ModelOptions> {
        let kwargs = self
            .mm_processor_kwargs
            .as_deref()
            .map(serde_json::from_str::<serde_json::Value>)
            .transpose()
            .context("--mm-processor-kwargs is no JSON")?;
        if kwargs.as_ref().is_some_and(|v| !v.is_object()) {
            bail!("--mm-processor-kwargs must be a JSON object, such as {{\"do_pad\": true}}");
        }
        let limits = match &self.limit_mm_per_prompt {
            Some(limits) => limits.clone(),
            None => given
                .iter()
                .filter(|(_, count)| *count > 1)
                .fold(MediaCounts::new(), |limits, (modality, count)| {
                    limits.with(modality, count)
                }),
        };
        Ok(ModelOptions {
            device: open_device(&self.device)?,
            dtype: self.dtype.parse::<WeightDType>()?,
            quantize: self
                .quantize
                .as_deref()
                .map(str::parse::<Quantization>)
                .transpose()?,
            cache_dir: self.cache_dir(),
            limit_mm_per_prompt: limits,
            max_model_len: self.max_model_len,
            mm_processor_kwargs: kwargs,
            ..ModelOptions::default()
        })
    }

    fn cache_dir(&self) -> Option<PathBuf> {
        match &self.cache_dir {
            Some(folder) if folder.as_os_str() == "none" => None,
            Some(folder) => Some(folder.clone()),
            None => {
                let given = std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty());
                let caches = given.map(PathBuf::from);
                let caches = caches.or_else(|| Some(std::env::home_dir()?.join(".cache")))?;
                Some(caches.join("kiln"))
            }
        }
    }
}

impl CacheArgs {
    pub(crate) fn options(&self) -> CacheOptions {
        CacheOptions {
            memory: self.memory,
            kv_blocks: self.kv_blocks,
            max_batched_tokens: self.max_batched_tokens,
            max_num_seqs: self.max_num_seqs,
            ..CacheOptions::default()
        }
    }

    pub(crate) fn engine(&self, model: ModelOptions) -> EngineOptions {
        EngineOptions {
            model,
            cache: self.options(),
            ..EngineOptions::default()
        }
    }
}

impl SamplingArgs {
    pub(crate) fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            seed: self.seed,
            n: self.n,
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_id.clone(),
            ignore_eos: self.ignore_eos,
            ..SamplingParams::default()
        }
    }
}

fn at_least_one(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => bail!("a whole number above 0 is wanted"),
    }
}

fn parse_limits(text: &str) -> Result<MediaCounts> {
    text.split(',')
        .try_fold(MediaCounts::new(), |counts, part| {
            let (name, count) = part
                .split_once('=')
                .with_context(|| format!("`{part}` is not MODALITY=COUNT, as in image=4"))?;
            let count = count
                .trim()
                .parse()
                .with_context(|| format!("`{count}` in `{part}` is no whole number"))?;
            Ok(counts.with(name.trim(), count))
        })
}

fn parse_bias(text: &str) -> Result<(u32, f32)> {
    let (id, bias) = text
        .split_once('=')
        .with_context(|| format!("`{text}` is not ID=X, as in 42=-5"))?;
    Ok((
        id.parse().context("the token id")?,
        bias.parse().context("the bias")?,
    ))
}

/// `4GiB`, `512M`, `1.5g`, or bytes. Units are binary.
pub(crate) fn parse_size(text: &str) -> Result<usize> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let shift = match unit.trim().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        other => bail!("no unit `{other}`: K, M, G or T, as in 4GiB"),
    };
    let number: f64 = number
        .parse()
        .with_context(|| format!("`{text}` is no size, such as 4GiB"))?;
    let bytes = number * (1u64 << shift) as f64;
    if !(1.0..=(1u64 << 50) as f64).contains(&bytes) {
        bail!("`{text}` is out of range");
    }
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn media_come_in_the_order_of_the_prompt() {
        let line = "kiln run m --audio a.wav --image b.png --video c.gif --image d.png what";
        let Command::Run(args) = Cli::parse_from(line.split(' ')).command else {
            panic!("{line}");
        };
        let files = args
            .media
            .files()
            .map(|(m, file)| (m, file.to_str().unwrap()));
        assert_eq!(
            files.collect::<Vec<_>>(),
            [
                ("image", "b.png"),
                ("image", "d.png"),
                ("video", "c.gif"),
                ("audio", "a.wav")
            ]
        );
    }

    #[test]
    fn sizes_and_limits_are_read_as_written() {
        assert_eq!(parse_size("4GiB").unwrap(), 4 << 30);
        assert_eq!(parse_size("1.5g").unwrap(), 3 << 29);
        assert_eq!(parse_size("512 M").unwrap(), 512 << 20);
        assert_eq!(parse_size("100").unwrap(), 100);
        for bad in ["", "x", "4 parsecs", "-1", "1e99", "0"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        let limits = parse_limits("image=4, video=0").unwrap();
        assert_eq!((limits.get("image"), limits.get("video")), (4, 0));
        assert!(parse_limits("image").is_err() && parse_limits("image=x").is_err());
        assert_eq!(parse_bias("42=-5").unwrap(), (42, -5.0));
    }
}
