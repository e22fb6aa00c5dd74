//! Configurations, tokenizers and templates' files that lie: each is one change away from a good
//! one, and each is refused with an error that names the file. Nothing panics, hangs or is executed.

use crate::broken::{Copy, assert_a_good_one_loads};
use crate::runs::{alone, options, start};
use crate::support::case;
use kiln_registry::Error;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const LLAVA: &str = "llava-clip-llama";
const NEXT: &str = "llava-next-clip-mistral";
const TEXT: &str = "text-llama";

/// A key of `config.json`, given as a pointer, and a value that makes no sense.
fn config(name: &str, pointer: &str, value: Value, words: &[&str]) {
    let copy = Copy::of(name);
    copy.edit("config.json", |config| {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value.clone();
    });
    let what = format!("{name}, {pointer} = {value}");
    let start = Instant::now();
    copy.refused(&what, words);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{what}: {:?}",
        start.elapsed()
    );
}

#[test]
fn configs_that_make_no_sense() {
    let huge = json!(1_000_000_000_000u64);
    for key in [
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    ] {
        let pointer = format!("/text_config/{key}");
        for value in [
            huge.clone(),
            json!(0),
            json!(-1),
            json!("four"),
            json!(1.5),
            json!(1e300),
        ] {
            config(LLAVA, &pointer, value, &[]);
        }
        config(TEXT, &format!("/{key}"), huge.clone(), &[]);
        config(TEXT, &format!("/{key}"), json!(0), &[key]);
    }
    for key in [
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "image_size",
        "patch_size",
    ] {
        for name in [LLAVA, NEXT] {
            let pointer = format!("/vision_config/{key}");
            for value in [huge.clone(), json!(0), json!(-1), json!([]), json!(1e300)] {
                config(name, &pointer, value, &[]);
            }
            config(name, &pointer, json!(0), &[key]);
        }
    }
    // Each alone is a number or a word like any other.
    for (pointer, value, word) in [
        ("/text_config/head_dim", json!(7), "even"),
        ("/text_config/num_attention_heads", json!(3), "heads"),
        (
            "/text_config/max_position_embeddings",
            json!(0),
            "max_position_embeddings",
        ),
        ("/text_config/rms_norm_eps", json!(-1), "rms_norm_eps"),
        ("/text_config/hidden_act", json!("step"), "step"),
        ("/text_config/model_type", json!("mamba"), "mamba"),
        ("/text_config", json!("text"), "config.json"),
        ("/vision_config/hidden_size", json!(33), "33"),
        ("/vision_config/patch_size", json!(29), "patch_size"),
        ("/vision_config/patch_size", json!(1), "patch_embedding"),
        (
            "/vision_config/image_size",
            json!(16_384),
            "position_embedding",
        ),
        ("/vision_config/model_type", json!("resnet"), "resnet"),
        ("/vision_feature_layer", json!(99), "vision_feature_layer"),
        (
            "/vision_feature_layer",
            json!(i64::MIN),
            "vision_feature_layer",
        ),
        ("/vision_feature_layer", json!([]), "vision_feature_layer"),
        ("/vision_feature_select_strategy", json!("some"), "some"),
        ("/image_token_index", json!(4_000_000), "4000000"),
    ] {
        config(LLAVA, pointer, value, &[word]);
    }
    for pinpoints in [
        json!([]),
        json!([[0, 0]]),
        json!([[28, 29]]),
        json!([[28]]),
        json!([[huge, 28]]),
    ] {
        config(NEXT, "/image_grid_pinpoints", pinpoints, &["config.json"]);
    }
    assert_a_good_one_loads();
}

#[test]
fn rotary_parameters_that_make_no_sense() {
    let parameters = "/text_config/rope_parameters";
    config(
        LLAVA,
        &format!("{parameters}/rope_type"),
        json!("spiral"),
        &["spiral"],
    );
    for (key, value) in [
        ("factor", json!(0)),
        ("factor", json!("eight")),
        ("factor", json!(null)),
        ("rope_theta", json!(-1)),
        ("rope_theta", json!(0)),
        ("high_freq_factor", json!(null)),
        ("original_max_position_embeddings", json!(-5)),
    ] {
        config(LLAVA, &format!("{parameters}/{key}"), value, &[key]);
    }
    assert_a_good_one_loads();
}

