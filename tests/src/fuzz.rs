//! What strangers send, thrown at what reads it. Each function takes any bytes at all, and panics
//! when a promise is broken; that an input is refused is none. The fuzz targets in `fuzz/` call them
//! for as long as one likes, and property tests call them in CI.

use kiln_engine::{
    ChatTemplate, Checkpoint, Detokenizer, HfTokenizer, LoadedModel, Message, ModelOptions,
    TemplateArgs,
};
use kiln_image::{ImageProcessorConfig, ProcessorKind, RgbImage8, map_rgb};
use kiln_registry::{DecodeLimits, Registry};
use kiln_text as _;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Small enough that what is accepted is soon done.
const LIMITS: DecodeLimits = DecodeLimits {
    max_bytes: 1 << 20,
    max_side: 1024,
    max_pixels: 1 << 18,
    max_frames: 8,
    max_seconds: 10.0,
};

/// Far beyond what anything bounded takes, on a machine that is busy.
const FOR_EVER: Duration = Duration::from_secs(20);

/// A checkpoint of a few kilobytes.
fn tiny() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/checkpoints/text-llama")
}

/// A refusal tells no address, no path and nothing of what a decoder is made of.
fn assert_is_fit_for_strangers(words: &str) {
    for inside in ["0x", ".rs:", "panicked", "/root", "/home", "RUST_BACKTRACE"] {
        assert!(!words.contains(inside), "`{inside}` in `{words}`");
    }
    assert!(words.len() < 1 << 12, "{} bytes of refusal", words.len());
}

/// A picture in a data URL, from its text to the model's pixels.
pub fn data_url_image(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let content = match kiln::check::data_url(&text, LIMITS.max_bytes) {
        Ok(content) => content,
        // Most bytes are no data URL: they are looked at as what one might hold.
        Err(words) => {
            assert_is_fit_for_strangers(&words);
            bytes.to_vec().into()
        }
    };
    assert!(content.len() <= LIMITS.max_bytes.max(bytes.len()));
    let item = match kiln_image::decode(&content, &LIMITS) {
        Ok(item) => item,
        Err(error) => return assert_is_fit_for_strangers(&error.to_string()),
    };
    let picture = RgbImage8::from_item(&item).expect("what is decoded is a picture");
    let size = picture.size();
    assert!(size.width.max(size.height) <= LIMITS.max_side as usize);
    assert!(size.pixels() as u64 <= LIMITS.max_pixels && size.pixels() > 0);
    let config = ImageProcessorConfig::defaults(ProcessorKind::Clip);
    if let Ok(tensors) = map_rgb(&config, &picture) {
        let pixels = tensors.get("pixel_values").and_then(|t| t.as_f32());
        let pixels = pixels.expect("a mapped picture has pixel_values");
        assert!(pixels.iter().all(|value| value.is_finite()));
    }
}

/// A body that is sent to `/v1/chat/completions`.
pub fn request_json(bytes: &[u8]) {
    let began = Instant::now();
    if let Err(words) = kiln::check::chat_request(bytes) {
        assert!(!words.is_empty());
        for inside in [".rs:", "panicked"] {
            assert!(!words.contains(inside), "`{inside}` in `{words}`");
        }
    }
    assert!(began.elapsed() < FOR_EVER);
}

/// A file of weights, in a checkpoint that is sound otherwise.
pub fn safetensors_header(bytes: &[u8]) {
    let folder = TempDir::new().expect("a folder for the checkpoint");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny().join(name), folder.path().join(name)).expect("a fixture");
    }
    fs::write(folder.path().join("model.safetensors"), bytes).expect("a file of weights");
    let registry = Arc::new(Registry::collect().expect("the registry"));
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    let loaded = LoadedModel::load(registry, &checkpoint, &ModelOptions::default(), &|_, _| {});
    if let Err(error) = loaded {
        let words = error.to_string();
        assert!(
            !words.contains("panicked") && !words.contains(".rs:"),
            "{words}"
        );
    } else {
        let whole = fs::metadata(tiny().join("model.safetensors")).expect("a fixture");
        assert!(
            bytes.len() as u64 >= whole.len() / 2,
            "weights out of nothing"
        );
    }
}

/// A chat template, which a checkpoint from a stranger brings along.
pub fn chat_template(bytes: &[u8]) {
    let began = Instant::now();
    let folder = with_template(bytes);
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    if let Ok(Some(template)) = ChatTemplate::load(&checkpoint) {
        let messages = [
            Message::text("system", "Be brief."),
            Message::user("What is this?", ["image"]),
            Message::text("assistant", "A \u{1F525}."),
            Message::text("user", "Why?"),
        ];
        for count in [1, messages.len()] {
            // A template may refuse; it must come to an end, and so must its text.
            match template.render(&messages[..count], &TemplateArgs::default()) {
                Ok(text) => assert!(text.len() < 1 << 26, "{} bytes", text.len()),
                Err(error) => assert!(!error.to_string().contains("panicked"), "{error}"),
            }
        }
    }
    assert!(began.elapsed() < FOR_EVER, "{:?}", began.elapsed());
}

fn with_template(bytes: &[u8]) -> TempDir {
    let folder = TempDir::new().expect("a folder for the checkpoint");
    let write = |name: &str, content: &[u8]| {
        fs::write(folder.path().join(name), content).expect("a file of the checkpoint");
    };
    write("config.json", b"{}");
    let read = |name: &str| fs::read(tiny().join(name)).expect("a fixture");
    write("tokenizer_config.json", &read("tokenizer_config.json"));
    write("chat_template.jinja", bytes);
    folder
}

static TOKENIZER: LazyLock<Arc<HfTokenizer>> = LazyLock::new(|| {
    let checkpoint = Checkpoint::open(tiny()).expect("a fixture");
    Arc::new(HfTokenizer::load(&checkpoint).expect("a fixture's tokenizer"))
});

/// Tokens in any order, made into text as they come. `bytes`: two for each token.
pub fn utf8_stream(bytes: &[u8]) {
    let ids = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|pair| u32::from(u16::from_le_bytes(*pair) % 320));
    let mut stream = Detokenizer::new(TOKENIZER.clone(), true);
    let mut text = String::new();
    for id in ids {
        text.push_str(&stream.push(id).expect("a token of the vocabulary"));
    }
    text.push_str(&stream.finish());
    // A second sequence starts afresh.
    assert_eq!(stream.finish(), "");
    assert!(
        text.len() <= 64 * bytes.len().max(1),
        "more text than tokens can have"
    );
}
