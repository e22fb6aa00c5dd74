//! Pictures that mean harm, or merely are odd: rows 1 to 8 and 19.

use crate::server::{Server, ask, data_url, picture};
use image::metadata::Orientation;
use image::{DynamicImage, ImageFormat};
use serde_json::Value;
use std::io::Cursor;
use std::time::{Duration, Instant};

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// A PNG of hardly any bytes that says it is so large.
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

fn png(image: &DynamicImage) -> Vec<u8> {
    let mut out = Cursor::new(vec![]);
    image.write_to(&mut out, ImageFormat::Png).unwrap();
    out.into_inner()
}

fn about(bytes: &[u8]) -> Value {
    ask(&[&data_url(bytes)], "Describe the picture.")
}

/// The answer with the bits of its logprobs: equal only when nothing was computed otherwise.
fn logprobs(server: &Server, bytes: &[u8]) -> Value {
    let mut body = about(bytes);
    body["logprobs"] = true.into();
    let response = server.chat(&body);
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["choices"][0]["logprobs"].clone()
}

#[test]
fn row_01_image_bombs_are_refused_on_their_header() {
    let server = Server::start(&[]);
    for (width, height) in [(50_000, 50_000), (u32::MAX >> 1, 1), (16_000, 16_000)] {
        let began = Instant::now();
        server.chat(&about(&png_of(width, height))).error(400);
        assert!(began.elapsed() < Duration::from_secs(1));
    }
    server.is_well();
}

