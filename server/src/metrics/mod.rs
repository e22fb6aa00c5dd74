//! Prometheus metrics, under the names of vLLM that the Gateway API's model-server protocol and
//! common dashboards read; what vLLM has no name for begins with `kiln:`. What the engine counts is
//! brought up to date when someone looks; what only the server sees is counted as it happens.

mod record;

pub(crate) use record::Recorder;

use kiln_engine::{EngineStats, MemoryProfile};
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of latencies, in seconds: from a token on a small model to a long prompt on a CPU.
const SECONDS: [f64; 20] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 30.0, 60.0, 240.0,
];

/// Where one of the engine's counters is read.
type Read = fn(&EngineStats) -> u64;

/// All metrics of a server. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    running: IntGauge,
    waiting: IntGauge,
    kv_usage: prometheus::Gauge,
    /// Counters that follow the engine's, with where to read them.
    followed: Vec<(IntCounter, Read)>,
    held: Vec<(IntGauge, Read)>,
    /// One scrape at a time, so that no difference is added twice.
    scrape: Mutex<()>,
    success: IntCounterVec,
    rejected: IntCounterVec,
    requests: IntCounterVec,
    time_to_first_token: Histogram,
    inter_token: Histogram,
    end_to_end: Histogram,
    queue: Histogram,
    preprocessing: Histogram,
}

/// What the engine counts, under the name that it is told by.
const FOLLOWED: [(&str, &str, Read); 11] = [
    (
        "vllm:prompt_tokens_total",
        "Tokens of accepted prompts.",
        |s| s.prompt_tokens,
    ),
    ("vllm:generation_tokens_total", "Tokens chosen.", |s| {
        s.generation_tokens
    }),
    (
        "vllm:num_preemptions_total",
        "Sequences that gave their blocks back and began anew.",
        |s| s.preemptions,
    ),
    (
        "vllm:prefix_cache_queries_total",
        "Prompt tokens looked up in the prefix cache.",
        |s| s.prefix_cache_queries,
    ),
    (
        "vllm:prefix_cache_hits_total",
        "Prompt tokens found there.",
        |s| s.prefix_cache_hits,
    ),
    (
        "kiln:encoder_cache_queries_total",
        "Items whose encoder rows were needed.",
        |s| s.encoder_cache_queries,
    ),
    (
        "kiln:encoder_cache_hits_total",
        "Items whose rows were cached.",
        |s| s.encoder_cache_hits,
    ),
    (
        "kiln:processor_cache_queries_total",
        "Items that were to be decoded and mapped.",
        |s| s.processor_cache_queries,
    ),
    (
        "kiln:processor_cache_hits_total",
        "Items that were decoded and mapped before.",
        |s| s.processor_cache_hits,
    ),
    (
        "kiln:encoded_items_total",
        "Items that went through an encoder.",
        |s| s.encoded_items,
    ),
    ("kiln:steps_total", "Steps of the scheduler.", |s| s.steps),
];

const HELD: [(&str, &str, Read); 4] = [
    (
        "kiln:encoder_cache_bytes",
        "Bytes of encoder rows held.",
        |s| s.encoder_cache_bytes,
    ),
    (
        "kiln:processor_cache_bytes",
        "Bytes of mapped items held.",
        |s| s.processor_cache_bytes,
    ),
    (
        "kiln:num_requests_preparing",
        "Requests whose media are decoded and mapped now.",
        |s| s.preparing,
    ),
    (
        "kiln:kv_blocks_free",
        "KV blocks that no sequence owns.",
        |s| s.free_blocks,
    ),
];

