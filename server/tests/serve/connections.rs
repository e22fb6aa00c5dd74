//! Clients that dawdle, vanish or flood: rows 20, 21, 22 and 28.

use crate::client::{connect, head, read, send};
use crate::server::{Server, ask, data_url, repo};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A stream of some length.
fn long(n: usize) -> Value {
    let sample = std::fs::read(repo("assets/sample.png")).unwrap();
    let mut body = ask(&[&data_url(&sample)], "Describe the picture.");
    let more = json!({"stream": true, "ignore_eos": true, "max_tokens": 800, "n": n,
                      "temperature": 1.0});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

fn open(server: &Server, body: &Value) -> TcpStream {
    let mut stream = connect(server.port);
    let body = body.to_string();
    let head = head("POST", "/v1/chat/completions", &[], body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

#[test]
fn row_20_slow_and_huge_headers() {
    let server = Server::start(&["--header-timeout", "1", "--body-timeout", "1"]);
    let began = Instant::now();
    let mut slow = connect(server.port);
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: ki").unwrap();
    let mut idle = connect(server.port);
    let mut half = connect(server.port);
    let declared = head("POST", "/v1/chat/completions", &[], 100);
    half.write_all(declared.as_bytes()).unwrap();
    half.write_all(b"{").unwrap();
    for stream in [&mut slow, &mut idle] {
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
            "{answer}"
        );
    }
    read(&mut half).error(408);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );

    let long = "x".repeat(100_000);
    let response = send(server.port, "GET", "/health", &[("X-Long", &long)], b"");
    assert_eq!(response.status, 431);
    let many: Vec<(String, &str)> = (0..500).map(|i| (format!("X-{i}"), "y")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    assert_eq!(send(server.port, "GET", "/health", &many, b"").status, 431);
    let mut garbage = connect(server.port);
    garbage
        .write_all(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        .unwrap();
    let mut answer = vec![];
    let _ = garbage.read_to_end(&mut answer);
    server.is_well();
}

#[test]
fn row_21_a_client_that_is_gone_holds_nothing() {
    let server = Server::start(&["--kv-blocks", "512"]);
    let all_are_free = || server.wait_for("kiln:kv_blocks_free", |n| n == 512.0);
    all_are_free();
    let mut stream = open(&server, &long(4));
    let mut first = [0; 2000];
    assert!(stream.read(&mut first).unwrap() > 0);
    server.wait_for("vllm:num_requests_running", |n| n == 4.0);
    let steps = server.metric("kiln:steps_total");
    drop(stream);
    server.wait_for("vllm:num_requests_running", |n| n == 0.0);
    let after = server.metric("kiln:steps_total") - steps;
    // 800 steps were to go; what ran is how long it took to hear of it.
    assert!(after < 400.0, "{after} steps more");
    all_are_free();
    // Gone before the answer, too: nothing was streamed yet.
    let mut whole = long(4);
    whole["stream"] = false.into();
    let stream = open(&server, &whole);
    server.wait_for("vllm:num_requests_running", |n| n == 4.0);
    drop(stream);
    server.is_well();
    all_are_free();
    let aborted = server.get("/metrics");
    let line = aborted
        .text()
        .lines()
        .find(|l| l.contains("finished_reason=\"abort\""));
    assert!(line.unwrap().ends_with(" 2"), "{line:?}");
}

#[test]
fn row_22_a_thousand_connect_and_cancel() {
    let server = Server::start(&["--kv-blocks", "2048"]);
    let body = long(1);
    for turn in 0..1000 {
        let mut stream = open(&server, &body);
        if turn % 10 == 0 {
            let mut first = [0; 100];
            let _ = stream.read(&mut first);
        }
    }
    server.is_well();
}

#[test]
fn row_28_a_flood_is_told_to_come_again() {
    let server = Server::start(&["--max-queue", "4", "--max-num-seqs", "1"]);
    let mut body = long(1);
    body["max_tokens"] = 60.into();
    body["temperature"] = 0.into();
    let streams: Vec<TcpStream> = (0..60).map(|_| open(&server, &body)).collect();
    let (mut texts, mut refused) = (vec![], 0);
    for mut stream in streams {
        let response = read(&mut stream);
        if response.status == 200 {
            let events = response.events();
            let text = |event: &Value| {
                let delta = &event["choices"][0]["delta"]["content"];
                delta.as_str().unwrap_or("").to_owned()
            };
            texts.push(events.iter().map(text).collect::<String>());
        } else {
            let error = response.error(429);
            assert_eq!(error["type"], "rate_limit_error");
            let seconds = response.header("retry-after").unwrap();
            assert!(seconds.parse::<u32>().unwrap() > 0);
            refused += 1;
        }
    }
    assert!(
        refused > 0 && texts.len() >= 4,
        "{refused} refused, {} answered",
        texts.len()
    );
    assert!(
        texts
            .iter()
            .all(|text| *text == texts[0] && !text.is_empty())
    );
    server.is_well();
}
