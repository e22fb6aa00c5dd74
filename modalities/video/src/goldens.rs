//! The crate against Pillow and transformers, on results that `xtask/python/video_goldens.py` wrote.

use crate::clip::{Clip, FRAME_TIMES};
use crate::config::VideoProcessorConfig;
use crate::map::map_clip;
use crate::{FrameSampling, decode};
use kiln_image::{ImageProcessorConfig, RgbImage8, map_rgb};
use kiln_registry::{DecodeLimits, Error};
use serde_json::{Value, json};

const GOLDENS: &str = include_str!("../tests-data/video.json");

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

fn goldens(key: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(GOLDENS).unwrap();
    all[key].as_array().unwrap().clone()
}

fn files() -> Vec<(String, Vec<u8>)> {
    let of = |g: &Value| {
        let name = g["name"].as_str().unwrap().to_owned();
        (name, unhex(g["file"].as_str().unwrap()))
    };
    goldens("animations").iter().map(of).collect()
}

#[test]
fn frames_and_times_are_pillows() {
    for golden in goldens("animations") {
        let name = &golden["name"];
        let file = unhex(golden["file"].as_str().unwrap());
        let item = decode(&file, &DecodeLimits::default()).unwrap();
        let clip = Clip::from_item(&item).unwrap();
        let expected = golden["frames"].as_array().unwrap();
        assert_eq!(clip.frames(), expected.len(), "{name}");
        assert_eq!((clip.height(), clip.width()), (8, 12), "{name}");
        // See `decode` on blending.
        let most = u8::from(name == "webp");
        for (i, frame) in expected.iter().enumerate() {
            let expected = unhex(frame.as_str().unwrap());
            let apart = clip.frame(i).iter().zip(&expected);
            let worst = apart.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= most, "{name}: frame {i} is {worst} levels off");
        }
        let (_, times) = item.tensors().require_i64::<1>(FRAME_TIMES).unwrap();
        assert_eq!(json!(times), golden["times"], "{name}");
    }
}

#[test]
fn the_same_frames_are_chosen() {
    for golden in goldens("sampling") {
        let sampling = FrameSampling {
            num_frames: golden["num_frames"].as_u64().map(|n| n as usize),
            fps: golden["fps"].as_f64(),
            max_frames: Some(1000),
        };
        let total = golden["total"].as_u64().unwrap() as usize;
        let indices = sampling.indices(total, golden["seconds"].as_f64().unwrap());
        assert_eq!(json!(indices), golden["indices"], "{golden}");
    }
}

/// A picture's pixels equal the reference's (kiln-image's goldens), so a frame's do.
#[test]
fn a_frame_is_mapped_as_the_picture_that_it_is() {
    let (_, file) = &files()[0];
    let item = decode(file, &DecodeLimits::default()).unwrap();
    let clip = Clip::from_item(&item).unwrap();
    let size = json!({"image_processor_type": "CLIPImageProcessor", "size": 6, "crop_size": 6,
        "num_frames": 2});
    let config = VideoProcessorConfig::from_value(&size, None).unwrap();
    let mapped = map_clip(&config, clip).unwrap();
    let (shape, pixels) = mapped.require_f32::<5>("pixel_values_videos").unwrap();
    assert_eq!(shape, [1, 2, 3, 6, 6]);
    let image = ImageProcessorConfig::from_value(&size, None).unwrap();
    for (i, frame) in [0, 2].into_iter().enumerate() {
        let picture = RgbImage8::new(12, 8, clip.frame(frame).to_vec()).unwrap();
        let alone = map_rgb(&image, &picture).unwrap();
        let (_, expected) = alone.require_f32::<4>("pixel_values").unwrap();
        assert_eq!(&pixels[i * 108..(i + 1) * 108], expected);
    }
}

fn refusal(bytes: &[u8], limits: &DecodeLimits) -> String {
    let error = decode(bytes, limits).unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    error.to_string()
}

#[test]
fn every_cut_and_many_a_flipped_byte_is_an_answer() {
    for (name, file) in files() {
        for end in 0..file.len() {
            // A cut behind the last frame loses nothing that is shown.
            if let Err(error) = decode(&file[..end], &DecodeLimits::default()) {
                assert!(error.is_callers_fault(), "{name}: {error}");
            } else {
                assert!(
                    end + 24 > file.len(),
                    "{name}: cut at {end} of {}",
                    file.len()
                );
            }
        }
        for at in 0..file.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = file.clone();
                bad[at] ^= flip;
                if let Err(error) = decode(&bad, &DecodeLimits::default()) {
                    assert!(error.is_callers_fault(), "{name} at {at}: {error}");
                }
            }
        }
    }
}

#[test]
fn limits_hold_while_frames_come() {
    let limits = DecodeLimits::default();
    for (name, file) in files() {
        let of = |limits: DecodeLimits| refusal(&file, &limits);
        let frames = of(DecodeLimits {
            max_frames: 4,
            ..limits.clone()
        });
        assert!(frames.contains("more than 4 frames"), "{name}: {frames}");
        let seconds = of(DecodeLimits {
            max_seconds: 0.1,
            ..limits.clone()
        });
        assert!(seconds.contains("0.1 seconds"), "{name}: {seconds}");
        let pixels = of(DecodeLimits {
            max_pixels: 100,
            ..limits.clone()
        });
        assert!(pixels.contains("together"), "{name}: {pixels}");
        let pixels = of(DecodeLimits {
            max_pixels: 95,
            ..limits.clone()
        });
        assert!(pixels.contains("96 pixels"), "{name}: {pixels}");
        let side = of(DecodeLimits {
            max_side: 11,
            ..limits.clone()
        });
        assert!(side.contains("12x8"), "{name}: {side}");
        let exact = DecodeLimits {
            max_frames: 5,
            max_seconds: 0.46,
            ..limits.clone()
        };
        assert!(decode(&file, &exact).is_ok(), "{name}");
    }
}

#[test]
fn a_header_that_lies_costs_nothing() {
    let limits = DecodeLimits::default();
    let by_name = |wanted: &str| {
        let found = files().into_iter().find(|(name, _)| name == wanted);
        found.unwrap().1
    };
    let mut gif = by_name("gif");
    gif[6..10].copy_from_slice(&[0xff; 4]);
    assert!(refusal(&gif, &limits).contains("65535x65535"));
    // A frame far larger than its canvas.
    let mut gif = by_name("gif");
    let at = gif
        .windows(10)
        .position(|w| w[0] == 0x2c && w[1..5] == [0; 4]);
    let at = at.unwrap();
    gif[at + 5..at + 9].copy_from_slice(&[0xff; 4]);
    refusal(&gif, &limits);
    // No frame at all.
    refusal(b"GIF89a\x01\0\x01\0\0\0\0;", &limits);
    refusal(b"GIF89a\0\0\0\0\0\0\0;", &limits);
    let mut png = by_name("apng");
    png[16..20].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]);
    refusal(&png, &limits);
}

#[test]
fn a_still_picture_is_no_video() {
    let still = |golden: &str| {
        let all: Value = serde_json::from_str(GOLDENS).unwrap();
        unhex(all["stills"][golden].as_str().unwrap())
    };
    for name in ["png", "webp"] {
        let error = refusal(&still(name), &DecodeLimits::default());
        assert!(error.contains("send it as an image"), "{error}");
    }
    let gif = decode(&still("gif"), &DecodeLimits::default()).unwrap();
    assert_eq!(Clip::from_item(&gif).unwrap().frames(), 1);
}
