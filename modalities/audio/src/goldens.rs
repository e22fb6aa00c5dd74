//! The crate against libsndfile and transformers, on results that `xtask/python/audio_goldens.py`
//! wrote.
//!
//! Features are compared with the reference's NumPy path, which computes in 64 bits. Its torch path
//! differs from that by up to 1.3e-5 on the same sounds.

use crate::config::FeatureExtractorConfig;
use crate::map::map_sound;
use crate::sound::Sound;
use crate::{SAMPLING_RATE, decode};
use kiln_registry::DecodeLimits;
use serde_json::Value;

const GOLDENS: &str = include_str!("../tests-data/audio.json");
const FEATURES: &[u8] = include_bytes!("../tests-data/features.f32");

macro_rules! golden_files {
    ($($name:literal),+) => {
        /// Names, files, and what libsndfile reads from them.
        pub(crate) const FILES: &[(&str, &[u8], &[u8])] = &[$((
            $name,
            include_bytes!(concat!("../tests-data/", $name)),
            include_bytes!(concat!("../tests-data/", $name, ".f32")),
        )),+];
    };
}

golden_files!(
    "mono.wav",
    "stereo.wav",
    "float.wav",
    "mono.flac",
    "stereo.flac",
    "mono.ogg",
    "stereo.ogg",
    "mono.mp3",
    "stereo.mp3"
);

fn goldens(key: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(GOLDENS).unwrap();
    all[key].as_array().unwrap().clone()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let each = bytes.chunks_exact(4);
    each.map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// The same sound as the generating script's.
fn sound(length: usize, seed: u32) -> Vec<f32> {
    let (mut state, mut phase) = (seed, 0);
    let sample = |index: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        phase = (phase + 1000 + index as i32 / 4) & 0xffff;
        let triangle = if phase < 0x8000 {
            phase
        } else {
            0xffff - phase
        };
        let noise = (state >> 22) as i32 - 512;
        let quiet = index / 2000 % 4 == 3;
        let value = if quiet {
            0
        } else {
            (triangle - 0x4000).div_euclid(2) + noise
        };
        value as f32 / 32768.0
    };
    (0..length).map(sample).collect()
}

fn worst(ours: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(ours.len(), reference.len());
    let apart = ours.iter().zip(reference).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, f32::max)
}

#[test]
fn features_are_the_references() {
    let mut golden = floats(FEATURES).into_iter();
    for case in goldens("features") {
        let config = FeatureExtractorConfig::from_value(&case["config"]).unwrap();
        let item = Sound::item(sound(number(&case["length"]), 7), config.sampling_rate).unwrap();
        let mapped = map_sound(&config, Sound::from_item(&item).unwrap()).unwrap();
        let (shape, features) = mapped.require_f32::<3>("input_features").unwrap();
        let (frames, step) = (number(&case["frames"]), number(&case["step"]));
        assert_eq!(shape, [1, config.feature_size, frames], "{case}");
        let ours: Vec<f32> = features
            .chunks_exact(frames)
            .flat_map(|band| band.iter().copied().step_by(step))
            .collect();
        let reference: Vec<f32> = golden.by_ref().take(ours.len()).collect();
        let worst = worst(&ours, &reference);
        println!("{}: {worst:e}", case["name"]);
        assert!(worst <= 1e-5, "{}: {worst:e}", case["name"]);
        let (_, mask) = mapped.require_i64::<2>("feature_attention_mask").unwrap();
        assert_eq!(
            mask.iter().sum::<i64>() as usize,
            number(&case["valid"]),
            "{case}"
        );
    }
    assert_eq!(golden.next(), None);
}

#[test]
fn samples_are_what_libsndfile_reads() {
    for (case, (name, file, reference)) in goldens("files").iter().zip(FILES) {
        assert_eq!(case["name"], *name);
        let item = decode(file, &DecodeLimits::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (_, rate) = item.tensors().require_i64::<1>(SAMPLING_RATE).unwrap();
        assert_eq!(rate[0] as usize, number(&case["rate"]), "{name}");
        let samples = item.content().unwrap().as_f32().unwrap();
        let reference = floats(reference);
        assert_eq!(samples.len(), reference.len(), "{name}");
        let worst = worst(samples, &reference);
        println!("{name}: {worst:e}");
        // Lossless: the same. Lossy: what two decoders' roundings differ by.
        let lossy = name.ends_with("ogg") || name.ends_with("mp3");
        assert!(
            worst <= if lossy { 2e-5 } else { 1e-7 },
            "{name}: {worst:e}"
        );
    }
}
