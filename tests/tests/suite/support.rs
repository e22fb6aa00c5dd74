//! Fixtures, the picture that both languages draw, and checkpoints as the engine loads them.

use kiln_engine::SamplingParams;
use kiln_engine::{Checkpoint, LoadedModel, MediaInput, ModelOptions, PromptInput, Request};
use kiln_image::RgbImage8;
use kiln_registry::{DecodeLimits, MediaCounts, MediaItem, Registry, Result, WeightDType};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A path under `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// A path under `assets`.
pub(crate) fn asset(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../assets")
        .join(name)
}

pub(crate) fn read(name: &str) -> Vec<u8> {
    let path = fixture(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn json(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

/// Shape and elements of a byte tensor.
pub(crate) fn u8_tensor(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<u8>) {
    let view = file
        .tensor(name)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(view.dtype(), Dtype::U8, "{name}");
    (view.shape().to_vec(), view.data().to_vec())
}

/// Elements of an integer tensor.
pub(crate) fn i64_tensor(file: &SafeTensors<'_>, name: &str) -> Vec<i64> {
    let view = file
        .tensor(name)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(view.dtype(), Dtype::I64, "{name}");
    let (elements, _) = view.data().as_chunks();
    elements.iter().map(|b| i64::from_le_bytes(*b)).collect()
}

/// The picture that `pattern` of `fixtures.py` draws: integer arithmetic alone.
pub(crate) fn pattern(width: usize, height: usize, seed: u32) -> RgbImage8 {
    let mut data = Vec::with_capacity(width * height * 3);
    let (last_x, last_y) = ((width - 1).max(1), (height - 1).max(1));
    for y in 0..height {
        for x in 0..width {
            let ramps = [
                x * 255 / last_x + (y >> 2) * 5,
                y * 255 / last_y + (x >> 3) * 3,
                (x * x + y * y) >> 6,
            ];
            for (channel, ramp) in (0u32..).zip(ramps) {
                let noise = (x as u32).wrapping_mul(73_856_093)
                    ^ (y as u32).wrapping_mul(19_349_663)
                    ^ channel.wrapping_mul(83_492_791)
                    ^ seed.wrapping_mul(2_654_435_761);
                let noise = noise.wrapping_mul(2_246_822_519) >> 24;
                let value = (ramp as u32).wrapping_add(seed * (37 + 11 * channel));
                data.push((value as u8) ^ (noise & 31) as u8);
            }
        }
    }
    RgbImage8::new(width, height, data).unwrap()
}

/// The picture of a fixture's `{"width", "height", "seed"}`.
pub(crate) fn pattern_of(spec: &Value) -> RgbImage8 {
    let number = |key: &str| {
        spec[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} in {spec}"))
    };
    pattern(
        number("width") as usize,
        number("height") as usize,
        number("seed") as u32,
    )
}

/// A prompt with its pictures whose tensors transformers computed.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) checkpoint: String,
    /// The same checkpoint in other layouts.
    pub(crate) copies: Vec<String>,
    pub(crate) prompt: String,
    images: Vec<Value>,
    expected: String,
}

impl Case {
    /// The tensors: see `reference` of `fixtures.py`.
    pub(crate) fn expected(&self) -> Vec<u8> {
        read(&self.expected)
    }

    /// The tokens that transformers chooses.
    pub(crate) fn greedy(&self) -> Vec<u32> {
        let bytes = self.expected();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let ids = i64_tensor(&file, "greedy");
        ids.into_iter().map(|id| id as u32).collect()
    }

    /// Its pictures.
    pub(crate) fn pictures(&self) -> Vec<RgbImage8> {
        self.images.iter().map(pattern_of).collect()
    }

    /// Raw text and items; greedy, past end-of-sequence tokens.
    pub(crate) fn request(&self, max_tokens: usize) -> Request {
        ask(&self.prompt, self.pictures(), greedy(max_tokens))
    }
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let index = json("cases.json");
    let list = index.as_array().unwrap().iter();
    list.map(|case| Case {
        name: text(&case["name"]),
        checkpoint: text(&case["checkpoint"]),
        copies: case["copies"]
            .as_array()
            .unwrap()
            .iter()
            .map(text)
            .collect(),
        prompt: text(&case["prompt"]),
        images: case["images"].as_array().unwrap().clone(),
        expected: text(&case["expected"]),
    })
    .collect()
}

/// The case of a name.
pub(crate) fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

/// The folder of a fixture's checkpoint.
pub(crate) fn checkpoint(name: &str) -> PathBuf {
    fixture("checkpoints").join(name)
}

/// The names of all checkpoints, copies included.
pub(crate) fn checkpoints() -> Vec<String> {
    let folder = std::fs::read_dir(fixture("checkpoints")).unwrap();
    let mut names: Vec<_> = folder
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 14, "{names:?}");
    names
}

/// As the tests load: f32, up to three images a prompt.
pub(crate) fn model_options() -> ModelOptions {
    ModelOptions {
        dtype: WeightDType::F32,
        limit_mm_per_prompt: MediaCounts::new().with("image", 3),
        media_threads: 1,
        ..ModelOptions::default()
    }
}

/// The checkpoint in a folder.
pub(crate) fn load(folder: &Path, options: &ModelOptions) -> Result<LoadedModel> {
    let registry = Arc::new(Registry::collect()?);
    LoadedModel::load(registry, &Checkpoint::open(folder)?, options, &|_, _| {})
}

/// A picture as an item.
pub(crate) fn item(image: RgbImage8) -> MediaItem {
    MediaItem::raw("image", image.into_tensor().unwrap())
}

/// Greedy, past end-of-sequence tokens.
pub(crate) fn greedy(max_tokens: usize) -> SamplingParams {
    SamplingParams {
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..SamplingParams::default()
    }
}

/// Raw text with pictures.
pub(crate) fn ask(
    text: &str,
    images: impl IntoIterator<Item = RgbImage8>,
    sampling: SamplingParams,
) -> Request {
    let images = images.into_iter();
    let media = images.map(|image| MediaInput::Item(item(image)));
    Request::new(PromptInput::Text(text.to_owned()), media.collect()).sampling(sampling)
}

/// Bytes to an item as the engine does it: through the registered modality.
pub(crate) fn decode(bytes: &[u8]) -> Result<MediaItem> {
    Registry::collect()?
        .modality("image")?
        .decode(bytes, &DecodeLimits::default())
}
