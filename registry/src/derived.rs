//! What a loader makes of a checkpoint's weights and may find again at the next start.

use bytes::Bytes;

/// A place for files that can be made anew at any time. The engine gives one that belongs to this
/// checkpoint as it is now: another content of its files, and there is another place.
pub trait DerivedFiles: Send + Sync {
    /// What was kept under a name, whole and unchanged; `None` when nothing is.
    fn read(&self, name: &str) -> Option<Bytes>;

    /// Keeps parts one after the other under a name. Nobody relies on it, so a failure is none of the
    /// caller's.
    fn keep(&self, name: &str, parts: &[Bytes]);
}
