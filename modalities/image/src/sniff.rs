//! What the bytes are, told by the bytes alone, and whether the file is whole.
//!
//! Decoders of damaged files are lenient in different ways (a JPEG decoder paints the missing
//! half grey). A container that ends early is refused here, alike for every format.

use kiln_registry::{Error, Result};

/// A format that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

pub(crate) fn damaged() -> Error {
    Error::invalid("the image is damaged or cut short")
}

pub(crate) fn unsupported() -> Error {
    Error::invalid("the image uses a feature of its format that is not supported")
}

/// The format that the bytes begin as.
pub(crate) fn sniff(bytes: &[u8]) -> Result<Format> {
    if bytes.is_empty() {
        return Err(Error::invalid("the image is empty"));
    }
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if starts(b"\x89PNG\r\n\x1a\n") {
        Ok(Format::Png)
    } else if starts(b"\xff\xd8\xff") {
        Ok(Format::Jpeg)
    } else if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        Ok(Format::WebP)
    } else if starts(b"GIF87a") || starts(b"GIF89a") {
        Ok(Format::Gif)
    } else if starts(b"BM") {
        Ok(Format::Bmp)
    } else if starts(b"II*\0") || starts(b"MM\0*") {
        Ok(Format::Tiff)
    } else {
        Err(Error::invalid(
            "the data is no image of an accepted format: send PNG, JPEG, WebP, GIF, BMP or TIFF",
        ))
    }
}

/// Refuses a container that ends before its own end mark.
pub(crate) fn check_whole(format: Format, bytes: &[u8]) -> Result<()> {
    let whole = match format {
        Format::Png => png_end(bytes).is_some(),
        Format::Jpeg => jpeg_end(bytes).is_some(),
        Format::WebP => u32_le(bytes, 4).is_some_and(|n| n as usize + 8 <= bytes.len()),
        Format::Bmp => bmp_is_whole(bytes),
        // Strips and frames are addressed by the format itself: their decoders notice.
        Format::Gif | Format::Tiff => true,
    };
    if whole { Ok(()) } else { Err(damaged()) }
}

/// Refuses a file that is an image and a program or archive at once. Nothing here would run it,
/// but whoever sends one means no good, and whoever stores it may.
///
/// # Errors
/// [`Error::InvalidInput`] for such a file.
pub fn check_single_nature(bytes: &[u8]) -> Result<()> {
    let head = &bytes[..bytes.len().min(1024)];
    let pdf = head.windows(5).any(|w| w == b"%PDF-");
    if pdf || ends_as_zip(bytes) || holds_script(bytes) {
        return Err(Error::invalid(
            "the file is an image and something else at once",
        ));
    }
    Ok(())
}

/// Whether an end record of a ZIP archive closes the file exactly.
fn ends_as_zip(bytes: &[u8]) -> bool {
    const RECORD: usize = 22;
    let first = bytes.len().saturating_sub(RECORD + usize::from(u16::MAX));
    let tail = &bytes[first..];
    (0..tail.len().saturating_sub(RECORD - 1)).any(|at| {
        tail[at..].starts_with(b"PK\x05\x06")
            && usize::from(u16::from_le_bytes([tail[at + 20], tail[at + 21]]))
                == tail.len() - at - RECORD
    })
}

fn holds_script(bytes: &[u8]) -> bool {
    bytes.split(|b| *b == b'<').skip(1).any(|rest| {
        rest.get(..6)
            .is_some_and(|w| w.eq_ignore_ascii_case(b"script"))
            || rest
                .get(..5)
                .is_some_and(|w| w.eq_ignore_ascii_case(b"?php "))
    })
}

fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Where a PNG's last chunk ends.
fn png_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 8usize;
    loop {
        let header = bytes.get(at..at.checked_add(8)?)?;
        let length = u32::from_be_bytes(header.get(..4)?.try_into().ok()?) as usize;
        at = at.checked_add(length)?.checked_add(12)?;
        if at > bytes.len() {
            return None;
        }
        if header.get(4..) == Some(b"IEND") {
            return Some(at);
        }
    }
}

/// Where a JPEG's end mark ends. Segments are walked by their lengths, so that the end mark of
/// a thumbnail inside one does not count.
fn jpeg_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 2usize;
    loop {
        // Scan data and stray bytes: on to the next marker. FF00 and FFD0-D7 belong to the data.
        while *bytes.get(at)? != 0xff || matches!(*bytes.get(at + 1)?, 0 | 0xd0..=0xd7 | 0xff) {
            at += 1;
        }
        match bytes[at + 1] {
            0xd9 => return Some(at + 2),
            0x01 | 0xd8 => at += 2,
            _ => {
                let length = [*bytes.get(at + 2)?, *bytes.get(at + 3)?];
                at = at.checked_add(2 + usize::from(u16::from_be_bytes(length)))?;
            }
        }
    }
}

/// Whether an uncompressed bitmap has all its rows. (Run lengths are left to the decoder.)
fn bmp_is_whole(bytes: &[u8]) -> bool {
    let (Some(offset), Some(header)) = (u32_le(bytes, 10), u32_le(bytes, 14)) else {
        return false;
    };
    let u16_at = |at: usize| {
        bytes
            .get(at..at + 2)
            .map(|b| u64::from(u16::from_le_bytes([b[0], b[1]])))
    };
    let (width, height, bits, compression) = if header == 12 {
        (u16_at(18), u16_at(20), u16_at(24), Some(0))
    } else {
        let side = |at| u32_le(bytes, at).map(|v| u64::from((v as i32).unsigned_abs()));
        (side(18), side(22), u16_at(28), u32_le(bytes, 30))
    };
    match (width, height, bits, compression) {
        (Some(width), Some(height), Some(bits), Some(0 | 3 | 6)) => {
            let row = (width * bits).div_ceil(32) * 4;
            row.checked_mul(height)
                .is_some_and(|n| n.saturating_add(u64::from(offset)) <= bytes.len() as u64)
        }
        (Some(_), Some(_), Some(_), Some(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_types_do_not_matter_bytes_do() {
        assert_eq!(sniff(b"\xff\xd8\xff\xe0").unwrap(), Format::Jpeg);
        assert_eq!(sniff(b"RIFF\0\0\0\0WEBPVP8 ").unwrap(), Format::WebP);
        for no in [
            &b""[..],
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%PDF-1.7",
            b"RIFF",
        ] {
            let error = sniff(no).unwrap_err();
            assert!(error.is_callers_fault(), "{error}");
        }
    }

    #[test]
    fn an_archive_behind_an_image_is_noticed() {
        let mut file = b"GIF89a......".to_vec();
        file.extend(b"PK\x05\x06");
        file.extend([0; 18]);
        assert!(check_single_nature(&file).is_err());
        file.push(0);
        assert!(
            check_single_nature(&file).is_ok(),
            "a chance signature does not end the file"
        );
        assert!(check_single_nature(b"GIF89a<ScRiPt>").is_err());
        assert!(check_single_nature(b"GIF89a%PDF-1.4").is_err());
    }

    #[test]
    fn a_thumbnails_end_is_not_the_pictures() {
        let whole = b"\xff\xd8\xff\xe1\x00\x06\xff\xd9\0\0\xff\xda\x00\x02ab\xff\x00c\xff\xd9tail";
        assert_eq!(jpeg_end(whole), Some(whole.len() - 4));
        assert_eq!(jpeg_end(&whole[..whole.len() - 5]), None);
    }
}
