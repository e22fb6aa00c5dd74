//! Rewrites a chat template's source before it is compiled, tag by tag.
//!
//! `{% generation %}` blocks, which mark for transformers what the assistant says, become scopes.
//! And every binding is checked: the fuel of the template engine does not count how deep values are
//! nested, and a few lines (`{% set x = [x, x] %}`) make one that takes forever to compare or
//! print, or that contains itself and overflows the stack. So each bound value goes through a
//! filter that counts it, or, where a namespace keeps it, that copies it.

use super::filters::{COPIED, COUNTED};
use std::fmt::Write;

/// The source as it is compiled.
///
/// # Errors
/// What the template uses that is not supported.
pub(super) fn rewrite(source: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len() + source.len() / 4);
    let mut rest = source;
    while let Some((start, end)) = next_tag(rest) {
        out.push_str(&rest[..start]);
        let tag = &rest[start..end];
        rest = &rest[end..];
        if !tag.starts_with("{%") {
            out.push_str(tag);
            continue;
        }
        let inner = inner(tag);
        match first_word(inner) {
            "raw" => {
                let end = end_of_raw(rest);
                out.push_str(tag);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            "generation" => out.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            "set" => set(&mut out, tag, inner),
            "for" => {
                if last_word(inner) == "recursive" {
                    return Err("recursive loops are not supported".to_owned());
                }
                let targets = inner.split_once(" in ").map_or("", |(targets, _)| targets);
                count(
                    &mut out,
                    tag,
                    words(&targets["for".len().min(targets.len())..]),
                );
            }
            "macro" | "call" => count(&mut out, tag, parameters(inner)),
            "with" => count(&mut out, tag, parameters(inner)),
            "include" | "import" | "from" | "extends" => {
                return Err("a chat template can't load other templates".to_owned());
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// `{% set target = value %}` with the value through a filter.
fn set(out: &mut String, tag: &str, inner: &str) {
    let Some(at) = top_level(inner, b'=').next() else {
        out.push_str(tag);
        return;
    };
    let filter = if inner[..at].contains('.') {
        COPIED
    } else {
        COUNTED
    };
    let offset = inner.as_ptr() as usize - tag.as_ptr() as usize;
    let (before, after) = tag.split_at(offset + at + 1);
    let (value, end) = after.split_at(inner.len() - at - 1);
    let _ = write!(out, "{before} ({value})|{filter} {end}");
}

/// The tag, then assignments that put what it bound through a filter.
fn count<'a>(out: &mut String, tag: &str, names: impl IntoIterator<Item = &'a str>) {
    out.push_str(tag);
    // The same end as the tag's own, so that the whitespace after it is treated alike.
    let end = &tag[tag.len() - tag_end(tag)..];
    for name in names {
        let _ = write!(out, "{{% set {name} = {name}|{COUNTED} {end}");
    }
}

/// Bytes of a tag's end: `%}`, or with a sign before it.
fn tag_end(tag: &str) -> usize {
    if tag.ends_with("-%}") || tag.ends_with("+%}") {
        3
    } else {
        2
    }
}

/// What stands between a tag's delimiters.
fn inner(tag: &str) -> &str {
    let start = if tag[2..].starts_with(['-', '+']) {
        3
    } else {
        2
    };
    let end = tag.len() - tag_end(tag);
    tag.get(start..end).unwrap_or_default().trim()
}

/// The next tag, expression or comment that is closed.
fn next_tag(source: &str) -> Option<(usize, usize)> {
    let bytes = source.as_bytes();
    let start = bytes
        .windows(2)
        .position(|pair| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#'))?;
    let body = start + 2;
    let length = match bytes[start + 1] {
        b'#' => source[body..].find("#}")?,
        b'%' => {
            scan(&source[body..])
                .find(|(_, depth, rest)| *depth == 0 && rest.starts_with("%}"))?
                .0
        }
        _ => {
            scan(&source[body..])
                .find(|(_, depth, rest)| *depth == 0 && rest.starts_with("}}"))?
                .0
        }
    };
    Some((start, body + length + 2))
}

/// The end of a raw block, past its end tag.
fn end_of_raw(source: &str) -> usize {
    source
        .match_indices("{%")
        .find_map(|(start, _)| {
            let length = source[start..].find("%}")? + 2;
            let tag = &source[start..start + length];
            (inner(tag) == "endraw").then_some(start + length)
        })
        .unwrap_or(source.len())
}

/// The places of an expression outside of string literals, with the depth of brackets there and
/// what follows.
fn scan(source: &str) -> impl Iterator<Item = (usize, isize, &str)> {
    let bytes = source.as_bytes();
    let mut at = 0;
    let mut depth = 0isize;
    std::iter::from_fn(move || {
        loop {
            let here = at;
            let byte = *bytes.get(here)?;
            at += 1;
            match byte {
                b'"' | b'\'' => {
                    while let Some(inside) = bytes.get(at) {
                        at += if *inside == b'\\' { 2 } else { 1 };
                        if *inside == byte {
                            break;
                        }
                    }
                    continue;
                }
                _ if !source.is_char_boundary(here) => continue,
                _ => {}
            }
            let item = (here, depth, &source[here..]);
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth -= 1,
                _ => {}
            }
            return Some(item);
        }
    })
}

/// Where a byte stands alone outside of brackets and strings: `=`, not `==`.
fn top_level(source: &str, wanted: u8) -> impl Iterator<Item = usize> {
    let bytes = source.as_bytes();
    scan(source).filter_map(move |(at, depth, _)| {
        let alone = bytes[at] == wanted
            && bytes.get(at + 1) != Some(&b'=')
            && (at == 0 || !matches!(bytes[at - 1], b'=' | b'!' | b'<' | b'>'));
        (depth == 0 && alone).then_some(at)
    })
}

/// The names that a macro, a call block or a `with` binds.
fn parameters(inner: &str) -> Vec<&str> {
    let list = match first_word(inner) {
        "with" => &inner["with".len()..],
        // The parameters of a macro come after its name, those of a call block before the call.
        word => {
            let after = inner[word.len()..].trim_start();
            let after = if word == "macro" {
                after[first_word(after).len()..].trim_start()
            } else {
                after
            };
            let Some(list) = after.strip_prefix('(') else {
                return vec![];
            };
            let end = scan(list).find(|(_, depth, rest)| *depth == 0 && rest.starts_with(')'));
            end.map_or(list, |(at, _, _)| &list[..at])
        }
    };
    let mut names = Vec::new();
    let mut start = 0;
    for end in top_level(list, b',').chain([list.len()]) {
        let part = &list[start..end];
        let target = top_level(part, b'=').next().map_or(part, |at| &part[..at]);
        names.extend(words(target));
        start = (end + 1).min(list.len());
    }
    names
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn words(source: &str) -> impl Iterator<Item = &str> {
    source
        .split(|c| !is_word(c))
        .filter(|word| !word.is_empty())
}

fn first_word(source: &str) -> &str {
    source.split(|c| !is_word(c)).next().unwrap_or_default()
}

fn last_word(source: &str) -> &str {
    source.rsplit(|c| !is_word(c)).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(source: &str) -> String {
        rewrite(source)
            .unwrap()
            .replace(COUNTED, "N")
            .replace(COPIED, "C")
    }

    #[test]
    fn what_a_tag_binds_is_counted() {
        for (source, expected) in [
            (
                "{%- set x = [1, '%}'] -%} a",
                "{%- set x = ( [1, '%}'])|N  -%} a",
            ),
            ("{% set ns.x = a == b %}", "{% set ns.x = ( a == b)|C  %}"),
            ("{% set x %}y{% endset %}", "{% set x %}y{% endset %}"),
            ("{% set a, b = 1, 2 %}", "{% set a, b = ( 1, 2)|N  %}"),
            (
                "{% for k, v in d.items() -%}\n",
                "{% for k, v in d.items() -%}{% set k = k|N -%}{% set v = v|N -%}\n",
            ),
            (
                "{% macro m(a, b=[1, 2], c='x=y') %}",
                "{% macro m(a, b=[1, 2], c='x=y') %}{% set a = a|N %}{% set b = b|N %}{% set c = c|N %}",
            ),
            ("{% macro m() %}", "{% macro m() %}"),
            ("{% call(x) m(y) %}", "{% call(x) m(y) %}{% set x = x|N %}"),
            (
                "{% with a = {'b': 1}, c = a == 2 %}",
                "{% with a = {'b': 1}, c = a == 2 %}{% set a = a|N %}{% set c = c|N %}",
            ),
        ] {
            assert_eq!(short(source), expected, "{source}");
        }
    }

    #[test]
    fn all_else_stays_as_it_is() {
        for source in [
            "{{ {'a': {'b': '}}'}} }}{# {% set x = 1 %} #}",
            "{% raw %}{% set x = 1 %}{%- endraw -%}{% if x %}{% endif %}",
            "{{ 'é' }} {% unclosed '",
            "{%",
            "{%%}{%-%}{%+",
            "a { b {",
        ] {
            assert_eq!(short(source), source);
        }
        assert_eq!(
            short("{%- generation -%}x{% endgeneration %}"),
            "{%- with -%}x{% endwith %}"
        );
        for source in ["{% for x in y recursive %}", "{%- include 'x' %}"] {
            assert!(rewrite(source).is_err(), "{source}");
        }
    }
}
