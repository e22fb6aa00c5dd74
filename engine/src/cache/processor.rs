//! Decoded and mapped items by what they were made of: a picture that was sent before is neither
//! decoded nor mapped again, and a client may send its name alone.

use super::ByteLru;
use kiln_registry::{ContentHash, MediaItem, NamedTensors};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Names that an item is found by; the oldest goes when there are more.
const MAX_ALIASES: usize = 16;
/// What a name costs, about.
const ALIAS_BYTES: usize = 128;

/// What leads to an item without its content: its encoded bytes, or a client's name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Alias(ContentHash);

impl Alias {
    /// A file's bytes as an item of a modality.
    pub(crate) fn of_bytes(modality: &str, bytes: &[u8]) -> Self {
        Self::of("bytes", modality, bytes)
    }

    /// A client's name for an item of a modality.
    pub(crate) fn of_uuid(modality: &str, uuid: &str) -> Self {
        Self::of("uuid", modality, uuid.as_bytes())
    }

    fn of(kind: &str, modality: &str, bytes: &[u8]) -> Self {
        Self(ContentHash::of_fields(&[
            kind.as_bytes(),
            modality.as_bytes(),
            bytes,
        ]))
    }
}

/// An item that was decoded and mapped.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) item: MediaItem,
    pub(crate) mapped: Arc<NamedTensors>,
}

impl Known {
    fn bytes(&self) -> usize {
        self.item.tensors().size_bytes() + self.mapped.size_bytes() + MAX_ALIASES * ALIAS_BYTES
    }
}

/// The cache, shared by the pool's threads. It keeps nothing until it is given a budget.
#[derive(Debug)]
pub(crate) struct ProcessorCache(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    items: ByteLru<ContentHash, Entry>,
    names: HashMap<Alias, ContentHash>,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    aliases: Vec<Alias>,
}

impl Default for ProcessorCache {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            items: ByteLru::new(0),
            names: HashMap::new(),
        }))
    }
}

impl ProcessorCache {
    pub(crate) fn set_budget(&self, bytes: usize) {
        let mut inner = self.inner();
        let gone = inner.items.set_budget(bytes);
        inner.forget_names(gone);
    }

    /// Whether anything is kept.
    pub(crate) fn is_on(&self) -> bool {
        self.inner().items.budget() > 0
    }

    /// Bytes of all items.
    pub(crate) fn held(&self) -> usize {
        self.inner().items.held()
    }

    /// The item that a name leads to.
    pub(crate) fn find(&self, alias: &Alias) -> Option<Known> {
        let mut inner = self.inner();
        let hash = *inner.names.get(alias)?;
        Some(inner.items.get(&hash)?.known.clone())
    }

    /// The item of a content.
    pub(crate) fn find_item(&self, hash: &ContentHash) -> Option<Known> {
        Some(self.inner().items.get(hash)?.known.clone())
    }

    /// Keeps an item as far as the budget allows, and the names that lead to it: a name that led to
    /// another one leads to this one now.
    pub(crate) fn insert(&self, known: Known, aliases: &[Alias]) {
        let mut inner = self.inner();
        let hash = known.item.hash();
        if !inner.items.contains(&hash) {
            let bytes = known.bytes();
            let entry = Entry {
                known,
                aliases: vec![],
            };
            let gone = inner.items.insert(hash, entry, bytes);
            inner.forget_names(gone);
        }
        for alias in aliases {
            inner.name(*alias, hash);
        }
    }

    /// A panic in the midst of a change leaves at worst a name that leads nowhere.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn name(&mut self, alias: Alias, hash: ContentHash) {
        match self.names.get(&alias) {
            Some(old) if *old == hash => return,
            Some(old) => {
                if let Some(entry) = self.items.get(&old.clone()) {
                    entry.aliases.retain(|a| *a != alias);
                }
            }
            None => {}
        }
        let Some(entry) = self.items.get(&hash) else {
            // It was too large to keep.
            self.names.remove(&alias);
            return;
        };
        entry.aliases.push(alias);
        if entry.aliases.len() > MAX_ALIASES {
            let oldest = entry.aliases.remove(0);
            self.names.remove(&oldest);
        }
        self.names.insert(alias, hash);
    }

    fn forget_names(&mut self, gone: Vec<Entry>) {
        for alias in gone.into_iter().flat_map(|entry| entry.aliases) {
            self.names.remove(&alias);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_registry::HostTensor;

    fn known(shape: [usize; 2]) -> Known {
        let pixels = HostTensor::u8(shape, vec![7; shape[0] * shape[1]]).unwrap();
        Known {
            item: MediaItem::raw("image", pixels),
            mapped: Arc::default(),
        }
    }

    #[test]
    fn names_lead_to_content_and_go_with_it() {
        let cache = ProcessorCache::default();
        let (file, name) = (Alias::of_bytes("image", b"x"), Alias::of_uuid("image", "x"));
        assert_ne!(file, name);
        cache.insert(known([2, 6]), &[file]);
        assert!(
            cache.find(&file).is_none(),
            "nothing is kept without a budget"
        );

        cache.set_budget(2 * known([2, 6]).bytes());
        cache.insert(known([2, 6]), &[file, name]);
        cache.insert(known([3, 4]), &[]);
        assert_eq!(cache.find(&name).unwrap().item, known([2, 6]).item);
        assert!(cache.find_item(&known([3, 4]).item.hash()).is_some());
        // The same name for other content: it leads to the newer one.
        cache.insert(known([3, 4]), &[name]);
        assert_eq!(cache.find(&name).unwrap().item, known([3, 4]).item);
        assert_eq!(cache.find(&file).unwrap().item, known([2, 6]).item);

        cache.find(&name);
        cache.insert(known([4, 3]), &[]);
        assert!(
            cache.find(&file).is_none(),
            "the least recently used is gone"
        );
        assert_eq!(cache.inner().names.len(), 1, "and its names with it");
        assert!(cache.held() <= 2 * known([2, 6]).bytes());
    }

    #[test]
    fn an_item_has_so_many_names() {
        let cache = ProcessorCache::default();
        cache.set_budget(1 << 20);
        let alias = |n: usize| Alias::of_uuid("image", &n.to_string());
        for n in 0..100 {
            cache.insert(known([1, 1]), &[alias(n)]);
        }
        assert_eq!(cache.inner().names.len(), MAX_ALIASES);
        assert!(cache.find(&alias(99)).is_some() && cache.find(&alias(0)).is_none());
    }
}
