//! The identity of a full KV block: its tokens, the items at its positions, and all that came before.
//! Equal blocks hold the same bits, so a prompt may take those that an earlier sequence computed.
//!
//! *Source:* vLLM, automatic prefix caching.

use crate::pipeline::{PreparedItem, PreparedItems};
use kiln_registry::{ContentHash, PlaceholderRange};
use std::ops::Range;

/// Names the content of a full block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(ContentHash);

impl BlockHash {
    /// What the first block of a sequence stands behind. `domain`: what keys and values hang on
    /// beside tokens and items. `salt`: what a client adds so that those without it share none of
    /// the blocks behind; empty: those of all who add nothing.
    pub fn root(domain: u64, salt: &[u8]) -> Self {
        Self(ContentHash::of_fields(&[&domain.to_le_bytes(), salt]))
    }

    /// A block of these tokens behind another one. `items`: what tells the items at its positions.
    pub fn next(self, tokens: &[u32], items: &[u8]) -> Self {
        let tokens: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        let parent = self.0.as_bytes();
        Self(ContentHash::of_fields(&[parent, &tokens, items]))
    }
}

/// Names the blocks of a sequence as they fill.
#[derive(Debug, Clone)]
pub(crate) struct PrefixHasher {
    block_size: usize,
    last: BlockHash,
    /// Tokens of the block that is not full, and what tells its items.
    tokens: Vec<u32>,
    items: Vec<u8>,
}

impl PrefixHasher {
    /// A prompt's full blocks by name, and the hasher behind it.
    pub(crate) fn of_prompt(
        block_size: usize,
        domain: u64,
        tokens: &[u32],
        ranges: &[PlaceholderRange],
        items: &PreparedItems,
    ) -> (Vec<BlockHash>, Self) {
        let mut last = BlockHash::root(domain, items.salt());
        let mut hashes = Vec::with_capacity(tokens.len() / block_size);
        // Ranges are sorted and lie apart.
        let mut left: Vec<_> = ranges.iter().zip(items).collect();
        left.reverse();
        let mut items_in = |block: Range<usize>| {
            while left
                .last()
                .is_some_and(|(r, _)| r.range().end <= block.start)
            {
                left.pop();
            }
            let here = left.iter().rev().take_while(|(r, _)| r.offset < block.end);
            here.flat_map(|(range, item)| part(range, item, &block))
                .collect::<Vec<u8>>()
        };
        let blocks = tokens.chunks_exact(block_size);
        let rest = blocks.remainder().to_vec();
        for block in blocks {
            let start = hashes.len() * block_size;
            last = last.next(block, &items_in(start..start + block_size));
            hashes.push(last);
        }
        let start = hashes.len() * block_size;
        let hasher = Self {
            block_size,
            last,
            items: items_in(start..start + rest.len()),
            tokens: rest,
        };
        (hashes, hasher)
    }

    /// Takes a generated token; the name of the block that it fills, if it does.
    pub(crate) fn push(&mut self, token: u32) -> Option<BlockHash> {
        self.tokens.push(token);
        if self.tokens.len() < self.block_size {
            return None;
        }
        self.last = self.last.next(&self.tokens, &self.items);
        self.tokens.clear();
        self.items.clear();
        Some(self.last)
    }
}

