//! Text from tokens as they come. A character that is split over tokens is held back until it is
//! whole, so that a stream never carries half of one.

use crate::HfTokenizer;
use kiln_registry::Result;
use std::sync::Arc;

/// What a decoder writes for bytes that are no UTF-8.
const REPLACEMENT: char = '\u{FFFD}';

/// At the end of the text, so many of them may still become a character: the first three bytes of
/// one, where a decoder writes one for each byte. Over few tokens (those bytes, and one before that
/// gave no text) any number may: such decoders also write valid bytes just before so.
const UNFINISHED: usize = 3;

/// Tokens after which text that never becomes whole is given up, and the context that is kept then.
const MOST_HELD: usize = 32;
const KEPT: usize = 8;

/// Turns the tokens of one sequence into text.
///
/// Decoders treat the first token apart (many drop its leading space), so each new token is
/// decoded together with those just before it, and what they gave already is taken off.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Arc<HfTokenizer>,
    skip_special_tokens: bool,
    /// The context, then the tokens whose text is not all sent yet.
    ids: Vec<u32>,
    context: usize,
    /// The start of the text of `ids` that is sent.
    sent: String,
}

impl Detokenizer {
    /// A detokenizer at the start of a sequence.
    pub fn new(tokenizer: Arc<HfTokenizer>, skip_special_tokens: bool) -> Self {
        Self {
            tokenizer,
            skip_special_tokens,
            ids: Vec::new(),
            context: 0,
            sent: String::new(),
        }
    }

    /// Takes the next token and returns the text that is final now.
    ///
    /// # Errors
    /// [`kiln_registry::Error::Internal`] when the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if !self.tokenizer.is_decoded(id, self.skip_special_tokens) {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = self.decode(0)?;
        let Some(rest) = text.strip_prefix(self.sent.as_str()) else {
            return self.push_revised();
        };
        let held = self.ids.len() - self.context;
        let unfinished = unfinished(rest, held);
        let new = rest[..rest.len() - unfinished].to_owned();
        self.sent.push_str(&new);
        if unfinished == 0 && !new.is_empty() {
            self.ids.drain(..self.context);
            self.all_sent()?;
            return Ok(new);
        }
        if held < MOST_HELD {
            return Ok(new);
        }
        let held = rest[rest.len() - unfinished..].to_owned();
        self.shorten(new, &held)
    }

    /// The text that was held back, when the sequence ends.
    pub fn finish(&mut self) -> String {
        let text = self.decode(0).unwrap_or_default();
        let rest = match text.strip_prefix(self.sent.as_str()) {
            Some(rest) => rest.to_owned(),
            None => self.decode(self.context).unwrap_or_default(),
        };
        self.ids.clear();
        self.context = 0;
        self.sent.clear();
        rest
    }

    /// The new tokens changed what the context gives: decoders with byte fallback write a run of
    /// byte tokens as characters only while all of the run is valid. What is sent stays, and the
    /// new tokens count alone.
    fn push_revised(&mut self) -> Result<String> {
        let text = self.decode(self.context)?;
        if text.ends_with(REPLACEMENT) && self.ids.len() - self.context <= UNFINISHED {
            return Ok(String::new());
        }
        self.ids.drain(..self.context);
        self.all_sent()?;
        Ok(text)
    }

    /// Long nonsense: only its last tokens stay, as they may start a character.
    fn shorten(&mut self, mut new: String, held: &str) -> Result<String> {
        self.ids.drain(..self.ids.len() - KEPT);
        self.all_sent()?;
        match self.sent.strip_suffix(held).map(str::len) {
            Some(sent) => {
                self.sent.truncate(sent);
                self.context = 0;
            }
            None => new.push_str(held),
        }
        Ok(new)
    }

    fn all_sent(&mut self) -> Result<()> {
        self.context = self.ids.len();
        self.sent = self.decode(0)?;
        Ok(())
    }

    fn decode(&self, from: usize) -> Result<String> {
        self.tokenizer
            .decode(&self.ids[from..], self.skip_special_tokens)
    }
}

