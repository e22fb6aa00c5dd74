//! A running `kiln serve`, and what must be true of it after whatever was sent to it.

use crate::client::{Response, send};
use base64::Engine;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A server of its own port. Dropped, it is killed.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    log: Arc<Mutex<String>>,
    /// What the model answers to [`good`].
    answer: String,
}

/// A path in the repository.
pub(crate) fn repo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// A fixture's picture.
pub(crate) fn picture(name: &str) -> Vec<u8> {
    std::fs::read(repo("tests/fixtures/processors/inputs").join(name)).unwrap()
}

/// Bytes as a data URL.
pub(crate) fn data_url(bytes: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("data:image/png;base64,{text}")
}

/// A question about pictures, greedy and short.
pub(crate) fn ask(urls: &[&str], question: &str) -> Value {
    let images = urls
        .iter()
        .map(|url| json!({"type": "image_url", "image_url": {"url": url}}));
    let text = json!({"type": "text", "text": question});
    json!({
        "messages": [{"role": "user", "content": images.chain([text]).collect::<Vec<_>>()}],
        "max_tokens": 12,
        "temperature": 0,
    })
}

/// A request that must always pass.
fn good() -> Value {
    let sample = std::fs::read(repo("assets/sample.png")).unwrap();
    ask(&[&data_url(&sample)], "Which shape is yellow?")
}

impl Server {
    /// The built-in model with these options.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::of("builtin", options)
    }

    /// A model with these options. Its blocks are given, so that nothing is measured first.
    pub(crate) fn of(model: &str, options: &[&str]) -> Self {
        let mut arguments = vec!["serve", model, "--port", "0"];
        if !options.contains(&"--kv-blocks") {
            arguments.extend(["--kv-blocks", "512"]);
        }
        arguments.extend(options);
        let mut server = Self::spawn(&arguments, &[]);
        server.answer = match model {
            "builtin" => server.good_answer(),
            _ => String::new(),
        };
        server
    }

    /// With arguments and environment as they are.
    pub(crate) fn spawn(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(arguments)
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (mut errors, kept) = (child.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = errors.read(&mut chunk) {
                let text = String::from_utf8_lossy(&chunk[..n]).into_owned();
                kept.lock().unwrap().push_str(&text);
            }
        });
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().and_then(|p| p.parse().ok());
        let port = port.unwrap_or_else(|| panic!("{line}{}", log.lock().unwrap()));
        Self {
            child,
            port,
            log,
            answer: String::new(),
        }
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        send(self.port, "GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        send(self.port, "POST", path, &[], body.to_string().as_bytes())
    }

    pub(crate) fn chat(&self, body: &Value) -> Response {
        self.post("/v1/chat/completions", body)
    }

    /// A chat's text.
    pub(crate) fn text(&self, body: &Value) -> String {
        let response = self.chat(body);
        assert_eq!(response.status, 200, "{}", response.text());
        let body = response.json();
        let content = &body["choices"][0]["message"]["content"];
        content
            .as_str()
            .unwrap_or_else(|| panic!("{body}"))
            .to_owned()
    }

    fn good_answer(&self) -> String {
        let text = self.text(&good());
        assert_eq!(text.trim(), "circle", "what assets/sample.json says");
        text
    }

    /// A metric's value; of several, the sum.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics");
        let found: Vec<f64> = metrics
            .text()
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert!(!found.is_empty(), "{name}: {}", metrics.text());
        found.iter().sum()
    }

    /// Waits until a metric has a value.
    pub(crate) fn wait_for(&self, name: &str, reached: impl Fn(f64) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let value = self.metric(name);
            if reached(value) {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is {value}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What must be true after every case: the process lives, nothing runs or waits, no block is
    /// held, and a good request has the answer that it always had.
    pub(crate) fn is_well(&self) {
        assert_eq!(self.get("/health").status, 200);
        assert_eq!(self.get("/ready").status, 200);
        if !self.answer.is_empty() {
            assert_eq!(self.good_answer(), self.answer);
        }
        for name in [
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
        ] {
            self.wait_for(name, |value| value == 0.0);
        }
        let log = self.log();
        assert!(!log.contains("panicked"), "{log}");
    }

    /// What it has written to stderr.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still there: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
