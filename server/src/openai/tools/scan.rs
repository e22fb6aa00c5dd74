//! Reads one call, `{"name": ..., "arguments": {...}}`, character by character, so that its
//! arguments stream while the model still writes them.

/// What a character brought.
#[derive(Debug, PartialEq)]
pub(super) enum Scan {
    /// Nothing that is whole.
    More,
    /// The function's name is known.
    Name(String),
    /// The call is whole.
    End,
    /// This is no call.
    Broken,
}

/// What is awaited at the call's own level.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Open,
    Key,
    Colon,
    Value,
}

/// The state between two characters.
#[derive(Debug)]
pub(super) struct CallScan {
    part: Part,
    /// All that was read, for the case that it is no call.
    pub(super) raw: String,
    key: String,
    /// The key or value under way, as it is written.
    text: String,
    /// Brackets that are open inside the value.
    depth: usize,
    in_string: bool,
    escaped: bool,
    named: bool,
    /// Arguments to send, once the name is known.
    ready: String,
}

impl CallScan {
    pub(super) fn new() -> Self {
        Self {
            part: Part::Open,
            raw: String::new(),
            key: String::new(),
            text: String::new(),
            depth: 0,
            in_string: false,
            escaped: false,
            named: false,
            ready: String::new(),
        }
    }

    /// Whether the name has been told.
    pub(super) fn named(&self) -> bool {
        self.named
    }

    /// Arguments that may be sent now; none before the name.
    pub(super) fn arguments(&mut self) -> String {
        if self.named {
            return std::mem::take(&mut self.ready);
        }
        String::new()
    }

    /// Takes a character.
    pub(super) fn push(&mut self, c: char) -> Scan {
        self.raw.push(c);
        match self.part {
            Part::Open => match c {
                '{' => self.part = Part::Key,
                _ => return Scan::Broken,
            },
            Part::Key => return self.in_key(c),
            Part::Colon => match c {
                ':' => self.part = Part::Value,
                _ if c.is_whitespace() => {}
                _ => return Scan::Broken,
            },
            Part::Value => return self.in_value(c),
        }
        Scan::More
    }

    fn in_key(&mut self, c: char) -> Scan {
        if self.in_string {
            self.text.push(c);
            if self.closes_string(c) {
                let Ok(key) = serde_json::from_str(&self.text) else {
                    return Scan::Broken;
                };
                self.key = key;
                self.text.clear();
                self.part = Part::Colon;
            }
            return Scan::More;
        }
        match c {
            '"' => {
                self.in_string = true;
                self.text.push(c);
                Scan::More
            }
            '}' => self.end(),
            ',' => Scan::More,
            _ if c.is_whitespace() => Scan::More,
            _ => Scan::Broken,
        }
    }

    fn in_value(&mut self, c: char) -> Scan {
        if self.in_string {
            self.add(c);
            if self.closes_string(c) && self.depth == 0 {
                return self.value_ends();
            }
            return Scan::More;
        }
        match c {
            '"' => {
                self.in_string = true;
                self.add(c);
            }
            '{' | '[' => {
                self.depth += 1;
                self.add(c);
            }
            '}' | ']' if self.depth > 0 => {
                self.depth -= 1;
                self.add(c);
                if self.depth == 0 {
                    return self.value_ends();
                }
            }
            // A number or a word ends by what follows it.
            ',' | '}' if self.depth == 0 => {
                if self.text.is_empty() {
                    return Scan::Broken;
                }
                return match (self.value_ends(), c) {
                    (Scan::More, '}') => self.end(),
                    (scan, _) => scan,
                };
            }
            _ if c.is_whitespace() && self.depth == 0 => {}
            _ => self.add(c),
        }
        Scan::More
    }

    /// Whether the character, which is part of a string, is its last one.
    fn closes_string(&mut self, c: char) -> bool {
        if self.escaped {
            self.escaped = false;
            return false;
        }
        match c {
            '\\' => self.escaped = true,
            '"' => {
                self.in_string = false;
                return true;
            }
            _ => {}
        }
        false
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_str(), "arguments" | "parameters")
    }

    /// Objects stream; a string of JSON is sent when it is whole and can be read.
    fn add(&mut self, c: char) {
        self.text.push(c);
        if self.is_arguments() && self.text.starts_with('{') {
            self.ready.push(c);
        }
    }

    fn value_ends(&mut self) -> Scan {
        self.part = Part::Key;
        let text = std::mem::take(&mut self.text);
        if self.is_arguments() {
            if text.starts_with('"') {
                match serde_json::from_str::<String>(&text) {
                    Ok(inner) => self.ready.push_str(&inner),
                    Err(_) => return Scan::Broken,
                }
            } else if !text.starts_with('{') {
                self.ready.push_str("{}");
            }
        }
        if self.key != "name" || self.named {
            return Scan::More;
        }
        match serde_json::from_str::<String>(&text) {
            Ok(name) if !name.is_empty() => {
                self.named = true;
                Scan::Name(name)
            }
            _ => Scan::Broken,
        }
    }

    fn end(&mut self) -> Scan {
        if self.named { Scan::End } else { Scan::Broken }
    }
}
