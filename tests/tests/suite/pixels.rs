//! Pixels against Pillow and against transformers' Pillow-backed processors.

use crate::support::{decode, json, pattern, pattern_of, read, u8_tensor};
use kiln_conformance::parity::compare_levels;
use kiln_image::{Filter, ImageProcessorConfig, RgbImage8, map_rgb, resize};
use safetensors::SafeTensors;

fn numbers(text: &str) -> (usize, usize) {
    let (width, height) = text.split_once('x').unwrap();
    (width.parse().unwrap(), height.parse().unwrap())
}

#[test]
fn resize_equals_pillow_bit_by_bit() {
    let bytes = read("pillow/resize.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut wrong = vec![];
    for name in file.names() {
        let parts: Vec<_> = name.split('.').collect();
        let number = match parts[0] {
            "nearest" => 0,
            "lanczos" => 1,
            "bilinear" => 2,
            "bicubic" => 3,
            other => panic!("{other}"),
        };
        let (width, height) = numbers(parts[1]);
        let (to_width, to_height) = numbers(parts[2]);
        let filter = Filter::from_pillow(number).unwrap();
        let resized = resize(&pattern(width, height, 21), to_width, to_height, filter).unwrap();
        let (shape, expected) = u8_tensor(&file, name);
        assert_eq!(shape, [to_height, to_width, 3]);
        if resized.data() != expected {
            wrong.push(name.to_owned());
        }
    }
    assert_eq!(file.len(), 48);
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn files_of_every_format_and_mode_decode_as_in_the_reference() {
    let bytes = read("processors/expected.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut wrong = vec![];
    let mut count = 0;
    for name in file.names() {
        let Some(input) = name.strip_prefix("decoded.") else {
            continue;
        };
        count += 1;
        let (shape, expected) = u8_tensor(&file, name);
        let decoded = decode(&read(&format!("processors/inputs/{input}")))
            .and_then(|item| RgbImage8::from_item(&item));
        match decoded {
            Err(error) => wrong.push(format!("{input}: {error}")),
            Ok(image) if [image.height(), image.width(), 3] != shape[..] => {
                wrong.push(format!(
                    "{input}: {:?}, the reference has {shape:?}",
                    image.size()
                ));
            }
            Ok(image) => {
                let levels: Vec<_> = image.data().iter().map(|v| f64::from(*v)).collect();
                if let Err(what) = compare_levels(&levels, &expected) {
                    wrong.push(format!("{input}: {what}"));
                }
            }
        }
    }
    assert!(count >= 39, "{count}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn processors_make_the_pixels_of_the_reference() {
    let bytes = read("processors/expected.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let index = json("processors/index.json");
    let mut wrong = vec![];
    let cases = index.as_array().unwrap();
    for case in cases {
        let variant = case["variant"].as_str().unwrap();
        let config = json(&format!("processors/{variant}.json"));
        let config = ImageProcessorConfig::from_value(&config, None).unwrap();
        let image = match case["source"]["file"].as_str() {
            Some(input) => {
                let item = decode(&read(&format!("processors/{input}"))).unwrap();
                RgbImage8::from_item(&item).unwrap()
            }
            None => pattern_of(&case["source"]["pattern"]),
        };
        let (shape, expected) = u8_tensor(&file, case["expected"].as_str().unwrap());
        let tensors = map_rgb(&config, &image).unwrap();
        let pixels = tensors.get("pixel_values").unwrap();
        // The mapper's tensors count items on their first axis.
        assert_eq!(pixels.shape()[0], 1);
        if pixels.shape()[1..] != shape {
            wrong.push(format!(
                "{case}: {:?}, the reference has {shape:?}",
                pixels.shape()
            ));
            continue;
        }
        let plane = shape[shape.len() - 1] * shape[shape.len() - 2];
        let levels: Vec<_> = pixels
            .as_f32()
            .unwrap()
            .iter()
            .enumerate()
            .map(|(at, value)| {
                let channel = at / plane % 3;
                let value = f64::from(*value);
                if config.do_normalize {
                    (value * config.image_std[channel] + config.image_mean[channel]) * 255.0
                } else {
                    value * 255.0
                }
            })
            .collect();
        if let Err(what) = compare_levels(&levels, &expected) {
            wrong.push(format!("{case}: {what}"));
        }
    }
    assert!(cases.len() >= 140, "{}", cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
