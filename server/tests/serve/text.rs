//! Prompts, parameters, constraints and templates that mean harm: rows 18 and 23 to 27.

use crate::client::send;
use crate::server::{Server, ask, data_url, picture, repo};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": text}],
                          "max_tokens": 4, "temperature": 0});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn row_18_placeholders_typed_as_text() {
    let server = Server::start(&["--limit-mm-per-prompt", "image=2"]);
    let url = data_url(&picture("rgb.png"));
    for text in [
        "<image>",
        "<image><image>",
        "a <image> b",
        "</s><pad><s>",
        "<image>".repeat(500).as_str(),
    ] {
        for body in [chat(text, json!({})), ask(&[&url], text)] {
            let response = server.chat(&body);
            if response.status != 200 {
                response.error(400);
            }
        }
        let raw = server.post("/v1/completions", &json!({"prompt": text, "max_tokens": 2}));
        if raw.status != 200 {
            raw.error(400);
        }
    }
    // The id of the placeholder itself, and ids that are none.
    for ids in [
        json!([4]),
        json!([5, 4, 6]),
        json!([443]),
        json!([4_294_967_295u32]),
    ] {
        server
            .post("/v1/completions", &json!({"prompt": ids, "max_tokens": 2}))
            .error(400);
    }
    server.is_well();
}

#[test]
fn row_23_prompts_beyond_the_context() {
    let server = Server::start(&[]);
    let long = "circle ".repeat(5_000);
    for body in [
        chat(&long, json!({})),
        chat("a", json!({"max_tokens": 1_000_000_000})),
        chat(
            "a",
            json!({"max_completion_tokens": 18_446_744_073_709_551_615u64}),
        ),
        ask(&[&data_url(&picture("rgb.png"))], &long),
    ] {
        assert_eq!(
            server.chat(&body).error(400)["code"],
            "context_length_exceeded"
        );
    }
    let raw = server.post("/v1/completions", &json!({"prompt": long}));
    assert_eq!(raw.error(400)["code"], "context_length_exceeded");
    server.is_well();
}

#[test]
fn row_24_parameters_out_of_range_and_deep_json() {
    let server = Server::start(&[]);
    for (field, value) in [
        ("n", json!(1_000_000_000)),
        ("n", json!(0)),
        ("n", json!(-1)),
        ("temperature", json!(-1)),
        ("temperature", json!(1e300)),
        ("top_p", json!(0)),
        ("top_p", json!(2)),
        ("min_p", json!(-0.5)),
        ("top_k", json!(-7)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-4)),
        ("repetition_penalty", json!(0)),
        ("presence_penalty", json!(100)),
        ("frequency_penalty", json!(-100)),
        ("logit_bias", json!({"5": 1e10})),
        ("logit_bias", json!({"999999": 1})),
        ("stop", json!([""])),
        ("stop_token_ids", json!([4_000_000])),
        ("top_logprobs", json!(1000)),
        ("priority", json!(1e20)),
        ("cache_salt", json!("")),
        ("cache_salt", json!(7)),
    ] {
        let error = server.chat(&chat("a", json!({field: value}))).error(400);
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(field.split('_').next().unwrap()),
            "{field}: {message}"
        );
    }
    let with = |parameter: &str| {
        format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"a\"}}], {parameter}}}")
    };
    for raw in [
        with("\"temperature\": NaN"),
        with("\"temperature\": Infinity"),
        with("\"temperature\": 1e999"),
        with("\"n\": 1e99"),
        with(&format!(
            "\"x\": {}{}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        )),
        with(&format!(
            "\"x\": {}1{}",
            "{\"a\":".repeat(100_000),
            "}".repeat(100_000)
        )),
        "[".repeat(1_000_000),
    ] {
        send(
            server.port,
            "POST",
            "/v1/chat/completions",
            &[],
            raw.as_bytes(),
        )
        .error(400);
    }
    let deep = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1,
        "guided_json": (0..60).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}))});
    let status = server.chat(&deep).status;
    assert!(matches!(status, 200 | 400), "{status}");
    server.is_well();
}

