//! Picture files that mean harm: bombs, fragments, disguises, degenerate sizes. Each is answered
//! with the caller's error in bounded time, or decoded; none panics.

use crate::support::{decode, fixture, json, pattern, read};
use kiln_image::{ImageProcessorConfig, RgbImage8, map_rgb};
use kiln_registry::{DecodeLimits, Error, Registry};
use std::time::{Duration, Instant};

fn inputs() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(fixture("processors/inputs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| (name.clone(), read(&format!("processors/inputs/{name}"))))
        .collect();
    files.sort();
    assert!(files.len() >= 39);
    files
}

/// The caller's fault, in words that tell nothing of our memory or file system.
fn assert_refused(what: &str, bytes: &[u8]) -> String {
    let error = decode(bytes)
        .err()
        .unwrap_or_else(|| panic!("{what}: decoded"));
    assert!(matches!(error, Error::InvalidInput(_)), "{what}: {error:?}");
    let message = error.to_string();
    for leak in [" 0x", "/", "panicked", ".rs"] {
        assert!(!message.contains(leak), "{what}: {message}");
    }
    message
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn png_of(width: u32, height: u32) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        png.extend((data.len() as u32).to_be_bytes());
        let body = [&kind[..], data].concat();
        png.extend(&body);
        png.extend(crc32(&body).to_be_bytes());
    };
    let mut header = vec![];
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    chunk(b"IHDR", &header);
    chunk(b"IDAT", &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]);
    chunk(b"IEND", &[]);
    png
}

#[test]
fn a_bomb_is_refused_on_its_header() {
    let start = Instant::now();
    for (width, height) in [
        (50_000, 50_000),
        (u32::MAX >> 1, 1),
        (1, 20_000),
        (16_000, 16_000),
    ] {
        assert_refused(&format!("{width}x{height}"), &png_of(width, height));
    }
    for (width, height) in [(0, 5), (5, 0), (0, 0)] {
        assert_refused(&format!("{width}x{height}"), &png_of(width, height));
    }
    // 768 MB of pixels would take longer than this to clear alone.
    assert!(
        start.elapsed() < Duration::from_millis(200),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_gif_of_100_000_frames_costs_one() {
    let mut gif = b"GIF89a\x01\0\x01\0\x80\0\0\x10\x20\x30\xff\xff\xff".to_vec();
    for _ in 0..100_000 {
        gif.extend(b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0");
    }
    gif.push(0x3b);
    let start = Instant::now();
    let image = RgbImage8::from_item(&decode(&gif).unwrap()).unwrap();
    assert_eq!(image.data(), [0x10, 0x20, 0x30]);
    assert!(
        start.elapsed() < Duration::from_millis(200),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn half_a_file_is_refused_and_no_fragment_panics() {
    for (name, bytes) in inputs() {
        let half = &bytes[..bytes.len() / 2];
        if name.starts_with("animated") {
            // The first frame may be whole in the first half; then it is the same picture.
            if let Ok(item) = decode(half) {
                assert_eq!(
                    item.hash(),
                    decode(&bytes).unwrap().hash(),
                    "half of {name}"
                );
            }
        } else {
            assert_refused(&format!("half of {name}"), half);
        }
        for part in 0..40 {
            // Decoded or refused, never a panic and never our fault.
            if let Err(error) = decode(&bytes[..bytes.len() * part / 40]) {
                assert!(error.is_callers_fault(), "{name}: {error}");
            }
        }
    }
}

#[test]
fn corrupt_bytes_never_panic() {
    let mut state = 1u32;
    let mut next = move |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    for (name, bytes) in inputs() {
        for _ in 0..60 {
            let mut bytes = bytes.clone();
            for _ in 0..1 + next(4) {
                let at = next(bytes.len());
                bytes[at] ^= 1 << next(8);
            }
            if let Err(error) = decode(&bytes) {
                assert!(error.is_callers_fault(), "{name}: {error}");
            }
        }
    }
}

#[test]
fn what_is_no_picture_is_refused_alike() {
    let jpeg = read("processors/inputs/rgb.jpg");
    let disguised = [b"%PDF-1.7\n".to_vec(), jpeg].concat();
    let mut messages: Vec<String> = [
        ("empty", &b""[..]),
        (
            "svg",
            b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        ),
        ("html", b"<!doctype html><img src=x onerror=alert(1)>"),
        ("zip", b"PK\x03\x04\x14\0\0\0\x08\0"),
        ("polyglot", &disguised),
        ("text", b"not a picture at all"),
    ]
    .iter()
    .map(|(what, bytes)| assert_refused(what, bytes))
    .collect();
    messages.dedup();
    // An empty file may be told apart; the others share one text.
    assert!(messages.len() <= 2, "{messages:?}");
}

#[test]
fn limits_can_be_lowered_and_are_named() {
    let limits = DecodeLimits {
        max_side: 40,
        ..DecodeLimits::default()
    };
    let registry = Registry::collect().unwrap();
    let image = registry.modality("image").unwrap();
    let error = image
        .decode(&read("processors/inputs/rgb.png"), &limits)
        .unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)), "{error:?}");
    assert!(error.to_string().contains("40"), "{error}");
    let limits = DecodeLimits {
        max_bytes: 100,
        ..DecodeLimits::default()
    };
    let error = image
        .decode(&read("processors/inputs/rgb.png"), &limits)
        .unwrap_err();
    assert!(error.to_string().contains("100"), "{error}");
}

#[test]
fn degenerate_sizes_map_or_name_the_limit() {
    for variant in ["clip", "clip-crop-larger", "siglip", "llava-next"] {
        let config = json(&format!("processors/{variant}.json"));
        let config = ImageProcessorConfig::from_value(&config, None).unwrap();
        for (width, height) in [(1, 1), (1, 2), (1, 10_000), (10_000, 1), (3, 7_000)] {
            match map_rgb(&config, &pattern(width, height, 1)) {
                Ok(tensors) => {
                    let pixels = tensors.get("pixel_values").unwrap().as_f32().unwrap();
                    assert!(
                        pixels.iter().all(|v| v.is_finite()),
                        "{variant} {width}x{height}"
                    );
                }
                Err(error) => {
                    assert!(
                        error.is_callers_fault(),
                        "{variant} {width}x{height}: {error}"
                    );
                }
            }
        }
    }
}

#[test]
fn equal_bytes_of_another_shape_are_another_item() {
    let item = |width, height| {
        let image = RgbImage8::new(width, height, vec![7; 36]).unwrap();
        kiln_registry::MediaItem::raw("image", image.into_tensor().unwrap()).hash()
    };
    assert_ne!(item(3, 4), item(4, 3));
    assert_eq!(item(3, 4), item(3, 4));
}
