//! Pictures to show a model: of any size, and files in every mode that a camera or a browser sends.
//! A shape is width and height.

use super::{Draw, files, mix};
use kiln_image::MODALITY;
use kiln_registry::{HostTensor, MediaItem, Result};
use serde_json::Value;
use std::collections::BTreeSet;

/// Sides from one pixel to longer than any tile, exact multiples and their neighbours.
const SIDES: [usize; 12] = [1, 2, 3, 7, 13, 27, 28, 29, 56, 140, 333, 1000];
/// Pairs of sides beyond this are left to the strips and the one large picture.
const MOST_PIXELS: usize = 200_000;
const LONGEST: usize = 4096;
/// Every size up to this square goes through the input processor...
const SQUARE: usize = 96;
/// ...and every width up to the longest at these heights, and the other way round...
const LINES: [usize; 3] = [1, 8, 48];
/// ...and some widths at greater heights, since even a blank picture has to be allocated.
const TALL: [usize; 3] = [336, 1000, LONGEST];
const STRIDE: usize = 67;

/// Pictures.
pub(super) struct Pictures;

impl Draw for Pictures {
    fn modality(&self) -> &'static str {
        MODALITY
    }

    fn name(&self, shape: &[usize]) -> String {
        let [width, height] = size(shape);
        format!("a picture of {width}x{height}")
    }

    fn draw(&self, shape: &[usize], seed: u64) -> Result<MediaItem> {
        let [width, height] = size(shape);
        picture(width, height, seed)
    }

    fn blank(&self, shape: &[usize]) -> Result<MediaItem> {
        let [width, height] = size(shape);
        of_bytes(width, height, vec![0; width * height * 3])
    }

    fn usual(&self, seed: u64) -> Vec<usize> {
        vec![24 + 4 * (seed as usize % 3), 20]
    }

    fn shapes(&self, configs: [&Value; 2]) -> Vec<Vec<usize>> {
        let sizes = sizes(configs).into_iter();
        sizes.map(|(w, h)| vec![w, h]).collect()
    }

    fn extremes(&self, configs: [&Value; 2]) -> Vec<Vec<usize>> {
        let mut sizes = vec![(1, 1), (LONGEST, 1), (1, LONGEST), (333, 250)];
        configs
            .iter()
            .for_each(|config| resolutions(config, &mut sizes));
        let fit = sizes.into_iter().filter(|(w, h)| w * h <= LONGEST * 512);
        let sizes: BTreeSet<_> = fit.collect();
        sizes.into_iter().map(|(w, h)| vec![w, h]).collect()
    }

    fn every_shape(&self) -> Box<dyn Iterator<Item = Vec<usize>>> {
        let square = (1..=SQUARE).flat_map(|w| (1..=SQUARE).map(move |h| vec![w, h]));
        let both = |n: usize, line: usize| [vec![n, line], vec![line, n]];
        let lines = (1..=LONGEST).flat_map(move |n| LINES.map(|line| both(n, line)));
        let tall = (1..=LONGEST).step_by(STRIDE);
        let tall = tall.flat_map(move |n| TALL.map(|line| both(n, line)));
        Box::new(square.chain(lines.chain(tall).flatten()))
    }

    fn longest(&self) -> &'static [usize] {
        &[LONGEST, LONGEST]
    }

    fn files(&self) -> &'static [(&'static str, &'static [u8])] {
        FILES
    }

    fn modes(&self) -> usize {
        files::COUNT
    }

    fn file(&self, shape: &[usize], mode: usize, seed: u64) -> (String, Vec<u8>) {
        let [width, height] = size(shape);
        let (name, bytes) = files::write(width, height, mode, seed);
        (format!("{name} of {width}x{height}"), bytes)
    }

    fn twins(&self) -> Vec<(Vec<usize>, usize)> {
        let twins = files::TWINS.into_iter();
        twins.map(|(size, mode)| (size.to_vec(), mode)).collect()
    }
}

fn size(shape: &[usize]) -> [usize; 2] {
    [0, 1].map(|axis| shape.get(axis).copied().unwrap_or(1))
}

