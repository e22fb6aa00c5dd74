//! From the text of an answer to its calls, while it streams. Text that may be the start of a call
//! is held back; what turns out to be none is text after all.

use super::named::{Head, ObjectScan, read_head};
use super::scan::{CallScan, Scan};
use clap::ValueEnum;

const MISTRAL_TAG: &str = "[TOOL_CALLS]";

/// How a chat family writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ToolFormat {
    /// `<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Hermes, Qwen.
    Hermes,
    /// The answer is `{"name": ..., "parameters": ...}`: Llama 3.
    #[value(name = "llama3_json")]
    Llama3Json,
    /// `[TOOL_CALLS][{"name": ..., "arguments": ...}, ...]`, and the newer `[TOOL_CALLS]name[ARGS]{...}`
    /// and `[TOOL_CALLS]name{...}`: Mistral.
    Mistral,
    /// A bare list of calls: what a required call is held to.
    #[value(skip)]
    List,
}

impl ToolFormat {
    /// The format that a chat template tells its model of.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        if source.contains("<tool_call>") {
            Some(Self::Hermes)
        } else if source.contains("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if source.contains("<|python_tag|>")
            || (source.contains("tools") && source.contains("\"parameters\":"))
        {
            Some(Self::Llama3Json)
        } else {
            None
        }
    }

    /// What starts calls anywhere in an answer.
    fn tag(self) -> Option<&'static str> {
        match self {
            Self::Hermes => Some("<tool_call>"),
            Self::Llama3Json => Some("<|python_tag|>"),
            Self::Mistral => Some(MISTRAL_TAG),
            Self::List => None,
        }
    }

    /// What starts calls at the start of an answer: tags are special tokens, which a tokenizer may
    /// leave out of the text.
    fn bare(self) -> Option<&'static str> {
        match self {
            Self::Hermes => None,
            Self::Llama3Json => Some("{"),
            Self::Mistral | Self::List => Some("["),
        }
    }

    fn id(self) -> String {
        let id = uuid::Uuid::new_v4().simple().to_string();
        match self {
            // Its templates insist on nine letters and digits.
            Self::Mistral => id.chars().take(9).collect(),
            _ => format!("call_{id}"),
        }
    }
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Delta {
    /// Text for the reader.
    Text(String),
    /// A call begins.
    Call {
        index: usize,
        id: String,
        name: String,
    },
    /// More of its arguments.
    Arguments { index: usize, text: String },
}

#[derive(Debug)]
enum Mode {
    /// Before the first character that is no blank.
    Start,
    Text,
    /// Inside a list of calls, before, between or behind them.
    Between,
    Call(CallScan),
    /// Inside the arguments of a call whose name stood before them.
    Object(ObjectScan),
    /// All is arguments of one function.
    Arguments,
}

/// Reads one answer.
#[derive(Debug)]
pub(crate) struct ToolParser {
    format: ToolFormat,
    mode: Mode,
    held: String,
    calls: usize,
    most: usize,
    /// The last text was a call: blanks that follow are its layout.
    behind_call: bool,
    /// The last text was a tag: whatever name follows is a call's.
    tagged: bool,
    /// The functions that there are: what tells a call from text where the tag is left out.
    names: Vec<String>,
    out: Vec<Delta>,
}

impl ToolParser {
    /// A reader of free text with calls in it. `one`: what comes behind the first call is dropped.
    pub(crate) fn new(format: ToolFormat, one: bool) -> Self {
        Self {
            format,
            mode: Mode::Start,
            held: String::new(),
            calls: 0,
            most: if one { 1 } else { usize::MAX },
            behind_call: false,
            tagged: false,
            names: Vec::new(),
            out: Vec::new(),
        }
    }

    /// The same for an answer that may call these functions.
    pub(crate) fn knowing(self, names: Vec<String>) -> Self {
        Self { names, ..self }
    }

    /// A reader of an answer that is a function's arguments and nothing else.
    pub(crate) fn named(name: &str) -> Self {
        let mut parser = Self::new(ToolFormat::List, true);
        parser.mode = Mode::Arguments;
        parser.calls = 1;
        parser.out.push(Delta::Call {
            index: 0,
            id: parser.format.id(),
            name: name.to_owned(),
        });
        parser
    }

