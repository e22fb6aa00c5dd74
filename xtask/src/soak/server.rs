//! The server under test: its process, its memory, its metrics.

use super::http::Exchange;
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Caches that are full within a minute: what grows behind that is no cache.
const CACHES: [&str; 4] = [
    "--encoder-cache-bytes",
    "16MiB",
    "--processor-cache-bytes",
    "16MiB",
];

/// What the server may take to end when it is told to.
const END: Duration = Duration::from_secs(30);

pub(super) struct Server {
    child: Child,
    address: SocketAddr,
}

/// What the server says of itself at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figures {
    pub(super) running: f64,
    pub(super) waiting: f64,
    pub(super) kv_usage: f64,
    pub(super) preemptions: f64,
    pub(super) encoder_hits: f64,
    pub(super) prefix_hits: f64,
    /// Of encoder rows and mapped items.
    pub(super) cache_bytes: f64,
}

impl Figures {
    /// Whether nothing is held for anybody.
    pub(super) fn is_idle(&self) -> bool {
        self.running == 0.0 && self.waiting == 0.0 && self.kv_usage == 0.0
    }
}

impl Server {
    /// Starts the built-in model on a port that is free.
    pub(super) fn start(binary: &Path, flags: &[String]) -> Result<Self> {
        let mut child = Command::new(binary)
            .args(["serve", "builtin", "--host", "127.0.0.1", "--port", "0"])
            .args(CACHES)
            .args(flags)
            // Refusals are part of it, and by the thousand.
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("can't start {}", binary.display()))?;
        let out = child.stdout.take().context("no output of the server")?;
        let mut lines = BufReader::new(out).lines();
        let address = lines.by_ref().find_map(|line| {
            let line = line.ok()?;
            line.split_once("http://")?.1.trim().parse().ok()
        });
        let Some(address) = address else {
            let _ = child.kill();
            bail!("the server said nowhere that it serves");
        };
        // What it says later is read, so that it is never held up.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Bytes of memory that the process holds now, where the system says so.
    pub(super) fn memory(&self) -> Option<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    }

    /// From `/metrics`, and that `/health` answers.
    pub(super) fn figures(&self) -> Result<Figures> {
        let health = Exchange::get(self.address, "/health")?.answer(None)?;
        ensure!(health.status == 200, "/health answered {}", health.status);
        let answer = Exchange::get(self.address, "/metrics")?.answer(None)?;
        ensure!(answer.status == 200, "/metrics answered {}", answer.status);
        let text = String::from_utf8_lossy(&answer.body);
        let sum = |name: &str| {
            let of_it = text.lines().filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                let ends = rest.starts_with(['{', ' ']);
                ends.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
            });
            let values: Vec<f64> = of_it.collect();
            ensure!(!values.is_empty(), "/metrics has no {name}");
            Ok(values.iter().sum())
        };
        Ok(Figures {
            running: sum("vllm:num_requests_running")?,
            waiting: sum("vllm:num_requests_waiting")?,
            kv_usage: sum("vllm:kv_cache_usage_perc")?,
            preemptions: sum("vllm:num_preemptions_total")?,
            encoder_hits: sum("kiln:encoder_cache_hits_total")?,
            prefix_hits: sum("vllm:prefix_cache_hits_total")?,
            cache_bytes: sum("kiln:encoder_cache_bytes")? + sum("kiln:processor_cache_bytes")?,
        })
    }

    /// Tells it to end, and waits.
    ///
    /// # Errors
    /// When it has ended before, ends too late, or not with 0.
    pub(super) fn end(mut self) -> Result<Duration> {
        ensure!(self.is_running(), "the server has died");
        let id = self.child.id().to_string();
        let told = Instant::now();
        crate::succeed(Command::new("kill").args(["-TERM", &id]))?;
        while told.elapsed() < END {
            if let Some(status) = self.child.try_wait()? {
                ensure!(
                    status.success(),
                    "on SIGTERM the server ended with {status}"
                );
                return Ok(told.elapsed());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("{} s after SIGTERM the server still runs", END.as_secs())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
