//! What tells a prompt's KV blocks from others of the same tokens: its items, and the salt that its
//! client names so that nobody without it can find the blocks.

use super::PreparedItem;
use kiln_registry::ContentHash;
use std::ops::Deref;

/// A prompt's items in the order of their placeholders, and the salt of its blocks' names.
#[derive(Debug, Clone, Default)]
pub struct PreparedItems {
    list: Vec<PreparedItem>,
    salt: Option<ContentHash>,
}

impl PreparedItems {
    /// The same items for blocks of another salt; `None`: blocks that all unsalted prompts share.
    pub(crate) fn salted(self, salt: Option<ContentHash>) -> Self {
        Self { salt, ..self }
    }

    /// What tells the salt in the name of a first block; empty without one.
    pub(crate) fn salt(&self) -> &[u8] {
        match &self.salt {
            Some(salt) => salt.as_bytes(),
            None => &[],
        }
    }
}

impl From<Vec<PreparedItem>> for PreparedItems {
    fn from(list: Vec<PreparedItem>) -> Self {
        Self { list, salt: None }
    }
}

impl Deref for PreparedItems {
    type Target = [PreparedItem];

    fn deref(&self) -> &[PreparedItem] {
        &self.list
    }
}

impl<'a> IntoIterator for &'a PreparedItems {
    type Item = &'a PreparedItem;
    type IntoIter = std::slice::Iter<'a, PreparedItem>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}
