//! `src/config.rs` of a new crate: the shared parts' configuration and the architecture's own keys,
//! those of a checkpoint's `config.json` that no shared part reads, each with its type and with the
//! checkpoint's value as default.

use super::name::Name;
use super::{Like, Texts};
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

const FILE: &str = "src/config.rs";
/// Where models/nn reads an object's keys with `struct Raw`.
const READERS: [(&str, &str); 3] = [
    ("", "models/nn/src/vlm.rs"),
    ("text_config", "models/nn/src/decoder/config.rs"),
    ("vision_config", "models/nn/src/vision/config.rs"),
];
/// Read in models/nn and models/llava-next otherwise than through `struct Raw`.
const READ: [&str; 7] = [
    "image_grid_pinpoints",
    "image_token_id",
    "model_type",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "use_image_newline_parameter",
];
/// What no result hangs on: training, bookkeeping, and ids that the tokenizer says better.
const IDLE: [&str; 18] = [
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "image_seq_length",
    "initializer_factor",
    "initializer_range",
    "pad_token_id",
    "pretraining_tp",
    "projection_dim",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "attn_implementation",
];
const KEYWORDS: [&str; 39] = [
    "as", "async", "await", "box", "break", "const", "continue", "crate", "do", "dyn", "else",
    "enum", "extern", "false", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "match",
    "mod", "move", "mut", "pub", "ref", "return", "self", "static", "struct", "super", "trait",
    "true", "type", "union", "use", "where",
];

/// Adds the module, and has the crate use it in place of the shared parts' configuration.
///
/// # Errors
/// When the crate to start from, or models/nn, has another form than this expects.
pub(super) fn add(
    root: &Path,
    name: &Name,
    like: Like,
    from: Option<&Value>,
    files: &mut Texts,
) -> Result<()> {
    let lib = files.get_mut("src/lib.rs").context("src/lib.rs")?;
    *lib = using(lib, name, like)?;
    files.insert(FILE.to_owned(), module(root, name, like, from)?);
    Ok(())
}

/// The crate's `lib.rs` with its own configuration.
fn using(lib: &str, name: &Name, like: Like) -> Result<String> {
    let own = format!("{}Config", name.camel());
    let import = format!("use config::{own};\n");
    let swaps: &[(&str, String)] = &match like {
        Like::Text => vec![
            (
                "use kiln_nn::decoder::{Decoder, DecoderConfig, IGNORED_SUFFIXES};\n",
                format!("{import}use kiln_nn::decoder::{{Decoder, IGNORED_SUFFIXES}};\n"),
            ),
            (
                "DecoderConfig::from_value(ctx.input.config(), \"llama\")",
                format!("{own}::from_context(ctx.input)"),
            ),
            (
                "Decoder::load(config, ",
                "Decoder::load(config.decoder, ".to_owned(),
            ),
        ],
        Like::Llava | Like::LlavaNext => vec![
            (
                "use kiln_nn::vlm::{RENAMES, Vlm, VlmConfig};\n",
                format!("{import}use kiln_nn::vlm::{{RENAMES, Vlm}};\n"),
            ),
            ("VlmConfig::", format!("{own}::")),
            ("Vlm::load(config, ", "Vlm::load(config.vlm, ".to_owned()),
        ],
    };
    let mut text = lib.to_owned();
    for (old, new) in swaps {
        let at = || format!("no `{}` in the crate to start from", old.trim());
        text.find(old).with_context(at)?;
        text = text.replace(old, new);
    }
    if like != Like::Text {
        text = text.replace("(VlmConfig,", &format!("({own},")).replace(
            "from_context(ctx, &config)",
            "from_context(ctx, &config.vlm)",
        );
        for field in ["selection", "tower", "text", "dummy_", "expand_"] {
            for before in ["config.", "&config."] {
                text = text.replace(&format!("{before}{field}"), &format!("{before}vlm.{field}"));
            }
        }
        text = text.replace("config.vlm.vlm.", "config.vlm.");
    }
    // Behind the crate's documentation.
    let head = text.lines().take_while(|line| line.starts_with("//!"));
    let end: usize = head.map(|line| line.len() + 1).sum();
    text.insert_str(end, "\npub mod config;");
    Ok(text)
}

