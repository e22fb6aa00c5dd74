//! From JSON to typed fields, such that an error names the field: serde's own errors say line and
//! column, which tell the writer of a program nothing. A type says how it is read and what its
//! schema is; a request is one list of fields, from which both are made.

use crate::openai::ApiError;
use serde_json::{Map, Value, json};
use std::fmt;

/// Where in a request a value stands; written out only in an error.
#[derive(Clone, Copy)]
pub(crate) enum At<'a> {
    /// The body itself.
    Root,
    /// A field of an object.
    Field(&'a At<'a>, &'a str),
    /// An element of a list.
    Index(&'a At<'a>, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(At::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, at) => write!(f, "{parent}[{at}]"),
        }
    }
}

impl At<'_> {
    /// The error of a value that is not what is wanted.
    pub(crate) fn wanted(&self, wanted: &str, value: &Value) -> ApiError {
        let given = match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        match self {
            Self::Root => ApiError::invalid(format!("the body must be {wanted}, not {given}")),
            _ => ApiError::field(self, format!("it must be {wanted}, not {given}")),
        }
    }

    /// The error of a field that has to be there.
    pub(crate) fn missing(&self) -> ApiError {
        ApiError::field(self, "it is missing")
    }
}

/// A type that is read from JSON.
pub(crate) trait FromJson: Sized {
    /// Reads a value.
    ///
    /// # Errors
    /// 400 that names the field.
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError>;

    /// Its JSON schema, for the OpenAPI document.
    fn schema() -> Value;
}

/// An object's fields, taken one by one; what is left over is ignored, as OpenAI-compatible servers
/// do.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub(crate) fn of(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            other => Err(at.wanted("an object", &other)),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }

    /// A field; `null` is as good as absent.
    pub(crate) fn take<T: FromJson>(
        &mut self,
        name: &str,
        at: &At<'_>,
    ) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::from_json(value, &At::Field(at, name)).map(Some),
        }
    }

    /// A field that has to be there.
    pub(crate) fn need<T: FromJson>(&mut self, name: &str, at: &At<'_>) -> Result<T, ApiError> {
        self.take(name, at)?
            .ok_or_else(|| At::Field(at, name).missing())
    }
}

impl FromJson for Value {
    fn from_json(value: Value, _: &At<'_>) -> Result<Self, ApiError> {
        Ok(value)
    }

    fn schema() -> Value {
        json!({})
    }
}

impl FromJson for bool {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        value
            .as_bool()
            .ok_or_else(|| at.wanted("true or false", &value))
    }

    fn schema() -> Value {
        json!({"type": "boolean"})
    }
}

impl FromJson for String {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(at.wanted("a string", &other)),
        }
    }

    fn schema() -> Value {
        json!({"type": "string"})
    }
}

impl FromJson for f32 {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        let number = value
            .as_f64()
            .ok_or_else(|| at.wanted("a number", &value))? as Self;
        if number.is_finite() {
            return Ok(number);
        }
        Err(ApiError::field(at, "the number is out of range"))
    }

    fn schema() -> Value {
        json!({"type": "number"})
    }
}

macro_rules! whole_numbers {
    ($($type:ty: $read:ident),+) => {$(
        impl FromJson for $type {
            fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
                // Some clients write 5.0; it is whole.
                let whole = value.$read().or_else(|| {
                    let float = value.as_f64().filter(|f| f.fract() == 0.0)?;
                    (float.abs() < 9e15).then_some(float as i64)?.try_into().ok()
                });
                match whole.map(Self::try_from) {
                    Some(Ok(number)) => Ok(number),
                    _ if value.is_number() => Err(ApiError::field(
                        at,
                        format!("{value} is no whole number between {} and {}", Self::MIN, Self::MAX),
                    )),
                    _ => Err(at.wanted("a whole number", &value)),
                }
            }

            fn schema() -> Value {
                json!({"type": "integer"})
            }
        }
    )+};
}

whole_numbers!(u32: as_u64, u64: as_u64, usize: as_u64, i32: as_i64, i64: as_i64);

impl<T: FromJson> FromJson for Vec<T> {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        let Value::Array(list) = value else {
            return Err(at.wanted("a list", &value));
        };
        list.into_iter()
            .enumerate()
            .map(|(index, value)| T::from_json(value, &At::Index(at, index)))
            .collect()
    }

    fn schema() -> Value {
        json!({"type": "array", "items": T::schema()})
    }
}

impl FromJson for Map<String, Value> {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(map),
            other => Err(at.wanted("an object", &other)),
        }
    }

    fn schema() -> Value {
        json!({"type": "object"})
    }
}

/// One string or a list of them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Strings(pub(crate) Vec<String>);

impl FromJson for Strings {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        match value {
            Value::String(one) => Ok(Self(vec![one])),
            Value::Array(_) => Ok(Self(Vec::from_json(value, at)?)),
            other => Err(at.wanted("a string or a list of strings", &other)),
        }
    }

    fn schema() -> Value {
        json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
    }
}

