//! How much of a prompt a step may run before an item would have to be encoded for which it has no
//! budget left.

use kiln_registry::ContentHash;
use std::collections::HashSet;
use std::ops::Range;

/// An item's place in a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemSpan {
    /// Its positions.
    pub range: Range<usize>,
    /// Encoder rows that it takes.
    pub rows: usize,
    /// Its content: equal items are encoded once.
    pub content: ContentHash,
}

/// What is left of a step's encoder rows.
#[derive(Debug)]
pub(super) struct EncoderBudget {
    /// `None`: the encoder is at work on what earlier steps planned.
    rows: Option<usize>,
    /// Items that the step encodes.
    planned: HashSet<ContentHash>,
}

impl EncoderBudget {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            rows: Some(rows),
            planned: HashSet::new(),
        }
    }

    /// Of a step that encodes nothing new.
    pub(super) fn closed() -> Self {
        Self {
            rows: None,
            planned: HashSet::new(),
        }
    }

    /// How many of `len` positions from `start` on can run. `there`: whether an item's rows are.
    pub(super) fn fit(
        &self,
        items: &[ItemSpan],
        start: usize,
        len: usize,
        there: impl Fn(usize, &ContentHash) -> bool,
    ) -> usize {
        let mut planned: HashSet<&ContentHash> = self.planned.iter().collect();
        let mut left = self.rows.unwrap_or(0);
        for (_, item) in needed(items, start, len, &there) {
            if self.rows.is_none() {
                return item.range.start.saturating_sub(start);
            }
            if planned.contains(&item.content) {
                continue;
            }
            if item.rows > left && !planned.is_empty() {
                return item.range.start.saturating_sub(start);
            }
            left = left.saturating_sub(item.rows);
            planned.insert(&item.content);
        }
        len
    }

    /// Takes what those positions need.
    pub(super) fn take(
        &mut self,
        items: &[ItemSpan],
        start: usize,
        len: usize,
        there: impl Fn(usize, &ContentHash) -> bool,
    ) {
        for (_, item) in needed(items, start, len, &there) {
            if self.planned.insert(item.content) {
                self.rows = self.rows.map(|rows| rows.saturating_sub(item.rows));
            }
        }
    }
}

fn needed<'a>(
    items: &'a [ItemSpan],
    start: usize,
    len: usize,
    there: &impl Fn(usize, &ContentHash) -> bool,
) -> impl Iterator<Item = (usize, &'a ItemSpan)> {
    let overlaps = move |item: &ItemSpan| item.range.start < start + len && start < item.range.end;
    items
        .iter()
        .enumerate()
        .filter(move |(at, item)| overlaps(item) && !there(*at, &item.content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_registry::NamedTensors;

    fn item(name: &str, range: Range<usize>) -> ItemSpan {
        ItemSpan {
            rows: range.len(),
            range,
            content: ContentHash::of(&[name], &NamedTensors::new()),
        }
    }

    #[test]
    fn a_step_stops_before_the_item_that_it_has_no_rows_for() {
        let items = [item("a", 2..8), item("b", 10..14), item("a", 20..26)];
        let none = |_: usize, _: &ContentHash| false;
        let mut budget = EncoderBudget::new(8);
        assert_eq!(budget.fit(&items, 0, 30, none), 10);
        assert_eq!(
            budget.fit(&items, 0, 30, |at, _| at == 1),
            30,
            "`b` is there"
        );
        budget.take(&items, 0, 10, none);
        assert_eq!(
            budget.fit(&items, 14, 16, none),
            16,
            "`a` is encoded already"
        );
        assert_eq!(budget.fit(&items, 10, 5, none), 0);
        // An item larger than the budget is encoded alone.
        assert_eq!(EncoderBudget::new(1).fit(&items, 0, 30, none), 10);
        assert_eq!(EncoderBudget::new(0).fit(&items, 12, 4, none), 4);
        // One that is at work takes nothing more.
        let closed = EncoderBudget::closed();
        assert_eq!(closed.fit(&items, 0, 30, none), 2);
        assert_eq!(closed.fit(&items, 0, 30, |at, _| at == 0), 10);
        assert_eq!(closed.fit(&items, 3, 4, none), 0);
    }
}