    /// How many calls there were so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls
    }

    /// Takes a piece of the answer.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        while self.step() {}
        std::mem::take(&mut self.out)
    }

    /// The answer is over.
    pub(crate) fn finish(&mut self) -> Vec<Delta> {
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.mode, Mode::Text) {
            // Cut off before it had a name: text.
            Mode::Call(scan) if !scan.named() => {
                self.text(&scan.raw);
                self.text(&held);
            }
            Mode::Start | Mode::Text => self.text(&held),
            Mode::Between if matches!(self.head(&held), Head::More(_)) => self.text(&held),
            Mode::Call(_) | Mode::Object(_) | Mode::Between | Mode::Arguments => {}
        }
        std::mem::take(&mut self.out)
    }

    /// Takes what it can from the held text. Returns whether more may be taken.
    fn step(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        match &mut self.mode {
            Mode::Start => self.at_start(),
            Mode::Text => self.in_text(),
            Mode::Between => self.between(),
            Mode::Call(_) => self.in_call(),
            Mode::Object(_) => self.in_object(),
            Mode::Arguments => {
                let text = std::mem::take(&mut self.held);
                self.out.push(Delta::Arguments { index: 0, text });
                false
            }
        }
    }

    fn at_start(&mut self) -> bool {
        let trimmed = self.held.trim_start();
        if trimmed.is_empty() {
            return false;
        }
        if let Some(bare) = self.format.bare()
            && trimmed.starts_with(bare)
            && self
                .format
                .tag()
                .is_none_or(|tag| !starts_alike(trimmed, tag))
        {
            self.held = trimmed.to_owned();
            self.mode = Mode::Between;
            return true;
        }
        if self
            .format
            .tag()
            .is_some_and(|tag| tag.starts_with(trimmed))
        {
            return false;
        }
        self.mode = match self.head(trimmed) {
            Head::Call { .. } => Mode::Between,
            Head::More(_) => return false,
            Head::Text => Mode::Text,
        };
        true
    }

    /// What a text begins with, where calls are written as a name and arguments.
    fn head<'a>(&self, text: &'a str) -> Head<'a> {
        if self.format != ToolFormat::Mistral {
            return Head::Text;
        }
        match read_head(text) {
            Head::Call { name, .. } if !self.tagged && !self.names.iter().any(|n| n == name) => {
                Head::Text
            }
            Head::More(name) if !self.tagged && !self.names.iter().any(|n| n.starts_with(name)) => {
                Head::Text
            }
            head => head,
        }
    }

    fn in_text(&mut self) -> bool {
        let Some(tag) = self.format.tag() else {
            let text = std::mem::take(&mut self.held);
            self.text(&text);
            return false;
        };
        if let Some(at) = self.held.find(tag) {
            let text: String = self.held.drain(..at + tag.len()).collect();
            // Blanks before a call are its layout, not text.
            self.text(text[..at].trim_end());
            self.mode = Mode::Between;
            self.tagged = true;
            return true;
        }
        let tail = held_back(&self.held, tag);
        // Blanks wait with it: before a call they are no text.
        let shown = self.held[..self.held.len() - tail].trim_end().len();
        let keep = self.held.len() - shown;
        let rest = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, rest);
        self.text(&text);
        false
    }

    fn between(&mut self) -> bool {
        let trimmed = self
            .held
            .trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ',' | ';'));
        self.held = trimmed.to_owned();
        let Some(first) = self.held.chars().next() else {
            return false;
        };
        if self.format == ToolFormat::Mistral {
            if let Some(behind) = self.held.strip_prefix(MISTRAL_TAG) {
                self.held = behind.to_owned();
                self.tagged = true;
                return true;
            }
            if MISTRAL_TAG.starts_with(self.held.as_str()) {
                return false;
            }
        }
        let closing = "</tool_call>";
        match first {
            '{' => self.mode = Mode::Call(CallScan::new()),
            '[' | ']' if self.format != ToolFormat::Hermes => {
                self.held.remove(0);
            }
            _ if self.held.starts_with(closing) => {
                self.held.drain(..closing.len());
                self.mode = Mode::Text;
                self.behind_call = true;
            }
            _ if closing.starts_with(self.held.as_str()) => return false,
            _ => return self.at_name(),
        }
        true
    }

    /// Between calls, at what is neither bracket nor tag: the name of the next one, or text.
    fn at_name(&mut self) -> bool {
        let (name, arguments) = match self.head(&self.held) {
            Head::Call { name, arguments } => (name.to_owned(), arguments),
            Head::More(_) => return false,
            Head::Text => {
                self.mode = Mode::Text;
                return true;
            }
        };
        if self.calls < self.most {
            self.out.push(Delta::Call {
                index: self.calls,
                id: self.format.id(),
                name,
            });
        }
        self.held.drain(..arguments);
        self.mode = Mode::Object(ObjectScan::default());
        true
    }

    fn in_object(&mut self) -> bool {
        let Mode::Object(scan) = &mut self.mode else {
            return false;
        };
        let end = scan.end(&self.held);
        let text: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
        let counts = self.calls < self.most;
        if counts {
            let index = self.calls;
            self.out.push(Delta::Arguments { index, text });
        }
        if end.is_some() {
            self.calls += usize::from(counts);
            self.mode = Mode::Between;
            (self.tagged, self.behind_call) = (false, true);
        }
        end.is_some()
    }

    fn in_call(&mut self) -> bool {
        let Mode::Call(scan) = &mut self.mode else {
            return false;
        };
        let index = self.calls;
        let counts = index < self.most;
        let mut taken = 0;
        let mut ended = None;
        let mut arguments = String::new();
        for c in self.held.chars() {
            taken += c.len_utf8();
            match scan.push(c) {
                Scan::More => {}
                Scan::Name(name) if counts => self.out.push(Delta::Call {
                    index,
                    id: self.format.id(),
                    name,
                }),
                Scan::Name(_) => {}
                end => {
                    ended = Some(end);
                    break;
                }
            }
        }
        arguments.push_str(&scan.arguments());
        if counts && !arguments.is_empty() {
            self.out.push(Delta::Arguments {
                index,
                text: arguments,
            });
        }
        self.held.drain(..taken);
        match ended {
            Some(Scan::End) => {
                self.calls += usize::from(counts);
                self.mode = Mode::Between;
                self.tagged = false;
            }
            Some(_) => {
                let (named, raw) = (scan.named(), std::mem::take(&mut scan.raw));
                self.mode = Mode::Text;
                if named {
                    // It was told already; what it lacks, the caller sees.
                    self.calls += usize::from(counts);
                } else {
                    self.text(&raw);
                }
            }
            None => return false,
        }
        true
    }

    fn text(&mut self, text: &str) {
        let text = match self.behind_call {
            true => text.trim_start(),
            false => text,
        };
        if text.is_empty() {
            return;
        }
        self.behind_call = false;
        if let Some(Delta::Text(last)) = self.out.last_mut() {
            last.push_str(text);
        } else {
            self.out.push(Delta::Text(text.to_owned()));
        }
    }
}

