//! Every tensor on the way from prompt to tokens against transformers, on every fixture checkpoint
//! and every layout of its weights, in f32.

use crate::support::{
    Case, cases, checkpoint, compare_levels, f32_tensor, i64_tensor, load, model_options,
};
use kiln_engine::{ModelOptions, Trace};
use kiln_image::ImageProcessorConfig;
use kiln_registry::{HostTensor, WeightDType};
use safetensors::SafeTensors;

/// The largest difference of a tensor, relative to its largest value.
const TOLERANCE: f64 = 1e-4;

/// What differs, one line a tensor.
struct Report {
    wrong: Vec<String>,
}

impl Report {
    fn check<T: PartialEq + std::fmt::Debug>(&mut self, name: &str, actual: &T, expected: &T) {
        if actual != expected {
            self.wrong.push(format!(
                "{name}: {actual:?}, the reference has {expected:?}"
            ));
        }
    }

    fn close(&mut self, name: &str, actual: (&[usize], &[f32]), expected: (&[usize], &[f32])) {
        if actual.0 != expected.0 || actual.1.len() != expected.1.len() {
            return self.check(name, &actual.0, &expected.0);
        }
        let error = relative_error(actual.1, expected.1);
        // A NaN is not within any tolerance.
        if error.is_nan() || error > TOLERANCE {
            self.wrong
                .push(format!("{name}: relative error {error:.2e}"));
        }
    }
}

/// `max|a - b| / max|b|`; NaN when anything is.
fn relative_error(actual: &[f32], expected: &[f32]) -> f64 {
    let most = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(0.0, |a: f64, b| {
            if b.is_nan() || a.is_nan() {
                f64::NAN
            } else {
                a.max(b)
            }
        })
    };
    let pairs = actual.iter().zip(expected);
    let apart = most(&mut pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()));
    apart / most(&mut expected.iter().map(|b| f64::from(*b).abs())).max(1e-30)
}

