//! The page and `/inspect` over a real socket, against the built-in model.
#![cfg(feature = "llava")]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(["serve", "builtin", "--port", "0", "--kv-blocks", "128"])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let url = line.rsplit(' ').next().unwrap().to_owned();
        Self { child, url }
    }

    fn get(&self, path: &str) -> ureq::http::Response<ureq::Body> {
        agent().get(format!("{}{path}", self.url)).call().unwrap()
    }

    fn inspect(&self, body: &Value, key: Option<&str>) -> (u16, Value) {
        let mut request = agent().post(format!("{}/inspect", self.url));
        if let Some(key) = key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut answer = request.send_json(body).unwrap();
        (
            answer.status().as_u16(),
            answer.body_mut().read_json().unwrap(),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into()
}

fn sample() -> Vec<u8> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read(root.join("assets/sample.png")).unwrap()
}

fn data_url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(bytes))
}

#[test]
fn the_page_needs_no_key_and_what_it_asks_does() {
    let server = Server::start(&["--api-key", "sesame"]);
    for path in ["/", "/page/page.css", "/page/page.js", "/page/sample.png"] {
        let answer = server.get(path);
        assert_eq!(answer.status(), 200, "{path}");
        let policy = answer.headers()["content-security-policy"]
            .to_str()
            .unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
    }
    let body = json!({ "images": [data_url(&sample())] });
    assert_eq!(server.inspect(&body, None).0, 401);
    assert_eq!(server.inspect(&body, Some("sesame")).0, 200);
}

#[test]
fn a_picture_is_told_in_numbers_and_drawn() {
    let server = Server::start(&[]);
    let images = json!({ "images": [data_url(&sample())] });
    let (status, told) = server.inspect(&images, None);
    assert_eq!(status, 200, "{told}");
    let item = &told["items"][0];
    assert_eq!(item["file"]["format"], "PNG");
    assert_eq!(item["tokens"], 64);
    assert_eq!(item["views"]["count"], 1);
    let grid = item["views"]["patches"].as_array().unwrap();
    let patches: u64 = grid.iter().map(|n| n.as_u64().unwrap()).product();
    assert_eq!(patches, 64);
    let segments = told["prompt"]["segments"].as_array().unwrap();
    let length = |s: &Value| s["to"].as_u64().unwrap() - s["from"].as_u64().unwrap();
    let all: u64 = segments.iter().map(length).sum();
    assert_eq!(Some(all), told["prompt"]["tokens"].as_u64());
    let of_picture = segments.iter().filter(|s| s["item"] == 0);
    assert_eq!(of_picture.map(length).collect::<Vec<_>>(), [64]);
    let sheet = told["sheet"].as_str().unwrap();
    let png = sheet.strip_prefix("data:image/png;base64,").unwrap();
    let sheet = image::load_from_memory(&BASE64_STANDARD.decode(png).unwrap()).unwrap();
    assert!(sheet.width() > 200 && sheet.height() > 200);
}

#[test]
fn a_bad_picture_is_refused_in_words() {
    let server = Server::start(&[]);
    let png = sample();
    let whole = data_url(&png);
    let cases = [
        (json!({ "images": [] }), "no picture"),
        (json!({}), "no picture"),
        (json!({ "images": ["x"] }), "data URL"),
        (json!({ "images": ["data:image/png;base64,$"] }), "base64"),
        (
            json!({ "images": ["https://example.org/a.png"] }),
            "data URL",
        ),
        (json!({ "images": ["file:///etc/hostname"] }), "data URL"),
        (json!({ "images": [data_url(b"text")] }), "picture 1"),
        (json!({ "images": [data_url(&png[..200])] }), "picture 1"),
        (json!({ "images": [whole, whole] }), "--limit-mm-per-prompt"),
        (json!({ "images": whole }), "list"),
    ];
    for (body, words) in cases {
        let (status, told) = server.inspect(&body, None);
        let message = told["error"]["message"].as_str().unwrap();
        assert_eq!(status, 400, "{message}");
        assert!(message.contains(words), "`{words}` is not in `{message}`");
        assert_eq!(told["error"]["type"], "invalid_request_error");
    }
}
