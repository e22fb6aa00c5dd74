//! A map under a budget of bytes that forgets what was least recently used. Nothing is dropped before
//! room is needed, and who holds a clone of a value keeps it.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// The map.
#[derive(Debug)]
pub(crate) struct ByteLru<K, V> {
    budget: usize,
    held: usize,
    clock: u64,
    entries: HashMap<K, Entry<V>>,
    /// Keys by when they were last used.
    order: BTreeMap<u64, K>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: usize,
    used: u64,
}

impl<K: Clone + Eq + Hash, V> ByteLru<K, V> {
    /// An empty map. A budget of 0 keeps nothing.
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            budget,
            held: 0,
            clock: 0,
            entries: HashMap::new(),
            order: BTreeMap::new(),
        }
    }

    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    /// Another budget; what exceeds it is given back.
    pub(crate) fn set_budget(&mut self, budget: usize) -> Vec<V> {
        self.budget = budget;
        self.make_room(0)
    }

    /// Bytes of all values.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Whether there is a value, which does not count as a use.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// The value of a key, which is the most recently used one now.
    pub(crate) fn get(&mut self, key: &K) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        self.order.remove(&entry.used);
        self.clock += 1;
        entry.used = self.clock;
        self.order.insert(self.clock, key.clone());
        Some(&mut entry.value)
    }

    /// Keeps a value of so many bytes, in place of an older one of that key. Returns the values that
    /// had to go: the one given where the budget could never hold it.
    pub(crate) fn insert(&mut self, key: K, value: V, bytes: usize) -> Vec<V> {
        let mut gone: Vec<V> = self.remove(&key).into_iter().collect();
        if bytes > self.budget || self.budget == 0 {
            gone.push(value);
            return gone;
        }
        gone.extend(self.make_room(bytes));
        self.clock += 1;
        self.order.insert(self.clock, key.clone());
        self.held += bytes;
        let used = self.clock;
        self.entries.insert(key, Entry { value, bytes, used });
        gone
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.order.remove(&entry.used);
        self.held -= entry.bytes;
        Some(entry.value)
    }

    fn make_room(&mut self, bytes: usize) -> Vec<V> {
        let mut gone = vec![];
        while self.held.saturating_add(bytes) > self.budget {
            let Some(oldest) = self.order.values().next().cloned() else {
                break;
            };
            gone.extend(self.remove(&oldest));
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_least_recently_used_goes_first_and_only_for_room() {
        let mut lru = ByteLru::new(10);
        assert!(lru.insert('a', 1, 4).is_empty());
        assert!(lru.insert('b', 2, 4).is_empty());
        assert_eq!(lru.get(&'a'), Some(&mut 1));
        assert_eq!(lru.insert('c', 3, 4), [2], "`a` was used since");
        assert_eq!(lru.insert('d', 4, 11), [4], "what never fits is not kept");
        assert!(lru.contains(&'a') && lru.contains(&'c'));
        assert_eq!(lru.insert('a', 5, 1), [1], "replaced");
        assert_eq!(lru.held(), 5);
        assert_eq!(lru.set_budget(4).len(), 1);
        let mut nothing = ByteLru::new(0);
        assert_eq!(nothing.insert('a', 1, 0), [1]);
    }

    proptest! {
        /// Whatever is put in and asked for, the budget holds and the account is right.
        #[test]
        fn the_budget_is_never_passed(steps in prop::collection::vec((0u8..12, 0usize..30, any::<bool>()), 0..200)) {
            let mut lru = ByteLru::new(64);
            for (key, bytes, ask) in steps {
                if ask {
                    prop_assert_eq!(lru.get(&key).is_some(), lru.contains(&key));
                } else {
                    lru.insert(key, bytes, bytes);
                    prop_assert!(lru.contains(&key));
                }
                let sum: usize = lru.entries.values().map(|e| e.value).sum();
                prop_assert_eq!(sum, lru.held());
                prop_assert!(sum <= 64);
                prop_assert_eq!(lru.order.len(), lru.entries.len());
            }
        }
    }
}
