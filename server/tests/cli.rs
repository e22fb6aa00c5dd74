//! The binary as a person runs it: what it prints, and what it exits with.

use std::path::PathBuf;
use std::process::{Command, Output};

fn kiln(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(args)
        .output()
        .unwrap()
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A path in the repository.
fn repo(name: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    root.join(name).display().to_string()
}

/// What `assets/sample.json` says of the built-in picture: questions and answers.
fn sample_questions() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(repo("assets/sample.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let field = |q: &serde_json::Value, key: &str| q[key].as_str().unwrap().to_owned();
    record["questions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|q| (field(q, "text"), field(q, "answer")))
        .collect()
}

#[cfg(feature = "llava")]
#[test]
fn without_arguments_the_built_in_model_describes_the_built_in_picture() {
    let described = sample_questions()
        .into_iter()
        .map(|(_, answer)| answer)
        .find(|answer| answer.contains(" at the "))
        .unwrap();
    let out = kiln(&["run"]);
    let figures = words(&out.stderr);
    assert!(out.status.success(), "{figures}");
    assert_eq!(words(&out.stdout).trim(), described);
    for figure in [
        "prompt tokens",
        "new tokens",
        "time to first token",
        "tokens/s",
    ] {
        assert!(figures.contains(figure), "{figures}");
    }
}

#[cfg(feature = "llava")]
#[test]
fn the_built_in_model_answers_every_question_about_the_built_in_picture() {
    for (question, answer) in sample_questions() {
        let out = kiln(&["run", "builtin", &question]);
        assert_eq!(words(&out.stdout).trim(), answer, "{question}");
    }
}

#[cfg(feature = "llava")]
#[test]
fn several_pictures_of_several_formats_in_one_prompt() {
    let checkpoint = repo("tests/fixtures/checkpoints/llava-clip-llama-hub");
    let inputs = repo("tests/fixtures/processors/inputs");
    let (png, jpg) = (format!("{inputs}/rgb.png"), format!("{inputs}/rgb.jpg"));
    let out = kiln(&[
        "run",
        &checkpoint,
        "Compare.",
        "--image",
        &png,
        "--image",
        &jpg,
        "--max-tokens",
        "4",
    ]);
    assert!(out.status.success(), "{}", words(&out.stderr));
    assert!(
        words(&out.stderr).contains("(32 of media)"),
        "{}",
        words(&out.stderr)
    );
    let limited = kiln(&[
        "run",
        &checkpoint,
        "Compare.",
        "--image",
        &png,
        "--image",
        &jpg,
        "--limit-mm-per-prompt",
        "image=1,video=0",
    ]);
    assert_eq!(limited.status.code(), Some(2));
    assert!(words(&limited.stderr).contains("--limit-mm-per-prompt image=2"));
}

#[test]
fn models_lists_what_the_features_link() {
    let out = kiln(&["models", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let crates: Vec<&str> = listed["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["crate"].as_str().unwrap())
        .collect();
    for (name, on) in [
        ("kiln-llava", cfg!(feature = "llava")),
        ("kiln-llava-next", cfg!(feature = "llava-next")),
        ("kiln-text", cfg!(feature = "text")),
    ] {
        assert_eq!(crates.contains(&name), on, "{name} in {crates:?}");
    }
    let table = words(&kiln(&["models"]).stdout);
    assert!(table.contains("architecture"), "{table}");
}

/// The README's table and `kiln models` say the same of every model.
#[cfg(feature = "all-models")]
#[test]
fn models_lists_what_the_readme_does() {
    let readme = std::fs::read_to_string(repo("README.md")).unwrap();
    let table = readme.lines().skip_while(|l| !l.starts_with("| feature |"));
    let rows = table.skip(2).take_while(|l| l.starts_with('|'));
    let mut told: Vec<(String, String)> = rows
        .flat_map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let architectures = cells[2].split('`').skip(1).step_by(2);
            let say = |name: &str| (name.to_owned(), cells[3].to_owned());
            architectures.map(say).collect::<Vec<_>>()
        })
        .collect();
    let out = kiln(&["models", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let mut linked: Vec<(String, String)> = vec![];
    for model in listed["models"].as_array().unwrap() {
        let names = model["modalities"].as_array().unwrap().iter();
        let names: Vec<_> = names.map(|m| m["name"].as_str().unwrap()).collect();
        let modalities = [&["text"], &names[..]].concat().join(", ");
        for architecture in model["architectures"].as_array().unwrap() {
            linked.push((
                architecture.as_str().unwrap().to_owned(),
                modalities.clone(),
            ));
        }
    }
    told.sort();
    linked.sort();
    assert_eq!(told, linked);
}

#[cfg(feature = "llava")]
#[test]
fn bench_tells_phases_limits_and_requests() {
    let folder = tempfile::tempdir().unwrap();
    let chart = folder.path().join("chart.svg");
    let out = kiln(&[
        "bench",
        "builtin",
        "--prompt-tokens",
        "8",
        "--output-tokens",
        "4",
        "--concurrency",
        "1,2",
        "--repeat",
        "1",
        "--kv-blocks",
        "64",
        "--json",
        "--chart",
        chart.to_str().unwrap(),
    ]);
    assert!(out.status.success(), "{}", words(&out.stderr));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    for limit in ["f32", "bf16", "int8"] {
        let rate = report["limits"][format!("{limit}_operations_per_second")].as_f64();
        assert!(rate.unwrap() > 1e8, "{report:#}");
    }
    let phases = report["phases"].as_array().unwrap();
    let named = |name: &str| phases.iter().find(|p| p["name"] == name).unwrap();
    // 64 rows of the picture and 8 of text, by about two operations a weight.
    let encode = named("vision encode")["operations"].as_u64().unwrap();
    let prefill = named("prefill")["operations"].as_u64().unwrap();
    let weights = report["weight_bytes"].as_u64().unwrap() / 2;
    assert!(encode > 0 && prefill > 72 * weights / 2, "{report:#}");
    assert!(named("one new token")["bytes"].as_u64().unwrap() > weights / 2);
    assert_eq!(report["prompt_tokens"], 72);
    let runs = report["runs"].as_array().unwrap();
    let at_once: Vec<_> = runs.iter().map(|r| r["concurrency"].as_u64()).collect();
    assert_eq!(at_once, [Some(1), Some(2)]);
    for run in runs {
        let first = run["time_to_first_token"].as_f64().unwrap();
        assert!(
            first > 0.0 && first < run["total"].as_f64().unwrap(),
            "{run}"
        );
    }
    let chart = std::fs::read_to_string(chart).unwrap();
    assert!(
        chart.starts_with("<svg") && chart.contains("prefill"),
        "{chart}"
    );
}

/// Eight bits change no answer about the built-in picture.
#[cfg(feature = "llava")]
#[test]
fn narrow_weights_answer_alike() {
    for (question, answer) in sample_questions() {
        let out = kiln(&["run", "builtin", &question, "--quantize", "q8"]);
        assert!(out.status.success(), "{}", words(&out.stderr));
        assert_eq!(words(&out.stdout).trim(), answer, "{question}");
    }
    let wrong = kiln(&["run", "builtin", "x", "--quantize", "q3"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(words(&wrong.stderr).contains("q8 or q4"));
}

#[test]
fn a_wrong_input_says_what_is_wrong_and_exits_with_2_or_1() {
    let broken = repo("README.md");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["run", "no/such/folder", "x"], 1, "no such folder"),
        (
            &["run", "builtin", "x", "--image", "no-such.png"],
            1,
            "no-such.png",
        ),
        (&["run", "builtin", "x", "--image", &broken], 2, "image"),
        (
            &["run", "builtin", "x", "--temperature", "nan"],
            2,
            "temperature",
        ),
        (
            &["run", "builtin", "x", "--max-tokens", "100000"],
            2,
            "context",
        ),
        (&["run", "builtin", "x", "--device", "abacus"], 2, "abacus"),
        (&["run", "builtin", "x", "--dtype", "f12"], 2, "f12"),
        (&["run", "builtin", "x", "--memory", "1K"], 2, "--memory"),
        (
            &["run", "builtin", "--raw-prompt", "<image><image>"],
            2,
            "placeholder",
        ),
        (&["frobnicate"], 2, "frobnicate"),
    ];
    for (args, code, message) in cases {
        let out = kiln(args);
        let error = words(&out.stderr);
        assert_eq!(out.status.code(), Some(*code), "{args:?}: {error}");
        assert!(error.contains(message), "{args:?}: {error}");
        assert!(!error.contains("panicked"), "{args:?}: {error}");
    }
}

#[cfg(feature = "llava")]
#[test]
fn a_trace_has_the_keys_that_its_help_names() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.safetensors");
    let out = kiln(&[
        "trace",
        "builtin",
        "--prompt",
        "Describe the picture.",
        "--image",
        &repo("assets/sample.png"),
        "--new-tokens",
        "3",
        "--out",
        &file.display().to_string(),
    ]);
    assert!(out.status.success(), "{}", words(&out.stderr));
    let bytes = std::fs::read(&file).unwrap();
    let trace = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| trace.tensor(name).unwrap().shape().to_vec();
    let prompt = shape("input_ids")[0];
    assert_eq!(shape("placeholders"), [1, 3]);
    assert_eq!(shape("greedy"), [3]);
    assert_eq!(shape("logits")[0], prompt);
    assert_eq!(shape("pixel_values")[..2], [1, 3]);
    assert_eq!(shape("tower.0").len(), 3);
    assert_eq!(shape("image_features.0").len(), 2);
}

#[cfg(feature = "llava")]
#[test]
fn inspect_and_profile_speak_of_the_built_in_model() {
    let folder = tempfile::tempdir().unwrap();
    let sheet = folder.path().join("sheet.png").display().to_string();
    let sample = repo("assets/sample.png");
    let out = kiln(&["inspect", "builtin", "--image", &sample, "--out", &sheet]);
    assert!(out.status.success(), "{}", words(&out.stderr));
    let drawn = image::ImageReader::open(&sheet).unwrap().decode().unwrap();
    assert!(drawn.width() > 200 && drawn.height() > 200);
    let out = kiln(&["profile", "builtin", "--json"]);
    let profile: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    for key in ["weight_bytes", "activation_bytes", "kv_blocks", "kv_tokens"] {
        assert!(
            profile[key].as_u64().is_some_and(|n| n > 0),
            "{key}: {profile}"
        );
    }
}
