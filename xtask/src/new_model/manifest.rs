//! Edits of parsed manifests. What is not touched keeps its bytes; what is put in by one function
//! is taken out without a trace by its twin.

use anyhow::{Context, Result, ensure};
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, Value, value};

const SEAL: &str = "scaffold";

/// A table by its path.
///
/// # Errors
/// When there is none.
pub(super) fn table<'a>(document: &'a mut DocumentMut, path: &[&str]) -> Result<&'a mut Table> {
    let mut table = document.as_table_mut();
    for key in path {
        table = table
            .get_mut(key)
            .and_then(Item::as_table_mut)
            .with_context(|| format!("there is no table [{}]", path.join(".")))?;
    }
    Ok(table)
}

/// An array of strings in a table.
///
/// # Errors
/// When there is none.
pub(super) fn array<'a>(table: &'a mut Table, key: &str) -> Result<&'a mut Array> {
    table
        .get_mut(key)
        .and_then(Item::as_array_mut)
        .with_context(|| format!("`{key}` is no array"))
}

/// Puts a string behind the last one that `before` holds of, spaced as its neighbours are.
pub(super) fn add(array: &mut Array, text: &str, before: impl Fn(&str) -> bool) {
    let found = (0..array.len()).rev().find(|at| {
        let element = array.get(*at).and_then(Value::as_str);
        element.is_some_and(&before)
    });
    let at = found.map_or(0, |at| at + 1);
    let mut new = Value::from(text);
    let len = array.len();
    let prefix = |array: &Array, at: usize| {
        let decor = array.get(at).map(Value::decor);
        let prefix = decor.and_then(|decor| decor.prefix()?.as_str());
        prefix.unwrap_or_default().to_owned()
    };
    // A comment behind an element is in the next one's prefix, and stays there.
    let spacing = |prefix: String| match prefix.rfind('\n') {
        Some(at) => prefix[at..].to_owned(),
        None if prefix.is_empty() => " ".to_owned(),
        None => prefix,
    };
    if len == 0 {
        new.decor_mut().clear();
    } else if at == 0 {
        // The first has the spacing of a first; the one that was takes a second's.
        let first = prefix(array, 0);
        new.decor_mut().set_prefix(first.clone());
        if let Some(old) = array.get_mut(0) {
            old.decor_mut().set_prefix(spacing(first));
        }
    } else {
        let like = prefix(array, if at == len { at - 1 } else { at });
        new.decor_mut().set_prefix(spacing(like));
        if at == len
            && let Some(last) = array.get_mut(at - 1)
        {
            let suffix = last.decor().suffix().cloned().unwrap_or_default();
            last.decor_mut().set_suffix("");
            new.decor_mut().set_suffix(suffix);
        }
    }
    array.insert_formatted(at, new);
}

/// Takes a string out.
///
/// # Errors
/// When it is not there exactly once.
pub(super) fn take(array: &mut Array, text: &str) -> Result<()> {
    let mut own =
        (0..array.len()).filter(|at| array.get(*at).and_then(Value::as_str) == Some(text));
    let (at, more) = (own.next(), own.next());
    ensure!(more.is_none(), "\"{text}\" is there twice");
    let at = at.with_context(|| format!("\"{text}\" is not there"))?;
    let removed = array.remove(at);
    // Whoever is at the end now takes the place of the one that was.
    let heir = if at == 0 { 0 } else { at - 1 };
    let last = at == array.len();
    if let Some(heir) = array.get_mut(heir) {
        let decor = removed.decor();
        if at == 0 {
            heir.decor_mut()
                .set_prefix(decor.prefix().cloned().unwrap_or_default());
        }
        if at > 0 && last {
            heir.decor_mut()
                .set_suffix(decor.suffix().cloned().unwrap_or_default());
        }
    }
    Ok(())
}

/// Puts an entry behind the last one whose key `before` holds of, or else first.
///
/// # Errors
/// When the key is there.
pub(super) fn add_entry(
    table: &mut Table,
    key: &str,
    item: Item,
    before: impl Fn(&str) -> bool,
) -> Result<()> {
    ensure!(!table.contains_key(key), "`{key}` is there already");
    let keys: Vec<String> = table.iter().map(|(key, _)| key.to_owned()).collect();
    let at = keys
        .iter()
        .rposition(|key| before(key))
        .map_or(0, |at| at + 1);
    // A table keeps the order of insertion: what comes behind is taken out and put back.
    let behind: Vec<_> = keys[at..]
        .iter()
        .filter_map(|key| table.remove_entry(key))
        .collect();
    table.insert(key, item);
    for (key, item) in behind {
        table.insert_formatted(&key, item);
    }
    Ok(())
}

