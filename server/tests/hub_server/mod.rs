//! As much of the Hugging Face Hub as fetching a model takes: a repository's list of files, and
//! files by ranges, with the headers that name commit and content.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// The state of every repository.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

const FILES: [&str; 8] = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// A running hub; its thread ends with the test's process.
pub(crate) struct Hub {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    asked: usize,
    /// File and first byte of each range longer than one byte.
    fetched: Vec<(String, usize)>,
    break_off: BTreeSet<String>,
}

impl Hub {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(&stream, &shared));
            }
        });
        Self { url, state }
    }

    pub(crate) fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }

    pub(crate) fn files_asked_for(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.fetched.iter().map(|(file, _)| file.clone()).collect()
    }

    pub(crate) fn ranges_of(&self, file: &str) -> Vec<usize> {
        let state = self.state.lock().unwrap();
        let of_it = state.fetched.iter().filter(|(name, _)| name == file);
        of_it.map(|(_, start)| *start).collect()
    }

    pub(crate) fn forget(&self) {
        let mut state = self.state.lock().unwrap();
        state.asked = 0;
        state.fetched.clear();
    }

    pub(crate) fn break_off_once(&self, file: &str) {
        self.state.lock().unwrap().break_off.insert(file.to_owned());
    }
}

/// Requests of one connection, until it closes.
fn serve(stream: &TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut path, mut range, mut token) = (String::new(), None, None);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            if path.is_empty() {
                path = text.split(' ').nth(1).unwrap_or_default().to_owned();
            } else if let Some((name, value)) = text.split_once(": ") {
                match name.to_ascii_lowercase().as_str() {
                    "range" => range = value.strip_prefix("bytes=").map(str::to_owned),
                    "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
                    _ => {}
                }
            }
            line.clear();
        }
        if path.is_empty() {
            return;
        }
        state.lock().unwrap().asked += 1;
        if !answer(stream, state, &path, range.as_deref(), token.as_deref()) {
            return;
        }
    }
}

/// Whether the connection may go on.
fn answer(
    stream: &TcpStream,
    state: &Mutex<State>,
    path: &str,
    range: Option<&str>,
    token: Option<&str>,
) -> bool {
    let path = path
        .trim_start_matches('/')
        .trim_start_matches("api/models/");
    let mut parts = path.splitn(5, '/');
    let mut part = || parts.next().unwrap_or_default();
    let (repo, verb, revision, file) = (format!("{}/{}", part(), part()), part(), part(), part());
    let refusal = match (repo.as_str(), token) {
        ("gated/demo", None | Some("hf_wrong")) => Some("401 Unauthorized"),
        ("gated/demo", Some("hf_right")) => None,
        ("gated/demo", _) => Some("403 Forbidden"),
        ("kiln/demo" | "kiln/no-config" | "kiln/no-weights" | "kiln/escape", _) => None,
        _ => Some("404 Not Found"),
    };
    if let Some(status) = refusal {
        return respond(stream, status, "", b"{}");
    }
    if verb == "revision" {
        return respond(stream, "200 OK", "", listing(&repo).as_bytes());
    }
    assert!(verb == "resolve" && revision == COMMIT, "{path}");
    let content = if repo == "kiln/escape" && file == "model.safetensors.index.json" {
        br#"{"weight_map": {"a": "../../../escaped.safetensors"}}"#.to_vec()
    } else {
        let assets = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets/kiln-demo");
        fs::read(assets.join(file)).unwrap()
    };
    let (from, to) = range.and_then(|r| r.split_once('-')).unwrap_or(("0", ""));
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(content.len() - 1, |last: usize| last);
    let head = format!(
        "ETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{to}/{}\r\n",
        blob(file),
        content.len()
    );
    let mut bytes = &content[from..=to];
    let mut breaks = false;
    if to > 0 {
        let mut state = state.lock().unwrap();
        state.fetched.push((file.to_owned(), from));
        breaks = state.break_off.remove(file);
    }
    if !breaks {
        return respond(stream, "206 Partial Content", &head, bytes);
    }
    let whole = bytes.len();
    bytes = &bytes[..whole / 2];
    let mut stream = stream;
    let _ = write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {whole}\r\n{head}\r\n"
    );
    let _ = stream.write_all(bytes);
    false
}

fn listing(repo: &str) -> String {
    let mut files: Vec<&str> = FILES.to_vec();
    files.extend(["README.md", "pytorch_model.bin", "onnx/config.json"]);
    match repo {
        "kiln/no-config" => files.retain(|f| !f.ends_with("config.json")),
        "kiln/no-weights" => files.retain(|f| *f != "model.safetensors"),
        "kiln/escape" => {
            files.retain(|f| *f != "model.safetensors");
            files.push("model.safetensors.index.json");
        }
        _ => {}
    }
    let siblings: Vec<_> = files
        .iter()
        .map(|file| serde_json::json!({ "rfilename": file }))
        .collect();
    serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string()
}

/// A name that only this file has.
fn blob(file: &str) -> String {
    file.bytes().map(|b| format!("{b:02x}")).collect()
}

fn respond(mut stream: &TcpStream, status: &str, head: &str, body: &[u8]) -> bool {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{head}\r\n"
    )
    .and_then(|()| stream.write_all(body))
    .is_ok()
}
