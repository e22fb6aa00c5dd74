//! The encoder's part of a step: which items its positions need, from the cache where they are
//! there, the others in batches of equal shapes, each content once.

use super::Worker;
use crate::Chunk;
use crate::pipeline::{ItemContent, PreparedItem};
use burn::tensor::Tensor;
use kiln_registry::{ContentHash, Error, NamedTensors, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Items of one call: modality, and the names and shapes of their tensors.
type Form = (String, Vec<(String, Vec<usize>)>);

/// An item to be encoded.
struct Wanted {
    content: ContentHash,
    /// The first request that needs it, and where.
    key: u64,
    at: usize,
}

impl Worker {
    /// Gives each request the rows that the chunks need; a request whose item does not encode fails.
    pub(super) fn encode_items(&mut self, chunks: &[Chunk]) {
        let needs = self.needs(chunks);
        let mut rows = HashMap::<ContentHash, Tensor<2>>::new();
        let mut forms = BTreeMap::<Form, Vec<Wanted>>::new();
        // All that is cached is taken before anything new makes it go.
        for (key, at, content) in &needs {
            self.stats.encoder_cache_queries.fetch_add(1, Relaxed);
            if let Some(cached) = self.encoder_cache.get(content) {
                self.stats.encoder_cache_hits.fetch_add(1, Relaxed);
                rows.insert(*content, cached);
                continue;
            }
            let wanted = forms.values().flatten();
            if wanted.into_iter().any(|w| w.content == *content) {
                continue;
            }
            let item = self.requests.get(key).map(|r| r.item(*at));
            if let Some(Ok((item, _))) = item {
                forms.entry(form(item)).or_default().push(Wanted {
                    content: *content,
                    key: *key,
                    at: *at,
                });
            }
        }
        let mut made = HashMap::<ContentHash, Result<Tensor<2>>>::new();
        for batch in forms.into_values() {
            for batch in batch.chunks(self.profile.encoder_batch.max(1)) {
                made.extend(self.encode_batch(batch));
            }
        }
        for (content, result) in &made {
            if let Ok(rows) = result {
                self.stats.encoded_items.fetch_add(1, Relaxed);
                self.encoder_cache.insert(*content, rows);
            }
        }
        for (key, at, content) in needs {
            let encoded = made.contains_key(&content);
            let result = match (rows.get(&content), made.get(&content)) {
                (Some(rows), _) => Ok(rows.clone()),
                (None, Some(result)) => result.clone(),
                (None, None) => Err(Error::internal("an item was not encoded")),
            };
            if let Err(error) = result.and_then(|rows| self.give(key, at, rows, encoded)) {
                self.fail(key, error);
            }
        }
    }

    fn give(&mut self, key: u64, at: usize, rows: Tensor<2>, encoded: bool) -> Result<()> {
        let Some(running) = self.requests.get_mut(&key) else {
            return Ok(()); // Another of its items failed.
        };
        // Rows from the cache, too: this range may count others than the one they were made for.
        self.executor.check_rows(&rows, running.item(at)?.1)?;
        running.give_rows(at, rows, encoded);
        Ok(())
    }

    /// The ranges that lack rows which the chunks need: the request, the range, its item's content.
    fn needs(&self, chunks: &[Chunk]) -> Vec<(u64, usize, ContentHash)> {
        let mut needs = vec![];
        for chunk in chunks {
            let key = self.owner.get(&chunk.id);
            let Some((key, running)) = key.and_then(|key| Some((*key, self.requests.get(key)?)))
            else {
                continue;
            };
            for at in running.ranges_at(&(chunk.start..chunk.start + chunk.len)) {
                let known =
                    running.has_rows(at) || needs.iter().any(|(k, a, _)| (*k, *a) == (key, at));
                if let (false, Ok((item, _))) = (known, running.item(at)) {
                    needs.push((key, at, item.hash));
                }
            }
        }
        needs
    }

    /// Items of one form in one call. Where that fails, one by one, so that each fails for itself.
    fn encode_batch(&self, batch: &[Wanted]) -> Vec<(ContentHash, Result<Tensor<2>>)> {
        let prepared = |w: &Wanted| {
            let running = self.requests.get(&w.key);
            running
                .ok_or_else(|| Error::internal("an item without a request"))
                .and_then(|r| r.item(w.at))
        };
        let mapped: Option<Vec<(&PreparedItem, &Arc<NamedTensors>)>> = batch
            .iter()
            .map(|w| match prepared(w) {
                Ok((item, _)) => match &item.content {
                    ItemContent::Mapped(tensors) => Some((item, tensors)),
                    ItemContent::Embeds(_) => None,
                },
                Err(_) => None,
            })
            .collect();
        if let Some(mapped) = mapped
            && let [(first, _), _, ..] = &mapped[..]
        {
            let tensors: Vec<&NamedTensors> = mapped.iter().map(|(_, t)| t.as_ref()).collect();
            if let Ok(encoded) = self.executor.encode_mapped(&first.modality, &tensors) {
                let contents = batch.iter().map(|w| w.content);
                let rows = encoded.into_iter().map(|e| Ok(e.features));
                return contents.zip(rows).collect();
            }
        }
        let one = |w: &Wanted| {
            let rows = prepared(w).and_then(|(item, range)| self.executor.encode(item, range));
            (w.content, rows.map(|encoded| encoded.features))
        };
        batch.iter().map(one).collect()
    }
}

fn form(item: &PreparedItem) -> Form {
    let shapes = match &item.content {
        ItemContent::Mapped(tensors) => tensors
            .iter()
            .map(|(name, tensor)| (name.to_owned(), tensor.shape().to_vec()))
            .collect(),
        ItemContent::Embeds(rows) => vec![(String::new(), rows.shape().to_vec())],
    };
    (item.modality.clone(), shapes)
}