/// Takes an entry out.
///
/// # Errors
/// When it is not there.
pub(super) fn take_entry(table: &mut Table, key: &str) -> Result<()> {
    let gone = table.remove(key);
    gone.map(drop)
        .with_context(|| format!("`{key}` is not there"))
}

/// `{ key = value, ... }`
pub(super) fn inline(pairs: impl IntoIterator<Item = (&'static str, Value)>) -> Item {
    value(pairs.into_iter().collect::<InlineTable>())
}

/// `[package.metadata.kiln] scaffold`
pub(super) fn seal(manifest: &DocumentMut) -> Option<&str> {
    let kiln = manifest.get("package")?.get("metadata")?.get("kiln")?;
    kiln.get(SEAL)?.as_str()
}

pub(super) fn set_seal(manifest: &mut DocumentMut, sum: &str) {
    let kiln = &mut manifest["package"]["metadata"]["kiln"];
    if let Some(seal) = kiln.get_mut(SEAL) {
        *seal = value(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both_ways(text: &str, new: &str, before: fn(&str) -> bool, expected: &str) {
        let mut document: DocumentMut = text.parse().unwrap();
        add(array(document.as_table_mut(), "a").unwrap(), new, before);
        assert_eq!(document.to_string(), expected);
        let mut document: DocumentMut = expected.parse().unwrap();
        take(array(document.as_table_mut(), "a").unwrap(), new).unwrap();
        assert_eq!(document.to_string(), text);
    }

    #[test]
    fn an_array_gives_its_bytes_back() {
        both_ways(
            "a = [\"b\", \"d\"]\n",
            "c",
            |s| s < "c",
            "a = [\"b\", \"c\", \"d\"]\n",
        );
        both_ways(
            "a = [\"b\", \"d\"]\n",
            "a",
            |s| s < "a",
            "a = [\"a\", \"b\", \"d\"]\n",
        );
        both_ways(
            "a = [\"b\", \"d\"]\n",
            "z",
            |s| s < "z",
            "a = [\"b\", \"d\", \"z\"]\n",
        );
        both_ways("a = [\"b\"]\n", "c", |s| s < "c", "a = [\"b\", \"c\"]\n");
        let lines = "a = [\n    \"b\",\n    \"d\", # why\n    \"e\",\n]\n";
        for (new, before) in [
            ("a", (|s| s < "a") as fn(&str) -> bool),
            ("c", |s| s < "c"),
            ("z", |_| true),
        ] {
            let mut document: DocumentMut = lines.parse().unwrap();
            let list = array(document.as_table_mut(), "a").unwrap();
            add(list, new, before);
            let with = document.to_string();
            assert!(with.contains(&format!("\n    \"{new}\",")), "{with}");
            let mut document: DocumentMut = with.parse().unwrap();
            take(array(document.as_table_mut(), "a").unwrap(), new).unwrap();
            assert_eq!(document.to_string(), lines);
        }
        let mut document: DocumentMut = lines.parse().unwrap();
        assert!(take(array(document.as_table_mut(), "a").unwrap(), "no").is_err());
    }

    #[test]
    fn a_table_gives_its_bytes_back() {
        let text = "[t]\n# One\nb = 1\nd.workspace = true\n\n# Two\ne = { x = 1 } # why\n\n[u]\n";
        for (key, line) in [("a", 0), ("c", 3), ("d2", 4), ("z", 7)] {
            let mut document: DocumentMut = text.parse().unwrap();
            let item = inline([("path", "p".into()), ("optional", true.into())]);
            let t = table(&mut document, &["t"]).unwrap();
            add_entry(t, key, item.clone(), |k| k < key).unwrap();
            assert!(add_entry(t, key, item, |_| true).is_err());
            let with = document.to_string();
            let expected = format!("{key} = {{ path = \"p\", optional = true }}");
            assert!(with.lines().any(|l| l == expected), "{line}: {with}");
            let mut document: DocumentMut = with.parse().unwrap();
            take_entry(table(&mut document, &["t"]).unwrap(), key).unwrap();
            assert_eq!(document.to_string(), text, "{key}");
        }
        let mut document: DocumentMut = text.parse().unwrap();
        assert!(table(&mut document, &["no"]).is_err());
        assert!(take_entry(table(&mut document, &["t"]).unwrap(), "no").is_err());
    }
}
