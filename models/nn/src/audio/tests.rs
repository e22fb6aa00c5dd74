//! The tower against `WhisperEncoder` on random weights, as `xtask/python/audio_goldens.py` wrote them.

use super::*;
use crate::no_tokenizer::NoTokenizer;
use crate::weights::Weights;
use bytes::Bytes;
use kiln_registry::{CheckpointFiles, InputContext, LoadContext, MediaCounts, WeightDType};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::sync::Arc;

const GOLDEN: &[u8] = include_bytes!("../../tests-data/audio_tower.safetensors");
const CONFIG: &str = include_str!("../../tests-data/audio_tower.json");

struct Golden;

impl CheckpointFiles for Golden {
    fn read(&self, name: &str) -> Result<Option<Bytes>> {
        Ok((name == "model.safetensors").then(|| Bytes::from_static(GOLDEN)))
    }

    fn list(&self) -> Result<Vec<String>> {
        Ok(vec!["model.safetensors".to_owned()])
    }
}

fn with_tower(check: impl FnOnce(&AudioTower)) {
    let input = InputContext::new(
        json!({}),
        json!({}),
        Arc::new(NoTokenizer),
        MediaCounts::new(),
        1,
    );
    let ctx = LoadContext {
        input: &input,
        files: &Golden,
        device: &Device::flex(),
        dtype: WeightDType::F32,
        quantize: None,
        derived: None,
        progress: &|_, _| {},
    };
    let weights = Weights::open(&ctx, &[]).unwrap();
    let config: Value = serde_json::from_str(CONFIG).unwrap();
    let config = AudioTowerConfig::from_value(&config).unwrap();
    let tower = AudioTower::load(config, &weights.at("encoder")).unwrap();
    // The two others in the file are input and output.
    assert!(
        weights
            .finish(&["input_features", "last_hidden_state"])
            .is_ok()
    );
    check(&tower);
}

fn golden(name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = SafeTensors::deserialize(GOLDEN).unwrap();
    let view = file.tensor(name).unwrap();
    let each = view.data().chunks_exact(4);
    let data = each
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    (view.shape().to_vec(), data)
}

#[test]
fn states_are_the_references() {
    with_tower(|tower| {
        let (shape, input) = golden("input_features");
        let (_, expected) = golden("last_hidden_state");
        let size = shape[1] * shape[2];
        let rows = expected.len() / shape[0];
        for item in 0..shape[0] {
            let input = &input[item * size..(item + 1) * size];
            let states = tower.features([shape[1], shape[2]], input).unwrap();
            let states: Vec<f32> = states.into_data().try_to_vec().unwrap();
            let expected = &expected[item * rows..(item + 1) * rows];
            let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let apart = states.iter().zip(expected).map(|(a, b)| (a - b).abs());
            let relative = apart.fold(0.0, f32::max) / largest;
            println!("relative error {relative:e}");
            assert!(relative <= 1e-4, "{relative:e}");
        }
    });
}

#[test]
fn features_of_another_size_are_the_configurations_fault() {
    with_tower(|tower| {
        for shape in [[16, 38], [15, 40], [40, 16]] {
            let error = tower
                .features(shape, &vec![0.0; shape[0] * shape[1]])
                .unwrap_err();
            assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
        }
    });
}
