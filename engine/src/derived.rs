//! Where what was made of a checkpoint's weights is kept for the next start: a folder of files, each
//! behind the hash of its content, named by the checkpoint's own files as they are now.
//!
//! A file is written under another name and moved, so that no start sees half of one, and what does
//! not have its hash is as good as absent: a torn or altered file is written anew.

use crate::Checkpoint;
use crate::checkpoint::map;
use bytes::Bytes;
use kiln_registry::{CheckpointFiles, DerivedFiles};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Changes with the layout of the files.
const VERSION: &str = "1";
/// Bytes of a hash.
const HASH: usize = 32;

pub(crate) struct DerivedFolder {
    folder: PathBuf,
    failed: AtomicBool,
}

impl DerivedFolder {
    /// The place of a checkpoint below `root`; `None` for one that is no folder.
    pub(crate) fn new(root: &Path, checkpoint: &Checkpoint) -> Option<Self> {
        let source = checkpoint.folder()?;
        let mut stamp = blake3::Hasher::new();
        stamp.update(VERSION.as_bytes());
        stamp.update(env!("CARGO_PKG_VERSION").as_bytes());
        stamp.update(
            fs::canonicalize(source)
                .ok()?
                .as_os_str()
                .as_encoded_bytes(),
        );
        let weights = checkpoint.list().ok()?;
        for name in weights.iter().filter(|n| n.ends_with(".safetensors")) {
            let metadata = fs::metadata(source.join(name)).ok()?;
            let changed = metadata.modified().ok()?;
            let changed = changed.duration_since(std::time::UNIX_EPOCH).ok()?;
            stamp.update(&(name.len() as u64).to_le_bytes());
            stamp.update(name.as_bytes());
            stamp.update(&metadata.len().to_le_bytes());
            stamp.update(&changed.as_nanos().to_le_bytes());
        }
        Some(Self {
            folder: root.join(&stamp.finalize().to_hex()[..32]),
            failed: AtomicBool::new(false),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder
            .join(blake3::hash(name.as_bytes()).to_hex().as_str())
    }

    fn write(&self, name: &str, parts: &[Bytes]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let path = self.path(name);
        // Two starts at a time write two files, and the later one stays.
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let written = (|| {
            let mut file = File::create(&part)?;
            file.write_all(hash(parts).as_bytes())?;
            file.write_all(&[0; 64 - HASH])?;
            for part in parts {
                file.write_all(part)?;
            }
            drop(file);
            fs::rename(&part, &path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written
    }
}

/// The hash of parts one after the other.
fn hash(parts: &[Bytes]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

impl DerivedFiles for DerivedFolder {
    fn read(&self, name: &str) -> Option<Bytes> {
        // Files of this folder are replaced, never changed.
        let bytes = map(&self.path(name), name).ok()??;
        if bytes.len() < 64 {
            return None;
        }
        let content = bytes.slice(64..);
        let told = blake3::Hash::from_slice(&bytes[..HASH]).ok()?;
        (hash(std::slice::from_ref(&content)) == told).then_some(content)
    }

    fn keep(&self, name: &str, parts: &[Bytes]) {
        if self.failed.load(Relaxed) {
            return;
        }
        if let Err(error) = self.write(name, parts) {
            self.failed.store(true, Relaxed);
            let folder = self.folder.display();
            tracing::warn!("nothing is kept in {folder} for the next start: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(weights: &[u8]) -> (tempfile::TempDir, Checkpoint) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), b"{}").unwrap();
        fs::write(folder.path().join("model.safetensors"), weights).unwrap();
        let opened = Checkpoint::open(folder.path()).unwrap();
        (folder, opened)
    }

    #[test]
    fn what_is_kept_is_found_until_it_or_its_source_changes() {
        let root = tempfile::tempdir().unwrap();
        let (source, opened) = checkpoint(b"abc");
        let place = DerivedFolder::new(root.path(), &opened).unwrap();
        assert!(place.read("a").is_none());
        place.keep("a", &[Bytes::from_static(b"12"), Bytes::from_static(b"3")]);
        assert_eq!(place.read("a").unwrap(), &b"123"[..]);
        assert!(place.read("b").is_none());
        let again = DerivedFolder::new(root.path(), &opened).unwrap();
        assert_eq!(again.read("a").unwrap(), &b"123"[..]);
        // A flipped byte, a torn file, an empty one.
        let path = place.path("a");
        let whole = fs::read(&path).unwrap();
        for torn in [&whole[..whole.len() - 1], &whole[..40], &[]] {
            fs::write(&path, torn).unwrap();
            assert!(place.read("a").is_none());
        }
        let mut flipped = whole.clone();
        flipped[65] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert!(place.read("a").is_none());
        place.keep("a", &[Bytes::from_static(b"123")]);
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(fs::read_dir(&place.folder).unwrap().count(), 1);
        // Other weights in the same folder.
        fs::write(source.path().join("model.safetensors"), b"abcd").unwrap();
        let other = DerivedFolder::new(root.path(), &opened).unwrap();
        assert!(other.read("a").is_none());
    }

    #[test]
    fn a_place_that_can_not_be_written_is_no_failure() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, b"").unwrap();
        let (_source, opened) = checkpoint(b"");
        let place = DerivedFolder::new(&file, &opened).unwrap();
        place.keep("a", &[Bytes::from_static(b"1")]);
        assert!(place.read("a").is_none());
        assert!(DerivedFolder::new(&file, &Checkpoint::embedded("e", &[])).is_none());
    }
}
