//! Pictures that nobody has seen: uncompressed bitmaps, made from a number.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

const SIDE: u32 = 96;

/// A data URL of a picture that is another one for each seed.
pub(super) fn unique(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        // xorshift64*: any two seeds differ within a few bytes.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
    };
    let color = [next(), next(), next()];
    let mut pixels = Vec::with_capacity((SIDE * SIDE * 3) as usize);
    for y in 0..SIDE {
        for x in 0..SIDE {
            let inside = (SIDE / 4..SIDE / 2).contains(&x) && (SIDE / 4..SIDE / 2).contains(&y);
            let noise = next() & 15;
            pixels.extend(color.map(|c| if inside { c } else { 0xE0 | noise }));
        }
    }
    data_url("image/bmp", &bitmap(SIDE, SIDE, &pixels))
}

/// A header that claims a picture of 50,000 by 50,000, and nothing behind it.
pub(super) fn bomb() -> String {
    data_url("image/bmp", &bitmap(50_000, 50_000, &[]))
}

/// 24 bits a pixel, blue first; rows of a multiple of four bytes need no padding.
fn bitmap(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    let size = 54 + pixels.len() as u32;
    for number in [
        size,
        0,
        54,
        40,
        width,
        height,
        1 | 24 << 16,
        0,
        0,
        2835,
        2835,
        0,
        0,
    ] {
        file.extend(number.to_le_bytes());
    }
    file.extend(pixels);
    file
}

/// Bytes as a data URL.
pub(super) fn data_url(media_type: &str, bytes: &[u8]) -> String {
    format!("data:{media_type};base64,{}", BASE64_STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_differ_and_are_whole() {
        assert_ne!(unique(1), unique(2));
        assert_eq!(unique(7), unique(7));
        let text = unique(1);
        let bytes = BASE64_STANDARD
            .decode(text.split(',').nth(1).unwrap())
            .unwrap();
        assert_eq!(bytes.len(), 54 + (SIDE * SIDE * 3) as usize);
        assert!((SIDE * 3).is_multiple_of(4));
    }
}
