//! `tojson` as transformers defines it for templates.

use super::filters::{invalid, visit};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, State};

/// `json.dumps` with transformers' defaults: nothing escaped for HTML, non-ASCII kept.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    indent: Option<Value>,
    args: Kwargs,
) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => args.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(
            indent
                .as_usize()
                .filter(|n| *n <= 16)
                .ok_or_else(|| invalid("tojson: the indent must be a number up to 16"))?,
        ),
    };
    let separators: Option<Vec<String>> = args.get("separators")?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(invalid("tojson: two separators are needed")),
    };
    let mut json = Json {
        state,
        out: String::new(),
        indent,
        item,
        key,
        ascii: args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    // Maps are sorted by key already.
    let _ = args.get::<Option<bool>>("sort_keys")?;
    args.assert_all_used()?;
    json.write(value, 0)?;
    Ok(Value::from(json.out))
}

struct Json<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    out: String,
    indent: Option<usize>,
    item: &'a str,
    key: &'a str,
    ascii: bool,
}

impl Json<'_, '_, '_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        visit(self.state, value, depth)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut first = true;
                for item in value.try_iter()?.checked() {
                    self.begin(&mut first, depth);
                    self.write(&item?, depth + 1)?;
                }
                self.end(']', first, depth);
            }
            ValueKind::Map => {
                self.out.push('{');
                let mut first = true;
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    self.begin(&mut first, depth);
                    self.string(&key.to_string());
                    self.out.push_str(self.key);
                    self.write(&value.get_item(&key)?, depth + 1)?;
                }
                self.end('}', first, depth);
            }
            kind => return Err(invalid(format!("tojson: {kind} has no JSON form"))),
        }
        Ok(())
    }

    fn begin(&mut self, first: &mut bool, depth: usize) {
        if !std::mem::take(first) {
            self.out.push_str(self.item);
        }
        self.line(depth + 1);
    }

    fn end(&mut self, close: char, empty: bool, depth: usize) {
        if !empty {
            self.line(depth);
        }
        self.out.push(close);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use crate::template::filters::tests::render;

    #[test]
    fn json_is_what_python_dumps() {
        // Expected: `json.dumps(x, ensure_ascii=False, ..)` of CPython.
        let value = r#"{"a": [1, 2.5, true, none, "é<&'\"\n\x01"], "b": {}, "c": []}"#;
        for (args, expected) in [
            (
                "",
                r#"{"a": [1, 2.5, true, null, "é<&'\"\n\u0001"], "b": {}, "c": []}"#,
            ),
            (
                "(separators=(',', ':'), ensure_ascii=true)",
                r#"{"a":[1,2.5,true,null,"\u00e9<&'\"\n\u0001"],"b":{},"c":[]}"#,
            ),
            (
                "(indent=2)",
                "{\n  \"a\": [\n    1,\n    2.5,\n    true,\n    null,\n    \"é<&'\\\"\\n\\u0001\"\n  ],\n  \"b\": {},\n  \"c\": []\n}",
            ),
        ] {
            assert_eq!(
                render(&format!("{{{{ {value}|tojson{args} }}}}")).unwrap(),
                expected
            );
        }
        assert!(render("{{ nothing|tojson }}").is_err());
    }
}