/// Bytes at the end of the text of so many tokens that may still change.
fn unfinished(text: &str, tokens: usize) -> usize {
    let all = text.len() - text.trim_end_matches(REPLACEMENT).len();
    if tokens <= UNFINISHED + 1 {
        all
    } else {
        all.min(UNFINISHED * REPLACEMENT.len_utf8())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;
    use kiln_registry::Tokenizer;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::fs;
    use std::sync::LazyLock;

    static BYTE_LEVEL: LazyLock<Arc<HfTokenizer>> = LazyLock::new(|| {
        let folder = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/checkpoints/llava-clip-llama"
        );
        Arc::new(HfTokenizer::load(&Checkpoint::open(folder).unwrap()).unwrap())
    });

    /// The layout of Llama 2's tokenizer: words that begin with a space, bytes for all else.
    static SENTENCEPIECE: LazyLock<Arc<HfTokenizer>> = LazyLock::new(|| {
        let mut vocabulary: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
        vocabulary.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        vocabulary.extend(["▁", "▁Hello", "▁world", "ing", "▁▁", ",", "é"].map(str::to_owned));
        let vocabulary: serde_json::Map<String, Value> = vocabulary
            .into_iter()
            .enumerate()
            .map(|(id, token)| (token, json!(id)))
            .collect();
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "vocab": vocabulary, "merges": []},
        });
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        Arc::new(HfTokenizer::load(&Checkpoint::open(folder.path()).unwrap()).unwrap())
    });

    fn pieces(tokenizer: &Arc<HfTokenizer>, ids: &[u32], skip: bool) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip);
        let mut pieces: Vec<_> = ids
            .iter()
            .map(|id| detokenizer.push(*id).unwrap())
            .collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    fn ids_of(tokenizer: &HfTokenizer, tokens: &[&str]) -> Vec<u32> {
        tokens
            .iter()
            .map(|token| tokenizer.token_to_id(token).unwrap())
            .collect()
    }

    #[test]
    fn a_split_character_waits_until_it_is_whole() {
        let ids = BYTE_LEVEL.encode("aé😀", false).unwrap();
        assert_eq!(
            pieces(&BYTE_LEVEL, &ids, true),
            ["a", "", "é", "", "", "", "😀", ""]
        );
        assert_eq!(
            pieces(&BYTE_LEVEL, &ids[..5], true),
            ["a", "", "é", "", "", "\u{FFFD}"]
        );
    }

    #[test]
    fn spaces_and_bytes_of_a_sentencepiece_vocabulary() {
        for (tokens, expected) in [
            (
                vec!["<s>", "▁Hello", "</s>", "▁world", "ing"],
                vec!["", "Hello", "", " world", "ing", ""],
            ),
            (
                vec!["▁", "▁Hello", "▁", "▁world"],
                vec!["", " Hello", " ", " world", ""],
            ),
            (
                vec!["▁▁", "▁▁", ",", "▁Hello"],
                vec![" ", "  ", ",", " Hello", ""],
            ),
            (
                vec![
                    "<0x0A>", "<0xE4>", "<0xBD>", "<0xA0>", "<0xE4>", "<0xBD>", "<0xA0>", "▁Hello",
                ],
                vec!["\n", "", "", "你", "", "", "你", " Hello", ""],
            ),
            (
                vec!["é", "<0xE4>", "▁world"],
                vec!["é", "", "\u{FFFD} world", ""],
            ),
            (vec!["é", "<0xE4>"], vec!["é", "", "\u{FFFD}"]),
            (
                vec!["<0x0A>", "<0xE4>", "▁world"],
                vec!["\n", "", "\u{FFFD} world", ""],
            ),
        ] {
            let ids = ids_of(&SENTENCEPIECE, &tokens);
            assert_eq!(pieces(&SENTENCEPIECE, &ids, true), expected, "{tokens:?}");
        }
    }

    /// Nonsense is sent as it comes, at a bounded cost, and what follows it is whole.
    #[test]
    fn endless_nonsense_is_not_held_back() {
        for tokenizer in [&*BYTE_LEVEL, &*SENTENCEPIECE] {
            let byte = if Arc::ptr_eq(tokenizer, &BYTE_LEVEL) {
                "ÿ"
            } else {
                "<0xFF>"
            };
            let mut ids = ids_of(tokenizer, &[byte]).repeat(2000);
            ids.extend(tokenizer.encode("a", false).unwrap());
            let pieces = pieces(tokenizer, &ids, true);
            assert_eq!(pieces.concat(), tokenizer.decode(&ids, true).unwrap());
            assert!(pieces[..1990].concat().len() > 1900 * 3);
        }
    }

    proptest! {
        /// The pieces joined are the text of all tokens: over any tokens, the half of them bytes
        /// that make no character, and over those of any text.
        #[test]
        fn pieces_join_to_the_whole(
            ids in prop::collection::vec(0u32..320, 0..120),
            text in any::<String>(),
            skip in any::<bool>(),
        ) {
            for ids in [ids, BYTE_LEVEL.encode(&text, true).unwrap()] {
                let whole = BYTE_LEVEL.decode(&ids, skip).unwrap();
                prop_assert_eq!(pieces(&BYTE_LEVEL, &ids, skip).concat(), whole);
            }
        }

        /// The same over bytes that make no character, with few that end a run of them.
        #[test]
        fn pieces_of_nonsense_join_to_the_whole(bytes in prop::collection::vec(prop_oneof![
            8 => 0x80u32..0x100, 1 => 0xE0u32..0xF5, 1 => 0u32..0x80], 0..200)) {
            let ids: Vec<_> = bytes.iter().filter_map(|byte| id_of_byte(*byte as u8)).collect();
            let whole = BYTE_LEVEL.decode(&ids, true).unwrap();
            prop_assert_eq!(pieces(&BYTE_LEVEL, &ids, true).concat(), whole);
        }

        #[test]
        fn text_of_a_sentencepiece_vocabulary_comes_back(
            text in "[▁é, 😀你\n]{0,12}",
        ) {
            let ids = SENTENCEPIECE.encode(&text, false).unwrap();
            let whole = SENTENCEPIECE.decode(&ids, true).unwrap();
            prop_assert_eq!(pieces(&SENTENCEPIECE, &ids, true).concat(), whole);
        }
    }

    /// The token of one byte: byte-level vocabularies write printable bytes as themselves, and
    /// the others as the characters from U+0100 on.
    fn id_of_byte(byte: u8) -> Option<u32> {
        let printable = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let character = if printable(byte) {
            char::from(byte)
        } else {
            let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
            char::from_u32(0x100 + before)?
        };
        BYTE_LEVEL.token_to_id(&character.to_string())
    }
}
