//! What `kiln serve` can be told, on the command line, in the environment, or in a file. A flag goes
//! before the environment, and that before the file.

use crate::cli::{CacheArgs, LoadArgs, parse_size};
use crate::fetch::{FetchOptions, PrivateAddresses};
use crate::openai::ToolFormat;
use anyhow::Result;
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use kiln_engine::{EngineOptions, MAX_ITL_RATIO, Policy};
use kiln_registry::MediaCounts;
use std::path::PathBuf;
use std::time::Duration;

/// The command line of `kiln serve`.
#[derive(Args)]
pub(crate) struct ServeArgs {
    /// Folder of a checkpoint, a repository of the Hugging Face Hub (org/name), or `builtin` [default: builtin].
    #[arg(env = "KILN_MODEL")]
    pub(crate) model_dir: Option<PathBuf>,
    /// A TOML file with any of these options, such as `port = 8001` or `api-key = ["a", "b"]`.
    #[arg(long, value_name = "FILE.toml", env = "KILN_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) media: MediaArgs,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
}

/// How it is reached, and what bounds a connection.
#[derive(Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// The address to listen on; 0.0.0.0: all of the machine's.
    #[arg(
        long,
        default_value = "127.0.0.1",
        value_name = "ADDRESS",
        env = "KILN_HOST"
    )]
    pub(crate) host: String,
    /// The port to listen on; 0: any that is free.
    #[arg(long, default_value_t = 8000, value_name = "PORT", env = "KILN_PORT")]
    pub(crate) port: u16,
    /// What clients call the model; may be repeated [default: the folder's name].
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        env = "KILN_SERVED_MODEL_NAME"
    )]
    pub(crate) served_model_name: Vec<String>,
    /// A key of which clients must send one as a bearer token; may be repeated.
    #[arg(
        long,
        value_name = "KEY",
        value_delimiter = ',',
        env = "KILN_API_KEY",
        hide_env_values = true
    )]
    pub(crate) api_key: Vec<String>,
    /// Web pages of this origin may call the server, or `*`; may be repeated.
    #[arg(
        long,
        value_name = "ORIGIN",
        value_delimiter = ',',
        env = "KILN_CORS_ORIGIN"
    )]
    pub(crate) cors_origin: Vec<String>,
    /// How the model writes calls of tools [default: what its chat template shows].
    #[arg(long, value_enum, value_name = "FORMAT", env = "KILN_TOOL_CALL_PARSER")]
    pub(crate) tool_call_parser: Option<ToolFormat>,
    /// Bytes of a request's body.
    #[arg(long, default_value = "64MiB", value_name = "SIZE", value_parser = parse_size, env = "KILN_MAX_BODY_BYTES")]
    pub(crate) max_body_bytes: usize,
    /// Bytes of a request's headers.
    #[arg(long, default_value = "32KiB", value_name = "SIZE", value_parser = parse_size, env = "KILN_MAX_HEADER_BYTES")]
    pub(crate) max_header_bytes: usize,
    /// Connections at a time; more wait to be accepted.
    #[arg(
        long,
        default_value_t = 4096,
        value_name = "N",
        env = "KILN_MAX_CONNECTIONS"
    )]
    pub(crate) max_connections: usize,
    /// Seconds for the headers of a request, and for a connection to lie idle between two.
    #[arg(long, default_value = "15", value_name = "SECONDS", value_parser = seconds, env = "KILN_HEADER_TIMEOUT")]
    pub(crate) header_timeout: Duration,
    /// Seconds for the body of a request.
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds, env = "KILN_BODY_TIMEOUT")]
    pub(crate) body_timeout: Duration,
    /// Seconds that a client may take nothing of what is sent to it.
    #[arg(
        long,
        default_value = "60",
        value_name = "SECONDS",
        value_parser = seconds,
        env = "KILN_WRITE_TIMEOUT"
    )]
    pub(crate) write_timeout: Duration,
    /// Seconds that running requests have to end once the server is told to.
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds, env = "KILN_DRAIN_TIMEOUT")]
    pub(crate) drain_timeout: Duration,
    /// How the log is written. RUST_LOG says what is in it.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT", env = "KILN_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
    /// Send spans to an OpenTelemetry collector over HTTP, such as http://127.0.0.1:4318.
    #[cfg(feature = "otlp")]
    #[arg(long, value_name = "URL", env = "KILN_OTLP_ENDPOINT")]
    pub(crate) otlp_endpoint: Option<String>,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where media may come from.
#[derive(Args)]
#[command(next_help_heading = "Media")]
pub(crate) struct MediaArgs {
    /// Folder that file:// URLs may name files in [default: none].
    #[arg(long, value_name = "DIR", env = "KILN_ALLOWED_MEDIA_PATH")]
    pub(crate) allowed_media_path: Option<PathBuf>,
    /// A host that media may be fetched from; may be repeated [default: any].
    #[arg(
        long,
        value_name = "HOST",
        value_delimiter = ',',
        env = "KILN_ALLOWED_MEDIA_DOMAINS"
    )]
    pub(crate) allowed_media_domains: Vec<String>,
    /// Addresses inside the network that media may be fetched from, as in 10.1.0.0/16,10.2.0.7, or
    /// `all` [default: none].
    #[arg(
        long,
        value_name = "ADDRESSES",
        env = "KILN_ALLOW_PRIVATE_MEDIA_ADDRESSES"
    )]
    pub(crate) allow_private_media_addresses: Option<PrivateAddresses>,
    /// Seconds to fetch one item, redirects included.
    #[arg(long, default_value = "20", value_name = "SECONDS", value_parser = seconds, env = "KILN_MEDIA_TIMEOUT")]
    pub(crate) media_timeout: Duration,
    /// Bytes of one item.
    #[arg(long, default_value = "64MiB", value_name = "SIZE", value_parser = parse_size, env = "KILN_MEDIA_MAX_BYTES")]
    pub(crate) media_max_bytes: usize,
    /// Items fetched at a time; others wait.
    #[arg(
        long,
        default_value_t = 16,
        value_name = "N",
        env = "KILN_MEDIA_CONCURRENCY"
    )]
    pub(crate) media_concurrency: usize,
    /// Take embeddings in place of media: only where every client is trusted.
    #[arg(long, env = "KILN_ENABLE_MM_EMBEDS", value_parser = FalseyValueParser::new())]
    pub(crate) enable_mm_embeds: bool,
}

