//! Spans reach a collector: what the server posts is read as OpenTelemetry's protobuf. Only with the
//! feature: `cargo test --release -p kiln --features otlp --test serve otlp`.

use crate::client::send;
use crate::server::Server;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Path and body of each post.
type Posts = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A collector that keeps what it is sent. Returns its URL.
fn collector(posts: Posts) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let posts = posts.clone();
            std::thread::spawn(move || {
                if let Some(post) = read_post(&stream) {
                    posts.lock().unwrap().push(post);
                    let good = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    let _ = (&stream).write_all(good);
                }
            });
        }
    });
    url
}

fn read_post(stream: &TcpStream) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.strip_prefix("POST ")?.split(' ').next()?.to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().ok()?;
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, body))
}

/// The fields of a protobuf message that have a length, as (number, content).
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    let mut out = vec![];
    while !message.is_empty() {
        let key = varint(&mut message);
        match key & 7 {
            0 => {
                varint(&mut message);
            }
            1 => message = &message[8..],
            2 => {
                let length = varint(&mut message) as usize;
                let (content, rest) = message.split_at(length);
                out.push((key >> 3, content));
                message = rest;
            }
            5 => message = &message[4..],
            kind => panic!("no wire type of protobuf 3: {kind}"),
        }
    }
    out
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (first, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return value;
        }
        shift += 7;
    }
}

/// The contents of a message's field, which may be repeated.
fn all(message: &[u8], number: u64) -> Vec<&[u8]> {
    let found = fields(message).into_iter().filter(|(n, _)| *n == number);
    found.map(|(_, content)| content).collect()
}

/// A field that is there once, or empty.
fn one(message: &[u8], number: u64) -> Vec<u8> {
    all(message, number).first().map_or(vec![], |c| c.to_vec())
}

#[derive(Debug)]
struct Span {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
}

/// `ExportTraceServiceRequest`, `ResourceSpans`, `ScopeSpans`, `Span` by their field numbers.
fn spans(body: &[u8]) -> Vec<Span> {
    let resources = all(body, 1);
    let scopes = resources.into_iter().flat_map(|resource| all(resource, 2));
    let spans = scopes.flat_map(|scope| all(scope, 2));
    spans
        .map(|span| Span {
            trace: one(span, 1),
            id: one(span, 2),
            parent: one(span, 4),
            name: String::from_utf8(one(span, 5)).unwrap(),
        })
        .collect()
}

/// A request that names a parent is one span of its trace, with its stages below it; one that names
/// none begins a trace of its own. All are there when the server has ended.
#[test]
fn otlp_spans_reach_a_collector_below_their_traceparent() {
    let posts = Posts::default();
    let url = collector(posts.clone());
    let mut server = Server::start(&["--otlp-endpoint", &url]);
    let body = br#"{"prompt": "a", "max_tokens": 2}"#;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [
        ("Content-Type", "application/json"),
        ("traceparent", parent),
    ];
    let answer = send(server.port, "POST", "/v1/completions", &headers, body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    server.signal("TERM");
    assert!(server.wait(Duration::from_secs(30)).success());

    let posts = posts.lock().unwrap();
    assert!(!posts.is_empty() && posts.iter().all(|(path, _)| path == "/v1/traces"));
    let mut named = posts.iter().flat_map(|(_, body)| all(body, 1));
    assert!(
        named.all(|resource| {
            let resource = one(resource, 1);
            resource.windows(4).any(|bytes| bytes == b"kiln")
        }),
        "the service's name"
    );
    let spans: Vec<Span> = posts.iter().flat_map(|(_, body)| spans(body)).collect();
    let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    let (ours, others): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span.trace == trace);
    let root: Vec<_> = ours.iter().filter(|span| span.name == "request").collect();
    assert_eq!(root.len(), 1, "{spans:?}");
    assert_eq!(root[0].parent, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    let below: Vec<_> = ours.iter().filter(|s| s.parent == root[0].id).collect();
    assert!(!below.is_empty(), "no stage of the request: {spans:?}");
    // Starting asked for an answer, too, without a parent.
    assert!(
        others
            .iter()
            .any(|span| span.name == "request" && span.parent.is_empty()),
        "{spans:?}"
    );
}
