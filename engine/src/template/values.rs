//! JSON as a template sees it: objects keep the order of their keys, as Python's do, since
//! templates print tools with `tojson`.

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A JSON value.
pub(super) fn value_of(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Array(items) => items.iter().map(value_of).collect::<Vec<_>>().into(),
        serde_json::Value::Object(map) => object_of(
            map.iter()
                .map(|(key, value)| (key.clone(), value_of(value))),
        ),
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Value::from(whole),
            (None, Some(whole)) => Value::from(whole),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::Null => Value::from(()),
    }
}

/// An object of entries in this order.
pub(super) fn object_of(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    let mut object = Ordered::default();
    for (key, value) in entries {
        match object.places.get(&key) {
            Some(at) => object.entries[*at].1 = value,
            None => {
                object.places.insert(key.clone(), object.entries.len());
                object.entries.push((key, value));
            }
        }
    }
    Value::from_object(object)
}

/// About how many bytes a JSON value is as text.
pub(super) fn bytes_of(json: &serde_json::Value) -> usize {
    match json {
        serde_json::Value::String(text) => text.len() + 2,
        serde_json::Value::Array(items) => 2 + items.iter().map(|i| bytes_of(i) + 2).sum::<usize>(),
        serde_json::Value::Object(map) => {
            let entries = map
                .iter()
                .map(|(key, value)| key.len() + bytes_of(value) + 6);
            2 + entries.sum::<usize>()
        }
        _ => 8,
    }
}

#[derive(Debug, Default)]
struct Ordered {
    entries: Vec<(String, Value)>,
    places: BTreeMap<String, usize>,
}

impl Object for Ordered {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = self.places.get(key.as_str()?)?;
        Some(self.entries.get(*at)?.1.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let keys = self
            .entries
            .iter()
            .map(|(key, _)| Value::from(key.as_str()));
        Enumerator::Values(keys.collect())
    }
}
