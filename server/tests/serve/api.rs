//! What clients of OpenAI's API rely on.

use crate::client::{Response, connect, send};
use crate::server::{Server, ask, data_url, picture, repo};
use serde_json::{Value, json};
use std::io::Write;

fn sample() -> String {
    data_url(&std::fs::read(repo("assets/sample.png")).unwrap())
}

fn text_only(text: &str, more: Value) -> Value {
    let mut body = json!({
        "model": "builtin",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 8,
        "temperature": 0,
    });
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

/// Text, finish reasons and usage of a stream.
fn joined(response: &Response, index: u64) -> (String, Vec<String>) {
    let (mut text, mut reasons) = (String::new(), vec![]);
    for event in response.events() {
        for choice in event["choices"].as_array().unwrap() {
            if choice["index"] != index {
                continue;
            }
            text.push_str(choice["delta"]["content"].as_str().unwrap_or(""));
            text.push_str(choice["text"].as_str().unwrap_or(""));
            reasons.extend(choice["finish_reason"].as_str().map(str::to_owned));
        }
    }
    (text, reasons)
}

#[test]
fn a_chat_whole_and_streamed_is_the_same() {
    let server = Server::start(&[]);
    let mut body = ask(&[&sample()], "Describe the picture.");
    body["max_tokens"] = 200.into();
    let whole = server.chat(&body).json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], "builtin");
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["finish_reason"], "stop");
    let usage = &whole["usage"];
    assert_eq!(usage["prompt_tokens_details"]["image_tokens"], 64);
    let number = |key: &str| usage[key].as_u64().unwrap();
    assert_eq!(
        number("prompt_tokens") + number("completion_tokens"),
        number("total_tokens")
    );

    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let stream = server.chat(&body);
    assert_eq!(
        stream.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    let (text, reasons) = joined(&stream, 0);
    assert_eq!(Value::from(text), choice["message"]["content"]);
    assert_eq!(reasons, ["stop"]);
    let events = stream.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(
        last["usage"]["completion_tokens"],
        usage["completion_tokens"]
    );
    assert!(events.iter().all(|event| event["usage"].is_object()));
    // The picture was sent before: its prefix is cached.
    assert!(last["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0));
    server.is_well();
}

#[test]
fn parameters_do_what_they_say() {
    let server = Server::start(&[]);
    let base = ask(&[&sample()], "Describe the picture.");
    let with = |more: Value| {
        let mut body = base.clone();
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let text = |more: Value| server.text(&with(more));
    let whole = text(json!({}));
    let cut = server
        .chat(&with(json!({"max_completion_tokens": 3})))
        .json();
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 3);

    let word = whole.split_whitespace().nth(1).unwrap();
    let stopped = text(json!({"stop": word}));
    assert!(
        whole.starts_with(&stopped) && !stopped.contains(word),
        "{stopped}"
    );

    let hot = json!({"temperature": 1.5, "seed": 7, "top_k": 50, "top_p": 0.9, "min_p": 0.01});
    assert_eq!(text(hot.clone()), text(hot));
    let several = server
        .chat(&with(json!({"n": 3, "temperature": 1.0, "seed": 1})))
        .json();
    assert_eq!(several["choices"].as_array().unwrap().len(), 3);

    let first = server.chat(&with(
        json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 2}),
    ));
    let first = first.json()["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(first.as_array().unwrap().len(), 2);
    let token = &first[0];
    let top = token["top_logprobs"].as_array().unwrap();
    assert_eq!((top.len(), &top[0]["token"]), (3, &token["token"]));
    assert!(token["logprob"].as_f64().unwrap() <= 0.0);

    // Forbidden, the first token changes.
    let bias = server.post(
        "/tokenize",
        &json!({"prompt": token["token"], "add_special_tokens": false}),
    );
    let id = bias.json()["tokens"][0].to_string();
    let other = text(json!({"logit_bias": {id: -100}, "max_tokens": 1}));
    assert_ne!(Value::from(other), token["token"]);

    let long = with(json!({"ignore_eos": true, "max_tokens": 150}));
    assert_eq!(server.chat(&long).json()["usage"]["completion_tokens"], 150);
    let at_least = with(json!({"min_tokens": 140, "max_tokens": 150}));
    assert!(server.chat(&at_least).json()["usage"]["completion_tokens"].as_u64() >= Some(140));
    // Unknown fields are passed over, as by other servers.
    assert_eq!(
        text(json!({"no_such_field": {"x": 1}, "user": "me", "store": false})),
        whole
    );
    server.is_well();
}

#[test]
fn structured_output_has_the_form_that_was_asked_for() {
    let server = Server::start(&[]);
    let ask = |more: Value| server.text(&text_only("Say something.", more));
    let colours = json!(["red", "green", "blue"]);
    let chosen = ask(json!({"guided_choice": colours}));
    assert!(
        colours.as_array().unwrap().contains(&json!(chosen)),
        "{chosen}"
    );
    let number = ask(json!({"response_format": {"type": "regex", "pattern": "[0-9]{3}"}}));
    assert!(
        number.len() == 3 && number.bytes().all(|b| b.is_ascii_digit()),
        "{number}"
    );
    let schema = json!({
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["count"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let object = ask(json!({"response_format": format, "max_tokens": 60}));
    let object: Value = serde_json::from_str(&object).unwrap_or_else(|e| panic!("{e}: {object}"));
    assert!(object["count"].as_u64() <= Some(9), "{object}");
    let grammar = ask(json!({"guided_grammar": "start: \"yes\" | \"no\""}));
    assert!(matches!(grammar.as_str(), "yes" | "no"), "{grammar}");
    server.is_well();
}

#[test]
fn text_completions_in_all_their_forms() {
    let server = Server::start(&[]);
    let body = json!({"prompt": ["USER: a ASSISTANT:", "USER: b ASSISTANT:"], "max_tokens": 4,
                      "n": 2, "temperature": 1.0, "seed": 3, "echo": true, "ignore_eos": true});
    let whole = server.post("/v1/completions", &body).json();
    assert_eq!(whole["object"], "text_completion");
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (at, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], at);
        let prompt = if at < 2 { "USER: a" } else { "USER: b" };
        assert!(
            choice["text"].as_str().unwrap().starts_with(prompt),
            "{choice}"
        );
    }
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let stream = server.post("/v1/completions", &streamed);
    for (at, choice) in choices.iter().enumerate() {
        assert_eq!(Value::from(joined(&stream, at as u64).0), choice["text"]);
    }
    let ids = server
        .post("/tokenize", &json!({"prompt": "USER: a ASSISTANT:"}))
        .json()["tokens"]
        .clone();
    let by = |prompt: Value| {
        let body = json!({"prompt": prompt, "max_tokens": 5, "temperature": 0, "logprobs": 2,
                          "ignore_eos": true});
        server.post("/v1/completions", &body).json()["choices"][0].clone()
    };
    let (by_text, by_ids) = (by(json!("USER: a ASSISTANT:")), by(ids));
    assert_eq!(by_text, by_ids);
    let logprobs = &by_text["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    assert_eq!(
        logprobs["text_offset"].as_array().unwrap().len(),
        tokens.len()
    );
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 2);
    server.is_well();
}

#[test]
fn tokens_and_text_and_what_is_served() {
    let server = Server::start(&["--served-model-name", "one,org/two"]);
    let tokens = server.post(
        "/tokenize",
        &json!({"prompt": "a circle", "add_special_tokens": false}),
    );
    let tokens = tokens.json();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    let text = server
        .post("/detokenize", &json!({"tokens": tokens["tokens"]}))
        .json();
    assert_eq!(text["prompt"], "a circle");
    let mut chat = ask(&[&sample()], "What?");
    chat["return_token_strs"] = true.into();
    let tokens = server.post("/tokenize", &chat).json();
    assert!(tokens["count"].as_u64() > Some(64), "{tokens}");
    assert_eq!(
        tokens["token_strs"].as_array().unwrap().len() as u64,
        tokens["count"].as_u64().unwrap()
    );
    let usage = server.chat(&chat).json()["usage"].clone();
    assert_eq!(usage["prompt_tokens"], tokens["count"]);
    server
        .post("/detokenize", &json!({"tokens": [4_000_000]}))
        .error(400);

    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][1]["id"], "org/two");
    assert_eq!(server.get("/v1/models/org/two").json()["root"], "one");
    let error = server.get("/v1/models/three").error(404);
    assert_eq!(error["code"], "model_not_found");
    let mut body = text_only("a", json!({}));
    body["model"] = "org/two".into();
    assert_eq!(server.chat(&body).json()["model"], "org/two");
    body["model"] = "gpt-4o".into();
    assert_eq!(server.chat(&body).error(404)["param"], "model");
    assert!(server.get("/version").json()["version"].is_string());
    let document = server.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(server.get("/docs").text().contains("/v1/chat/completions"));
    server.is_well();
}