/// Declares a struct of optional fields that is read from JSON: the list is parser, schema and
/// documentation. `flatten` takes another such list's fields at the same level.
macro_rules! wire {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $(flatten $inner:ident : $inner_type:ty,)*
            $($(#[doc = $doc:literal])+ $field:ident : $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq)]
        $vis struct $name {
            $(pub(crate) $inner: $inner_type,)*
            $($(#[doc = $doc])+ pub(crate) $field: Option<$type>,)*
        }

        impl $name {
            /// Takes the fields out of an object.
            pub(crate) fn take(
                fields: &mut $crate::openai::json::Fields,
                at: &$crate::openai::json::At<'_>,
            ) -> Result<Self, $crate::openai::ApiError> {
                Ok(Self {
                    $($inner: <$inner_type>::take(fields, at)?,)*
                    $($field: fields.take(stringify!($field), at)?,)*
                })
            }

            /// The schema of each field, by name.
            pub(crate) fn properties(into: &mut serde_json::Map<String, serde_json::Value>) {
                $(<$inner_type>::properties(into);)*
                $({
                    let mut schema = <$type as $crate::openai::json::FromJson>::schema();
                    if let Some(schema) = schema.as_object_mut() {
                        schema.insert("description".to_owned(), concat!($($doc),+).trim().into());
                    }
                    into.insert(stringify!($field).to_owned(), schema);
                })*
            }
        }

        impl $crate::openai::json::FromJson for $name {
            fn from_json(
                value: serde_json::Value,
                at: &$crate::openai::json::At<'_>,
            ) -> Result<Self, $crate::openai::ApiError> {
                Self::take(&mut $crate::openai::json::Fields::of(value, at)?, at)
            }

            fn schema() -> serde_json::Value {
                let mut properties = serde_json::Map::new();
                Self::properties(&mut properties);
                serde_json::json!({"type": "object", "properties": properties})
            }
        }
    };
}
pub(crate) use wire;

/// A body of JSON.
///
/// # Errors
/// 400 for what is no JSON (nesting beyond 128 levels included), and for a field of another type.
pub(crate) fn parse<T: FromJson>(body: &[u8]) -> Result<T, ApiError> {
    let value = serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the body is no valid JSON: {error}")))?;
    T::from_json(value, &At::Root)
}

#[cfg(test)]
mod tests {
    use super::*;

    wire! {
        struct Inner {
            /// How deep.
            depth: u32,
        }
    }

    wire! {
        struct Outer {
            flatten inner: Inner,
            /// What it is called.
            name: String,
            /// More of them.
            list: Vec<Inner>,
            /// One or several.
            stop: Strings,
            /// How warm.
            heat: f32,
        }
    }

    fn fault(body: &str) -> (String, Option<String>) {
        let error = parse::<Outer>(body.as_bytes()).unwrap_err();
        (error.message, error.param)
    }

    #[test]
    fn an_error_names_the_field() {
        for (body, param) in [
            (r#"{"name": 3}"#, "name"),
            (r#"{"depth": -1}"#, "depth"),
            (r#"{"depth": 1.5}"#, "depth"),
            (r#"{"depth": 4294967296}"#, "depth"),
            (
                r#"{"list": [{"depth": 1}, {"depth": "x"}]}"#,
                "list[1].depth",
            ),
            (r#"{"list": [3]}"#, "list[0]"),
            (r#"{"stop": ["a", 1]}"#, "stop[1]"),
            (r#"{"heat": 1e300}"#, "heat"),
            (r#"{"heat": "warm"}"#, "heat"),
        ] {
            let (message, named) = fault(body);
            assert_eq!(named.as_deref(), Some(param), "{body}");
            assert!(message.starts_with(param), "{message}");
        }
        for body in ["", "[]", "{", "{\"heat\": NaN}", "{\"heat\": 1e999}", "3"] {
            assert_eq!(fault(body).1, None, "{body}");
        }
        let deep = format!("{{\"x\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(fault(&deep).0.contains("recursion"), "{}", fault(&deep).0);
    }

    #[test]
    fn what_is_there_is_read_and_the_rest_ignored() {
        let outer: Outer =
            parse(br#"{"name": "a", "depth": 5.0, "stop": "x", "list": null, "other": {}}"#)
                .unwrap();
        assert_eq!(outer.name.as_deref(), Some("a"));
        assert_eq!(outer.inner.depth, Some(5));
        assert_eq!(outer.stop, Some(Strings(vec!["x".to_owned()])));
        assert_eq!(outer.list, None);
        let schema = Outer::schema();
        assert_eq!(schema["properties"]["depth"]["type"], "integer");
        assert_eq!(
            schema["properties"]["name"]["description"],
            "What it is called."
        );
    }
}
