//! Copies of fixture checkpoints with something changed, in a folder that goes when they do.

use crate::support::{checkpoint, load, model_options};
use kiln_engine::LoadedModel;
use kiln_registry::{Error, Result};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// A tensor on its way from one file to the next.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

/// A copy that may be changed.
pub(crate) struct Copy {
    folder: TempDir,
}

impl Copy {
    /// Of a fixture.
    pub(crate) fn of(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(checkpoint(name)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path().join(file)).unwrap()
    }

    pub(crate) fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path().join(file), content).unwrap();
    }

    pub(crate) fn remove(&self, file: &str) {
        fs::remove_file(self.path().join(file)).unwrap();
    }

    /// Changes a JSON file.
    pub(crate) fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&self.read(file)).unwrap();
        change(&mut value);
        self.write(file, value.to_string());
    }

    /// Changes the tensors of the one weight file.
    pub(crate) fn edit_tensors(&self, change: impl FnOnce(&mut BTreeMap<String, Stored>)) {
        let bytes = self.read(WEIGHTS);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let stored = Stored {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                data: view.data().to_vec(),
            };
            tensors.insert(name.to_owned(), stored);
        }
        change(&mut tensors);
        let views = tensors.iter().map(|(name, s)| {
            (
                name,
                TensorView::new(s.dtype, s.shape.clone(), &s.data).unwrap(),
            )
        });
        self.write(WEIGHTS, safetensors::serialize(views, None).unwrap());
    }

    /// Changes a weight file's header, which may become any bytes; the tensors' data stay.
    pub(crate) fn edit_header(&self, change: impl FnOnce(&mut Value)) {
        let bytes = self.read(WEIGHTS);
        let (header, data) = split(&bytes);
        let mut value = serde_json::from_slice(header).unwrap();
        change(&mut value);
        self.write(WEIGHTS, weights(value.to_string().as_bytes(), data));
    }

    /// Loads it as the tests load.
    pub(crate) fn load(&self) -> Result<LoadedModel> {
        load(self.path(), &model_options())
    }

    /// The error that loading it gives: one about the checkpoint, in one of these words.
    pub(crate) fn refused(&self, what: &str, words: &[&str]) -> Error {
        let loaded = std::panic::catch_unwind(|| self.load().map(|_| ()));
        let error = loaded
            .unwrap_or_else(|_| panic!("{what}: a panic"))
            .err()
            .unwrap_or_else(|| panic!("{what}: loaded"));
        assert!(
            matches!(
                error,
                Error::Checkpoint { .. } | Error::Tensor { .. } | Error::Unsupported(_)
            ),
            "{what}: {error:?}"
        );
        let message = error.to_string();
        for word in words {
            assert!(message.contains(word), "{what}: no `{word}` in: {message}");
        }
        error
    }
}

/// Header and data of a weight file.
pub(crate) fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = bytes.split_first_chunk().unwrap();
    rest.split_at(u64::from_le_bytes(*length) as usize)
}

/// A weight file of header and data.
pub(crate) fn weights(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// What a good checkpoint still does, in this process, after a bad one.
pub(crate) fn assert_a_good_one_loads() {
    let loaded = load(&checkpoint("llava-clip-llama"), &model_options());
    assert!(loaded.is_ok(), "{:?}", loaded.err());
}