#[test]
fn config_files_that_are_none() {
    for file in [
        "config.json",
        "processor_config.json",
        "generation_config.json",
        "tokenizer.json",
    ] {
        for content in [
            "",
            "{",
            "\u{feff}{}",
            "[1, 2]",
            "\"text\"",
            "nul",
            "{\"a\": 1e999}",
        ] {
            let copy = Copy::of(LLAVA);
            copy.write(file, content);
            copy.refused(&format!("{file}: {content:?}"), &[]);
        }
    }
    let nested = "[".repeat(200_000);
    let copy = Copy::of(LLAVA);
    copy.write("config.json", nested);
    copy.refused("nested too deep", &["config.json"]);
    assert_a_good_one_loads();
}

#[test]
fn tokenizers_that_are_none() {
    let copy = Copy::of(LLAVA);
    copy.remove("tokenizer.json");
    copy.refused("no tokenizer", &["tokenizer.json"]);

    let copy = Copy::of(LLAVA);
    copy.edit("tokenizer.json", |t| t["model"]["type"] = json!("Oracle"));
    copy.refused("an unknown model", &["tokenizer.json"]);

    let copy = Copy::of(LLAVA);
    copy.edit("tokenizer.json", |t| {
        t["model"]["merges"] = json!([["nowhere", "to be found"]])
    });
    copy.refused("a merge of tokens that are not there", &["tokenizer.json"]);
    assert_a_good_one_loads();
}

#[test]
fn processor_configs_are_read_at_start_up_not_at_the_first_picture() {
    let pixels = "/image_processor";
    for (key, value) in [
        ("image_processor_type", json!("OracleImageProcessor")),
        ("image_mean", json!("grey")),
        ("image_std", json!([0, 0, 0])),
        ("size", json!({"shortest_edge": -3})),
        ("crop_size", json!("large")),
        ("resample", json!(99)),
    ] {
        let copy = Copy::of(LLAVA);
        copy.edit("processor_config.json", |config| {
            config.pointer_mut(pixels).unwrap()[key] = value.clone();
        });
        copy.refused(&format!("{key} = {value}"), &[]);
    }
    assert_a_good_one_loads();
}

#[test]
fn pictures_of_another_size_than_the_towers_are_not_the_callers_fault() {
    let copy = Copy::of(LLAVA);
    copy.edit("processor_config.json", |config| {
        config["image_processor"]["crop_size"] = json!({"height": 14, "width": 14});
    });
    let case = case("llava-clip-llama.one");
    let error = alone(&start(copy.path(), &options()), &case.request(1)).unwrap_err();
    assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
}

#[test]
fn an_unknown_architecture_hears_what_is_linked() {
    for architectures in [
        json!(["OracleForConditionalGeneration"]),
        json!([]),
        json!(null),
    ] {
        let copy = Copy::of(LLAVA);
        copy.edit("config.json", |config| {
            config["architectures"] = architectures.clone()
        });
        let error = copy.refused(
            "unknown",
            &["LlavaForConditionalGeneration", "LlamaForCausalLM"],
        );
        assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    }
    assert_a_good_one_loads();
}

#[test]
fn remote_code_is_not_code() {
    // CVE-2026-22807: `auto_map` named a file of the checkpoint, and it was run.
    let copy = Copy::of(LLAVA);
    for file in [
        "config.json",
        "tokenizer_config.json",
        "processor_config.json",
    ] {
        copy.edit(file, |config| {
            config["auto_map"] = json!({"AutoModel": "evil.Model", "AutoTokenizer": "evil.T"});
        });
    }
    copy.write("evil.py", "raise SystemExit('executed')");
    let case = case("llava-clip-llama.one");
    let trace = copy
        .load()
        .unwrap()
        .trace(&case.request(4), 4, true)
        .unwrap();
    assert_eq!(trace.greedy, case.greedy()[..4]);
}