fn module(root: &Path, name: &Name, like: Like, from: Option<&Value>) -> Result<String> {
    let own = format!("{}Config", name.camel());
    let (field, kind, parse, parts) = match like {
        Like::Text => (
            "decoder",
            "kiln_nn::decoder::DecoderConfig",
            "DecoderConfig::from_value(ctx.config(), \"llama\")?",
            "The decoder.",
        ),
        Like::Llava | Like::LlavaNext => (
            "vlm",
            "kiln_nn::vlm::VlmConfig",
            "VlmConfig::from_context(ctx)?",
            "Tower, projector, decoder, placeholder.",
        ),
    };
    let short = kind.rsplit("::").next().unwrap_or(kind);
    let mut text = format!(
        "//! `config.json`: what the shared parts read, and the keys that are this architecture's own.\n\n\
         use {kind};\nuse kiln_registry::{{InputContext, Result}};\nuse serde::Deserialize;\n\n\
         /// The configuration of a checkpoint, every default filled in.\n\
         #[derive(Debug, Clone, PartialEq)]\n\
         pub struct {own} {{\n/// {parts}\npub {field}: {short},\n\
         /// The keys that no shared part reads.\npub own: OwnConfig,\n}}\n\n\
         impl {own} {{\n/// The configuration of a loaded checkpoint.\n///\n/// # Errors\n\
         /// When a key has a value that makes no sense, or that no part computes.\n\
         pub fn from_context(ctx: &InputContext) -> Result<Self> {{\n\
         Ok(Self {{ {field}: {parse}, own: ctx.parse_config()? }})\n}}\n}}\n"
    );
    let known = |part: &str| known(root, part);
    let empty = Map::new();
    let top = from.and_then(Value::as_object).unwrap_or(&empty);
    let mut nested = vec![];
    let top_part = if like == Like::Text {
        "text_config"
    } else {
        ""
    };
    let mut keys = own_keys(top, &known(top_part)?);
    if like != Like::Text {
        for (part, camel) in [
            ("text_config", "OwnTextConfig"),
            ("vision_config", "OwnVisionConfig"),
        ] {
            let object = top.get(part).and_then(Value::as_object).unwrap_or(&empty);
            let inner = own_keys(object, &known(part)?);
            if !inner.is_empty() {
                keys.push(Key::part(part, camel));
                nested.push((part, camel, inner));
            }
        }
    }
    let about = match keys.is_empty() {
        false => {
            "Keys of this architecture alone; the defaults are those of the checkpoint that the crate\n\
                  /// was scaffolded from. Use each, or refuse what it asks for."
        }
        true => {
            "Keys of this architecture alone: none yet. A key that changes a result belongs here."
        }
    };
    structure(&mut text, "OwnConfig", about, &keys)?;
    for (part, camel, inner) in nested {
        structure(&mut text, camel, &format!("Those in `{part}`."), &inner)?;
    }
    Ok(text)
}

/// A key of `config.json` as a field.
struct Key {
    key: String,
    kind: String,
    default: String,
    about: String,
}

impl Key {
    fn new(key: &str, value: &Value) -> Self {
        let (kind, default) = typed(value);
        let shown = value.to_string();
        let about = if shown.len() <= 60 {
            format!("`{key}`: {shown} in that checkpoint.")
        } else {
            format!("`{key}`.")
        };
        Self {
            key: key.to_owned(),
            kind,
            default,
            about,
        }
    }

    fn part(key: &str, kind: &str) -> Self {
        Self {
            key: key.to_owned(),
            kind: kind.to_owned(),
            default: format!("{kind}::default()"),
            about: format!("Those in `{key}`."),
        }
    }
}

/// Type and literal of a value.
fn typed(value: &Value) -> (String, String) {
    let own = |kind: &str, default: String| (kind.to_owned(), default);
    match value {
        Value::Bool(value) => own("bool", value.to_string()),
        Value::Number(n) if n.is_u64() => own("usize", n.to_string()),
        Value::Number(n) if n.is_i64() => own("i64", n.to_string()),
        Value::Number(n) => own("f64", format!("{:?}", n.as_f64().unwrap_or_default())),
        Value::String(text) => own("String", format!("{text:?}.to_owned()")),
        Value::Array(list) => {
            let elements: Vec<_> = list.iter().map(typed).collect();
            match elements.first() {
                Some((kind, _)) if elements.iter().all(|(other, _)| other == kind) => {
                    let literals: Vec<_> = elements.iter().map(|(_, text)| text.as_str()).collect();
                    own(
                        &format!("Vec<{kind}>"),
                        format!("vec![{}]", literals.join(", ")),
                    )
                }
                _ => own("serde_json::Value", format!("serde_json::json!({value})")),
            }
        }
        Value::Object(_) => own("serde_json::Value", format!("serde_json::json!({value})")),
        Value::Null => own("Option<serde_json::Value>", "None".to_owned()),
    }
}