/// A picture of noise over ramps: no two places alike, and no two seeds.
fn picture(width: usize, height: usize, seed: u64) -> Result<MediaItem> {
    let mut data = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let noise = mix(seed << 40 ^ (y as u64) << 20 ^ x as u64);
            let ramps = [x * 255 / width, y * 255 / height, (x + y) & 255];
            for (channel, ramp) in ramps.into_iter().enumerate() {
                let noise = (noise >> (channel * 8)) as u8 & 127;
                data.push((ramp as u8 >> 1) + noise);
            }
        }
    }
    of_bytes(width, height, data)
}

/// A picture of given bytes.
fn of_bytes(width: usize, height: usize, data: Vec<u8>) -> Result<MediaItem> {
    Ok(MediaItem::raw(
        MODALITY,
        HostTensor::u8([height, width, 3], data)?,
    ))
}

/// Width and height of all pictures of the sweep: pairs of sides, strips, every resolution that
/// the configuration names with its neighbours, and drawn ones.
fn sizes(configs: [&Value; 2]) -> Vec<(usize, usize)> {
    let mut sizes = BTreeSet::new();
    let pairs = SIDES.iter().flat_map(|w| SIDES.map(|h| (*w, h)));
    sizes.extend(pairs.filter(|(w, h)| w * h <= MOST_PIXELS));
    for side in [1, 2, 30] {
        sizes.extend([(side, LONGEST), (LONGEST, side)]);
    }
    sizes.insert((LONGEST, LONGEST));
    let mut cells = vec![];
    configs
        .iter()
        .for_each(|config| resolutions(config, &mut cells));
    for (w, h) in cells {
        let near = |n: usize| [n.saturating_sub(1).max(1), n, n + 1];
        let around = near(w).into_iter().flat_map(|w| near(h).map(|h| (w, h)));
        sizes.extend(around.filter(|(w, h)| w * h <= LONGEST * LONGEST));
    }
    // Drawn evenly over orders of magnitude.
    let side =
        |n: u64| 1usize << (mix(n) % 9) | (mix(n ^ 77) % 512) as usize & 0x1ff >> (mix(n) % 9);
    sizes.extend((0..24).map(|n| (side(2 * n), side(2 * n + 1))));
    sizes.into_iter().collect()
}

/// Pairs under any key that ends in `grid_pinpoints`, both ways round.
fn resolutions(value: &Value, found: &mut Vec<(usize, usize)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let pairs = value.as_array().filter(|_| key.ends_with("grid_pinpoints"));
                for pair in pairs.into_iter().flatten() {
                    let side = |at: usize| Some(pair.get(at)?.as_u64()? as usize);
                    if let (Some(a), Some(b)) = (side(0), side(1)) {
                        found.extend([(a, b), (b, a)]);
                    }
                }
                resolutions(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| resolutions(value, found)),
        _ => {}
    }
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../files/", $name)))),*]
    };
}

/// Files of every mode: bilevel, grey, palette, alpha, 16 bits, CMYK, animations, and all eight
/// orientations.
const FILES: &[(&str, &[u8])] = files![
    "1bit.png",
    "l.png",
    "la.png",
    "p.png",
    "p-alpha.png",
    "i16.png",
    "rgb.png",
    "rgba.png",
    "cmyk.jpg",
    "grey.jpg",
    "alpha.webp",
    "animated.gif",
    "p.bmp",
    "rgb-lzw.tiff",
    "exif-1.jpg",
    "exif-2.jpg",
    "exif-3.jpg",
    "exif-4.jpg",
    "exif-5.jpg",
    "exif-6.jpg",
    "exif-7.jpg",
    "exif-8.jpg",
    "exif-1.png",
    "exif-6.png",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sweep_has_strips_and_every_resolution_of_the_configuration() {
        let config = serde_json::json!({"a": {"image_grid_pinpoints": [[300, 650]]}});
        let sizes = sizes([&config, &Value::Null]);
        for size in [
            (1, 1),
            (4096, 1),
            (1, 4096),
            (4096, 4096),
            (300, 650),
            (649, 301),
        ] {
            assert!(sizes.contains(&size), "{size:?}");
        }
        assert!(sizes.iter().all(|(w, h)| *w > 0 && *h > 0));
    }

    #[test]
    fn seeds_and_sizes_make_other_pictures() {
        let hash = |w, h, seed| picture(w, h, seed).unwrap().hash();
        assert_eq!(hash(5, 4, 1), hash(5, 4, 1));
        assert_ne!(hash(5, 4, 1), hash(5, 4, 2));
        assert_ne!(hash(5, 4, 1), hash(4, 5, 1));
    }
}
