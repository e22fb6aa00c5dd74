//! Modalities beside images: what a new crate takes of `xtask/templates/modality`, and where its
//! registration, its load and its `encode` name it.

use super::{Like, Texts, manifest};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use toml_edit::{DocumentMut, Item, Table, value};

const LIB: &str = "src/lib.rs";
const TEST: &str = "tests/tiny/main.rs";
const MEDIA: &str = include_str!("../../templates/modality/tiny/media.rs");
/// Where the tiny test speaks of the reference: it has no model with these parts.
const PARITY_TEST: &str = "\n/// `tests/parity.py` writes";
const PARITY_WORDS: &str = "//! A second one, written by the reference, says what must come out.\n";

/// What a model takes beside text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Modality {
    /// Pictures.
    Image,
    /// Frames through the tower of pictures (GIF, WebP, APNG).
    Video,
    /// Whisper's tower and a projector of its own (WAV, FLAC, MP3, Ogg Vorbis).
    Audio,
}

/// What a modality brings.
struct Part {
    name: &'static str,
    /// `src/NAME.rs`
    source: &'static str,
    /// `tests/tiny/NAME.rs`
    test: &'static str,
    inputs: &'static str,
    layout: &'static str,
    weights: &'static str,
    encode: &'static str,
}

const VIDEO: Part = Part {
    name: "video",
    source: include_str!("../../templates/modality/video.rs"),
    test: include_str!("../../templates/modality/tiny/video.rs"),
    inputs: "Videos, as frames that are pictures: `pixel_values_videos` f32 `[1, frames, 3, side, side]`.",
    layout: "A video takes those of a picture for each frame.",
    weights: "",
    encode: "video::encode(&self.0, item)",
};

const AUDIO: Part = Part {
    name: "audio",
    source: include_str!("../../templates/modality/audio.rs"),
    test: include_str!("../../templates/modality/tiny/audio.rs"),
    inputs: "Audio: `input_features` f32 `[1, mels, frames]`, `feature_attention_mask` i64 `[1, frames]`.",
    layout: "A sound takes one for every two frames that it fills.",
    weights: "Whisper's encoder as `audio_tower.*`, and `audio_projector.linear_1` and `.linear_2`.",
    encode: "self.1.encode(item)",
};

/// Refuses what makes no sense. Without modalities: images where the shape has a tower.
///
/// # Errors
/// For a modality named twice, and for a set that the shape has no parts for.
pub(super) fn check(like: Like, modalities: &[Modality]) -> Result<()> {
    let twice = (1..modalities.len()).any(|at| modalities[..at].contains(&modalities[at]));
    ensure!(!twice, "a modality is named twice: name each once");
    if modalities.is_empty() {
        return Ok(());
    }
    ensure!(
        like != Like::Text,
        "a crate like text is a decoder alone and takes no modality: leave `--modality` out, or \
         give `--like llava`"
    );
    ensure!(
        modalities.contains(&Modality::Image),
        "the vision tower of a crate like {} takes pictures: add image to `--modality`",
        like.folder()
    );
    ensure!(
        like == Like::Llava || modalities.len() == 1,
        "tiles are of pictures alone: a crate that takes video or audio is like llava"
    );
    Ok(())
}

/// Whether the crate takes what the crate it is like does not.
pub(super) fn more(modalities: &[Modality]) -> bool {
    modalities.iter().any(|m| *m != Modality::Image)
}

/// Adds the modalities beside images. Comes before the crate's own configuration.
///
/// # Errors
/// When the crate to start from has another form than this expects.
pub(super) fn add(modalities: &[Modality], files: &mut Texts) -> Result<()> {
    let parts: Vec<Part> = [(Modality::Video, VIDEO), (Modality::Audio, AUDIO)]
        .into_iter()
        .filter_map(|(modality, part)| modalities.contains(&modality).then_some(part))
        .collect();
    if parts.is_empty() {
        return Ok(());
    }
    for part in &parts {
        let name = part.name;
        files.insert(format!("src/{name}.rs"), part.source.to_owned());
        files.insert(format!("tests/tiny/{name}.rs"), part.test.to_owned());
    }
    files.insert("tests/tiny/media.rs".to_owned(), MEDIA.to_owned());
    let text = |file: &str| format!("there is no {file}");
    let lib = files.get_mut(LIB).with_context(|| text(LIB))?;
    *lib = using(lib, &parts)?;
    let test = files.get_mut(TEST).with_context(|| text(TEST))?;
    *test = tested(test, &parts)?;
    let cargo = files
        .get_mut("Cargo.toml")
        .with_context(|| text("Cargo.toml"))?;
    *cargo = depending(cargo, &parts)?;
    Ok(())
}

