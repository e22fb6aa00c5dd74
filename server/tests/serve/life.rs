//! Start, trouble and end of the process: rows 29 to 32 and 34.

use crate::client::{connect, head, read};
use crate::server::{Server, ask, data_url, repo};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn open(server: &Server, body: &Value) -> TcpStream {
    let mut stream = connect(server.port);
    let body = body.to_string();
    let head = head("POST", "/v1/chat/completions", &[], body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

fn describe(more: Value) -> Value {
    let sample = std::fs::read(repo("assets/sample.png")).unwrap();
    let mut body = ask(&[&data_url(&sample)], "Describe the picture.");
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn row_29_too_few_blocks_are_shared_in_turns() {
    let body = describe(json!({"ignore_eos": true, "max_tokens": 120}));
    let expected = Server::start(&[]).text(&body);
    let server = Server::start(&["--kv-blocks", "20", "--max-model-len", "256"]);
    let streams: Vec<_> = (0..6).map(|_| open(&server, &body)).collect();
    for mut stream in streams {
        let response = read(&mut stream);
        assert_eq!(response.status, 200, "{}", response.text());
        let text = &response.json()["choices"][0]["message"]["content"];
        assert_eq!(*text, expected.as_str());
    }
    assert!(server.metric("vllm:num_preemptions_total") > 0.0);
    server.is_well();
}

/// A stream that runs for a while, once its first bytes are there.
fn running(server: &Server) -> TcpStream {
    let body = describe(
        json!({"stream": true, "ignore_eos": true, "max_tokens": 700, "n": 4,
                               "temperature": 1.0}),
    );
    let mut stream = open(server, &body);
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    server.wait_for("vllm:num_requests_running", |n| n == 4.0);
    stream
}

/// The rest of a stream of which one byte was read.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = b"H".to_vec();
    let _ = stream.read_to_end(&mut bytes);
    let response = crate::client::parse(&bytes);
    String::from_utf8_lossy(&response.body).into_owned()
}

#[test]
fn row_30_a_signal_drains() {
    let mut server = Server::start(&["--drain-timeout", "60"]);
    let stream = running(&server);
    server.signal("TERM");
    let deadline = Instant::now() + Duration::from_secs(5);
    while server.get("/ready").status == 200 {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(server.get("/ready").error(503)["code"], "shutting_down");
    assert_eq!(server.get("/health").status, 200);
    let refused = server.chat(&describe(json!({})));
    assert_eq!(refused.error(503)["type"], "server_error");
    assert!(refused.header("retry-after").is_some());
    let whole = rest(stream);
    assert!(
        whole.ends_with("data: [DONE]\n\n"),
        "{}",
        &whole[whole.len() - 200..]
    );
    assert_eq!(whole.matches("\"finish_reason\":\"length\"").count(), 4);
    assert_eq!(server.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn row_30_a_deadline_ends_what_still_runs() {
    let mut server = Server::start(&["--drain-timeout", "0.1"]);
    let stream = running(&server);
    let began = Instant::now();
    server.signal("INT");
    let whole = rest(stream);
    assert!(whole.contains("shutting_down"), "a terminal error");
    assert_eq!(server.wait(Duration::from_secs(10)).code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn row_30_a_second_signal_aborts() {
    let mut server = Server::start(&["--drain-timeout", "600"]);
    let stream = running(&server);
    let began = Instant::now();
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(50));
    server.signal("TERM");
    let status = server.wait(Duration::from_secs(5));
    assert_eq!(status.code(), Some(1), "{}", server.log());
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(!rest(stream).ends_with("\"finish_reason\":\"length\""));
}

/// A copy of a fixture's checkpoint.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = repo("tests/fixtures/checkpoints").join(name);
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// What a server says that does not start.
fn fails(folder: &Path) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["serve", "--port", "0", "--kv-blocks", "64"])
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                let _ = child.kill();
                panic!("it started");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut said = String::new();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert!(
        !status.success() && status.code().is_some(),
        "{status}: {said}"
    );
    assert!(!said.contains("panicked"), "{said}");
    said
}

const LLAVA: &str = "llava-clip-llama";
const WEIGHTS: &str = "model.safetensors";

#[test]
fn row_31_checkpoints_that_lie_do_not_start() {
    let names = |folder: &tempfile::TempDir, words: &[&str]| {
        let said = fails(folder.path());
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    let truncated = copy(LLAVA);
    let bytes = std::fs::read(truncated.path().join(WEIGHTS)).unwrap();
    std::fs::write(truncated.path().join(WEIGHTS), &bytes[..bytes.len() / 2]).unwrap();
    names(&truncated, &[WEIGHTS]);
    let lying = copy(LLAVA);
    let mut long = bytes.clone();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(lying.path().join(WEIGHTS), &long).unwrap();
    names(&lying, &[WEIGHTS]);
    let shapes = copy(LLAVA);
    edit(shapes.path(), "config.json", |config| {
        config["text_config"]["intermediate_size"] = 57.into();
    });
    names(&shapes, &["mlp", "57"]);
    let escape = copy("llava-clip-llama-sharded");
    edit(escape.path(), "model.safetensors.index.json", |index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        *map.values_mut().next().unwrap() = "../../../etc/passwd".into();
    });
    names(&escape, &["etc/passwd", "plain file name"]);
}

#[test]
fn row_32_nan_fails_only_its_request() {
    let poisoned = 319;
    let folder = copy(LLAVA);
    let path = folder.path().join(WEIGHTS);
    let mut bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let name = "language_model.model.embed_tokens.weight";
    let offset = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let width = header[name]["shape"][1].as_u64().unwrap() as usize;
    assert_eq!(header[name]["dtype"], "F32");
    let row = 8 + length + offset + poisoned * width * 4;
    for element in bytes[row..row + width * 4].as_chunks_mut::<4>().0 {
        *element = f32::NAN.to_le_bytes();
    }
    std::fs::write(&path, bytes).unwrap();
    let server = Server::of(folder.path().to_str().unwrap(), &["--kv-blocks", "64"]);
    let ask = |prompt: Value, stream: bool| {
        let body = json!({"prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": stream,
                          "ignore_eos": true});
        server.post("/v1/completions", &body)
    };
    let good = ask(json!([5, 6, 7]), false).json()["choices"].clone();
    for _ in 0..3 {
        let error = ask(json!([5, poisoned, 7]), false).error(500);
        assert_eq!(error["type"], "server_error");
        let stream = ask(json!([5, poisoned, 7]), true);
        assert_eq!(stream.status, 200);
        let events = stream.events();
        assert_eq!(events.last().unwrap()["error"]["type"], "server_error");
        assert_eq!(ask(json!([5, 6, 7]), false).json()["choices"], good);
    }
    server.is_well();
}

#[test]
fn row_34_remote_code_is_not_code() {
    let folder = copy(LLAVA);
    let mark = folder.path().join("executed");
    let code = format!("open({:?}, 'w').write('x')", mark.display().to_string());
    std::fs::write(folder.path().join("modeling_evil.py"), code).unwrap();
    for file in [
        "config.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
    ] {
        if !folder.path().join(file).exists() {
            continue;
        }
        edit(folder.path(), file, |config| {
            config["auto_map"] = json!({
                "AutoModel": "modeling_evil.Evil",
                "AutoConfig": "modeling_evil.EvilConfig",
                "AutoTokenizer": ["modeling_evil.EvilTokenizer", null],
                "AutoProcessor": "https://evil.example/repo--modeling_evil.Evil",
            });
            config["trust_remote_code"] = true.into();
        });
    }
    let server = Server::of(folder.path().to_str().unwrap(), &[]);
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 2});
    assert_eq!(server.post("/v1/completions", &body).status, 200);
    assert!(!mark.exists());
    server.is_well();
}
