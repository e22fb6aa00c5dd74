//! `kiln chat` as a script drives it: lines in, answers out.
#![cfg(feature = "llava")]

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

fn sample() -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    root.join("assets/sample.png").display().to_string()
}

fn start(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["chat", "--kv-blocks", "128"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Lines in, all at once.
fn chat(args: &[&str], lines: &[&str]) -> Output {
    let mut child = start(args);
    let mut stdin = child.stdin.take().unwrap();
    // One that refuses to begin does not read what it is told.
    let _ = stdin.write_all((lines.join("\n") + "\n").as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_conversation_goes_on_about_its_picture() {
    let image = format!("/image {}", sample());
    let lines = [
        image.as_str(),
        "Which shape is yellow?",
        "",
        "Where is the purple triangle?",
        "/clear",
        &format!("'{}' What does the text say?", sample()),
        "/quit",
        "never read",
    ];
    let out = chat(&["--verbose"], &lines);
    let (answers, notes) = (words(&out.stdout), words(&out.stderr));
    assert!(out.status.success(), "{notes}");
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers, ["circle", "bottom right", "XEO"], "{notes}");
    assert_eq!(notes.matches("time to first token").count(), 3, "{notes}");
    assert_eq!(notes.matches("(64 of media").count(), 3, "{notes}");
    // The second prompt holds the first question and its answer, the third begins anew.
    let prompts: Vec<usize> = notes
        .split("; ")
        .skip(1)
        .map(|rest| rest.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(
        prompts[1] > prompts[0] && prompts[2] < prompts[1],
        "{prompts:?}"
    );
}

#[test]
fn what_fails_is_said_taken_back_and_told_by_the_exit_code() {
    let image = format!("/image {}", sample());
    let readme = format!(
        "/image {}",
        env!("CARGO_MANIFEST_DIR").to_owned() + "/Cargo.toml"
    );
    let lines = [
        "/image no-such.png",
        "/frobnicate",
        &readme,
        "What is this?",
        &image,
        "Which shape is yellow?",
        "/help",
    ];
    let out = chat(&[], &lines);
    let notes = words(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{notes}");
    assert_eq!(words(&out.stdout).trim(), "circle", "{notes}");
    for expected in [
        "no-such.png",
        "/frobnicate",
        "image",
        "/system TEXT",
        "not all lines",
    ] {
        assert!(notes.contains(expected), "`{expected}` is not in {notes}");
    }
}

/// The same conversation with a running server, which wants a key.
#[test]
fn a_running_server_is_talked_with() {
    let mut server = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args([
            "serve",
            "builtin",
            "--port",
            "0",
            "--kv-blocks",
            "128",
            "--api-key",
            "sesame",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(server.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let url = line.trim().rsplit(' ').next().unwrap();

    let image = format!("/image {}", sample());
    let lines = [
        image.as_str(),
        "Which shape is yellow?",
        "Where is the purple triangle?",
    ];
    let out = chat(&[url, "--api-key", "sesame", "--verbose"], &lines);
    let notes = words(&out.stderr);
    assert!(out.status.success(), "{notes}");
    let answers = words(&out.stdout);
    assert_eq!(
        answers.lines().collect::<Vec<_>>(),
        ["circle", "bottom right"],
        "{notes}"
    );
    assert!(notes.contains("(64 of media, 0 cached)"), "{notes}");
    assert_eq!(notes.matches("time to first token").count(), 2, "{notes}");

    let refused = chat(&[url, "--api-key", "wrong"], &["Hello"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        words(&refused.stderr).contains("401"),
        "{}",
        words(&refused.stderr)
    );
    let no_file = format!("/image {}/Cargo.toml", env!("CARGO_MANIFEST_DIR"));
    let lines = [
        no_file.as_str(),
        "What is it?",
        image.as_str(),
        "Which shape is yellow?",
    ];
    let out = chat(&[url, "--api-key", "sesame"], &lines);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        words(&out.stderr).contains("the server answered 400"),
        "{}",
        words(&out.stderr)
    );
    assert_eq!(words(&out.stdout).trim(), "circle");

    server.kill().unwrap();
    server.wait().unwrap();
    let gone = chat(&[url], &["Hello"]);
    assert_eq!(gone.status.code(), Some(1));
}

/// Ctrl-C stops the answer, and the conversation goes on.
#[cfg(unix)]
#[test]
fn an_interrupt_stops_the_answer_and_not_the_program() {
    let mut child = start(&["--ignore-eos", "--max-tokens", "900", "--image", &sample()]);
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    writeln!(stdin, "Describe the picture.").unwrap();
    // The first byte of the answer shows that it is under way.
    let first = stdout.fill_buf().unwrap()[0];
    assert!(first.is_ascii(), "{first}");
    interrupt(&child);
    writeln!(stdin, "/help").unwrap();
    drop(stdin);
    let mut answer = String::new();
    for line in stdout.lines() {
        answer.push_str(&line.unwrap());
    }
    let out = child.wait_with_output().unwrap();
    let notes = words(&out.stderr);
    assert!(out.status.success(), "{:?} {notes}", out.status);
    let stopped = notes.find("[stopped]").expect(&notes);
    assert!(stopped < notes.find("/system TEXT").unwrap(), "{notes}");
    assert!(!answer.is_empty());
}

/// Where no answer is under way, it ends the program.
#[cfg(unix)]
#[test]
fn an_interrupt_between_answers_ends_the_program() {
    let mut child = start(&["--image", &sample()]);
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "Which shape is yellow?").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line.trim(), "circle");
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(stdin);
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert!(sent.success());
}