/// What waits, and what is kept.
#[derive(Args)]
#[command(next_help_heading = "Scheduling and caches")]
pub(crate) struct QueueArgs {
    /// Requests that may wait; more are answered with 429.
    #[arg(long, default_value_t = EngineOptions::default().max_queue, value_name = "N", env = "KILN_MAX_QUEUE")]
    pub(crate) max_queue: usize,
    /// Tokens that waiting requests may have together; more are answered with 429.
    #[arg(long, default_value_t = EngineOptions::default().max_queue_tokens, value_name = "N", env = "KILN_MAX_QUEUE_TOKENS")]
    pub(crate) max_queue_tokens: usize,
    /// Media items that may be in preparation; more are answered with 429.
    #[arg(long, default_value_t = EngineOptions::default().media_queue, value_name = "N", env = "KILN_MEDIA_QUEUE")]
    pub(crate) media_queue: usize,
    /// Which waiting request runs first: fcfs or priority.
    #[arg(
        long,
        default_value = "fcfs",
        value_name = "POLICY",
        env = "KILN_SCHEDULING_POLICY"
    )]
    pub(crate) scheduling_policy: Policy,
    /// Compute every prompt anew.
    #[arg(long, env = "KILN_NO_PREFIX_CACHE", value_parser = FalseyValueParser::new())]
    pub(crate) no_prefix_cache: bool,
    /// Bytes of encoder rows that are kept.
    #[arg(long, default_value = "256MiB", value_name = "SIZE", value_parser = parse_size, env = "KILN_ENCODER_CACHE_BYTES")]
    pub(crate) encoder_cache_bytes: usize,
    /// Bytes of decoded and mapped items that are kept.
    #[arg(long, default_value = "256MiB", value_name = "SIZE", value_parser = parse_size, env = "KILN_PROCESSOR_CACHE_BYTES")]
    pub(crate) processor_cache_bytes: usize,
    /// Tokens of prompts in a step that others wait for with a token each, at most [default: a
    /// quarter of --max-batched-tokens].
    #[arg(long, value_name = "N", env = "KILN_LONG_PREFILL_TOKEN_THRESHOLD")]
    pub(crate) long_prefill_token_threshold: Option<usize>,
    /// How many times as long as a step of running streams alone a step may take that has parts of
    /// prompts or of their pictures beside them, unless more prompts wait than streams run: a lower
    /// one keeps streams even, a higher one answers newcomers sooner; 0: whatever it takes.
    #[arg(long, value_name = "R", env = "KILN_MAX_ITL_RATIO", default_value_t = MAX_ITL_RATIO, value_parser = ratio)]
    pub(crate) max_itl_ratio: f64,
    /// Encoder rows that one step may make [default: --max-batched-tokens].
    #[arg(long, value_name = "N", env = "KILN_MAX_NUM_BATCHED_ENCODER_TOKENS")]
    pub(crate) max_num_batched_encoder_tokens: Option<usize>,
}

impl ServeArgs {
    /// As the engine takes them.
    ///
    /// # Errors
    /// For options that say nothing sensible.
    pub(crate) fn engine(&self) -> Result<EngineOptions> {
        let mut model = self.load.options(&MediaCounts::new())?;
        model.enable_mm_embeds = self.media.enable_mm_embeds;
        let queue = &self.queue;
        Ok(EngineOptions {
            max_queue: queue.max_queue,
            max_queue_tokens: queue.max_queue_tokens,
            media_queue: queue.media_queue,
            policy: queue.scheduling_policy,
            prefix_cache: !queue.no_prefix_cache,
            encoder_cache_bytes: queue.encoder_cache_bytes,
            processor_cache_bytes: queue.processor_cache_bytes,
            long_prefill_token_threshold: queue.long_prefill_token_threshold,
            max_itl_ratio: (queue.max_itl_ratio > 0.0).then_some(queue.max_itl_ratio),
            max_num_batched_encoder_tokens: queue.max_num_batched_encoder_tokens,
            ..self.cache.engine(model)
        })
    }
}

impl MediaArgs {
    pub(crate) fn fetch(&self) -> FetchOptions {
        FetchOptions {
            allowed_path: self.allowed_media_path.clone(),
            allowed_domains: self.allowed_media_domains.clone(),
            private: self
                .allow_private_media_addresses
                .clone()
                .unwrap_or_default(),
            timeout: self.media_timeout,
            max_bytes: self.media_max_bytes,
            concurrency: self.media_concurrency,
        }
    }
}

/// `30` or `0.5`.
fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no number of seconds, such as 30 or 0.5");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    // A week is for ever, and far from what overflows.
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if seconds <= 604_800.0 => Ok(time),
        _ => Err(wrong()),
    }
}

/// `1.5`; 0 for no bound.
fn ratio(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ratio) if ratio == 0.0 || (1.0..=1e6).contains(&ratio) => Ok(ratio),
        _ => Err(format!(
            "`{text}` is neither 0 nor a ratio above 1, such as 1.5"
        )),
    }
}