#[test]
fn row_02_animations_cost_one_frame() {
    let server = Server::start(&[]);
    let mut gif = b"GIF89a\x01\0\x01\0\x80\0\0\x10\x20\x30\xff\xff\xff".to_vec();
    for _ in 0..100_000 {
        gif.extend(b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0");
    }
    gif.push(0x3b);
    let began = Instant::now();
    assert_eq!(server.chat(&about(&gif)).status, 200);
    assert_eq!(server.chat(&about(&picture("animated.webp"))).status, 200);
    assert!(began.elapsed() < Duration::from_secs(5));
    server.is_well();
}

#[test]
fn row_03_fragments_of_every_format_are_refused_alike() {
    let server = Server::start(&[]);
    for name in [
        "rgb.png",
        "rgb.jpg",
        "rgb.bmp",
        "rgb.tiff",
        "rgb-lzw.tiff",
        "lossless.webp",
        "p.gif",
    ] {
        let whole = picture(name);
        for cut in [whole.len() / 2, 20, 3] {
            server.chat(&about(&whole[..cut])).error(400);
        }
        let mut corrupt = whole.clone();
        for byte in corrupt.iter_mut().skip(whole.len() / 3).step_by(7) {
            *byte ^= 0xa5;
        }
        let status = server.chat(&about(&corrupt)).status;
        assert!(matches!(status, 200 | 400), "{name}: {status}");
    }
    server.is_well();
}

#[test]
fn row_04_orientation_is_followed() {
    let server = Server::start(&["--no-prefix-cache"]);
    for tag in 1..=8u8 {
        for format in ["png", "jpg"] {
            let bytes = picture(&format!("exif-{tag}.{format}"));
            // What another decoder makes of the pixels, turned by hand.
            let mut turned = image::load_from_memory(&bytes).unwrap();
            turned.apply_orientation(Orientation::from_exif(tag).unwrap());
            assert_eq!(
                logprobs(&server, &bytes),
                logprobs(&server, &png(&turned)),
                "exif-{tag}.{format}"
            );
        }
    }
    server.is_well();
}

#[test]
fn row_05_every_colour_model_is_taken() {
    let server = Server::start(&[]);
    for name in [
        "cmyk.jpg",
        "grey.jpg",
        "i16.png",
        "1bit.png",
        "l.png",
        "la.png",
        "p.png",
        "p-alpha.png",
        "p-transparency.png",
        "rgb-trns.png",
        "rgba.png",
        "alpha.webp",
        "l.tiff",
    ] {
        let response = server.chat(&about(&picture(name)));
        assert_eq!(response.status, 200, "{name}: {}", response.text());
    }
    // A palette and an alpha channel that is dropped are the same picture as plain RGB.
    let rgb = image::load_from_memory(&picture("p.png"))
        .unwrap()
        .to_rgb8();
    let plain = png(&DynamicImage::ImageRgb8(rgb));
    assert_eq!(
        logprobs(&server, &picture("p.png")),
        logprobs(&server, &plain)
    );
    server.is_well();
}

#[test]
fn row_06_bytes_decide_what_a_file_is() {
    let server = Server::start(&[]);
    let svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>";
    let html = b"<html><img src='http://127.0.0.1/'></html>";
    for bytes in [
        &svg[..],
        html,
        b"%PDF-1.7\n%",
        b"PK\x03\x04xxxxxxxxxxxx",
        b"RIFF\0\0\0\0WAVE",
    ] {
        server.chat(&about(bytes)).error(400);
    }
    // A JPEG that calls itself something else, and one with a web page behind it, are JPEGs.
    let jpeg = picture("rgb.jpg");
    let url = data_url(&jpeg).replace("image/png", "text/html");
    assert_eq!(server.chat(&ask(&[&url], "What?")).status, 200);
    let polyglot = [&jpeg[..], html].concat();
    assert_eq!(server.chat(&about(&polyglot)).status, 200);
    server.is_well();
}

#[test]
fn row_07_nothing_is_no_picture() {
    let server = Server::start(&[]);
    for (width, height) in [(0, 5), (5, 0), (0, 0)] {
        server.chat(&about(&png_of(width, height))).error(400);
    }
    for url in [
        "data:image/png;base64,",
        "data:image/png;base64,   ",
        "data:image/png;base64,!!!!",
        "data:image/png;base64,AAAAA",
        "data:image/png",
        "data:,abc",
        "",
    ] {
        let error = server.chat(&ask(&[url], "What?")).error(400);
        assert_eq!(error["param"], "messages[0].content[0].image_url", "{url}");
    }
    server.is_well();
}

#[test]
fn row_08_degenerate_sizes_are_answered() {
    let server = Server::start(&[]);
    for (width, height) in [(1, 1), (1, 10_000), (10_000, 1), (2, 3)] {
        let bytes = png(&DynamicImage::new_rgb8(width, height));
        let response = server.chat(&about(&bytes));
        match response.status {
            200 => {}
            _ => assert!(
                response.error(400)["message"]
                    .as_str()
                    .unwrap()
                    .contains("10000"),
                "the limit is named"
            ),
        }
    }
    assert_eq!(
        server
            .chat(&about(&png(&DynamicImage::new_rgb8(1, 1))))
            .status,
        200
    );
    server.is_well();
}

#[test]
fn row_19_equal_bytes_of_another_shape_are_another_picture() {
    let server = Server::start(&[]);
    let bytes: Vec<u8> = (0..60 * 40 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let shaped = |width, height| {
        let image = image::RgbImage::from_raw(width, height, bytes.clone()).unwrap();
        png(&DynamicImage::ImageRgb8(image))
    };
    let (wide, tall) = (shaped(60, 40), shaped(40, 60));
    let first = (logprobs(&server, &wide), logprobs(&server, &tall));
    assert_ne!(first.0, first.1);
    let hits = server.metric("kiln:processor_cache_hits_total");
    let again = (logprobs(&server, &wide), logprobs(&server, &tall));
    assert_eq!(first, again);
    assert_eq!(server.metric("kiln:processor_cache_hits_total") - hits, 2.0);
    server.is_well();
    // As a server without any cache has it.
    let plain = Server::start(&[
        "--no-prefix-cache",
        "--encoder-cache-bytes",
        "1",
        "--processor-cache-bytes",
        "1",
    ]);
    assert_eq!(first, (logprobs(&plain, &wide), logprobs(&plain, &tall)));
}