#[test]
fn errors_have_one_form_whatever_they_are_of() {
    let server = Server::start(&[]);
    server.get("/nowhere").error(404);
    let wrong = server.get("/v1/chat/completions");
    wrong.error(405);
    assert_eq!(wrong.header("allow"), Some("POST"));
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    send(server.port, "POST", "/v1/completions", &form, b"a=b").error(415);
    for (field, value) in [
        ("temperature", json!("hot")),
        ("max_tokens", json!(-1)),
        ("stop", json!(1)),
        ("stream", json!("yes")),
        ("messages", json!("hi")),
        ("logit_bias", json!([])),
        ("tools", json!({})),
        ("chat_template_kwargs", json!(3)),
    ] {
        let mut body = text_only("a", json!({}));
        body[field] = value;
        assert_eq!(server.chat(&body).error(400)["param"], field);
    }
    let error = server.chat(&json!({"messages": []})).error(400);
    assert_eq!(error["param"], "messages");
    for body in [&b""[..], b"{", b"[]", b"null", b"\xff\xfe{}"] {
        send(server.port, "POST", "/v1/chat/completions", &[], body).error(400);
    }
    server.is_well();
}

#[test]
fn keys_are_asked_for_where_they_are_set() {
    let model = repo("tests/fixtures/checkpoints/llava-clip-llama");
    let server = Server::of(model.to_str().unwrap(), &["--api-key", "first,second"]);
    for path in ["/health", "/ready", "/docs", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for path in ["/v1/models", "/metrics", "/version"] {
        let refused = server.get(path);
        assert_eq!(refused.error(401)["code"], "invalid_api_key");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        for (key, status) in [
            ("Bearer first", 200),
            ("bearer second", 200),
            ("Bearer firs", 401),
            ("Bearer ", 401),
            ("Basic first", 401),
            ("first", 401),
        ] {
            let headers = [("Authorization", key)];
            let response = send(server.port, "GET", path, &headers, b"");
            assert_eq!(response.status, status, "{path} {key}");
        }
    }
    server.post("/v1/chat/completions", &json!({})).error(401);
}

#[test]
fn ids_of_requests_come_back_and_origins_are_told() {
    let server = Server::start(&[
        "--cors-origin",
        "https://page.example",
        "--log-format",
        "json",
    ]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [
        ("x-request-id", "mine-1"),
        ("traceparent", &parent),
        ("Origin", "https://page.example"),
    ];
    let response = send(server.port, "GET", "/v1/models", &headers, b"");
    assert_eq!(response.header("x-request-id"), Some("mine-1"));
    assert_eq!(
        response.header("access-control-allow-origin"),
        Some("https://page.example")
    );
    let other = send(
        server.port,
        "GET",
        "/v1/models",
        &[("Origin", "https://evil.example"), ("x-request-id", "a b")],
        b"",
    );
    assert_eq!(other.header("access-control-allow-origin"), None);
    assert_eq!(other.header("x-request-id").unwrap().len(), 36);
    let preflight = [
        ("Origin", "https://page.example"),
        ("Access-Control-Request-Method", "POST"),
    ];
    assert_eq!(
        send(
            server.port,
            "OPTIONS",
            "/v1/chat/completions",
            &preflight,
            b""
        )
        .status,
        200
    );
    server.is_well();
    let log = server.log();
    let line = log.lines().find(|line| line.contains("mine-1")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["span"]["trace"], trace);
    assert_eq!(line["status"], 200);
}

#[test]
fn a_connection_serves_many_requests() {
    let server = Server::start(&[]);
    let mut stream = connect(server.port);
    for _ in 0..3 {
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: kiln\r\n\r\n")
            .unwrap();
        let mut answer = [0; 512];
        let n = std::io::Read::read(&mut stream, &mut answer).unwrap();
        assert!(answer[..n].starts_with(b"HTTP/1.1 200"));
    }
}

#[test]
fn an_item_may_be_sent_again_by_its_name() {
    let server = Server::start(&[]);
    let url = data_url(&picture("rgb.png"));
    let part = |part: Value| {
        json!({"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}],
               "max_tokens": 6, "temperature": 0})
    };
    let unknown = part(json!({"type": "image_url", "uuid": "cat"}));
    server.chat(&unknown).error(400);
    let whole = part(json!({"type": "image_url", "image_url": {"url": url}, "uuid": "cat"}));
    let answer = server.text(&whole);
    assert_eq!(server.text(&unknown), answer);
    server.is_well();
}

#[test]
fn metrics_have_the_protocols_names() {
    let server = Server::start(&[]);
    let tokens = server.metric("vllm:generation_tokens_total");
    let stops = server.metric("vllm:request_success_total");
    server.text(&text_only("a", json!({})));
    server.chat(&json!({"messages": []})).error(400);
    assert!(server.metric("vllm:generation_tokens_total") > tokens);
    assert_eq!(server.metric("vllm:request_success_total") - stops, 1.0);
    assert!(server.metric("kiln:requests_rejected_total") >= 1.0);
    let text = server.get("/metrics");
    for name in [
        "vllm:cache_config_info{block_size=",
        "vllm:prompt_tokens_total",
        "vllm:num_preemptions_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "kiln:encoder_cache_hits_total",
        "kiln:processor_cache_hits_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_count",
        "vllm:e2e_request_latency_seconds_sum",
        "vllm:request_queue_time_seconds_bucket",
        "kiln:request_preprocessing_seconds_bucket",
        "finished_reason=\"abort\"",
    ] {
        assert!(text.text().contains(name), "{name}");
    }
}

#[test]
fn a_flag_goes_before_the_environment_and_that_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kiln.toml");
    let content = "served-model-name = 'file'\nkv-blocks = 64\nport = 0\nmax-body-bytes = '1KiB'\n";
    std::fs::write(&file, content).unwrap();
    let config = file.to_str().unwrap();
    let name = "KILN_SERVED_MODEL_NAME";
    for (arguments, environment, expected) in [
        (vec!["serve", "--config", config], vec![], "file"),
        (
            vec!["serve"],
            vec![("KILN_CONFIG", config), (name, "environment")],
            "environment",
        ),
        (
            vec!["serve", "--config", config, "--served-model-name", "flag"],
            vec![(name, "environment"), ("KILN_NO_PREFIX_CACHE", "1")],
            "flag",
        ),
    ] {
        let server = Server::spawn(&arguments, &environment);
        let models = server.get("/v1/models").json();
        assert_eq!(models["data"][0]["id"], expected);
        let long = json!({"prompt": "x".repeat(2000)});
        server.post("/v1/completions", &long).error(413);
    }
}

/// Chat and text completions alike: what is cached of a prompt is found under its own salt alone.
#[test]
fn a_cache_salt_keeps_prompts_apart() {
    let server = Server::start(&[]);
    let text = "a long walk by the sea ".repeat(12);
    let messages = json!([{"role": "user", "content": text}]);
    for (path, mut body) in [
        ("/v1/completions", json!({"prompt": text})),
        ("/v1/chat/completions", json!({"messages": messages})),
    ] {
        body["max_tokens"] = 4.into();
        body["temperature"] = 0.into();
        let mut texts = vec![];
        for (salt, shares) in [
            (json!("mine"), false),
            (json!("theirs"), false),
            (Value::Null, false),
            (json!("mine"), true),
            (Value::Null, true),
        ] {
            body["cache_salt"] = salt.clone();
            let answer = server.post(path, &body).json();
            let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
            assert_eq!(cached.as_u64() > Some(0), shares, "{path} {salt}: {answer}");
            texts.push(answer["choices"].clone());
        }
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    }
    let schema = server.get("/openapi.json").json();
    let schemas = &schema["components"]["schemas"];
    for request in ["ChatRequest", "CompletionRequest"] {
        assert_eq!(
            schemas[request]["properties"]["cache_salt"]["type"],
            "string"
        );
    }
    server.is_well();
}
