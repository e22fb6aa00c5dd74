//! What the model without a fault computes, written as a reference of it.

use kiln_engine::{Checkpoint, LoadedModel, MediaInput, ModelOptions, PromptInput, Request};
use kiln_registry::{HostTensor, MediaCounts, Registry, WeightDType};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::fs;
use std::path::Path;
use std::sync::Arc;

const PROMPT: &str = "What is in <image>, and where?";
/// A file of the kit's own.
const PICTURE: &str = "rgb.png";

/// Writes a case called `case` for the checkpoint in a folder.
pub(crate) fn write(folder: &Path, registry: Registry, checkpoint: &Path) {
    let picture = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("files")
        .join(PICTURE);
    let picture = fs::read(picture).unwrap();
    fs::write(folder.join(PICTURE), &picture).unwrap();
    let media = serde_json::json!([{"modality": "image", "file": PICTURE}]);
    let json = serde_json::json!({"prompt": PROMPT, "media": media});
    fs::write(folder.join("case.json"), json.to_string()).unwrap();

    let options = ModelOptions {
        dtype: WeightDType::F32,
        limit_mm_per_prompt: MediaCounts::new().with("image", 1),
        media_threads: 1,
        ..ModelOptions::default()
    };
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    let loaded = LoadedModel::load(Arc::new(registry), &checkpoint, &options, &|_, _| {}).unwrap();
    let media = vec![MediaInput::bytes("image", picture)];
    let request = Request::new(PromptInput::Text(PROMPT.to_owned()), media);
    let trace = loaded.trace(&request, 8, true).unwrap();
    let ids = |ids: &[u32]| ids.iter().map(|id| i64::from(*id)).collect::<Vec<_>>();
    let ranges = trace.placeholders.iter();
    let ranges: Vec<i64> = ranges
        .flat_map(|p| [p.item as i64, p.offset as i64, p.length as i64])
        .collect();
    let ints = |shape: Vec<usize>, values: Vec<i64>| HostTensor::i64(shape, values).unwrap();
    let tensors = [
        (
            "input_ids",
            ints(vec![trace.input_ids.len()], ids(&trace.input_ids)),
        ),
        ("placeholders", ints(vec![1, 3], ranges)),
        ("greedy", ints(vec![trace.greedy.len()], ids(&trace.greedy))),
        (
            "pixel_values",
            trace.mapped[0].get("pixel_values").unwrap().clone(),
        ),
        ("image_features.0", trace.features[0].clone()),
        ("logits", trace.logits),
    ];
    let stored = tensors.map(|(name, tensor)| match (tensor.as_f32(), tensor.as_i64()) {
        (Some(values), _) => {
            let bytes = values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<u8>>();
            (name, Dtype::F32, tensor.shape().to_vec(), bytes)
        }
        (_, values) => {
            let values = values.unwrap().iter();
            let bytes = values.flat_map(|v| v.to_le_bytes()).collect();
            (name, Dtype::I64, tensor.shape().to_vec(), bytes)
        }
    });
    let views = stored.iter().map(|(name, dtype, shape, bytes)| {
        (
            *name,
            TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });
    let file = safetensors::serialize(views, None).unwrap();
    fs::write(folder.join("case.safetensors"), file).unwrap();
}