#[test]
fn every_case_equals_transformers() {
    let mut wrong = vec![];
    let mut runs = 0;
    for case in cases() {
        for name in std::iter::once(&case.checkpoint).chain(&case.copies) {
            runs += 1;
            let lines = match compare(&case, name) {
                Ok(lines) => lines,
                Err(error) => vec![error.to_string()],
            };
            wrong.extend(
                lines
                    .iter()
                    .map(|line| format!("{} of {name}: {line}", case.name)),
            );
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

fn compare(case: &Case, name: &str) -> kiln_registry::Result<Vec<String>> {
    let bytes = case.expected();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut report = Report { wrong: vec![] };
    let loaded = load(&checkpoint(name), &model_options())?;
    let pixels = loaded
        .pipeline()
        .entry()
        .supports("image")
        .then(|| ImageProcessorConfig::from_context(loaded.pipeline().context()));
    let greedy = case.greedy();
    let trace = loaded.trace(&case.request(greedy.len()), greedy.len(), true)?;

    let ids: Vec<i64> = trace.input_ids.iter().map(|id| i64::from(*id)).collect();
    report.check("input_ids", &ids, &i64_tensor(&expected, "input_ids"));
    let items = trace.placeholders.len();
    if items > 0 {
        let ranges = trace
            .placeholders
            .iter()
            .flat_map(|p| [p.item, p.offset, p.length]);
        let ranges: Vec<i64> = ranges.map(|n| n as i64).collect();
        report.check(
            "placeholders",
            &ranges,
            &i64_tensor(&expected, "placeholders"),
        );
    }
    for item in 0..items {
        let name = format!("tower.{item}");
        let (shape, values) = f32_tensor(&expected, &name);
        match &trace.towers[item] {
            Some(tower) => report.close(&name, parts(tower), (&shape, &values)),
            None => report.wrong.push(format!("{name}: the model gave none")),
        }
        let name = format!("image_features.{item}");
        let (shape, values) = f32_tensor(&expected, &name);
        report.close(&name, parts(&trace.features[item]), (&shape, &values));
    }
    if let (Some(config), 1..) = (pixels, items) {
        compare_pixels(&config?, &trace, &expected, &mut report);
    }
    compare_logits(&trace, &expected, &mut report);
    report.check("greedy", &trace.greedy, &greedy);
    Ok(report.wrong)
}

fn parts(tensor: &HostTensor) -> (&[usize], &[f32]) {
    (tensor.shape(), tensor.as_f32().unwrap_or_default())
}

/// The reference batches the items of a prompt and fills up their tiles with zeros.
fn compare_pixels(
    config: &ImageProcessorConfig,
    trace: &Trace,
    expected: &SafeTensors<'_>,
    report: &mut Report,
) {
    let (batch, values) = f32_tensor(expected, "pixel_values");
    report.check("pixel_values, items", &trace.mapped.len(), &batch[0]);
    let each = values.len() / batch[0];
    for (item, tensors) in trace.mapped.iter().enumerate() {
        let name = format!("pixel_values of item {item}");
        let Some(pixels) = tensors.get("pixel_values") else {
            report.wrong.push(format!("{name}: none"));
            continue;
        };
        let (shape, actual) = parts(pixels);
        let (axes, reference) = (batch.len() - 3, &values[item * each..(item + 1) * each]);
        if shape[0] != 1 || shape.len() != batch.len() || shape[axes..] != batch[axes..] {
            report.check(&name, &shape, &&batch[..]);
            continue;
        }
        let (reference, padding) = reference.split_at(actual.len().min(reference.len()));
        if padding.iter().any(|v| *v != 0.0) {
            report.wrong.push(format!(
                "{name}: the reference has more tiles than {shape:?}"
            ));
            continue;
        }
        let plane = shape[axes + 1] * shape[axes + 2];
        let levels = |values: &[f32]| -> Vec<f64> {
            let channels = values
                .iter()
                .enumerate()
                .map(|(at, v)| (at / plane % 3, *v));
            channels
                .map(|(c, v)| (f64::from(v) * config.image_std[c] + config.image_mean[c]) * 255.0)
                .collect()
        };
        let reference: Vec<u8> = levels(reference).iter().map(|v| v.round() as u8).collect();
        if let Err(what) = compare_levels(&levels(actual), &reference) {
            report.wrong.push(format!("{name}: {what}"));
        }
    }
    if expected.names().contains(&"image_sizes") {
        let sizes: Vec<i64> = trace
            .mapped
            .iter()
            .filter_map(|tensors| tensors.get("image_sizes").and_then(HostTensor::as_i64))
            .flatten()
            .copied()
            .collect();
        report.check("image_sizes", &sizes, &i64_tensor(expected, "image_sizes"));
    }
}

/// The fixtures keep some rows of the logits where a prompt is long.
fn compare_logits(trace: &Trace, expected: &SafeTensors<'_>, report: &mut Report) {
    let (shape, values) = f32_tensor(expected, "logits");
    let (actual_shape, actual) = parts(&trace.logits);
    report.check("columns of the logits", &actual_shape[1], &shape[1]);
    let rows = i64_tensor(expected, "logits_rows");
    let picked: Vec<f32> = rows
        .iter()
        .filter_map(|row| actual.chunks(shape[1]).nth(*row as usize))
        .flatten()
        .copied()
        .collect();
    report.close("logits", (&shape, &picked), (&shape, &values));
}

/// Fixtures whose files hold bf16.
const TWO_BYTES: [&str; 3] = [
    "llava-siglip-mistral.one",
    "llava-next-siglip-qwen2.one",
    "text-qwen2.long",
];

/// What a fixture gives with its weights in a type.
fn traced(case: &Case, dtype: WeightDType) -> Trace {
    let options = ModelOptions {
        dtype,
        ..model_options()
    };
    let loaded = load(&checkpoint(&case.checkpoint), &options).unwrap();
    let tokens = case.greedy().len();
    loaded.trace(&case.request(tokens), tokens, true).unwrap()
}

#[test]
fn weights_of_two_bytes_are_computed_as_the_reference_computes_them() {
    // The reference has f32 activations, so here the weights are widened.
    let mut wrong = vec![];
    for name in TWO_BYTES {
        let case = crate::support::case(name);
        let bytes = case.expected();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let trace = traced(&case, WeightDType::F32);
        let mut report = Report { wrong: vec![] };
        compare_logits(&trace, &expected, &mut report);
        report.check("greedy", &trace.greedy, &case.greedy());
        wrong.extend(report.wrong.iter().map(|line| format!("{name}: {line}")));
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
        let [kept, wide] = [WeightDType::Auto, WeightDType::F32].map(|dtype| traced(&case, dtype));
        let (_, kept) = parts(&kept.logits);
        let (_, wide) = parts(&wide.logits);
        let error = relative_error(kept, wide);
        assert!(error > 0.0 && error < 0.05, "{name}: {error:.2e}");
    }
}

#[test]
fn the_measure_sees_what_a_maximum_would_pass_over() {
    assert_eq!(relative_error(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
    assert_eq!(relative_error(&[1.0, 4.0], &[1.0, 2.0]), 1.0);
    assert!(relative_error(&[f32::NAN, 2.0], &[1.0, 2.0]).is_nan());
    assert!(relative_error(&[1.0, f32::NAN], &[1.0, 2.0]).is_nan());
}
