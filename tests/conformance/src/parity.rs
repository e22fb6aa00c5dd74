//! Every tensor on the way from a prompt to its tokens, compared with what a reference computed.
//!
//! # The form of a reference
//! A folder `reference` inside the checkpoint's folder, or beside it, with two files a case:
//!
//! `NAME.json`
//! : `{"prompt": "USER: <image>\nWhat? ASSISTANT:", "media": [{"modality": "image", "file":
//!   "NAME-0.png"}]}`: raw text, given to the tokenizer as it stands, without tokens of the
//!   tokenizer's own; and the media in the order of their placeholders, as files in the same folder
//!   that the modality's decoder reads. `media` may be left out.
//!
//! `NAME.safetensors`
//! : what `fixtures.py`'s `reference` returns for that prompt, on the checkpoint's weights in f32:
//!
//! | tensor | type and shape | what it is |
//! |---|---|---|
//! | `input_ids` | i64 `[prompt]` | the prompt after expansion |
//! | `placeholders` | i64 `[items, 3]` | item, offset and length of each range; needed where there are media |
//! | `pixel_values` | f32 `[items, .., 3, height, width]` | the processor's pixels; items with fewer tiles end in zeros; may be left out |
//! | any other input of the encoder (`image_sizes`), or pixels of another shape | i64 or f32 `[items, ..]` | as the processor names it, the items one behind the other; may be left out |
//! | `tower.N` | f32 `[tiles, tokens, width]` | what the projector is given for item N; may be left out |
//! | `image_features.N` | f32 `[rows, hidden]` | the rows of item N, of whatever modality |
//! | `logits` | f32 `[rows, vocabulary]` | of all positions, or of those that the next one names |
//! | `logits_rows` | i64 `[rows]` | positions; may be left out |
//! | `greedy` | i64 `[tokens]` | the tokens chosen one after another, past end-of-sequence tokens |
//!
//! Floats may differ by 1e-4 of the tensor's largest value; pixels by one grey level, on at most 0.1%
//! of them; integers not at all.

use crate::report::Piece;
use kiln_engine::Trace;
use kiln_image::ImageProcessorConfig;
use kiln_registry::{Error, HostTensor, InputContext, Result};
use safetensors::{Dtype, SafeTensors};
use std::fmt;

/// The largest difference of a tensor, relative to its largest value.
const TOLERANCE: f64 = 1e-4;
/// Tensors that are not an input of the encoder.
const KNOWN: [&str; 5] = [
    "input_ids",
    "placeholders",
    "logits",
    "logits_rows",
    "greedy",
];
const PIXELS: &str = "pixel_values";

/// A tensor that is not the reference's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The piece that makes it.
    pub piece: Piece,
    /// The tensor, by the reference's name.
    pub tensor: String,
    /// How it differs.
    pub message: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.tensor, self.message)
    }
}

/// How many greedy tokens a reference has.
///
/// # Errors
/// [`Error::Checkpoint`] where it has none.
pub fn greedy_tokens(expected: &SafeTensors<'_>) -> Result<usize> {
    Ok(integers(expected, "greedy")?.1.len())
}

/// What differs, in the order in which it is computed: what comes first explains what follows.
///
/// `context`: of the model that was traced.
///
/// # Errors
/// [`Error::Checkpoint`] for a reference that lacks a tensor or has one of another type.
pub fn compare(
    trace: &Trace,
    context: &InputContext,
    expected: &SafeTensors<'_>,
) -> Result<Vec<Difference>> {
    let mut found = Comparison(vec![]);
    let ids: Vec<i64> = trace.input_ids.iter().map(|id| i64::from(*id)).collect();
    let (_, expected_ids) = integers(expected, "input_ids")?;
    let piece = whose_ids(trace, &expected_ids);
    found.equal(piece, "input_ids", &ids, &expected_ids);
    if !trace.placeholders.is_empty() {
        let ranges = trace.placeholders.iter();
        let ranges = ranges.flat_map(|p| [p.item, p.offset, p.length]);
        let ranges: Vec<i64> = ranges.map(|n| n as i64).collect();
        let (_, expected_ranges) = integers(expected, "placeholders")?;
        found.equal(Piece::Processor, "placeholders", &ranges, &expected_ranges);
        found.pixels(trace, context, expected)?;
        found.inputs(trace, expected)?;
        found.rows(trace, expected)?;
    }
    found.logits(trace, expected)?;
    let greedy: Vec<i64> = trace.greedy.iter().map(|id| i64::from(*id)).collect();
    let (_, expected_greedy) = integers(expected, "greedy")?;
    found.equal(Piece::Forward, "greedy", &greedy, &expected_greedy);
    Ok(found.0)
}

/// Ids that differ are the tokenizer's, unless they differ by the number of placeholders alone.
fn whose_ids(trace: &Trace, expected: &[i64]) -> Piece {
    let inside: Vec<i64> = trace
        .placeholders
        .iter()
        .filter_map(|range| trace.input_ids.get(range.offset))
        .map(|id| i64::from(*id))
        .collect();
    let ours = trace.input_ids.iter().map(|id| i64::from(*id));
    let ours = ours.filter(|id| !inside.contains(id));
    match ours.eq(expected.iter().copied().filter(|id| !inside.contains(id))) {
        true => Piece::Processor,
        false => Piece::Tokenizer,
    }
}