/// `config.json` of the tiny test with what the modalities need: a checkpoint's own switches where
/// it has them, and small sizes.
///
/// # Errors
/// When the text is no JSON object.
pub(super) fn config(text: &str, modalities: &[Modality]) -> Result<String> {
    let mut config: Value = serde_json::from_str(text)?;
    for id in ["video_token_id", "audio_token_id"] {
        config.as_object_mut().context("config.json")?.remove(id);
    }
    if modalities.contains(&Modality::Video) {
        config["video_token_index"] = 4.into();
    }
    if modalities.contains(&Modality::Audio) {
        config["audio_token_index"] = 5.into();
        let audio = config.get("audio_config").and_then(Value::as_object);
        let mut audio = audio.cloned().unwrap_or_default();
        for alias in [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ] {
            audio.remove(alias);
        }
        for (key, size) in [
            ("d_model", 32),
            ("encoder_attention_heads", 4),
            ("encoder_ffn_dim", 48),
            ("encoder_layers", 2),
            ("max_source_positions", 50),
            ("num_mel_bins", 16),
        ] {
            audio.insert(key.to_owned(), size.into());
        }
        audio.entry("model_type").or_insert("whisper".into());
        audio.entry("activation_function").or_insert("gelu".into());
        config["audio_config"] = json!(audio);
    }
    Ok(serde_json::to_string_pretty(&config)? + "\n")
}

/// A checkpoint's configuration without the keys that the modalities' own modules read.
pub(super) fn unread(config: &Value, modalities: &[Modality]) -> Value {
    let mut config = config.clone();
    let read: &[(Modality, &[&str])] = &[
        (Modality::Video, &["video_token_id", "video_token_index"]),
        (
            Modality::Audio,
            &["audio_config", "audio_token_id", "audio_token_index"],
        ),
    ];
    let read = read.iter().filter(|(m, _)| modalities.contains(m));
    if let Some(object) = config.as_object_mut() {
        for key in read.flat_map(|(_, keys)| *keys) {
            object.remove(*key);
        }
    }
    config
}

