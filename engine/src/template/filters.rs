//! What a chat template finds beside the template engine's own filters and functions: those that
//! transformers adds, and the two that keep values within bounds.

use super::{clock::strftime_now, json::tojson};
use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use std::fmt;

/// The filter that counts a value: it returns it unchanged, and uses fuel for all of it.
pub(super) const COUNTED: &str = "__kiln_counted";
/// The filter that copies a value, so that nothing can contain itself.
pub(super) const COPIED: &str = "__kiln_copied";

/// Values nested deeper than this are refused.
const MAX_DEPTH: usize = 40;

/// What `raise_exception` was called with, as the source of the engine's error.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

pub(super) fn add_to(env: &mut Environment<'_>) {
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    env.add_filter("tojson", tojson);
    env.add_filter(COUNTED, |state: &State, value: Value| {
        count(state, &value, 0)?;
        Ok::<_, Error>(value)
    });
    env.add_filter(COPIED, |state: &State, value: Value| copy(state, &value, 0));
    env.set_unknown_method_callback(method);
}

fn raise_exception(message: Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), name, args) {
        (Some(text), "removeprefix", [affix]) => {
            let affix = affix.as_str().unwrap_or_default();
            Ok(Value::from(text.strip_prefix(affix).unwrap_or(text)))
        }
        (Some(text), "removesuffix", [affix]) => {
            let affix = affix.as_str().unwrap_or_default();
            Ok(Value::from(text.strip_suffix(affix).unwrap_or(text)))
        }
        // A width is the one way to make much of little that the engine does not count.
        (Some(text), "format", _)
            if text
                .split(|c: char| !c.is_ascii_digit())
                .any(|n| n.len() > 4) =>
        {
            Err(invalid("a width or precision of more than four digits"))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Uses fuel for a value and all that is in it.
fn count(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    visit(state, value, depth)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()?.checked() {
                count(state, &item?, depth + 1)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()?.checked() {
                let key = key?;
                count(state, &value.get_item(&key)?, depth + 1)?;
                count(state, &key, depth + 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// A value made anew: lists and maps of its own, where an iterable or a namespace may refer to
/// the very namespace that is about to keep it.
fn copy(state: &State, value: &Value, depth: usize) -> Result<Value, Error> {
    visit(state, value, depth)?;
    Ok(match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Vec::new();
            for item in value.try_iter()?.checked() {
                items.push(copy(state, &item?, depth + 1)?);
            }
            if value.is_tuple() {
                Value::from(Tuple::from(items))
            } else {
                Value::from(items)
            }
        }
        ValueKind::Map => {
            let mut pairs = Vec::new();
            for key in value.try_iter()?.checked() {
                let key = key?;
                let item = copy(state, &value.get_item(&key)?, depth + 1)?;
                pairs.push((copy(state, &key, depth + 1)?, item));
            }
            Value::from_pairs(pairs)
        }
        _ => value.clone(),
    })
}

/// Uses fuel for one value, and refuses it where it lies too deep.
pub(super) fn visit(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("values are nested too deep"));
    }
    let bytes = value.as_str().map_or(0, str::len);
    state.consume_fuel(1 + bytes as u64 / 64)
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn render(source: &str) -> Result<String, Error> {
        let mut env = Environment::new();
        env.set_fuel(Some(100_000));
        add_to(&mut env);
        env.render_str(source, ())
    }

    #[test]
    fn python_methods_that_pycompat_lacks() {
        assert_eq!(
            render("{{ 'abc'.removeprefix('a').removesuffix('c') }}").unwrap(),
            "b"
        );
        assert!(render("{{ '{:>99999}'.format('a') }}").is_err());
        assert_eq!(render("{{ '{:>3}'.format('a') }}").unwrap(), "  a");
    }
}