struct Comparison(Vec<Difference>);

impl Comparison {
    fn differs(&mut self, piece: Piece, tensor: &str, message: impl fmt::Display) {
        self.0.push(Difference {
            piece,
            tensor: tensor.to_owned(),
            message: message.to_string(),
        });
    }

    fn equal<T: PartialEq + fmt::Debug>(
        &mut self,
        piece: Piece,
        tensor: &str,
        actual: &T,
        expected: &T,
    ) {
        if actual != expected {
            let message = format!("{actual:?}, the reference has {expected:?}");
            self.differs(piece, tensor, message);
        }
    }

    fn close(
        &mut self,
        piece: Piece,
        tensor: &str,
        actual: (&[usize], &[f32]),
        expected: (&[usize], &[f32]),
    ) {
        if actual.0 != expected.0 || actual.1.len() != expected.1.len() {
            return self.equal(piece, tensor, &actual.0, &expected.0);
        }
        let error = relative_error(actual.1, expected.1);
        // A NaN is not within any tolerance.
        if error.is_nan() || error > TOLERANCE {
            self.differs(piece, tensor, format!("relative error {error:.2e}"));
        }
    }

    /// The reference batches the items of a prompt and fills up their tiles with zeros.
    fn pixels(
        &mut self,
        trace: &Trace,
        context: &InputContext,
        expected: &SafeTensors<'_>,
    ) -> Result<()> {
        let piece = Piece::Mapper;
        if !in_planes(expected) {
            return Ok(());
        }
        let (batch, values) = floats(expected, PIXELS)?;
        let mapped = trace.mapped.iter();
        let mapped: Vec<_> = mapped.filter_map(|tensors| tensors.get(PIXELS)).collect();
        if mapped.is_empty() || batch[0] != mapped.len() {
            let message = format!("{} item(s), the reference has {batch:?}", mapped.len());
            self.differs(piece, PIXELS, message);
            return Ok(());
        }
        let config = ImageProcessorConfig::from_context(context)?;
        let each = values.len() / batch[0];
        for (item, pixels) in mapped.into_iter().enumerate() {
            let name = format!("{PIXELS} of item {item}");
            let (shape, actual) = parts(pixels);
            let (axes, reference) = (batch.len() - 3, &values[item * each..(item + 1) * each]);
            if shape.len() != batch.len() || shape[0] != 1 || shape[axes..] != batch[axes..] {
                self.equal(piece, &name, &shape, &&batch[..]);
                continue;
            }
            let (reference, padding) = reference.split_at(actual.len().min(reference.len()));
            if padding.iter().any(|v| *v != 0.0) {
                let message = format!("the reference has more tiles than {shape:?}");
                self.differs(piece, &name, message);
                continue;
            }
            let plane = shape[axes + 1] * shape[axes + 2];
            let levels = |values: &[f32]| -> Vec<f64> {
                let values = values.iter().enumerate();
                let channels = values.map(|(at, v)| (at / plane % 3, f64::from(*v)));
                channels
                    .map(|(c, v)| (v * config.image_std[c] + config.image_mean[c]) * 255.0)
                    .collect()
            };
            let reference: Vec<u8> = levels(reference).iter().map(|v| v.round() as u8).collect();
            if let Err(what) = compare_levels(&levels(actual), &reference) {
                self.differs(piece, &name, what);
            }
        }
        Ok(())
    }

    /// Whatever else the mapper and the reference both give the encoder, the items one behind the
    /// other.
    fn inputs(&mut self, trace: &Trace, expected: &SafeTensors<'_>) -> Result<()> {
        let names = expected.names().into_iter();
        let mut names: Vec<&str> = names
            .filter(|name| !KNOWN.contains(name) && !name.contains('.'))
            .filter(|name| *name != PIXELS || !in_planes(expected))
            .collect();
        names.sort_unstable();
        for name in names {
            let mapped = || trace.mapped.iter().filter_map(|tensors| tensors.get(name));
            if mapped().next().is_none() {
                self.differs(Piece::Mapper, name, "the mapper gives none");
            } else if let Ok((_, expected)) = integers(expected, name) {
                let ours = mapped().filter_map(HostTensor::as_i64).flatten();
                let ours: Vec<i64> = ours.copied().collect();
                self.equal(Piece::Mapper, name, &ours, &expected);
            } else {
                let (_, expected) = floats(expected, name)?;
                let ours = mapped().filter_map(HostTensor::as_f32).flatten();
                let ours: Vec<f32> = ours.copied().collect();
                let (ours, expected) = ((&[ours.len()][..], &ours[..]), &expected[..]);
                self.close(Piece::Mapper, name, ours, (&[expected.len()], expected));
            }
        }
        Ok(())
    }