/// `lib.rs` with the modalities.
fn using(lib: &str, parts: &[Part]) -> Result<String> {
    let each = |line: &dyn Fn(&Part) -> String| parts.iter().map(line).collect::<String>();
    let docs = |text: &dyn Fn(&Part) -> &'static str| {
        let lines = parts.iter().map(text).filter(|line| !line.is_empty());
        lines
            .map(|line| format!("//! {line}\n"))
            .collect::<String>()
    };
    let audio = parts.iter().any(|part| part.name == AUDIO.name);
    let dummies = chained(parts, "dummy", &|name, last| {
        format!("{name}::dummies(ctx, counts.get(kiln_{name}::MODALITY), {last})")
    });
    let expanded = chained(parts, "prompt", &|name, last| {
        format!("{name}::expand(ctx, items, {last})")
    });
    let mut swaps = vec![
        (
            "//! # Token layout\n",
            format!("{}//! # Token layout\n", docs(&|p| p.inputs)),
        ),
        (
            "//! # Weights\n",
            format!("{}//! # Weights\n", docs(&|p| p.layout)),
        ),
        (
            "//! # Source\n",
            format!("{}//! # Source\n", docs(&|p| p.weights)),
        ),
        (
            "use burn::tensor::",
            format!(
                "{}\nuse burn::tensor::",
                each(&|p| format!("mod {};\n", p.name))
            ),
        ),
        (
            "        .dummy_data(dummy_data)\n",
            format!(
                "{}        .dummy_data(dummy_data)\n",
                each(&|p| format!("        .{0}({0}::SUPPORT)\n", p.name))
            ),
        ),
        (
            "    config.dummy_images(counts.get(kiln_image::MODALITY), side, side)\n",
            format!(
                "    let dummy = config.dummy_images(counts.get(kiln_image::MODALITY), side, side)?;\n{dummies}"
            ),
        ),
        (
            "    config.expand_images(ctx, inputs, |_, _| Ok(rows))\n",
            format!(
                "    let items = inputs.items;\n    let prompt = config.expand_images(ctx, inputs, |_, _| Ok(rows))?;\n{expanded}"
            ),
        ),
        (
            "        if modality != kiln_image::MODALITY {\n",
            format!(
                "        let known = [kiln_image::MODALITY{}];\n        if !known.contains(&modality) {{\n",
                each(&|p| format!(", kiln_{}::MODALITY", p.name))
            ),
        ),
        (
            "            .map(|item| {\n                let (shape, pixels) = item.require_f32::<4>(\"pixel_values\")?;\n                self.0.encode_pictures(shape, pixels)\n            })\n",
            format!(
                "            .map(|item| match modality {{\n{}                _ => {{\n                    let (shape, pixels) = item.require_f32::<4>(\"pixel_values\")?;\n                    self.0.encode_pictures(shape, pixels)\n                }}\n            }})\n",
                each(&|p| format!(
                    "                kiln_{}::MODALITY => {},\n",
                    p.name, p.encode
                ))
            ),
        ),
    ];
    if audio {
        swaps.extend([
            ("(Vlm);\n", "(Vlm, audio::AudioPart);\n".to_owned()),
            (
                "let (vlm, ()) = Vlm::load(config, &weights, |_| Ok(()))?;\n        Ok(Box::new(Self(vlm)))",
                "let (vlm, audio) = Vlm::load(config, &weights, |root| {\n            audio::AudioPart::load(ctx.input, root)\n        })?;\n        Ok(Box::new(Self(vlm, audio)))"
                    .to_owned(),
            ),
        ]);
    }
    swapped(lib, &swaps)
}

/// One call for each part on what the one before gave; the last is the function's result.
fn chained(parts: &[Part], variable: &str, call: &dyn Fn(&str, &str) -> String) -> String {
    let calls = parts.iter().enumerate().map(|(at, part)| {
        let call = call(part.name, variable);
        if at + 1 == parts.len() {
            format!("    {call}\n")
        } else {
            format!("    let {variable} = {call}?;\n")
        }
    });
    calls.collect()
}

/// The tiny test with a module for each part, and without the reference.
fn tested(test: &str, parts: &[Part]) -> Result<String> {
    let at = test.find(PARITY_TEST);
    let at = at.context("the tiny test has no test of parity: say where it ends")?;
    let own: String = parts
        .iter()
        .map(|part| format!("mod {};\n", part.name))
        .collect();
    swapped(
        &test[..at],
        &[
            (
                "mod checkpoint;\n",
                format!("mod checkpoint;\nmod media;\n{own}"),
            ),
            (PARITY_WORDS, String::new()),
        ],
    )
}

fn swapped(text: &str, swaps: &[(&str, String)]) -> Result<String> {
    let mut text = text.to_owned();
    for (old, new) in swaps {
        ensure!(
            text.matches(old).count() == 1,
            "`{}` is not there once in the crate to start from",
            old.trim()
        );
        text = text.replace(old, new);
    }
    Ok(text)
}

fn depending(manifest: &str, parts: &[Part]) -> Result<String> {
    let mut document: DocumentMut = manifest.parse()?;
    let dependencies = manifest::table(&mut document, &["dependencies"])?;
    for part in parts {
        let name = format!("kiln-{}", part.name);
        let mut dependency = Table::new();
        dependency.set_dotted(true);
        dependency.insert("workspace", value(true));
        manifest::add_entry(dependencies, &name, Item::Table(dependency), |key| {
            key < name.as_str()
        })?;
    }
    Ok(document.to_string())
}
