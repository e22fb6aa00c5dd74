//! Fixtures, the picture that both languages draw, and the law that pixels are compared by.

use kiln_image::RgbImage8;
use kiln_registry::{DecodeLimits, MediaItem, Registry, Result};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::PathBuf;

/// A path under `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
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

/// Bytes to an item as the engine does it: through the registered modality.
pub(crate) fn decode(bytes: &[u8]) -> Result<MediaItem> {
    Registry::collect()?
        .modality("image")?
        .decode(bytes, &DecodeLimits::default())
}

/// The law for pixels: at most one grey level apart, on at most 0.1% of the values.
///
/// `actual`: grey levels, not rounded. Returns what breaks the law.
pub(crate) fn compare_levels(actual: &[f64], expected: &[u8]) -> std::result::Result<(), String> {
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
