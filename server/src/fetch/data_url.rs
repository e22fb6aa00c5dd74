//! Data URLs: the content stands in the URL itself, in base64. The media type is not looked at;
//! what the bytes are shows in the bytes.

use super::FetchError;
use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// What stands behind `data:`.
pub(super) fn strip_scheme(url: &str) -> Option<&str> {
    let (scheme, rest) = url.trim_start().split_at_checked(5)?;
    scheme.eq_ignore_ascii_case("data:").then_some(rest)
}

/// The content of `[type][;base64],content`.
pub(super) fn decode(rest: &str, max_bytes: usize) -> Result<Bytes, FetchError> {
    let (kind, content) = rest
        .split_once(',')
        .ok_or_else(|| FetchError::new("the data URL has no comma before its content"))?;
    let is_base64 = kind
        .rsplit(';')
        .next()
        .is_some_and(|last| last.trim().eq_ignore_ascii_case("base64"));
    if !is_base64 {
        return Err(FetchError::new(
            "the data URL must be in base64: data:image/png;base64,...",
        ));
    }
    base64(content, max_bytes)
}

/// Base64 of either alphabet, padded or not.
pub(super) fn base64(text: &str, max_bytes: usize) -> Result<Bytes, FetchError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(FetchError::new("the content is empty"));
    }
    if text.len() / 4 * 3 > max_bytes.saturating_add(2) {
        return Err(too_large(max_bytes));
    }
    let alphabet = match text.bytes().any(|b| matches!(b, b'-' | b'_')) {
        true => URL_SAFE,
        false => STANDARD,
    };
    let bytes = GeneralPurpose::new(&alphabet, LENIENT)
        .decode(text)
        .map_err(|_| FetchError::new("the content is no valid base64"))?;
    if bytes.len() > max_bytes {
        return Err(too_large(max_bytes));
    }
    Ok(bytes.into())
}

pub(super) fn too_large(max_bytes: usize) -> FetchError {
    FetchError::new(format!(
        "the item has more than {max_bytes} bytes, the limit of --media-max-bytes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_in_all_its_spellings() {
        for url in [
            "data:image/png;base64,+/8=",
            "DATA:;BASE64,+/8",
            "data:image/png;charset=x;base64,-_8=",
            " data:;base64, +/8=\n",
        ] {
            let rest = strip_scheme(url).unwrap();
            assert_eq!(decode(rest, 9).unwrap().as_ref(), [0xfb, 0xff], "{url}");
        }
    }

    #[test]
    fn what_is_no_content_is_said() {
        for (rest, reason) in [
            ("image/png;base64", "comma"),
            ("image/png;base64,", "empty"),
            ("image/png,abc", "base64"),
            ("image/png;base64,%%%%", "valid"),
            ("image/png;base64,A", "valid"),
            ("image/png;base64,AAAAAAAAAAAAAAAA", "more than 9 bytes"),
        ] {
            let error = decode(rest, 9).unwrap_err();
            assert!(error.message.contains(reason), "{rest}: {}", error.message);
        }
    }
}
