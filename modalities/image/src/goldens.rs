//! The crate against Pillow and Hugging Face's processors, on results that
//! `xtask/python/pillow_goldens.py` wrote.

use crate::decode::decode_rgb;
use crate::pixels::{RgbImage8, Size};
use crate::{Filter, ImageProcessorConfig, anyres, map_rgb, plan, resize};
use kiln_registry::DecodeLimits;
use proptest::prelude::*;
use serde_json::Value;

const RESIZE: &str = include_str!("../tests-data/resize.json");
const MODES: &str = include_str!("../tests-data/modes.json");
const PROCESSORS: &str = include_str!("../tests-data/processors.json");
const ANYRES: &str = include_str!("../tests-data/anyres.json");

fn fnv(bytes: impl Iterator<Item = u8>) -> String {
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// The same picture as the generating script's.
pub(crate) fn picture(width: usize, height: usize) -> RgbImage8 {
    let mut state = (width * 31 + height) as u32;
    let mut data = Vec::new();
    for y in 0..height {
        for x in 0..width {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 24) as usize;
            data.push((x * 255 / (width - 1).max(1) + noise / 8) as u8);
            data.push(if (x + y) % 7 < 2 {
                255
            } else {
                (noise / 4) as u8
            });
            data.push(if y % 3 == 0 {
                noise
            } else {
                y * 255 / (height - 1).max(1)
            } as u8);
        }
    }
    RgbImage8::new(width, height, data).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

/// See [`crate::decode`] on JPEG.
const BORDER_LEVELS: u8 = 20;

struct File {
    name: String,
    bytes: Vec<u8>,
    levels: u8,
    rgb: RgbImage8,
}

fn files() -> Vec<File> {
    let rows: Vec<(String, String, usize, usize, u8, String)> =
        serde_json::from_str(MODES).unwrap();
    rows.into_iter()
        .map(|(name, bytes, width, height, levels, rgb)| File {
            name,
            bytes: unhex(&bytes),
            levels,
            rgb: RgbImage8::new(width, height, unhex(&rgb)).unwrap(),
        })
        .collect()
}

fn decoded(bytes: &[u8]) -> kiln_registry::Result<RgbImage8> {
    decode_rgb(bytes, &DecodeLimits::default())
}

#[test]
fn every_filter_equals_pillows_bit_by_bit() {
    type Row = (usize, usize, usize, usize, u64, String);
    let rows: Vec<Row> = serde_json::from_str(RESIZE).unwrap();
    assert!(rows.len() > 100);
    let mut wrong = vec![];
    for (w, h, to_w, to_h, filter, want) in rows {
        let filter = Filter::from_pillow(filter).unwrap();
        let got = resize(&picture(w, h), to_w, to_h, filter).unwrap();
        assert_eq!(got.size(), Size::new(to_w, to_h));
        if fnv(got.into_data().into_iter()) != want {
            wrong.push(format!("{w}x{h} -> {to_w}x{to_h} {}", filter.name()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_mode_and_orientation_decodes_as_in_the_reference() {
    let mut wrong = vec![];
    for file in files() {
        let got = match decoded(&file.bytes) {
            Ok(got) => got,
            Err(e) => {
                wrong.push(format!("{}: {e}", file.name));
                continue;
            }
        };
        if got.size() != file.rgb.size() {
            wrong.push(format!(
                "{}: {:?}, not {:?}",
                file.name,
                got.size(),
                file.rgb.size()
            ));
            continue;
        }
        let off: Vec<u8> = got
            .data()
            .iter()
            .zip(file.rgb.data())
            .map(|(a, b)| a.abs_diff(*b))
            .collect();
        let (width, height) = (got.width(), got.height());
        // Upsampled chroma differs more in the last rows and columns, where the two decoders
        // continue the picture differently.
        let border = |i: usize| i / 3 % width + 2 >= width || i / 3 / width + 2 >= height;
        let most = |inside: bool| {
            let some = off.iter().enumerate().filter(|(i, _)| border(*i) != inside);
            some.map(|(_, d)| *d).max().unwrap_or(0)
        };
        let mean = off.iter().map(|d| f64::from(*d)).sum::<f64>() / off.len() as f64;
        let (inside, outside) = (most(true), most(false));
        let allowed = if file.levels > 0 { BORDER_LEVELS } else { 0 };
        if inside > file.levels || outside > allowed || mean > 0.6 {
            wrong.push(format!(
                "{}: {inside}, at the border {outside}, mean {mean:.3}",
                file.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pixel_values_equal_the_references() {
    type Row = (
        Value,
        usize,
        usize,
        Vec<usize>,
        String,
        Vec<f32>,
        Option<Vec<Vec<i64>>>,
    );
    let rows: Vec<Row> = serde_json::from_str(PROCESSORS).unwrap();
    let mut wrong = vec![];
    for (config, w, h, shape, want, first, sizes) in rows {
        let parsed = ImageProcessorConfig::from_value(&config, None).unwrap();
        let tensors = map_rgb(&parsed, &picture(w, h)).unwrap();
        let got = tensors.get("pixel_values").unwrap();
        let values = got.as_f32().unwrap();
        assert_eq!(got.shape(), shape, "{config} {w}x{h}");
        if fnv(values.iter().flat_map(|v| v.to_le_bytes())) != want {
            wrong.push(format!(
                "{config} {w}x{h}: {:?}, not {first:?}",
                &values[..4]
            ));
        }
        let got_sizes = tensors
            .get("image_sizes")
            .map(|t| vec![t.as_i64().unwrap().to_vec()]);
        assert_eq!(got_sizes, sizes);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn anyres_geometry_equals_the_references() {
    let rows: Vec<[usize; 8]> = serde_json::from_str(ANYRES).unwrap();
    let config = ImageProcessorConfig::from_value(
        &serde_json::json!({"image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": 336}, "crop_size": 336}),
        None,
    )
    .unwrap();
    for [w, h, best_w, best_h, fitted_w, fitted_h, left, top] in rows {
        let size = Size::new(w, h);
        let best = anyres::select_best_resolution(size, &config.image_grid_pinpoints).unwrap();
        assert_eq!(best, Size::new(best_w, best_h), "{w}x{h}");
        let fitted = anyres::patch_output_size(size, best);
        assert_eq!(fitted, Size::new(fitted_w, fitted_h), "{w}x{h}");
        assert_eq!(anyres::padding(fitted, best), (left, top), "{w}x{h}");
        let plan = plan(&config, w, h).unwrap();
        assert_eq!(plan.views.len(), 1 + best_w / 336 * (best_h / 336));
        assert!(plan.views.iter().all(|v| v.size() == Size::new(336, 336)));
        assert!(
            plan.views.iter().skip(1).all(|v| v.again.is_none()),
            "tiles are final already"
        );
    }
}

#[test]
fn damaged_files_are_refused_and_never_panic() {
    for file in files() {
        for cut in (0..file.bytes.len()).step_by(3) {
            match decoded(&file.bytes[..cut]) {
                Err(error) => assert!(error.is_callers_fault(), "{}: {error}", file.name),
                // Only what is no part of the picture may be gone: later frames, end marks.
                Ok(got) => {
                    assert!(
                        got == file.rgb,
                        "{} cut to {cut} is another picture",
                        file.name
                    );
                }
            }
        }
        let mut state = 1u32;
        for _ in 0..200 {
            let mut bytes = file.bytes.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % bytes.len();
                bytes[at] ^= (state >> 3) as u8 | 1;
            }
            if let Err(error) = decoded(&bytes) {
                assert!(error.is_callers_fault(), "{}: {error}", file.name);
            }
        }
    }
}

#[test]
fn a_bomb_is_refused_by_its_header() {
    let mut png = files()
        .into_iter()
        .find(|f| f.name == "png-rgb")
        .unwrap()
        .bytes;
    png[16..20].copy_from_slice(&50_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&50_000u32.to_be_bytes());
    // CRC-32 of the header chunk, so that it is the size that is refused.
    let crc = png[12..29].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| {
            if c & 1 == 1 {
                (c >> 1) ^ 0xedb8_8320
            } else {
                c >> 1
            }
        })
    });
    png[29..33].copy_from_slice(&(!crc).to_be_bytes());
    let error = decoded(&png).unwrap_err().to_string();
    assert_eq!(
        error,
        "the image is 50000x50000 pixels, the limit is 16384 a side"
    );

    let limits = DecodeLimits {
        max_pixels: 34,
        ..DecodeLimits::default()
    };
    for file in files().iter().filter(|f| f.rgb.size().pixels() == 35) {
        let error = decode_rgb(&file.bytes, &limits).unwrap_err().to_string();
        assert!(
            error.contains("35 pixels, the limit is 34"),
            "{}: {error}",
            file.name
        );
    }
}

#[test]
fn bytes_that_are_no_image_are_the_callers_fault() {
    let garbage: [&[u8]; 8] = [
        b"",
        b"\0",
        b"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1\" height=\"1\"/>",
        b"GIF89a/*\0\0\0*/=1;alert(1)//",
        b"\x89PNG\r\n\x1a\n",
        b"BM",
        b"II*\0\xff\xff\xff\xff",
        b"RIFF\xff\xff\xff\xffWEBPVP8L",
    ];
    for bytes in garbage {
        let error = decoded(bytes).unwrap_err();
        assert!(error.is_callers_fault(), "{error}");
    }
    let mut polyglot = files()[0].bytes.clone();
    polyglot.extend(b"PK\x05\x06");
    polyglot.extend([0; 18]);
    assert!(decoded(&polyglot).unwrap_err().is_callers_fault());
}

#[test]
fn narrow_pictures_take_little_memory_and_time() {
    for (w, h) in [(1, 1), (1, 10_000), (10_000, 1)] {
        for kind in [
            "CLIPImageProcessor",
            "SiglipImageProcessor",
            "LlavaNextImageProcessorFast",
        ] {
            let value = serde_json::json!({ "image_processor_type": kind });
            let config = ImageProcessorConfig::from_value(&value, None).unwrap();
            map_rgb(&config, &picture(w, h)).unwrap();
        }
        let value = serde_json::json!({"image_processor_type": "LlavaImageProcessor",
            "do_pad": true});
        let config = ImageProcessorConfig::from_value(&value, None).unwrap();
        map_rgb(&config, &picture(w, h)).unwrap();
    }
    let uncropped = serde_json::json!({"image_processor_type": "CLIPImageProcessor",
        "do_center_crop": false});
    let config = ImageProcessorConfig::from_value(&uncropped, None).unwrap();
    let error = map_rgb(&config, &picture(1, 10_000)).unwrap_err();
    assert!(
        error.is_callers_fault() && error.to_string().contains("limit"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn plans_hold_for_any_size(w in 1usize..4096, h in 1usize..4096, kind in 0usize..4, pad: bool) {
        let name = ["CLIPImageProcessor", "SiglipImageProcessor", "LlavaImageProcessor",
            "LlavaNextImageProcessor"][kind];
        let value = serde_json::json!({"image_processor_type": name, "do_pad": pad,
            "size": if kind == 1 { 336.into() } else { serde_json::json!({"shortest_edge": 336}) },
            "default_to_square": true, "crop_size": 336});
        let config = ImageProcessorConfig::from_value(&value, None).unwrap();
        let plan = plan(&config, w, h).unwrap();
        prop_assert_eq!(plan.view_size(), Size::new(336, 336));
        for view in &plan.views {
            prop_assert_eq!(view.size(), Size::new(336, 336));
            let canvas = view.stage.canvas;
            prop_assert!(canvas.x <= 0 && canvas.y <= 0);
            prop_assert!(canvas.x + canvas.width as i64 >= w as i64);
            prop_assert!(canvas.y + canvas.height as i64 >= h as i64);
            prop_assert!(view.stage.window.intersect(view.stage.resized.rect()).is_some()
                || plan.is_tiled());
        }
        if let (Some(best), Some(fitted)) = (plan.resolution, plan.fitted) {
            prop_assert_eq!(plan.tiles.len() + 1, plan.views.len());
            let covered: usize = plan.tiles.iter().map(|t| t.size().pixels()).sum();
            prop_assert_eq!(covered, best.pixels());
            prop_assert_eq!(fitted.intersect(best.rect()), Some(fitted));
        }
    }
}
