//! The prompt as the model runs it, folded up so that a person can read it.

use kiln_engine::{InputPipeline, Prepared};
use kiln_registry::{InputContext, PlaceholderRange};
use std::ops::Range;

/// Characters of one stretch of text that are worth showing.
const MOST_TEXT: usize = 400;
/// Runs of one placeholder range that are worth showing.
const MOST_RUNS: usize = 24;

/// The prompt's positions and what they hold.
pub(super) struct PromptLayout {
    /// Where the prompt comes from.
    pub(super) note: String,
    /// Tokens.
    pub(super) length: usize,
    /// Tokens that one sequence may have.
    pub(super) context: usize,
    /// Stretches of text and placeholder ranges in turn.
    pub(super) segments: Vec<Segment>,
}

/// A stretch of the prompt.
pub(super) struct Segment {
    /// Which placeholder range it is, if it is one.
    pub(super) range: Option<usize>,
    /// Its positions.
    pub(super) positions: Range<usize>,
    /// Its text; of a range, its ids in runs: `[<image> x 576]`.
    pub(super) text: String,
}

impl PromptLayout {
    pub(super) fn new(pipeline: &InputPipeline, prepared: &Prepared, note: String) -> Self {
        Self {
            note,
            length: prepared.token_ids.len(),
            context: pipeline.context().max_model_len(),
            segments: segments(
                pipeline.context(),
                &prepared.token_ids,
                &prepared.placeholders,
                &|ids| pipeline.tokenizer().decode(ids, false).ok(),
            ),
        }
    }

    /// The whole prompt in one line.
    pub(super) fn text(&self) -> String {
        self.segments.iter().map(|s| s.text.as_str()).collect()
    }

    /// The share of the context that it takes, in percent.
    pub(super) fn share(&self) -> f64 {
        100.0 * self.length as f64 / self.context.max(1) as f64
    }
}

fn segments(
    ctx: &InputContext,
    ids: &[u32],
    ranges: &[PlaceholderRange],
    decode: &dyn Fn(&[u32]) -> Option<String>,
) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut at = 0;
    let text = |positions: Range<usize>| Segment {
        range: None,
        text: shorten(&readable(ctx, &ids[positions.clone()], decode), MOST_TEXT),
        positions,
    };
    for (index, range) in ranges.iter().enumerate() {
        // The pipeline has checked that ranges are in order and inside the prompt.
        if at < range.offset {
            segments.push(text(at..range.offset));
        }
        segments.push(Segment {
            range: Some(index),
            positions: range.range(),
            text: runs(ctx, &ids[range.range()]),
        });
        at = range.range().end;
    }
    if at < ids.len() {
        segments.push(text(at..ids.len()));
    }
    segments
}

/// `[<image> x 24, <row>, <image> x 24]`.
fn runs(ctx: &InputContext, ids: &[u32]) -> String {
    let runs: Vec<_> = ids.chunk_by(|a, b| a == b).collect();
    let mut words: Vec<_> = runs
        .iter()
        .take(MOST_RUNS)
        .map(|run| match run.len() {
            1 => name(ctx, run[0]),
            n => format!("{} x {n}", name(ctx, run[0])),
        })
        .collect();
    if runs.len() > MOST_RUNS {
        words.push(format!("and {} more runs", runs.len() - MOST_RUNS));
    }
    format!("[{}]", words.join(", "))
}

fn name(ctx: &InputContext, id: u32) -> String {
    ctx.tokenizer()
        .id_to_token(id)
        .unwrap_or_else(|| format!("#{id}"))
}

/// Tokens one after the other, with what vocabularies write for a space and a line's end undone.
/// Decoding would do that, too, but also drop spaces at the text's ends: it is for other scripts
/// alone, which some vocabularies spell in bytes.
fn readable(ctx: &InputContext, ids: &[u32], decode: &dyn Fn(&[u32]) -> Option<String>) -> String {
    let mut text: String = ids.iter().map(|id| name(ctx, *id)).collect();
    text = text
        .replace(['\u{2581}', '\u{120}'], " ")
        .replace('\u{10a}', "\n")
        .replace("<0x0A>", "\n");
    if !text.is_ascii() {
        text = decode(ids).unwrap_or(text);
    }
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// The text with its middle left out, if it is longer than `most` characters.
pub(super) fn shorten(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let kept = most.saturating_sub(3);
    let head = kept - kept / 2;
    let tail = text.chars().skip(count - kept / 2);
    text.chars()
        .take(head)
        .chain("...".chars())
        .chain(tail)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_registry::{MediaCounts, Result, Tokenizer};
    use std::sync::Arc;

    struct Letters;
    impl Tokenizer for Letters {
        fn encode(&self, _: &str, _: bool) -> Result<Vec<u32>> {
            Ok(vec![])
        }
        fn token_to_id(&self, _: &str) -> Option<u32> {
            None
        }
        fn id_to_token(&self, id: u32) -> Option<String> {
            let token = ["<s>", "a", "\u{2581}b", "\u{10a}", "<image>", "<row>"];
            token.get(id as usize).map(|t| (*t).to_owned())
        }
    }

    #[test]
    fn a_prompt_is_folded_up() {
        let (config, processor) = (serde_json::json!({}), serde_json::json!({}));
        let limits = MediaCounts::new();
        let ctx = InputContext::new(config, processor, Arc::new(Letters), limits, 9);
        let range = |item, offset, length| PlaceholderRange {
            modality: "image".into(),
            item,
            offset,
            length,
            embed_mask: None,
        };
        let ids = [0, 1, 2, 4, 4, 5, 4, 4, 4, 3, 1, 99];
        let segments = segments(&ctx, &ids, &[range(0, 3, 4), range(1, 7, 2)], &|_| None);
        let layout = PromptLayout {
            note: String::new(),
            length: ids.len(),
            context: 24,
            segments,
        };
        let folded = "<s>a b[<image> x 2, <row>, <image>][<image> x 2]\\na#99";
        assert_eq!(layout.text(), folded);
        assert_eq!(layout.segments.len(), 4);
        assert_eq!(layout.segments[3].positions, 9..12);
        assert!((layout.share() - 50.0).abs() < 1e-9);
    }

    #[test]
    fn long_texts_lose_their_middle() {
        assert_eq!(shorten("abcdefghij", 10), "abcdefghij");
        assert_eq!(shorten("abcdefghijk", 10), "abcd...ijk");
        assert_eq!(shorten("äöüß", 3), "...");
    }
}
