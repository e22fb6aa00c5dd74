//! Mistral's newer calls: a function's name, and behind it its arguments as they are. What stands
//! between the two differs by version, and is lost where the tokenizer leaves special tokens out.

/// Bytes before the arguments at most: what is longer is text.
const MAX_HEAD: usize = 256;

/// What a text begins with.
#[derive(Debug, PartialEq)]
pub(super) enum Head<'a> {
    /// A call: its name, and where its arguments start.
    Call { name: &'a str, arguments: usize },
    /// Perhaps a call, with this much of a name.
    More(&'a str),
    /// None.
    Text,
}

/// Reads `name{`, `name[ARGS]{` or `name[CALL_ID]id[ARGS]{`.
pub(super) fn read_head(text: &str) -> Head<'_> {
    let open = text.find('{');
    let head = &text[..open.unwrap_or(text.len())];
    let (name, rest) = head.split_at(head.find(|c: char| !is_name(c)).unwrap_or(head.len()));
    if name.is_empty() || head.len() > MAX_HEAD || !is_tail(rest, open.is_none()) {
        return Head::Text;
    }
    match open {
        Some(arguments) => Head::Call { name, arguments },
        None => Head::More(name),
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/')
}

/// Whether this may stand between name and arguments; `cut`: whether it may become so.
fn is_tail(mut rest: &str, cut: bool) -> bool {
    for (mark, has_id) in [("[CALL_ID]", true), ("[ARGS]", false)] {
        rest = rest.trim_start();
        if let Some(behind) = rest.strip_prefix(mark) {
            rest = match has_id {
                true => behind.trim_start_matches(is_name),
                false => behind,
            };
        } else if cut && mark.starts_with(rest) {
            return true;
        }
    }
    rest.trim_start().is_empty()
}

/// Where in an object the text ends, from its first bracket on.
#[derive(Debug, Default)]
pub(super) struct ObjectScan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl ObjectScan {
    /// Takes more of the object: how many bytes belong to it, if it ends here.
    pub(super) fn end(&mut self, text: &str) -> Option<usize> {
        for (at, c) in text.char_indices() {
            if self.in_string {
                match c {
                    _ if self.escaped => self.escaped = false,
                    '\\' => self.escaped = true,
                    '"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match c {
                '"' => self.in_string = true,
                '{' | '[' => self.depth += 1,
                '}' | ']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + c.len_utf8());
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_calls() {
        for (text, arguments) in [
            ("f{}", 1),
            ("f [ARGS] {", 9),
            ("f[ARGS]{", 7),
            ("f[CALL_ID]a1b2c3d4e[ARGS]{", 25),
            ("f[CALL_ID]a1b2c3d4e{", 19),
        ] {
            assert_eq!(
                read_head(text),
                Head::Call {
                    name: "f",
                    arguments
                }
            );
            // However little there is of it, it may become one.
            for cut in 1..arguments {
                assert_eq!(read_head(&text[..cut]), Head::More("f"), "{}", &text[..cut]);
            }
        }
        let long = "f".repeat(MAX_HEAD + 1);
        for text in [
            "",
            "{}",
            "f g",
            "f, {",
            "f[ARG]{",
            "f[ARGS][ARGS]{",
            "é{",
            long.as_str(),
        ] {
            assert_eq!(read_head(text), Head::Text, "{text}");
        }
    }

    #[test]
    fn objects_end_at_their_last_bracket() {
        let object = r#"{"a": "}\"]é", "b": [{}, {"c": []}]}"#;
        let text = format!("{object} {{}}");
        assert_eq!(ObjectScan::default().end(&text), Some(object.len()));
        let (start, rest) = text.split_at(9);
        let mut scan = ObjectScan::default();
        assert_eq!(scan.end(start), None);
        assert_eq!(scan.end(rest), Some(object.len() - 9));
    }
}
