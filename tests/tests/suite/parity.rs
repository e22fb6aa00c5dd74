//! Every tensor on the way from prompt to tokens against transformers, on every fixture checkpoint
//! and every layout of its weights, in f32; and the kit's own check of a reference on disk.

use crate::broken::Copy;
use crate::support::{Case, cases, checkpoint, fixture, load, model_options};
use kiln_conformance::parity::{Difference, compare};
use kiln_conformance::{Piece, Report, Suite};
use kiln_engine::ModelOptions;
use kiln_registry::{Registry, WeightDType};
use safetensors::SafeTensors;
use std::fs;

#[test]
fn every_case_equals_transformers() {
    let mut wrong = vec![];
    let mut runs = 0;
    for case in cases() {
        for name in std::iter::once(&case.checkpoint).chain(&case.copies) {
            runs += 1;
            let lines = match differences(&case, name, model_options()) {
                Ok(found) => found.iter().map(Difference::to_string).collect(),
                Err(error) => vec![error.to_string()],
            };
            let lines = lines.iter();
            wrong.extend(lines.map(|line| format!("{} of {name}: {line}", case.name)));
        }
    }
    assert!(runs >= 42, "{runs}");
    assert!(
        wrong.is_empty(),
        "{} differ\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn differences(
    case: &Case,
    checkpoint_name: &str,
    options: ModelOptions,
) -> kiln_registry::Result<Vec<Difference>> {
    let bytes = case.expected();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let loaded = load(&checkpoint(checkpoint_name), &options)?;
    let context = loaded.pipeline().context().clone();
    let greedy = case.greedy();
    let trace = loaded.trace(&case.request(greedy.len()), greedy.len(), true)?;
    // What a reference may leave out, these have.
    let names = expected.names();
    for item in 0..trace.placeholders.len() {
        assert!(
            names.contains(&format!("tower.{item}").as_str()),
            "{names:?}"
        );
    }
    assert!(names.contains(&"pixel_values") || trace.placeholders.is_empty());
    compare(&trace, &context, &expected)
}

/// Fixtures whose files hold bf16.
const TWO_BYTES: [&str; 3] = [
    "llava-siglip-mistral.one",
    "llava-next-siglip-qwen2.one",
    "text-qwen2.long",
];

fn typed(dtype: WeightDType) -> ModelOptions {
    ModelOptions {
        dtype,
        ..model_options()
    }
}

#[test]
fn weights_of_two_bytes_are_computed_as_the_reference_computes_them() {
    // The reference has f32 activations, so here the weights are widened.
    let mut wrong = vec![];
    for name in TWO_BYTES {
        let case = crate::support::case(name);
        let found = differences(&case, &case.checkpoint, typed(WeightDType::F32)).unwrap();
        let said = found.iter().filter(|d| d.piece == Piece::Forward);
        wrong.extend(said.map(|line| format!("{name}: {line}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Kept as they are, they take activations rounded to bf16, as the reference does when it runs in
/// bf16: eight bits of precision in each factor. Random weights, which the fixtures have, amplify what
/// is rounded off; a wrong product would be off by as much as the logits are large.
#[test]
fn weights_of_two_bytes_kept_are_near_the_reference() {
    for name in TWO_BYTES {
        let case = crate::support::case(name);
        let [kept, wide] = [WeightDType::Auto, WeightDType::F32].map(|dtype| {
            let loaded = load(&checkpoint(&case.checkpoint), &typed(dtype)).unwrap();
            loaded.trace(&case.request(1), 1, true).unwrap().logits
        });
        let (kept, wide) = (kept.as_f32().unwrap(), wide.as_f32().unwrap());
        let most =
            |values: &mut dyn Iterator<Item = f32>| values.fold(0.0f32, |a, b| a.max(b.abs()));
        let apart = most(&mut kept.iter().zip(wide).map(|(a, b)| a - b));
        let error = apart / most(&mut wide.iter().copied());
        assert!(error > 0.0 && error < 0.05, "{name}: {error:.2e}");
    }
}

/// A checkpoint of the fixtures with a case of it as the kit wants it on disk.
fn with_reference(name: &str) -> Copy {
    let case = crate::support::case(name);
    let copy = Copy::of(&case.checkpoint);
    let folder = copy.path().join("reference");
    fs::create_dir(&folder).unwrap();
    let mut media = vec![];
    for (at, picture) in case.pictures().into_iter().enumerate() {
        let file = format!("one-{at}.bmp");
        fs::write(folder.join(&file), bitmap(&picture)).unwrap();
        media.push(serde_json::json!({"modality": "image", "file": file}));
    }
    let prompt = serde_json::json!({"prompt": case.prompt, "media": media});
    fs::write(folder.join("one.json"), prompt.to_string()).unwrap();
    fs::write(folder.join("one.safetensors"), case.expected()).unwrap();
    copy
}

/// A file without compression.
fn bitmap(picture: &kiln_image::RgbImage8) -> Vec<u8> {
    let (width, height) = (picture.width(), picture.height());
    let row = (width * 3).next_multiple_of(4);
    let mut out = b"BM".to_vec();
    for number in [54 + row * height, 0, 54, 40, width, height] {
        out.extend((number as u32).to_le_bytes());
    }
    out.extend([1, 0, 24, 0]);
    out.extend([0; 24]);
    for line in picture.data().chunks(width * 3).rev() {
        out.extend(line.chunks(3).flat_map(|p| [p[2], p[1], p[0]]));
        out.extend(vec![0; row - width * 3]);
    }
    out
}

fn kit(copy: &Copy) -> Report {
    Suite::new(Registry::collect().unwrap(), copy.path()).run()
}

#[test]
fn the_kit_compares_with_a_reference_on_disk() {
    for name in ["llava-clip-llama.two", "text-mistral.long"] {
        let report = kit(&with_reference(name));
        report.assert_clean();
        assert!(report.passed.contains(&"parity"), "{report}");
    }
    // As the kit finds it without one, and with another checkpoint's.
    let report = kit(&Copy::of("text-mistral"));
    let skipped: Vec<_> = report.skipped.iter().map(|s| s.check).collect();
    assert!(skipped.contains(&"parity"), "{report}");
    let copy = with_reference("llava-clip-llama.one");
    let other = fixture("cases/llava-clip-llama.two.safetensors");
    fs::copy(other, copy.path().join("reference/one.safetensors")).unwrap();
    let report = kit(&copy);
    assert_eq!(report.findings.len(), 1, "{report}");
    assert_eq!(report.findings[0].check, "parity", "{report}");
}
