//! A checkpoint's JSON files as objects, and errors that name file and key.

use crate::Checkpoint;
use kiln_registry::{Error, Result};
use serde_json::{Map, Value};

/// A JSON file that must hold an object.
pub(crate) fn object(checkpoint: &Checkpoint, file: &str) -> Result<Option<Map<String, Value>>> {
    match checkpoint.json(file)? {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(Error::checkpoint(file, "it must hold a JSON object")),
    }
}

/// An error that names file and key.
pub(crate) fn malformed(file: &str, key: &str, expected: &str) -> Error {
    Error::checkpoint(file, format!("`{key}` must be {expected}"))
}