#[test]
fn row_25_pathological_grammars_are_refused_in_time() {
    let server = Server::start(&[]);
    let wide: Vec<Value> = (0..20_000)
        .map(|i| json!({"const": format!("value {i}")}))
        .collect();
    let began = Instant::now();
    for body in [
        json!({"guided_regex": "(".repeat(10_000)}),
        json!({"guided_regex": "(a{1,10000}){1,10000}"}),
        json!({"guided_regex": "((a+)+)+((b+)+)+(((c|d)*)*)*{1000000}"}),
        json!({"guided_regex": "(?=a)b"}),
        json!({"guided_json": {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1/schema"}}}}),
        json!({"guided_json": {"$ref": "#/definitions/none"}}),
        json!({"guided_json": {"type": "nonsense"}}),
        json!({"guided_json": {"allOf": wide}}),
        json!({"guided_grammar": "start: start start"}),
        json!({"guided_grammar": "start: %%%"}),
        json!({"guided_grammar": ""}),
        json!({"guided_choice": []}),
    ] {
        let one = Instant::now();
        let response = server.chat(&chat("a", body.clone()));
        let what: String = body.to_string().chars().take(60).collect();
        assert!(
            matches!(response.status, 200 | 400),
            "{what}: {}",
            response.text()
        );
        assert!(one.elapsed() < Duration::from_secs(10), "{what}");
        // Others are answered meanwhile.
        assert_eq!(server.get("/health").status, 200);
    }
    for certain in [
        json!({"guided_regex": "("}),
        json!({"guided_json": {"type": "nonsense"}}),
        json!({"guided_grammar": "start: %%%"}),
    ] {
        server.chat(&chat("a", certain)).error(400);
    }
    assert!(began.elapsed() < Duration::from_secs(60));
    server.is_well();
}

/// The built-in model in a folder, with another template.
fn with_template(template: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(repo("assets/kiln-demo")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

#[test]
fn row_26_templates_without_end_run_out_of_fuel() {
    let folder = with_template(
        "{%- for message in messages -%}{{ message['content'] }}{%- endfor -%}\
         {%- for i in range(loops | default(0)) -%}{%- for j in range(loops) -%}x{%- endfor -%}{%- endfor -%}\
         {%- if text -%}{{ text * 100000000 }}{%- endif -%}",
    );
    let server = Server::of(folder.path().to_str().unwrap(), &[]);
    let began = Instant::now();
    for kwargs in [
        json!({"loops": 100_000}),
        json!({"loops": 1_000_000_000_000u64}),
        json!({"text": "x".repeat(1000)}),
        json!({"loops": "many"}),
        json!({"messages": []}),
        json!({"chat_template": "{{ 1 }}"}),
    ] {
        let response = server.chat(&chat("a", json!({"chat_template_kwargs": kwargs})));
        assert!(
            matches!(response.status, 400 | 500),
            "{kwargs}: {}",
            response.text()
        );
        response.error(response.status);
    }
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(server.chat(&chat("a", json!({}))).status, 200);
    let fine = json!({"chat_template_kwargs": {"loops": 2}});
    assert_eq!(server.chat(&chat("a", fine)).status, 200);
    // A template can't be sent along, nor one that reads files be run.
    let escapes = with_template("{{ messages[0].content }}{% include '/etc/passwd' %}");
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["serve", "--port", "0", "--kv-blocks", "64"])
        .arg(escapes.path())
        .stdout(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(!out.status.success());
    server.is_well();
}

#[test]
fn row_27_characters_wait_until_they_are_whole() {
    let server = Server::start(&[]);
    let text = "é日本語🎉ö";
    let mut body = chat("a", json!({"guided_choice": [text], "max_tokens": 100}));
    let whole = server.chat(&body).json();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    let tokens = whole["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    assert!(
        tokens > text.chars().count(),
        "{tokens}: every character is one token"
    );
    body["stream"] = true.into();
    let mut joined = String::new();
    for event in server.chat(&body).events() {
        let piece = event["choices"][0]["delta"]["content"]
            .as_str()
            .unwrap_or("")
            .to_owned();
        assert!(!piece.contains('\u{fffd}'), "{piece}");
        joined.push_str(&piece);
    }
    assert_eq!(joined, text);
    // Cut off inside a character: what is there of it is told as missing, at the end alone.
    body["stream"] = false.into();
    for most in 1..tokens {
        body["max_tokens"] = most.into();
        let cut = server.text(&body);
        let start = cut.trim_end_matches('\u{fffd}');
        assert!(text.starts_with(start), "{cut}");
    }
    server.is_well();
}