/// Whether two texts agree as far as the shorter one goes.
fn starts_alike(a: &str, b: &str) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// Bytes of the longest end of `text` that is a start of `tag`.
fn held_back(text: &str, tag: &str) -> usize {
    (1..tag.len().min(text.len() + 1))
        .rev()
        .find(|n| text.as_bytes().ends_with(&tag.as_bytes()[..*n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text, and calls as (name, arguments), however the answer is cut.
    fn read(format: ToolFormat, answer: &str, one: bool) -> (String, Vec<(String, String)>) {
        let whole = run(format, &[answer], one);
        let letters: Vec<String> = answer.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(run(format, &letters, one), whole, "{answer}");
        whole
    }

    fn run(format: ToolFormat, pieces: &[&str], one: bool) -> (String, Vec<(String, String)>) {
        let known = ["look", "f"].map(String::from).to_vec();
        let mut parser = ToolParser::new(format, one).knowing(known);
        let mut deltas: Vec<Delta> = pieces.iter().flat_map(|p| parser.push(p)).collect();
        deltas.extend(parser.finish());
        let (mut text, mut calls) = (String::new(), Vec::new());
        for delta in deltas {
            match delta {
                Delta::Text(more) => text.push_str(&more),
                Delta::Call { index, name, .. } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, String::new()));
                }
                Delta::Arguments { index, text } => calls[index].1.push_str(&text),
            }
        }
        (text, calls)
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn hermes() {
        let answer = "I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"a}<\"}}\n\
                      </tool_call>\n<tool_call>{\"arguments\": {\"y\": [1, {}]}, \"name\": \"g\"}\
                      </tool_call>";
        let both = [call("f", "{\"x\": \"a}<\"}"), call("g", "{\"y\": [1, {}]}")];
        let (text, calls) = read(ToolFormat::Hermes, answer, false);
        assert_eq!((text.as_str(), calls.as_slice()), ("I look.", &both[..]));
        assert_eq!(read(ToolFormat::Hermes, answer, true).1, both[..1]);
        for plain in ["a < b, <tool> and {\"name\": 1}", "", "<tool_cal", "é <"] {
            let (text, calls) = read(ToolFormat::Hermes, plain, false);
            assert_eq!((text.as_str(), calls.len()), (plain, 0));
        }
        let (text, calls) = read(
            ToolFormat::Hermes,
            "<tool_call>{\"x\": 1}</tool_call>",
            false,
        );
        assert!(text.contains("{\"x\": 1}") && calls.is_empty(), "{text}");
    }

    #[test]
    fn llama() {
        let answer = "{\"name\": \"f\", \"parameters\": {\"a\": \"\\\"}\"}}; {\"name\": \"g\", \"parameters\": {}}";
        let (text, calls) = read(ToolFormat::Llama3Json, answer, false);
        assert_eq!(text, "");
        assert_eq!(calls, [call("f", "{\"a\": \"\\\"}\"}"), call("g", "{}")]);
        let tagged = format!("<|python_tag|>{answer}");
        assert_eq!(read(ToolFormat::Llama3Json, &tagged, false).1, calls);
        for plain in ["{\"x\": 3}", "Well {\"name\": \"f\"}", "{oops"] {
            let (text, calls) = read(ToolFormat::Llama3Json, plain, false);
            assert_eq!((text.as_str(), calls.len()), (plain, 0));
        }
    }

    #[test]
    fn mistral() {
        let list = "[{\"name\": \"f\", \"arguments\": {\"x\": 1}}, {\"name\": \"g\", \"arguments\": \"{\\\"y\\\": 2}\"}]";
        let expected = [call("f", "{\"x\": 1}"), call("g", "{\"y\": 2}")];
        for answer in [list.to_owned(), format!("[TOOL_CALLS] {list}")] {
            let (text, calls) = read(ToolFormat::Mistral, &answer, false);
            assert_eq!((text.as_str(), calls.as_slice()), ("", &expected[..]));
        }
        assert_eq!(read(ToolFormat::List, list, false).1, expected);
    }

    #[test]
    fn mistral_with_names_before_arguments() {
        let (a, b) = ("{\"x\": \"}\\\"{\"}", "{\"y\": [{}, 2]}");
        let both = [call("f", a), call("other.tool", b)];
        for answer in [
            format!("[TOOL_CALLS]f[ARGS]{a}[TOOL_CALLS]other.tool[ARGS]{b}"),
            format!("[TOOL_CALLS]f{a}[TOOL_CALLS]other.tool{b}"),
            format!("[TOOL_CALLS] f {a}\n[TOOL_CALLS] other.tool [ARGS] {b}\n"),
            format!("[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{a}[TOOL_CALLS]other.tool[ARGS]{b}"),
        ] {
            let (text, calls) = read(ToolFormat::Mistral, &answer, false);
            assert_eq!((text.as_str(), calls.as_slice()), ("", &both[..]));
            assert_eq!(read(ToolFormat::Mistral, &answer, true).1, both[..1]);
            let said = format!("I look. {answer}");
            let (text, calls) = read(ToolFormat::Mistral, &said, false);
            assert_eq!((text.as_str(), calls.as_slice()), ("I look.", &both[..]));
        }
        // Without its tags a call is one only where it is of a function that there is.
        let bare = format!("f{a}look{b}");
        let (text, calls) = read(ToolFormat::Mistral, &bare, false);
        assert_eq!(
            (text.as_str(), calls),
            ("", vec![call("f", a), call("look", b)])
        );
        for plain in [
            "g{}",
            "f",
            "loo",
            "look here",
            "f(x) {}",
            "[1, 2] is a list",
            "Call f{}",
        ] {
            let calls = read(ToolFormat::Mistral, plain, false).1;
            assert!(calls.is_empty(), "{plain}");
        }
        for plain in ["g{}", "f", "loo", "look here", "f(x) {}", "Call f{}"] {
            assert_eq!(read(ToolFormat::Mistral, plain, false).0, plain);
        }
        let (text, calls) = read(ToolFormat::Mistral, "[TOOL_CALLS]well, no", false);
        assert_eq!((text.as_str(), calls.len()), ("well, no", 0));
        let cut = read(ToolFormat::Mistral, "[TOOL_CALLS]f[ARGS]{\"x\": 1", false);
        assert_eq!(cut, (String::new(), vec![call("f", "{\"x\": 1")]));
    }

    #[test]
    fn a_cut_off_call_keeps_what_was_told() {
        let (text, calls) = read(
            ToolFormat::Hermes,
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": 1",
            false,
        );
        assert_eq!((text.as_str(), calls), ("", vec![call("f", "{\"x\": 1")]));
        let mut named = ToolParser::named("f");
        let deltas: Vec<_> = named
            .push("{\"x\"")
            .into_iter()
            .chain(named.push(": 1}"))
            .collect();
        assert_eq!(deltas.len(), 3);
        assert!(named.finish().is_empty() && named.calls() == 1);
    }

    #[test]
    fn the_template_tells_the_format() {
        for (source, format) in [
            ("... <tool_call>\\n{{ ...", Some(ToolFormat::Hermes)),
            ("{{ '[TOOL_CALLS]' }}", Some(ToolFormat::Mistral)),
            ("<|python_tag|>", Some(ToolFormat::Llama3Json)),
            ("USER: {{ message }}", None),
        ] {
            assert_eq!(ToolFormat::of_template(source), format);
        }
    }
}