    /// Of each item what the projector is given, and its rows.
    fn rows(&mut self, trace: &Trace, expected: &SafeTensors<'_>) -> Result<()> {
        for item in 0..trace.placeholders.len() {
            let name = format!("tower.{item}");
            if expected.names().contains(&name.as_str()) {
                let (shape, values) = floats(expected, &name)?;
                match &trace.towers[item] {
                    Some(tower) => {
                        self.close(Piece::Encoder, &name, parts(tower), (&shape, &values))
                    }
                    None => self.differs(Piece::Encoder, &name, "the model gives none"),
                }
            }
            let name = format!("image_features.{item}");
            let (shape, values) = floats(expected, &name)?;
            let ours = parts(&trace.features[item]);
            self.close(Piece::Encoder, &name, ours, (&shape, &values));
        }
        Ok(())
    }

    /// A reference may keep some rows where a prompt is long.
    fn logits(&mut self, trace: &Trace, expected: &SafeTensors<'_>) -> Result<()> {
        let (shape, values) = floats(expected, "logits")?;
        let (ours, actual) = parts(&trace.logits);
        let [_, columns] = shape[..] else {
            return Err(Error::checkpoint(
                "logits",
                format!("are {shape:?}, not two axes"),
            ));
        };
        self.equal(Piece::Forward, "columns of the logits", &ours[1], &columns);
        let rows: Vec<i64> = match expected.names().contains(&"logits_rows") {
            true => integers(expected, "logits_rows")?.1,
            false => (0..ours[0] as i64).collect(),
        };
        let picked: Vec<f32> = rows
            .iter()
            .filter_map(|row| actual.chunks(columns.max(1)).nth(*row as usize))
            .flatten()
            .copied()
            .collect();
        let picked = (&[rows.len(), columns][..], &picked[..]);
        self.close(Piece::Forward, "logits", picked, (&shape, &values));
        Ok(())
    }
}

/// Whether the reference's pixels are planes, whose grey levels can be compared.
fn in_planes(expected: &SafeTensors<'_>) -> bool {
    let planes = |shape: &[usize]| matches!(shape, [_, .., 3, _, _]);
    expected
        .tensor(PIXELS)
        .is_ok_and(|view| planes(view.shape()))
}

fn parts(tensor: &HostTensor) -> (&[usize], &[f32]) {
    (tensor.shape(), tensor.as_f32().unwrap_or_default())
}

fn integers(file: &SafeTensors<'_>, name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
    let (shape, data) = data(file, name, Dtype::I64)?;
    let (elements, _) = data.as_chunks();
    Ok((
        shape,
        elements.iter().map(|b| i64::from_le_bytes(*b)).collect(),
    ))
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let (shape, data) = data(file, name, Dtype::F32)?;
    let (elements, _) = data.as_chunks();
    Ok((
        shape,
        elements.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    ))
}

fn data<'a>(file: &SafeTensors<'a>, name: &str, dtype: Dtype) -> Result<(Vec<usize>, &'a [u8])> {
    let wrong = |message: String| Error::checkpoint(format!("the reference's {name}"), message);
    let view = file.tensor(name).map_err(|e| wrong(e.to_string()))?;
    if view.dtype() != dtype {
        return Err(wrong(format!("{:?}, not {dtype:?}", view.dtype())));
    }
    Ok((view.shape().to_vec(), view.data()))
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

/// The law for pixels: at most one grey level apart, on at most 0.1% of the values.
///
/// `actual`: grey levels, not rounded.
///
/// # Errors
/// What breaks the law, in words.
pub fn compare_levels(actual: &[f64], expected: &[u8]) -> std::result::Result<(), String> {
    if actual.len() != expected.len() {
        return Err(format!(
            "{} values, the reference has {}",
            actual.len(),
            expected.len()
        ));
    }
    let apart = actual
        .iter()
        .zip(expected)
        .map(|(a, e)| (a - f64::from(*e)).abs());
    let most = apart.clone().fold(0.0, f64::max);
    let off = apart.filter(|d| *d > 0.01).count();
    if most > 1.01 || off * 1000 > expected.len() {
        return Err(format!(
            "{off} of {} values differ, by at most {most:.2}",
            expected.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_law_for_pixels_is_strict() {
        let expected = [100u8; 2000];
        let with = |changes: &[(usize, f64)]| {
            let mut actual = [100.0; 2000];
            for (at, value) in changes {
                actual[*at] = *value;
            }
            compare_levels(&actual, &expected)
        };
        assert!(with(&[]).is_ok());
        assert!(with(&[(0, 101.0), (7, 99.0)]).is_ok());
        assert!(with(&[(0, 102.0)]).is_err());
        assert!(with(&[(0, 101.0), (1, 101.0), (2, 101.0)]).is_err());
        assert!(compare_levels(&[100.0], &expected).is_err());
    }

    #[test]
    fn the_measure_sees_what_a_maximum_would_pass_over() {
        assert_eq!(relative_error(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert_eq!(relative_error(&[1.0, 4.0], &[1.0, 2.0]), 1.0);
        assert!(relative_error(&[f32::NAN, 2.0], &[1.0, 2.0]).is_nan());
        assert!(relative_error(&[1.0, f32::NAN], &[1.0, 2.0]).is_nan());
    }
}
