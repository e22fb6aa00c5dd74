//! Where a checkpoint's files come from: a folder, mapped into memory, or the binary itself.

use bytes::Bytes;
use kiln_registry::{CheckpointFiles, Error, Result};
use memmap2::Mmap;
use serde_json::Value;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Files compiled into the binary, by name.
pub type EmbeddedFiles = &'static [(&'static str, &'static [u8])];

/// A checkpoint in Hugging Face's layout: `config.json`, weights, tokenizer and processor files.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    name: String,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Folder(PathBuf),
    Embedded(EmbeddedFiles),
}

impl Checkpoint {
    /// The checkpoint in a folder.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when there is no such folder, or no `config.json` in it.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let name = folder.display().to_string();
        if !folder.is_dir() {
            return Err(Error::checkpoint(
                name,
                "no such folder: give the folder that holds config.json and the weights",
            ));
        }
        if !folder.join("config.json").is_file() {
            return Err(Error::checkpoint(
                name,
                "there is no config.json in it: give the folder of a Hugging Face checkpoint",
            ));
        }
        Ok(Self {
            name,
            source: Source::Folder(folder.to_owned()),
        })
    }

    /// A checkpoint compiled into the binary.
    pub fn embedded(name: impl Into<String>, files: EmbeddedFiles) -> Self {
        Self {
            name: name.into(),
            source: Source::Embedded(files),
        }
    }

    /// What it is called in messages: the folder as given, or the embedded name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder, where it is one.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match &self.source {
            Source::Folder(folder) => Some(folder),
            Source::Embedded(_) => None,
        }
    }

    /// A JSON file's content, `None` when there is no such file.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] that names the file when it can't be read or is no JSON.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::checkpoint(name, e))
    }
}

impl CheckpointFiles for Checkpoint {
    fn read(&self, name: &str) -> Result<Option<Bytes>> {
        if !is_plain(name) {
            return Err(Error::checkpoint(
                name,
                "not a plain file name: a checkpoint's files lie in its own folder",
            ));
        }
        match &self.source {
            Source::Embedded(files) => Ok(files
                .iter()
                .find(|(file, _)| *file == name)
                .map(|(_, content)| Bytes::from_static(content))),
            Source::Folder(folder) => map(&folder.join(name), name),
        }
    }

    fn list(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match &self.source {
            Source::Embedded(files) => files.iter().map(|(name, _)| (*name).to_owned()).collect(),
            Source::Folder(folder) => fs::read_dir(folder)
                .map_err(|e| Error::checkpoint(&self.name, e))?
                .filter_map(std::result::Result::ok)
                .filter(|entry| entry.path().is_file())
                // A name that is no UTF-8 can't be named by any file of the checkpoint.
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect(),
        };
        names.sort();
        Ok(names)
    }
}

/// A name with one normal component, so that no index file can reach outside the folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', '\0'])
        && !(name.len() >= 2 && name.as_bytes()[1] == b':')
}

/// A file mapped into memory; `None` where there is none.
pub(crate) fn map(path: &Path, name: &str) -> Result<Option<Bytes>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::checkpoint(name, e)),
    };
    let metadata = file.metadata().map_err(|e| Error::checkpoint(name, e))?;
    if !metadata.is_file() {
        return Err(Error::checkpoint(name, "not a file"));
    }
    if metadata.len() == 0 {
        // An empty mapping is an error on some systems.
        return Ok(Some(Bytes::new()));
    }
    // SAFETY: the mapping is private and read-only, and `Bytes` keeps it alive as long as any
    // slice of it. Changing the file meanwhile is outside of what a process can defend against;
    // readers check every length against the mapping, which has the file's size at this moment.
    let mapping = unsafe { Mmap::map(&file) }.map_err(|e| Error::checkpoint(name, e))?;
    Ok(Some(Bytes::from_owner(mapping)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_an_embedded_checkpoint_read_alike() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), b"{\"a\": 1}").unwrap();
        fs::write(folder.path().join("empty"), b"").unwrap();
        let opened = Checkpoint::open(folder.path()).unwrap();
        let embedded = Checkpoint::embedded(
            "built-in",
            &[("empty", b""), ("config.json", b"{\"a\": 1}")],
        );
        for checkpoint in [opened, embedded] {
            assert_eq!(checkpoint.list().unwrap(), ["config.json", "empty"]);
            assert_eq!(checkpoint.json("config.json").unwrap().unwrap()["a"], 1);
            assert_eq!(checkpoint.read("empty").unwrap().unwrap().len(), 0);
            assert!(checkpoint.read("absent").unwrap().is_none());
            assert!(
                checkpoint
                    .json("empty")
                    .unwrap_err()
                    .to_string()
                    .contains("empty")
            );
        }
    }

    #[test]
    fn no_name_leaves_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), b"{}").unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        for name in [
            "../config.json",
            "/etc/passwd",
            "..",
            ".",
            "",
            "a/b",
            "a\\b",
            "C:x",
            "a\0b",
        ] {
            assert!(checkpoint.read(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_the_mend() {
        let folder = tempfile::tempdir().unwrap();
        let absent = Checkpoint::open(folder.path().join("absent"))
            .unwrap_err()
            .to_string();
        assert!(absent.contains("no such folder"), "{absent}");
        let empty = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(empty.contains("config.json"), "{empty}");
    }
}