fn structure(text: &mut String, name: &str, about: &str, keys: &[Key]) -> Result<()> {
    let derived = if keys.is_empty() { ", Default" } else { "" };
    write!(
        text,
        "\n/// {about}\n#[derive(Debug, Clone, PartialEq, Deserialize{derived})]\n#[serde(default)]\n\
         pub struct {name} {{\n"
    )?;
    let mut taken = BTreeSet::new();
    let mut defaults = String::new();
    for key in keys {
        let mut field = identifier(&key.key);
        while !taken.insert(field.clone()) {
            field.push('_');
        }
        writeln!(text, "/// {}", key.about)?;
        if field != key.key {
            writeln!(text, "#[serde(rename = {:?})]", key.key)?;
        }
        writeln!(text, "pub {field}: {},", key.kind)?;
        writeln!(defaults, "{field}: {},", key.default)?;
    }
    text.push_str("}\n");
    if !keys.is_empty() {
        write!(
            text,
            "\nimpl Default for {name} {{\nfn default() -> Self {{\nSelf {{\n{defaults}}}\n}}\n}}\n"
        )?;
    }
    Ok(())
}

/// A field's name: in snake case, and no keyword.
fn identifier(key: &str) -> String {
    let mut name = String::new();
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            if !name.is_empty() && !name.ends_with('_') {
                name.push('_');
            }
            name.push(c.to_ascii_lowercase());
        } else if c.is_ascii_lowercase() || c.is_ascii_digit() {
            name.push(c);
        } else {
            name.push('_');
        }
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        name.insert_str(0, "key_");
    }
    if KEYWORDS.contains(&name.as_str()) {
        name.push('_');
    }
    name
}

fn own_keys(object: &Map<String, Value>, known: &BTreeSet<String>) -> Vec<Key> {
    let parts = READERS.map(|(part, _)| part);
    let own = object.iter().filter(|(key, _)| {
        let key = key.as_str();
        !known.contains(key)
            && !READ.contains(&key)
            && !IDLE.contains(&key)
            && !parts.contains(&key)
    });
    own.map(|(key, value)| Key::new(key, value)).collect()
}

/// The keys of an object that models/nn reads: they are read where they are, since xtask depends
/// on no member.
fn known(root: &Path, part: &str) -> Result<BTreeSet<String>> {
    let (_, file) = READERS
        .into_iter()
        .find(|(name, _)| *name == part)
        .with_context(|| format!("no reader of `{part}`"))?;
    let source = fs::read_to_string(root.join(file)).context(file)?;
    let fields = source
        .split_once("struct Raw {\n")
        .and_then(|(_, rest)| rest.split_once("\n}"))
        .with_context(|| format!("{file} has no `struct Raw`"))?;
    let fields = fields.0.lines().map(str::trim);
    Ok(fields
        .filter(|line| !line.starts_with(['#', '/']))
        .filter_map(|line| Some(line.split_once(':')?.0.to_owned()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_become_fields() {
        for (key, field) in [
            ("hidden_size", "hidden_size"),
            ("type", "type_"),
            ("headDim", "head_dim"),
            ("2d-rope", "key_2d_rope"),
            ("", "key_"),
            ("ä", "key__"),
        ] {
            assert_eq!(identifier(key), field);
        }
        for (value, kind, default) in [
            (json!(true), "bool", "true"),
            (json!(3), "usize", "3"),
            (json!(-3), "i64", "-3"),
            (json!(1e-5), "f64", "1e-5"),
            (json!("a\"b"), "String", "\"a\\\"b\".to_owned()"),
            (json!([1, 2]), "Vec<usize>", "vec![1, 2]"),
            (
                json!([1, -2]),
                "serde_json::Value",
                "serde_json::json!([1,-2])",
            ),
            (json!({}), "serde_json::Value", "serde_json::json!({})"),
            (json!(null), "Option<serde_json::Value>", "None"),
        ] {
            assert_eq!(typed(&value), (kind.to_owned(), default.to_owned()));
        }
    }

    #[test]
    fn what_models_nn_reads_is_known() {
        let root = crate::root();
        for (part, key) in [
            ("", "vision_feature_layer"),
            ("text_config", "sliding_window"),
            ("vision_config", "patch_size"),
        ] {
            assert!(known(root, part).unwrap().contains(key), "{key}");
        }
        assert!(!known(root, "").unwrap().contains("hidden_size"));
    }
}
