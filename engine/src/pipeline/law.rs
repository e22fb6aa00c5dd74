//! The placeholder law as far as it can be checked before the encoder has run, item by item: a
//! processor's fault, told apart from a caller's.

use super::InputPipeline;
use kiln_registry::{Error, MediaItem, ProcessedInputs, Result};
use std::collections::BTreeMap;

impl InputPipeline {
    /// Each item has exactly one range, ranges lie apart and inside the prompt, and none takes more
    /// rows than declared. Returns which item each range belongs to.
    pub(super) fn check_law(
        &self,
        processed: &ProcessedInputs,
        items: &[MediaItem],
    ) -> Result<Vec<usize>> {
        let mut by_modality = BTreeMap::<&str, Vec<usize>>::new();
        for (at, item) in items.iter().enumerate() {
            by_modality.entry(item.modality()).or_default().push(at);
        }
        let mut order = Vec::with_capacity(items.len());
        let mut taken = vec![false; items.len()];
        let mut end = 0;
        for range in &processed.placeholders {
            let broken = |message: String| Error::PlaceholderLaw {
                modality: range.modality.clone(),
                item: range.item,
                message,
            };
            let at = by_modality
                .get(range.modality.as_str())
                .and_then(|list| list.get(range.item))
                .copied()
                .ok_or_else(|| broken("a placeholder range without an item".to_owned()))?;
            if std::mem::replace(&mut taken[at], true) {
                return Err(broken("has two placeholder ranges".to_owned()));
            }
            let inside = range
                .offset
                .checked_add(range.length)
                .is_some_and(|e| e <= processed.token_ids.len());
            if range.offset < end || !inside {
                return Err(broken(format!(
                    "its range {} + {} overlaps another or ends behind the prompt",
                    range.offset, range.length
                )));
            }
            end = range.offset + range.length;
            if range
                .embed_mask
                .as_ref()
                .is_some_and(|m| m.len() != range.length)
            {
                return Err(broken("its mask is not as long as its range".to_owned()));
            }
            let most = self.max_tokens.get(range.modality.as_str()).copied();
            let (rows, most) = (range.rows(), most.unwrap_or(0));
            if rows > most {
                return Err(broken(format!(
                    "{rows} placeholder rows, the declared maximum is {most}"
                )));
            }
            order.push(at);
        }
        match taken.iter().position(|t| !t) {
            None => Ok(order),
            Some(at) => Err(Error::PlaceholderLaw {
                modality: items[at].modality().to_owned(),
                item: at,
                message: "has no placeholder range".to_owned(),
            }),
        }
    }

    /// Ids that the embedding does not have are refused, but for placeholders, which it never sees.
    pub(super) fn check_ids(&self, processed: &ProcessedInputs) -> Result<()> {
        let covered = |position: usize| {
            processed.placeholders.iter().any(|r| {
                r.range().contains(&position)
                    && r.embed_mask
                        .as_ref()
                        .is_none_or(|mask| mask[position - r.offset])
            })
        };
        let rows = self.shape.embedding_rows;
        let bad = processed
            .token_ids
            .iter()
            .enumerate()
            .find(|(position, id)| **id as usize >= rows && !covered(*position));
        match bad {
            None => Ok(()),
            Some((_, id)) => Err(Error::invalid(format!(
                "there is no token {id}: the model has {rows}"
            ))),
        }
    }
}
