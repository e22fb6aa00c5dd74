//! What is rounded as it is loaded.

use super::*;
use crate::no_tokenizer::NoTokenizer;
use kiln_registry::{InputContext, MediaCounts};
use safetensors::tensor::{TensorView, serialize};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

struct File(Bytes);

impl CheckpointFiles for File {
    fn read(&self, name: &str) -> Result<Option<Bytes>> {
        Ok((name == SINGLE).then(|| self.0.clone()))
    }

    fn list(&self) -> Result<Vec<String>> {
        Ok(vec![SINGLE.to_owned()])
    }
}

/// Loads `weight` of a checkpoint that has it in `bf16`.
fn quantized(numbers: &[f32], shape: [usize; 2], kind: Quantization) -> Result<QuantizedWeight> {
    quantized_or_kept(numbers, shape, kind, None)
}

fn quantized_or_kept(
    numbers: &[f32],
    shape: [usize; 2],
    kind: Quantization,
    derived: Option<&dyn DerivedFiles>,
) -> Result<QuantizedWeight> {
    let bytes: Vec<u8> = numbers
        .iter()
        .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
        .collect();
    let view = TensorView::new(Dtype::BF16, shape.to_vec(), &bytes).expect("a tensor");
    let file = serialize([("weight", view)], None).expect("a file");
    let input = InputContext::new(
        json!({}),
        json!({}),
        Arc::new(NoTokenizer),
        MediaCounts::new(),
        1,
    );
    let ctx = LoadContext {
        input: &input,
        files: &File(file.into()),
        device: &Device::flex(),
        dtype: WeightDType::Auto,
        quantize: Some(kind),
        derived,
        progress: &|_, _| {},
    };
    let weights = Weights::open(&ctx, &[])?;
    let weight = weights.root().quantized("weight", shape, kind)?;
    assert_eq!(weights.bytes(), weight.bytes(), "what is kept is counted");
    Ok(weight)
}

#[test]
fn a_weight_is_rounded_from_the_file_as_it_is_from_a_tensor() {
    let shape = [21, 75];
    let numbers: Vec<f32> = (0..21 * 75).map(|i| (i as f32 * 0.37).sin()).collect();
    let tensor = TensorData::new(numbers.clone(), shape);
    let tensor = Tensor::<2>::from_data(tensor, (&Device::flex(), DType::F32));
    for kind in [Quantization::Q8, Quantization::Q4] {
        let loaded = quantized(&numbers, shape, kind).expect("a weight");
        let made = QuantizedWeight::new(tensor.clone().cast(FloatDType::BF16), kind);
        assert_eq!(loaded.dims(), shape);
        assert!(loaded.parts() == made.parts(), "{kind:?}");
    }
}

/// Keeps in memory, and counts what is kept.
#[derive(Default)]
struct Kept(Mutex<BTreeMap<String, Vec<u8>>>, AtomicUsize);

impl DerivedFiles for Kept {
    fn read(&self, name: &str) -> Option<Bytes> {
        let kept = self.0.lock().expect("a lock");
        let content = kept.get(name)?;
        // On the start of a line, as in a mapped file.
        let mut room = vec![0; content.len() + 64];
        let first = room.as_ptr().align_offset(64);
        room[first..first + content.len()].copy_from_slice(content);
        Some(Bytes::from(room).slice(first..first + content.len()))
    }

    fn keep(&self, name: &str, parts: &[Bytes]) {
        self.1.fetch_add(1, Relaxed);
        let mut kept = self.0.lock().expect("a lock");
        kept.insert(name.to_owned(), parts.concat());
    }
}

#[test]
fn a_rounded_weight_is_kept_and_found_again() {
    let shape = [21, 75];
    let numbers: Vec<f32> = (0..21 * 75).map(|i| (i as f32 * 0.37).sin()).collect();
    let kept = Kept::default();
    let load = |kind| quantized_or_kept(&numbers, shape, kind, Some(&kept)).expect("a weight");
    for (made, kind) in [Quantization::Q8, Quantization::Q4].into_iter().enumerate() {
        let first = load(kind);
        assert_eq!(kept.1.load(Relaxed), made + 1, "each kind is kept once");
        let again = load(kind);
        assert_eq!(kept.1.load(Relaxed), made + 1, "and found");
        assert!(first.parts() == again.parts());
        assert!(first.parts() == quantized(&numbers, shape, kind).expect("a weight").parts());
    }
    // What has another length was kept by another version: it is made anew.
    let mut files = kept.0.lock().expect("a lock");
    files.values_mut().for_each(|content| content.truncate(7));
    drop(files);
    let again = load(Quantization::Q8);
    assert_eq!(kept.1.load(Relaxed), 3);
    let fresh = quantized(&numbers, shape, Quantization::Q8).expect("a weight");
    assert!(again.parts() == fresh.parts());
}

#[test]
fn a_row_whose_sums_might_not_fit_is_refused() {
    let long = QuantizedWeight::MAX_K + 1;
    let error = quantized(&vec![1.0; long], [1, long], Quantization::Q8);
    let error = error.err().expect("an error").to_string();
    assert!(error.contains("131073"), "{error}");
    let longest = vec![1.0; QuantizedWeight::MAX_K];
    assert!(quantized(&longest, [1, longest.len()], Quantization::Q8).is_ok());
}
