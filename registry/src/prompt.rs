//! Prompts before and after the input processor, and the placeholder ranges between text and
//! encoder.

use crate::{Error, MediaItem, Result};
use std::collections::VecDeque;
use std::ops::Range;

/// A prompt as the caller gave it.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text to be tokenised.
    Text {
        /// The text, with the model's placeholder tokens (`<image>`) where items go.
        text: String,
        /// Whether the tokenizer adds its own special tokens (BOS). A chat template wrote them
        /// already.
        add_special_tokens: bool,
    },
    /// Token ids, one placeholder id per item.
    Tokens(Vec<u32>),
}

/// What the input processor takes.
#[derive(Debug, Clone)]
pub struct PromptInputs<'a> {
    /// The prompt's ids, before expansion.
    pub token_ids: Vec<u32>,
    /// The prompt's items in order, of all modalities.
    pub items: &'a [MediaItem],
}

impl PromptInputs<'_> {
    /// The items of one modality, in order.
    pub fn of(&self, modality: &str) -> impl Iterator<Item = &MediaItem> {
        self.items
            .iter()
            .filter(move |item| item.modality() == modality)
    }
}

/// The positions that one item takes in the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceholderRange {
    /// The modality's name.
    pub modality: String,
    /// The item's index among the prompt's items of its modality.
    pub item: usize,
    /// The first position.
    pub offset: usize,
    /// Positions, separators included.
    pub length: usize,
    /// Which positions an encoder row replaces; `None`: all. Separators such as row-break
    /// tokens keep their text embedding.
    pub embed_mask: Option<Vec<bool>>,
}

impl PlaceholderRange {
    /// The positions in the prompt.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.length
    }

    /// How many encoder rows the range takes.
    pub fn rows(&self) -> usize {
        match &self.embed_mask {
            None => self.length,
            Some(mask) => mask.iter().filter(|m| **m).count(),
        }
    }
}

/// What the input processor returns: the prompt as the model runs it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProcessedInputs {
    /// Expanded ids.
    pub token_ids: Vec<u32>,
    /// One range per item, in the order of the prompt.
    pub placeholders: Vec<PlaceholderRange>,
}

/// What one item's placeholder token becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expansion {
    /// The ids that take the token's place.
    pub token_ids: Vec<u32>,
    /// Which of them an encoder row replaces; `None`: all.
    pub embed_mask: Option<Vec<bool>>,
}

impl Expansion {
    /// `count` times the same id, all replaced by encoder rows.
    pub fn repeat(token_id: u32, count: usize) -> Self {
        Self {
            token_ids: vec![token_id; count],
            embed_mask: None,
        }
    }
}

/// Replaces each placeholder token of one modality by its item's expansion. The expansions are
/// in the items' order; ranges that other modalities have already are moved along.
///
/// # Errors
/// [`Error::InvalidInput`] when the prompt does not have exactly one placeholder token per item:
/// a placeholder typed as text, a forgotten one, or items without.
pub fn expand_placeholders(
    inputs: ProcessedInputs,
    modality: &str,
    placeholder_id: u32,
    placeholder: &str,
    expansions: Vec<Expansion>,
) -> Result<ProcessedInputs> {
    // Ids inside a finished range belong to it: another modality may use the same id there.
    let inside = |position: usize| {
        inputs
            .placeholders
            .iter()
            .any(|range| range.range().contains(&position))
    };
    let found = inputs
        .token_ids
        .iter()
        .enumerate()
        .filter(|(i, id)| **id == placeholder_id && !inside(*i))
        .count();
    if found != expansions.len() {
        return Err(Error::invalid(format!(
            "the prompt has {found} placeholder(s) `{placeholder}` for {} {modality} item(s): \
             each item needs exactly one, and the placeholder can't be typed as text",
            expansions.len()
        )));
    }
    let grown: usize = expansions.iter().map(|e| e.token_ids.len()).sum();
    let mut token_ids = Vec::with_capacity(inputs.token_ids.len() + grown);
    let mut placeholders = Vec::with_capacity(inputs.placeholders.len() + expansions.len());
    let mut expansions = VecDeque::from(expansions);
    let mut finished = VecDeque::from(inputs.placeholders.clone());
    let mut item = 0;
    for (position, id) in inputs.token_ids.iter().enumerate() {
        if finished
            .front()
            .is_some_and(|range| range.offset == position)
            && let Some(mut range) = finished.pop_front()
        {
            range.offset = token_ids.len();
            placeholders.push(range);
        }
        if *id == placeholder_id
            && !inside(position)
            && let Some(expansion) = expansions.pop_front()
        {
            placeholders.push(PlaceholderRange {
                modality: modality.to_owned(),
                item,
                offset: token_ids.len(),
                length: expansion.token_ids.len(),
                embed_mask: expansion.embed_mask,
            });
            token_ids.extend(expansion.token_ids);
            item += 1;
        } else {
            token_ids.push(*id);
        }
    }
    Ok(ProcessedInputs {
        token_ids,
        placeholders,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(token_ids: Vec<u32>) -> ProcessedInputs {
        ProcessedInputs {
            token_ids,
            placeholders: vec![],
        }
    }

    #[test]
    fn each_item_takes_its_own_length() {
        let out = expand_placeholders(
            plain(vec![1, 9, 2, 9, 3]),
            "image",
            9,
            "<image>",
            vec![Expansion::repeat(9, 2), Expansion::repeat(9, 3)],
        )
        .unwrap();
        assert_eq!(out.token_ids, [1, 9, 9, 2, 9, 9, 9, 3]);
        let ranges: Vec<_> = out
            .placeholders
            .iter()
            .map(|p| (p.item, p.range()))
            .collect();
        assert_eq!(ranges, [(0, 1..3), (1, 4..7)]);
    }

    #[test]
    fn another_modality_moves_the_ranges_along() {
        let images = expand_placeholders(
            plain(vec![8, 9, 5]),
            "image",
            9,
            "<image>",
            vec![Expansion {
                token_ids: vec![8, 9],
                embed_mask: Some(vec![false, true]),
            }],
        )
        .unwrap();
        // The 8 inside the image's range is a separator, not an audio placeholder.
        let both =
            expand_placeholders(images, "audio", 8, "<audio>", vec![Expansion::repeat(8, 3)])
                .unwrap();
        assert_eq!(both.token_ids, [8, 8, 8, 8, 9, 5]);
        let ranges: Vec<_> = both
            .placeholders
            .iter()
            .map(|p| (p.modality.as_str(), p.offset, p.rows()))
            .collect();
        assert_eq!(ranges, [("audio", 0, 3), ("image", 3, 1)]);
    }

    #[test]
    fn counts_must_agree() {
        for ids in [vec![1], vec![9, 9]] {
            let error = expand_placeholders(
                plain(ids),
                "image",
                9,
                "<image>",
                vec![Expansion::repeat(9, 1)],
            )
            .unwrap_err();
            assert!(error.is_callers_fault(), "{error}");
        }
    }
}
