//! A model by its name on the Hugging Face Hub, against a server of this test that answers as the
//! hub does, with the built-in model's files.
#![cfg(feature = "llava")]

mod hub_server;

use hub_server::{COMMIT, Hub};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repo(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(name)
}

/// `kiln run MODEL`, asked about the sample picture, with a cache of its own.
fn ask(model: &str, endpoint: &str, home: &Path, more: &[(&str, &str)], flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let leaks = [
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HUGGINGFACE_HUB_CACHE",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ];
    for name in leaks {
        command.env_remove(name);
    }
    let image = repo("assets/sample.png");
    command
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", endpoint)
        .envs(more.iter().copied())
        .current_dir(home)
        .args([
            "run",
            model,
            "Which shape is yellow?",
            "--kv-blocks",
            "64",
            "--image",
        ])
        .arg(image)
        .args(flags);
    command.output().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_answered(output: &Output) {
    assert!(output.status.success(), "{}", words(output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "circle");
}

#[test]
fn a_model_is_fetched_once_and_then_found_offline() {
    let (hub, home) = (Hub::start(), tempfile::tempdir().unwrap());
    assert_answered(&ask("kiln/demo", &hub.url, home.path(), &[], &[]));
    let files = hub.files_asked_for();
    assert!(files.iter().any(|f| f == "model.safetensors"), "{files:?}");
    assert!(
        files.iter().any(|f| f == "chat_template.jinja"),
        "{files:?}"
    );
    for other in ["README.md", "pytorch_model.bin", "onnx/config.json"] {
        assert!(!files.iter().any(|f| f == other), "{files:?}");
    }
    // The layout that Hugging Face's tools share.
    let folder = home.path().join("hub/models--kiln--demo");
    let reference = std::fs::read_to_string(folder.join("refs/main")).unwrap();
    assert_eq!(reference, COMMIT);
    assert!(!folder.join("refs").join(COMMIT).exists());
    let config = folder.join("snapshots").join(COMMIT).join("config.json");
    assert!(config.is_file());

    hub.forget();
    assert_answered(&ask("kiln/demo", &hub.url, home.path(), &[], &[]));
    assert_eq!(hub.files_asked_for(), Vec::<String>::new(), "fetched again");

    hub.forget();
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_answered(&ask("kiln/demo", &hub.url, home.path(), &offline, &[]));
    assert_answered(&ask(
        "kiln/demo",
        &hub.url,
        home.path(),
        &[],
        &["--offline"],
    ));
    let by_commit = format!("kiln/demo@{COMMIT}");
    assert_answered(&ask(&by_commit, &hub.url, home.path(), &offline, &[]));
    assert_eq!(hub.asked(), 0, "asked while offline");

    // Without a connection the cache serves, and says so.
    let nowhere = ask("kiln/demo", "http://127.0.0.1:9", home.path(), &[], &[]);
    assert_answered(&nowhere);
    assert!(
        words(&nowhere).contains("from the cache"),
        "{}",
        words(&nowhere)
    );
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let (hub, home) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.break_off_once("model.safetensors");
    assert_answered(&ask("kiln/demo@main", &hub.url, home.path(), &[], &[]));
    let from = hub.ranges_of("model.safetensors");
    assert!(from.iter().any(|start| *start > 0), "{from:?}");
}

#[test]
fn a_token_opens_what_is_gated() {
    let (hub, home) = (Hub::start(), tempfile::tempdir().unwrap());
    let run = |more: &[(&str, &str)]| ask("gated/demo", &hub.url, home.path(), more, &[]);
    let stranger = run(&[]);
    assert_eq!(stranger.status.code(), Some(1));
    for expected in ["401", "licence", "HF_TOKEN", "gated/demo"] {
        assert!(words(&stranger).contains(expected), "{}", words(&stranger));
    }
    let wrong = run(&[("HF_TOKEN", "hf_wrong")]);
    assert!(
        words(&wrong).contains("does not accept the token"),
        "{}",
        words(&wrong)
    );
    assert!(!words(&wrong).contains("hf_wrong"), "{}", words(&wrong));
    let other = run(&[("HF_TOKEN", "hf_other")]);
    assert!(words(&other).contains("403"), "{}", words(&other));
    std::fs::write(home.path().join("token"), "hf_right\n").unwrap();
    assert_answered(&run(&[]));
}

#[test]
fn what_can_not_be_had_is_said_with_the_mend() {
    let (hub, home) = (Hub::start(), tempfile::tempdir().unwrap());
    let cases = [
        ("kiln/absent", hub.url.as_str(), &[][..], "404"),
        (
            "kiln/demo",
            hub.url.as_str(),
            &["--offline"][..],
            "not in the cache",
        ),
        (
            "kiln/demo",
            "http://127.0.0.1:9",
            &[][..],
            "can't be reached",
        ),
        (
            "kiln/no-config",
            hub.url.as_str(),
            &[][..],
            "no config.json",
        ),
        (
            "kiln/no-weights",
            hub.url.as_str(),
            &[][..],
            "no model.safetensors",
        ),
        (
            "kiln/escape",
            hub.url.as_str(),
            &[][..],
            "not in the repository",
        ),
        (
            "no/such/folder",
            hub.url.as_str(),
            &[][..],
            "no such folder",
        ),
    ];
    for (model, endpoint, flags, expected) in cases {
        let output = ask(model, endpoint, home.path(), &[], flags);
        let said = words(&output);
        assert_eq!(output.status.code(), Some(1), "{model}: {said}");
        assert!(said.contains(expected), "{model}: {said}");
        assert!(!said.contains("panicked"), "{model}: {said}");
    }
    assert!(
        !home
            .path()
            .join("hub/models--kiln--no-weights/refs/main")
            .exists()
    );
}
