//! `kiln batch`: OpenAI's batch format in and out, ended in the midst and taken up again.
#![cfg(feature = "llava")]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repo(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(name)
}

/// Questions about the sample picture, and their answers.
fn questions() -> Vec<(String, String)> {
    let text = fs::read_to_string(repo("assets/sample.json")).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    let word = |q: &Value, key: &str| q[key].as_str().unwrap().to_owned();
    let all = record["questions"].as_array().unwrap().iter();
    all.map(|q| (word(q, "text"), word(q, "answer"))).collect()
}

fn request(id: &str, question: &str) -> Value {
    let picture = BASE64_STANDARD.encode(fs::read(repo("assets/sample.png")).unwrap());
    let url = format!("data:image/png;base64,{picture}");
    let content = json!([
        { "type": "image_url", "image_url": { "url": url } },
        { "type": "text", "text": question },
    ]);
    let body = json!({
        "model": "builtin", "temperature": 0, "messages": [{ "role": "user", "content": content }],
    });
    json!({ "custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body })
}

fn batch(input: &Path, output: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["batch", "--kv-blocks", "256", "--concurrency", "4"])
        .args([input, output])
        .output()
        .unwrap()
}

fn write(path: &Path, lines: &[Value]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(path, text).unwrap();
}

/// Answers by their identity, or by the error's message where there is none.
fn answers(path: &Path) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(path).unwrap();
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let answer: Value = serde_json::from_str(line).unwrap();
        let key = answer["custom_id"].as_str();
        let key = key.unwrap_or_else(|| answer["error"]["message"].as_str().unwrap());
        let twice = all.insert(key.to_owned(), answer.clone());
        assert!(twice.is_none(), "answered twice: {key}");
    }
    all
}

fn summary(output: &Output) -> String {
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words}");
    words
}

#[test]
fn every_line_is_answered_and_failures_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (
        folder.path().join("in.jsonl"),
        folder.path().join("out.jsonl"),
    );
    let questions = questions();
    let mut lines: Vec<Value> = questions
        .iter()
        .enumerate()
        .map(|(at, (question, _))| request(&format!("q{at}"), question))
        .collect();
    let with = |id: &str, key: &str, value: Value| {
        let mut line = request(id, "What is it?");
        line[key] = value;
        line
    };
    lines.push(with("other-url", "url", json!("/v1/embeddings")));
    lines.push(with("other-method", "method", json!("GET")));
    lines.push(with("bad-body", "body", json!({ "messages": [] })));
    let mut unknown = request("other-model", "What is it?");
    unknown["body"]["model"] = json!("no-such-model");
    lines.push(unknown);
    let text = json!({ "model": "builtin", "prompt": "USER: ", "max_tokens": 3 });
    lines.push(json!({
        "custom_id": "text", "method": "POST", "url": "/v1/completions", "body": text,
    }));
    lines.push(request("q0", "The same again?"));
    write(&input, &lines);
    let mut whole = fs::read_to_string(&input).unwrap();
    whole.push_str("\nno JSON\n{\"custom_id\": 7}\n");
    fs::write(&input, whole).unwrap();

    let words = summary(&batch(&input, &output));
    assert!(
        words.contains(&format!("{} answered, 7 failed", questions.len() + 1)),
        "{words}"
    );
    let answers = answers(&output);
    assert_eq!(answers.len(), questions.len() + 8);
    for (at, (question, expected)) in questions.iter().enumerate() {
        let answer = &answers[&format!("q{at}")];
        assert_eq!(answer["error"], Value::Null);
        let response = &answer["response"];
        assert_eq!(response["status_code"], 200);
        assert!(response["request_id"].as_str().unwrap().starts_with("req_"));
        let body = &response["body"];
        assert_eq!(body["object"], "chat.completion");
        let content = body["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(content.trim(), expected, "{question}");
        assert_eq!(body["usage"]["prompt_tokens_details"]["image_tokens"], 64);
    }
    assert_eq!(
        answers["text"]["response"]["body"]["object"],
        "text_completion"
    );
    assert_eq!(answers["other-url"]["error"]["code"], "invalid_url");
    assert_eq!(answers["other-method"]["error"]["code"], "invalid_method");
    assert_eq!(answers["bad-body"]["response"]["status_code"], 400);
    assert_eq!(answers["other-model"]["response"]["status_code"], 404);
    let nameless: Vec<_> = answers
        .values()
        .filter(|a| a["custom_id"].is_null())
        .collect();
    assert_eq!(nameless.len(), 3, "{nameless:?}");

    // Everything is there: nothing is asked again, not even what has no identity.
    let before = fs::read(&output).unwrap();
    let words = summary(&batch(&input, &output));
    assert!(
        words.contains("0 answered, 0 failed, 17 had been"),
        "{words}"
    );
    assert_eq!(fs::read(&output).unwrap(), before);
}

#[test]
fn a_run_that_was_ended_in_the_midst_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (
        folder.path().join("in.jsonl"),
        folder.path().join("out.jsonl"),
    );
    let questions = questions();
    let lines: Vec<Value> = (0..24)
        .map(|at| request(&format!("q{at}"), &questions[at % questions.len()].0))
        .collect();
    write(&input, &lines);
    summary(&batch(&input, &output));
    // As if ended after some lines, in the midst of another.
    let whole = fs::read_to_string(&output).unwrap();
    let cut: usize = whole.split_inclusive('\n').take(10).map(str::len).sum();
    fs::write(&output, &whole[..cut + 25]).unwrap();
    let words = summary(&batch(&input, &output));
    assert!(
        words.contains("14 answered, 0 failed, 10 had been"),
        "{words}"
    );
    assert!(
        fs::read_to_string(&output)
            .unwrap()
            .starts_with(&whole[..cut])
    );
    let answers = answers(&output);
    for at in 0..24 {
        let body = &answers[&format!("q{at}")]["response"]["body"];
        let content = body["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(content.trim(), questions[at % questions.len()].1);
    }
}

#[test]
fn what_can_not_be_read_or_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (
        folder.path().join("in.jsonl"),
        folder.path().join("out.jsonl"),
    );
    let absent = batch(&input, &output);
    assert_eq!(absent.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("in.jsonl"));
    write(&input, &[request("a", "What is it?")]);
    fs::write(&output, "something else\n").unwrap();
    let other = batch(&input, &output);
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("no answer of a batch"));
}