impl Metrics {
    /// # Errors
    /// For a name that the model can't have as a label.
    pub(crate) fn new(model: &str, profile: &MemoryProfile) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("model_name", model);
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::with_opts(opts(name, help))?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let counters = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(opts(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            prometheus::Result::Ok(counters)
        };
        let histogram = |name: &str, help: &str| {
            let opts = HistogramOpts::new(name, help)
                .const_label("model_name", model)
                .buckets(SECONDS.to_vec());
            let histogram = Histogram::with_opts(opts)?;
            registry.register(Box::new(histogram.clone()))?;
            prometheus::Result::Ok(histogram)
        };
        let followed = FOLLOWED
            .iter()
            .map(|(name, help, read)| {
                let counter = IntCounter::with_opts(opts(name, help))?;
                registry.register(Box::new(counter.clone()))?;
                Ok((counter, *read))
            })
            .collect::<prometheus::Result<_>>()?;
        let held = HELD
            .iter()
            .map(|(name, help, read)| Ok((gauge(name, help)?, *read)))
            .collect::<prometheus::Result<_>>()?;
        let kv_usage = prometheus::Gauge::with_opts(opts(
            "vllm:kv_cache_usage_perc",
            "Share of KV blocks that sequences own, from 0 to 1.",
        ))?;
        registry.register(Box::new(kv_usage.clone()))?;
        let config = IntGaugeVec::new(
            opts("vllm:cache_config_info", "How the KV cache is laid out."),
            // `num_gpu_blocks` is the protocol's name, wherever the blocks are.
            &["block_size", "num_gpu_blocks"],
        )?;
        registry.register(Box::new(config.clone()))?;
        let (size, blocks) = (
            profile.block_size.to_string(),
            profile.kv_blocks.to_string(),
        );
        config.with_label_values(&[&size, &blocks]).set(1);
        let success = counters(
            "vllm:request_success_total",
            "Requests that ended, by how.",
            "finished_reason",
        )?;
        for reason in ["stop", "length", "abort", "error"] {
            success.with_label_values(&[reason]);
        }
        Ok(Self(Arc::new(Inner {
            running: gauge("vllm:num_requests_running", "Sequences that run.")?,
            waiting: gauge(
                "vllm:num_requests_waiting",
                "Requests that wait or are prepared.",
            )?,
            kv_usage,
            followed,
            held,
            scrape: Mutex::new(()),
            success,
            rejected: counters(
                "kiln:requests_rejected_total",
                "Requests that were answered with an error, by its code.",
                "reason",
            )?,
            requests: counters(
                "kiln:http_responses_total",
                "Responses, by status.",
                "status",
            )?,
            time_to_first_token: histogram(
                "vllm:time_to_first_token_seconds",
                "From arrival to the first token.",
            )?,
            inter_token: histogram(
                "vllm:inter_token_latency_seconds",
                "Between two tokens of one sequence.",
            )?,
            end_to_end: histogram(
                "vllm:e2e_request_latency_seconds",
                "From arrival to the last token.",
            )?,
            queue: histogram(
                "vllm:request_queue_time_seconds",
                "From preparation to the first step.",
            )?,
            preprocessing: histogram(
                "kiln:request_preprocessing_seconds",
                "Decoding and mapping media, template and tokens.",
            )?,
            registry,
        })))
    }

    /// A record of one request that begins now.
    pub(crate) fn record(&self) -> Recorder {
        Recorder::new(self.clone())
    }

    /// Counts a response.
    pub(crate) fn response(&self, status: u16) {
        let inner = &self.0;
        inner
            .requests
            .with_label_values(&[status.to_string().as_str()])
            .inc();
    }

    /// Counts a request that was answered with an error.
    pub(crate) fn rejected(&self, reason: &str) {
        self.0.rejected.with_label_values(&[reason]).inc();
    }

    /// Everything as text, the engine's counters brought up to date.
    pub(crate) fn text(&self, stats: &EngineStats) -> Vec<u8> {
        let inner = &self.0;
        let _one = inner.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        inner.running.set(number(stats.running));
        inner.waiting.set(number(stats.waiting + stats.preparing));
        let used = stats.kv_blocks.saturating_sub(stats.free_blocks);
        inner
            .kv_usage
            .set(used as f64 / stats.kv_blocks.max(1) as f64);
        for (counter, read) in &inner.followed {
            counter.inc_by(read(stats).saturating_sub(counter.get()));
        }
        for (gauge, read) in &inner.held {
            gauge.set(number(read(stats)));
        }
        let mut out = Vec::new();
        // Writing to memory does not fail; metrics that can't be encoded are left out.
        let _ = TextEncoder::new().encode(&inner.registry.gather(), &mut out);
        out
    }
}

impl Inner {
    fn seconds(histogram: &Histogram, time: Duration) {
        histogram.observe(time.as_secs_f64());
    }
}
