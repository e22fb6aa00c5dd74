//! A thousand streams at a time.

use crate::client::{connect, head, read};
use crate::server::Server;
use serde_json::{Value, json};
use std::io::Write;

#[test]
fn a_thousand_open_streams_all_end_well() {
    let server = Server::start(&["--max-queue", "2000", "--kv-blocks", "2048"]);
    let body = json!({
        "messages": [{"role": "user", "content": "Which shape is red?"}],
        "stream": true,
        "ignore_eos": true,
        "max_tokens": 24,
        "temperature": 0,
    })
    .to_string();
    let head = head("POST", "/v1/chat/completions", &[], body.len());
    let streams: Vec<_> = (0..1000)
        .map(|_| {
            let mut stream = connect(server.port);
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body.as_bytes()).unwrap();
            stream
        })
        .collect();
    let mut texts = Vec::new();
    for mut stream in streams {
        let response = read(&mut stream);
        assert_eq!(response.status, 200, "{}", response.text());
        let events = response.events();
        let text = |event: &Value| {
            let delta = &event["choices"][0]["delta"]["content"];
            delta.as_str().unwrap_or("").to_owned()
        };
        texts.push(events.iter().map(text).collect::<String>());
        let last = events.last().unwrap();
        assert_eq!(last["choices"][0]["finish_reason"], "length");
    }
    assert!(
        texts
            .iter()
            .all(|text| *text == texts[0] && !text.is_empty())
    );
    server.is_well();
}
