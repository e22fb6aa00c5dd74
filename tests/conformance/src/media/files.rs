//! Picture files of any size in the modes that cameras and browsers send, written without a
//! library: PNG with stored blocks, and JPEG of one colour, whose every block is two zero codes.

use super::mix;

/// A mode of [`write`]: colours, depth, and how the picture is to be turned.
struct Mode {
    name: &'static str,
    colours: Colours,
    /// EXIF's number, 1 to 8; 0: no EXIF at all.
    turned: u8,
}

enum Colours {
    /// PNG's colour type, bits of a sample, samples of a pixel.
    Png(u8, u8, usize),
    /// Components of a JPEG.
    Jpeg(u8),
}

use Colours::{Jpeg, Png};

const fn mode(name: &'static str, colours: Colours, turned: u8) -> Mode {
    Mode {
        name,
        colours,
        turned,
    }
}

const MODES: &[Mode] = &[
    mode("a grey PNG", Png(0, 8, 1), 0),
    mode("a palette PNG", Png(3, 8, 1), 0),
    mode("an RGB PNG", Png(2, 8, 3), 0),
    mode("a PNG of grey and alpha", Png(4, 8, 2), 0),
    mode("an RGBA PNG", Png(6, 8, 4), 0),
    mode("a 16-bit grey PNG", Png(0, 16, 1), 0),
    mode("a 16-bit RGB PNG", Png(2, 16, 3), 0),
    mode("a grey JPEG", Jpeg(1), 0),
    mode("a colour JPEG", Jpeg(3), 0),
    mode("a CMYK JPEG", Jpeg(4), 0),
    mode("an RGB PNG of orientation 1", Png(2, 8, 3), 1),
    mode("a colour JPEG of orientation 2", Jpeg(3), 2),
    mode("a colour JPEG of orientation 3", Jpeg(3), 3),
    mode("an RGB PNG of orientation 4", Png(2, 8, 3), 4),
    mode("a colour JPEG of orientation 5", Jpeg(3), 5),
    mode("an RGB PNG of orientation 6", Png(2, 8, 3), 6),
    mode("a CMYK JPEG of orientation 7", Jpeg(4), 7),
    mode("a palette PNG of orientation 8", Png(3, 8, 1), 8),
];

/// In how many modes [`write`] writes.
pub(super) const COUNT: usize = MODES.len();

/// Modes, with a size each, whose samples are as many bytes.
pub(super) const TWINS: [([usize; 2], usize); 6] = [
    ([24, 4], 0),
    ([24, 4], 1),
    ([8, 4], 2),
    ([12, 4], 3),
    ([6, 4], 4),
    ([12, 4], 5),
];

/// A file, and what it is.
pub(super) fn write(
    width: usize,
    height: usize,
    mode: usize,
    seed: u64,
) -> (&'static str, Vec<u8>) {
    let mode = &MODES[mode % COUNT];
    let [w, h] = [width as u32, height as u32];
    let bytes = match mode.colours {
        Png(colour, depth, samples) => png(w, h, (colour, depth, samples), mode.turned, seed),
        Jpeg(components) => jpeg(w, h, components, mode.turned),
    };
    (mode.name, bytes)
}

fn png(
    w: u32,
    h: u32,
    (colour, depth, samples): (u8, u8, usize),
    turned: u8,
    seed: u64,
) -> Vec<u8> {
    let row = w as usize * samples * usize::from(depth / 8);
    let mut drawn = (0..).map(|at| mix(seed << 32 ^ at) as u8);
    let mut raw = Vec::with_capacity((row + 1) * h as usize);
    for _ in 0..h {
        raw.push(0);
        raw.extend(drawn.by_ref().take(row));
    }
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let header = [
        &w.to_be_bytes()[..],
        &h.to_be_bytes(),
        &[depth, colour, 0, 0, 0],
    ];
    chunk(&mut out, b"IHDR", &header.concat());
    if colour == 3 {
        // Not the grey ramp: an index is another colour than the same number as grey.
        let palette = (0..=255u8).flat_map(|i| [255 - i, i, i / 2]);
        chunk(&mut out, b"PLTE", &palette.collect::<Vec<_>>());
    }
    if turned > 0 {
        chunk(&mut out, b"eXIf", &exif(turned));
    }
    chunk(&mut out, b"IDAT", &stored(&raw));
    chunk(&mut out, b"IEND", &[]);
    out
}

fn chunk(out: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(kind);
    out.extend(data);
    let mut crc = u32::MAX;
    for byte in kind.iter().chain(data) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    out.extend((!crc).to_be_bytes());
}

/// zlib without compression.
fn stored(raw: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    let blocks = raw.len().div_ceil(0xffff);
    for (at, block) in raw.chunks(0xffff).enumerate() {
        let len = block.len() as u16;
        out.push(u8::from(at + 1 == blocks));
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(block);
    }
    let [mut a, mut b] = [1u32, 0];
    for byte in raw {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    out.extend((b << 16 | a).to_be_bytes());
    out
}

/// A TIFF of one entry: the orientation.
fn exif(turned: u8) -> Vec<u8> {
    let mut out = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    out.extend([turned, 0, 0, 0, 0, 0, 0]);
    out
}

/// Baseline, mid-grey: both Huffman tables have one code, a zero bit, for "no difference" and for
/// "end of block".
fn jpeg(w: u32, h: u32, components: u8, turned: u8) -> Vec<u8> {
    let mut out = vec![0xff, 0xd8];
    let mut segment = |marker: u8, data: &[u8]| {
        out.extend([0xff, marker]);
        out.extend((data.len() as u16 + 2).to_be_bytes());
        out.extend(data);
    };
    if turned > 0 {
        segment(0xe1, &[&b"Exif\0\0"[..], &exif(turned)].concat());
    }
    if components == 4 {
        segment(0xee, b"Adobe\0\x64\0\0\0\0\0");
    }
    segment(0xdb, &[&[0][..], &[1; 64]].concat());
    let mut frame = vec![8];
    frame.extend((h as u16).to_be_bytes());
    frame.extend((w as u16).to_be_bytes());
    frame.push(components);
    frame.extend((1..=components).flat_map(|id| [id, 0x11, 0]));
    segment(0xc0, &frame);
    for class in [0x00, 0x10] {
        let mut table = vec![class, 1];
        table.extend([0; 16]);
        segment(0xc4, &table);
    }
    let mut scan = vec![components];
    scan.extend((1..=components).flat_map(|id| [id, 0]));
    scan.extend([0, 63, 0]);
    segment(0xda, &scan);
    let bits = (w.div_ceil(8) * h.div_ceil(8)) as usize * usize::from(components) * 2;
    out.extend(vec![0; bits / 8]);
    if !bits.is_multiple_of(8) {
        out.push(0xff >> (bits % 8));
    }
    out.extend([0xff, 0xd9]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_registry::DecodeLimits;

    #[test]
    fn every_mode_is_a_picture_of_its_size_turned_as_it_says() {
        for (at, mode) in MODES.iter().enumerate() {
            for (w, h) in [(1, 1), (19, 8), (300, 7), (2, 129)] {
                let (name, bytes) = write(w, h, at, 4);
                let item = kiln_image::decode(&bytes, &DecodeLimits::default())
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
                let upright = if mode.turned > 4 {
                    [w, h, 3]
                } else {
                    [h, w, 3]
                };
                assert_eq!(item.content().unwrap().shape(), upright, "{name}");
            }
        }
    }
}
