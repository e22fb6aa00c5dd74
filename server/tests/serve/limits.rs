//! More than a request may bring: rows 9, 10, 11 and 33.

use crate::client::{connect, head, read};
use crate::server::{Server, ask, data_url, picture, repo};
use base64::Engine;
use serde_json::{Value, json};
use std::io::Write;
use std::time::{Duration, Instant};

#[test]
fn row_09_more_items_than_the_limit() {
    let server = Server::start(&["--limit-mm-per-prompt", "image=2"]);
    let url = data_url(&picture("rgb.png"));
    assert_eq!(server.chat(&ask(&[&url, &url], "Compare.")).status, 200);
    let error = server
        .chat(&ask(&[&url, &url, &url], "Compare."))
        .error(400);
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("--limit-mm-per-prompt") && message.contains('2'),
        "{message}"
    );
    // They are counted before any is fetched.
    let slow = "http://192.0.2.1/x.png";
    let began = Instant::now();
    server
        .chat(&ask(&[slow, slow, slow], "Compare."))
        .error(400);
    assert!(began.elapsed() < Duration::from_secs(2));
    server.is_well();
}

#[test]
fn row_10_a_body_of_500_mb_is_refused_while_it_comes() {
    let server = Server::start(&["--max-body-bytes", "1MiB"]);
    // Said at once.
    let mut stream = connect(server.port);
    let declared = head("POST", "/v1/chat/completions", &[], 500 << 20);
    stream.write_all(declared.as_bytes()).unwrap();
    read(&mut stream).error(413);
    // Not said, but sent.
    let mut stream = connect(server.port);
    let chunked = "POST /v1/chat/completions HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\
                   Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(chunked.as_bytes()).unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    let mut reader = stream.try_clone().unwrap();
    let answer = std::thread::spawn(move || read(&mut reader));
    let sent = (0..8000)
        .take_while(|_| stream.write_all(&chunk).is_ok())
        .count();
    assert!(sent < 4000, "{sent} pieces of 64 KiB were taken");
    answer.join().unwrap().error(413);
    // An item of its own bound.
    let server = Server::start(&["--media-max-bytes", "10KiB"]);
    let url = data_url(&vec![7; 20 << 10]);
    let error = server.chat(&ask(&[&url], "What?")).error(400);
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("--media-max-bytes")
    );
}

/// A FLAC or WAV file is nothing to a model that takes pictures alone; a GIF of many frames as a
/// video neither. The caps on decoding stand in the modality crates' own hostile tests.
#[test]
fn row_11_caps_on_decoding_can_not_be_raised_by_a_request() {
    let server = Server::start(&[]);
    let mut wav =
        b"RIFF\xff\xff\xff\x7fWAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0"
            .to_vec();
    wav.extend(b"data\xff\xff\xff\x7f");
    wav.resize(1 << 20, 0);
    let audio = base64::engine::general_purpose::STANDARD.encode(&wav);
    for part in [
        json!({"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}}),
        json!({"type": "video_url", "video_url": {"url": data_url(&picture("animated.gif"))}}),
    ] {
        let body = json!({
            "messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}],
        });
        let error = server.chat(&body).error(400);
        assert!(
            error["message"].as_str().unwrap().contains("takes no"),
            "{error}"
        );
    }
    let mut body = ask(&[&data_url(&picture("rgb.png"))], "What?");
    body["mm_processor_kwargs"] = json!({"max_pixels": 1_000_000_000, "num_frames": 1_000_000});
    server.chat(&body).error(400);
    server.is_well();
}

fn embeds(shape: &[usize], values: usize, dtype: &str) -> Value {
    let bytes: Vec<u8> = (0..values).flat_map(|_| 0.1f32.to_le_bytes()).collect();
    let data = base64::engine::general_purpose::STANDARD.encode(bytes);
    json!({"messages": [{"role": "user", "content": [
        {"type": "image_embeds", "image_embeds": {"data": data, "shape": shape, "dtype": dtype}},
        {"type": "text", "text": "What?"},
    ]}], "max_tokens": 4, "temperature": 0})
}

#[test]
fn row_33_embeddings_are_off_and_checked_where_they_are_on() {
    let hidden = 192; // the built-in model's, in its config.json
    let config = std::fs::read(repo("assets/kiln-demo/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["text_config"]["hidden_size"], hidden);
    let server = Server::start(&[]);
    let error = server
        .chat(&embeds(&[64, hidden], 64 * hidden, "float32"))
        .error(400);
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("--enable-mm-embeds")
    );
    server.is_well();

    let server = Server::start(&["--enable-mm-embeds"]);
    let good = server.chat(&embeds(&[64, hidden], 64 * hidden, "float32"));
    assert_eq!(good.status, 200, "{}", good.text());
    for bad in [
        embeds(&[64, hidden + 1], 64 * (hidden + 1), "float32"),
        embeds(&[100_000, hidden], 64 * hidden, "float32"),
        embeds(&[65, hidden], 65 * hidden, "float32"),
        embeds(&[0, hidden], 0, "float32"),
        embeds(&[64, hidden], 64 * hidden, "float16"),
        embeds(&[64 * hidden], 64 * hidden, "float32"),
        embeds(&[usize::MAX, 4], 16, "float32"),
    ] {
        server.chat(&bad).error(400);
    }
    server.is_well();
}
