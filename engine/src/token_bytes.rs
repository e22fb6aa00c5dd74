//! The bytes that each token stands for, which grammars go by: vocabularies write them in characters
//! of their own.

use crate::tokenizer::HfTokenizer;
use serde_json::Value;
use std::collections::HashMap;

/// Before the name of a token that is no text: UTF-8 has no such byte.
const SPECIAL: u8 = 0xff;

/// How a vocabulary writes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    /// Each byte is one character (GPT-2).
    ByteLevel,
    /// Spaces are `▁`, and bytes may be `<0x0A>` (SentencePiece).
    SentencePiece,
    /// As text.
    Plain,
}

impl HfTokenizer {
    /// The bytes of the tokens `0..vocabulary`; none for ids that the tokenizer does not have. Special
    /// tokens are their name behind a byte that no text has.
    pub(crate) fn token_bytes(&self, vocabulary: usize) -> Vec<Vec<u8>> {
        let tokenizer = self.inner();
        let writing = match tokenizer.get_decoder().map(serde_json::to_value) {
            Some(Ok(decoder)) => writing(&decoder),
            _ => Writing::Plain,
        };
        let bytes_of = byte_of_char();
        let added = tokenizer.get_added_tokens_decoder();
        let one = |id: u32| match added.get(&id) {
            Some(token) if token.special => [&[SPECIAL], token.content.as_bytes()].concat(),
            Some(token) => token.content.clone().into_bytes(),
            None => match tokenizer.id_to_token(id) {
                Some(token) => written(&token, writing, &bytes_of),
                None => vec![],
            },
        };
        (0..vocabulary as u32).map(one).collect()
    }
}

fn written(token: &str, writing: Writing, bytes_of: &HashMap<char, u8>) -> Vec<u8> {
    match writing {
        Writing::Plain => token.as_bytes().to_vec(),
        Writing::SentencePiece => match byte_token(token) {
            Some(byte) => vec![byte],
            None => token.replace('▁', " ").into_bytes(),
        },
        Writing::ByteLevel => {
            let bytes: Option<Vec<u8>> = token.chars().map(|c| bytes_of.get(&c).copied()).collect();
            bytes.unwrap_or_else(|| token.as_bytes().to_vec())
        }
    }
}

/// `<0x0A>`
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// From a decoder, which may be a list of them.
fn writing(decoder: &Value) -> Writing {
    let list = match decoder["decoders"].as_array() {
        Some(list) => list.iter().collect(),
        None => vec![decoder],
    };
    let has = |kind: &str| list.iter().any(|one| one["type"] == kind);
    let space = list
        .iter()
        .any(|one| one["type"] == "Metaspace" || one["pattern"]["String"] == "▁");
    if has("ByteLevel") {
        Writing::ByteLevel
    } else if has("ByteFallback") || space {
        Writing::SentencePiece
    } else {
        Writing::Plain
    }
}

/// GPT-2's table: printable bytes are themselves, the others the characters from U+0100 on.
fn byte_of_char() -> HashMap<char, u8> {
    let mut next = 0x100u32;
    let mut table = HashMap::new();
    for byte in 0..=255u8 {
        let code = if matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        table.extend(char::from_u32(code).map(|c| (c, byte)));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;
    use kiln_registry::Tokenizer;
    use serde_json::json;

    /// The bytes of a text's tokens are the text's.
    #[test]
    fn tokens_of_a_text_are_its_bytes() {
        let folder = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/checkpoints/llava-clip-llama"
        );
        let tokenizer = HfTokenizer::load(&Checkpoint::open(folder).unwrap()).unwrap();
        let bytes = tokenizer.token_bytes(330);
        assert_eq!(bytes.len(), 330);
        assert!(bytes[329].is_empty());
        let text = "A line,\n\ttabs, é and 😀 \u{ad}";
        let ids = tokenizer.encode(text, false).unwrap();
        let whole: Vec<u8> = ids
            .iter()
            .flat_map(|id| bytes[*id as usize].clone())
            .collect();
        assert_eq!(String::from_utf8(whole).unwrap(), text);
        let image = tokenizer.token_to_id("<image>").unwrap();
        assert_eq!(bytes[image as usize], b"\xff<image>");
    }

    #[test]
    fn each_way_of_writing_is_known_by_its_decoder() {
        let of = |decoder: Value| writing(&decoder);
        assert_eq!(
            of(json!({"type": "ByteLevel", "use_regex": true})),
            Writing::ByteLevel
        );
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]});
        assert_eq!(of(llama), Writing::SentencePiece);
        assert_eq!(of(json!({"type": "Metaspace"})), Writing::SentencePiece);
        assert_eq!(of(json!({"type": "WordPiece"})), Writing::Plain);
        let table = HashMap::new();
        assert_eq!(written("<0x0A>", Writing::SentencePiece, &table), [0x0A]);
        assert_eq!(
            written("▁a<0x0A>", Writing::SentencePiece, &table),
            b" a<0x0A>"
        );
    }
}