/// What tells an item's part of a block: the item, which positions take one of its rows, and which
/// row is the first.
fn part(range: &PlaceholderRange, item: &PreparedItem, block: &Range<usize>) -> Vec<u8> {
    let mut rows = 0u64;
    let mut out = item.hash.as_bytes().to_vec();
    let mut mask = vec![];
    for position in range.range() {
        if position >= block.end {
            break;
        }
        let at = position - range.offset;
        let taken = range.embed_mask.as_ref().is_none_or(|m| m[at]);
        if position < block.start {
            rows += u64::from(taken);
        } else {
            mask.extend_from_slice(&((position - block.start) as u64).to_le_bytes());
            mask.push(u8::from(taken));
        }
    }
    out.extend_from_slice(&rows.to_le_bytes());
    out.extend_from_slice(&(mask.len() as u64).to_le_bytes());
    out.extend(mask);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::ItemContent;
    use kiln_registry::NamedTensors;
    use std::collections::HashSet;

    fn item(name: &str) -> PreparedItem {
        PreparedItem {
            modality: "image".to_owned(),
            hash: ContentHash::of(&[name], &NamedTensors::new()),
            content: ItemContent::Mapped(Default::default()),
        }
    }

    fn range(offset: usize, length: usize, embed_mask: Option<Vec<bool>>) -> PlaceholderRange {
        PlaceholderRange {
            modality: "image".to_owned(),
            item: 0,
            offset,
            length,
            embed_mask,
        }
    }

    fn names(
        tokens: &[u32],
        ranges: &[PlaceholderRange],
        items: &[PreparedItem],
    ) -> Vec<BlockHash> {
        PrefixHasher::of_prompt(4, 0, tokens, ranges, &items.to_vec().into()).0
    }

    #[test]
    fn equal_beginnings_have_equal_names_and_nothing_else_does() {
        let tokens: Vec<u32> = (0..12).collect();
        let plain = names(&tokens, &[], &[]);
        assert_eq!(plain.len(), 3);
        assert_eq!(names(&tokens[..11], &[], &[]), plain[..2]);
        let mut other = tokens.clone();
        other[5] = 99;
        let changed = names(&other, &[], &[]);
        assert_eq!(changed[0], plain[0]);
        assert!(
            changed[1] != plain[1] && changed[2] != plain[2],
            "the chain"
        );

        // The same ids with another picture, at another place, or with another mask.
        let at = |offset, length| range(offset, length, None);
        let masked = range(2, 4, Some(vec![true, false, true, true]));
        let all = [
            plain.clone(),
            names(&tokens, &[at(2, 4)], &[item("a")]),
            names(&tokens, &[at(2, 4)], &[item("b")]),
            names(&tokens, &[at(2, 3)], &[item("a")]),
            names(&tokens, &[at(1, 4)], &[item("a")]),
            names(&tokens, &[masked], &[item("a")]),
            names(&tokens, &[at(2, 2), at(4, 2)], &[item("a"), item("a")]),
            names(&tokens, &[at(2, 2), at(4, 2)], &[item("a"), item("b")]),
            PrefixHasher::of_prompt(4, 7, &tokens, &[], &PreparedItems::default()).0,
        ];
        let seconds: HashSet<_> = all.iter().map(|names| names[1]).collect();
        assert_eq!(seconds.len(), all.len());
        assert_eq!(all[1][0], all[3][0], "the first block sees the same rows");
    }

    /// Under another salt no block has the name of another, generated ones included.
    #[test]
    fn a_salt_is_part_of_every_name() {
        let tokens: Vec<u32> = (0..14).collect();
        let under = |salt: Option<&str>| {
            let salt = salt.map(|salt| ContentHash::of_fields(&[salt.as_bytes()]));
            let items = PreparedItems::from(vec![item("a")]).salted(salt);
            let ranges = [range(3, 3, None)];
            let (mut names, mut hasher) =
                PrefixHasher::of_prompt(4, 0, &tokens[..7], &ranges, &items);
            names.extend(tokens[7..].iter().filter_map(|t| hasher.push(*t)));
            names
        };
        let all = [under(None), under(Some("a")), under(Some("b"))];
        let names: HashSet<_> = all.iter().flatten().collect();
        assert_eq!(names.len(), 9);
        assert_eq!(under(Some("a")), all[1]);
    }

    /// A block that begins in the prompt and ends in the answer is named as the prompt of the next
    /// turn names it, items included.
    #[test]
    fn generated_blocks_are_named_as_prompts_are() {
        let tokens: Vec<u32> = (0..14).collect();
        for (ranges, items) in [(vec![], vec![]), (vec![range(3, 3, None)], vec![item("a")])] {
            let whole = names(&tokens, &ranges, &items);
            let (mut names, mut hasher) =
                PrefixHasher::of_prompt(4, 0, &tokens[..7], &ranges, &items.clone().into());
            names.extend(tokens[7..].iter().filter_map(|t| hasher.push(*t)));
            assert_eq!(names, whole);
        }
    }
}
