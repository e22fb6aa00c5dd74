//! What the bytes are, told by the bytes alone.

use kiln_registry::{Error, Result};

/// A format that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Gif,
    WebP,
    Apng,
}

const ACCEPTED: &str = "send an animated GIF, an animated WebP or an APNG";

pub(crate) fn damaged() -> Error {
    Error::invalid("the video is damaged or cut short")
}

pub(crate) fn unsupported() -> Error {
    Error::invalid("the video uses a feature of its format that is not supported")
}

pub(crate) fn still() -> Error {
    Error::invalid("the file is a still picture: send it as an image")
}

/// The format that the bytes begin as.
pub(crate) fn sniff(bytes: &[u8]) -> Result<Format> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if bytes.is_empty() {
        Err(Error::invalid("the video is empty"))
    } else if starts(b"GIF87a") || starts(b"GIF89a") {
        Ok(Format::Gif)
    } else if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        Ok(Format::WebP)
    } else if starts(b"\x89PNG\r\n\x1a\n") {
        Ok(Format::Apng)
    } else if let Some(film) = film(bytes) {
        Err(Error::invalid(format!(
            "{film} video is not accepted: {ACCEPTED}"
        )))
    } else {
        Err(Error::invalid(format!(
            "the data is no video of an accepted format: {ACCEPTED}"
        )))
    }
}

/// Refuses a RIFF file that is shorter than it says: its decoder would show fewer frames.
pub(crate) fn check_whole_riff(bytes: &[u8]) -> Result<()> {
    match bytes.get(4..8) {
        Some(&[a, b, c, d])
            if u32::from_le_bytes([a, b, c, d]) as usize <= bytes.len().saturating_sub(8) =>
        {
            Ok(())
        }
        _ => Err(damaged()),
    }
}

/// The name of a container that people send, and that is not decoded here.
fn film(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8) == Some(b"ftyp") {
        Some("MP4 or QuickTime")
    } else if bytes.starts_with(b"\x1a\x45\xdf\xa3") {
        Some("WebM or Matroska")
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"AVI ") {
        Some("AVI")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn films_are_named_with_what_is_accepted() {
        for (bytes, name) in [
            (&b"\0\0\0\x18ftypmp42"[..], "MP4"),
            (b"\x1a\x45\xdf\xa3\x01", "WebM"),
            (b"RIFF\0\0\0\0AVI LIST", "AVI"),
            (b"", "empty"),
            (b"plain text", "no video"),
        ] {
            let error = sniff(bytes).unwrap_err();
            assert!(
                error.is_callers_fault() && error.to_string().contains(name),
                "{error}"
            );
        }
        assert_eq!(sniff(b"GIF89a").unwrap(), Format::Gif);
    }
}
