//! What the bytes are, told by the bytes alone.

use kiln_registry::{Error, Result};

/// A format that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Wav,
    Flac,
    Mp3,
    Ogg,
}

const ACCEPTED: &str = "send WAV, FLAC, MP3 or Ogg Vorbis";

pub(crate) fn damaged() -> Error {
    Error::invalid("the audio is damaged or cut short")
}

pub(crate) fn unsupported() -> Error {
    Error::invalid(format!(
        "the audio uses a codec or a feature of its format that is not supported: {ACCEPTED}"
    ))
}

/// The format that the bytes begin as.
pub(crate) fn sniff(bytes: &[u8]) -> Result<Format> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if bytes.is_empty() {
        Err(Error::invalid("the audio is empty"))
    } else if starts(b"RIFF") && bytes.get(8..12) == Some(b"WAVE") {
        Ok(Format::Wav)
    } else if starts(b"fLaC") {
        Ok(Format::Flac)
    } else if starts(b"OggS") {
        Ok(Format::Ogg)
    } else if starts(b"ID3") || mpeg_layer_3(bytes) {
        Ok(Format::Mp3)
    } else {
        Err(Error::invalid(format!(
            "the data is no audio of an accepted format: {ACCEPTED}"
        )))
    }
}

/// A frame's header: eleven bits of 1, a version, layer III, a bit rate, a sampling rate.
fn mpeg_layer_3(bytes: &[u8]) -> bool {
    matches!(bytes, [0xff, second, third, ..]
        if second & 0xe0 == 0xe0 && second & 0x18 != 0x08 && second & 0x06 == 0x02
            && third & 0xf0 != 0xf0 && third & 0x0c != 0x0c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_types_do_not_matter_bytes_do() {
        assert_eq!(sniff(b"RIFF\0\0\0\0WAVEfmt ").unwrap(), Format::Wav);
        assert_eq!(sniff(b"ID3\x04").unwrap(), Format::Mp3);
        assert_eq!(sniff(b"\xff\xfb\x90\x44").unwrap(), Format::Mp3);
        for no in [
            &b""[..],
            b"RIFF\0\0\0\0WEBP",
            b"\xff\xd8\xff\xe0",
            b"\0\0\0\x18ftypM4A ",
            b"\xff",
        ] {
            let error = sniff(no).unwrap_err();
            assert!(error.is_callers_fault(), "{error}");
        }
    }
}
