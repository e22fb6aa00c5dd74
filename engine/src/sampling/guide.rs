//! Grammars, compiled: which tokens may come next so that the text stays one that the grammar has.
//!
//! Compiling is work that a client asks for, so it is bounded by the grammar's size and nesting, by
//! llguidance's own limits, and by a deadline; it runs on the media pool in a thread with a large
//! stack. What a mask costs in a step is bounded by fuel.

use super::Grammar;
use crate::cache::ByteLru;
use crate::tokenizer::HfTokenizer;
use kiln_registry::{ContentHash, Error, Result};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory, earley::SlicedBiasComputer};
use serde_json::{Value, json};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;
use toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie};

/// Bytes of a grammar as text, and brackets or values inside each other.
const MAX_BYTES: usize = 128 << 10;
const MAX_DEPTH: usize = 64;
/// Texts of a choice.
const MAX_CHOICES: usize = 4096;
/// Time for one grammar, and how many may be in the making, those that never end included.
const DEADLINE: Duration = Duration::from_secs(5);
const MAX_COMPILING: usize = 4;
/// What the compiler's recursion may take.
const STACK: usize = 64 << 20;
/// Grammars that are kept for later requests.
const KEPT: usize = 64;

/// A compiled grammar, shared by the sequences that it guides.
#[derive(Clone)]
pub(crate) struct Guide(Arc<Mutex<Matcher>>);

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guide")
    }
}

impl Guide {
    /// A sequence's own state, at the start.
    pub(crate) fn start(&self) -> Matching {
        Matching(
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .deep_clone(),
        )
    }
}

/// How far the text of a sequence is in its grammar.
pub(crate) struct Matching(Matcher);

impl Matching {
    /// The tokens that may come next.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when finding out takes too much.
    pub(crate) fn allowed(&mut self) -> Result<Allowed> {
        self.0
            .compute_mask_or_eos()
            .map(Allowed)
            .map_err(|_| costly())
    }

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// As [`allowed`](Self::allowed).
    pub(crate) fn push(&mut self, token: u32) -> Result<()> {
        self.0.consume_token(token).map_err(|_| costly())
    }

    /// Whether the text is whole and nothing can follow.
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_stopped()
    }
}

/// Tokens that may come next.
pub(crate) struct Allowed(SimpleVob);

impl Allowed {
    /// Takes the others out of the choice.
    pub(crate) fn restrict(&self, logits: &mut [f32]) {
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= self.0.len() || !self.0.is_allowed(id as u32) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn costly() -> Error {
    Error::invalid("the grammar is too costly to follow at this place")
}

/// Compiles grammars for one vocabulary.
pub(crate) struct Guides {
    tokenizer: Arc<HfTokenizer>,
    vocabulary: usize,
    eos: Vec<u32>,
    /// Made at the first grammar: it reads the whole vocabulary.
    factory: OnceLock<Result<Arc<ParserFactory>>>,
    kept: Mutex<ByteLru<ContentHash, Guide>>,
    compiling: Arc<AtomicUsize>,
}

impl Guides {
    /// For a model whose logits have `vocabulary` columns.
    pub(crate) fn new(tokenizer: Arc<HfTokenizer>, vocabulary: usize, eos: &[u32]) -> Self {
        Self {
            tokenizer,
            vocabulary,
            eos: eos.to_vec(),
            factory: OnceLock::new(),
            kept: Mutex::new(ByteLru::new(KEPT)),
            compiling: Arc::default(),
        }
    }

    /// The guide of a grammar.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a grammar that is none, or too large, or takes too long;
    /// [`Error::Overloaded`] when too many are compiled at a time.
    pub(crate) fn compile(&self, grammar: &Grammar) -> Result<Guide> {
        let (kind, text) = source(grammar)?;
        let key = ContentHash::of_fields(&[kind.as_bytes(), text.as_bytes()]);
        if let Some(guide) = self.kept().get(&key) {
            return Ok(guide.clone());
        }
        let factory = self.factory.get_or_init(|| self.factory()).clone()?;
        let grammar = match kind {
            "json" => serde_json::from_str(&text)
                .map(TopLevelGrammar::from_json_schema)
                .map_err(|_| Error::invalid("the JSON schema is none"))?,
            "regex" => TopLevelGrammar::from_regex(&text),
            _ => TopLevelGrammar::from_lark(text),
        };
        let matcher = self.contained(move || Matcher::new(factory.create_parser(grammar)))?;
        if let Some(error) = matcher.get_error() {
            // The first line says what; those behind it show the parser's insides.
            let what = error.lines().next().unwrap_or_default();
            let what: String = what.chars().take(300).collect();
            return Err(Error::invalid(format!("the grammar can't be used: {what}")));
        }
        let guide = Guide(Arc::new(Mutex::new(matcher)));
        self.kept().insert(key, guide.clone(), 1);
        Ok(guide)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, ByteLru<ContentHash, Guide>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs work in a thread of its own. What does not come back in time is left behind.
    fn contained<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let compiling = self.compiling.clone();
        if compiling.fetch_add(1, Relaxed) >= MAX_COMPILING {
            compiling.fetch_sub(1, Relaxed);
            return Err(Error::Overloaded(
                "too many grammars are compiled at a time: try again later".to_owned(),
            ));
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let spawned = std::thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                compiling.fetch_sub(1, Relaxed);
                if let Ok(done) = done {
                    let _ = sender.send(done);
                }
            });
        if let Err(error) = spawned {
            self.compiling.fetch_sub(1, Relaxed);
            return Err(Error::internal(format!("no thread for a grammar: {error}")));
        }
        receiver.recv_timeout(DEADLINE).map_err(|e| match e {
            mpsc::RecvTimeoutError::Timeout => {
                Error::invalid("the grammar takes too long to compile")
            }
            mpsc::RecvTimeoutError::Disconnected => Error::invalid("the grammar can't be compiled"),
        })
    }

    fn factory(&self) -> Result<Arc<ParserFactory>> {
        let mut words = self.tokenizer.token_bytes(self.vocabulary);
        let mut eos: Vec<u32> = self.eos.clone();
        eos.retain(|id| (*id as usize) < words.len());
        if eos.is_empty() {
            // A token behind the vocabulary, which is never chosen: what ends such a model's text is
            // that nothing can follow.
            eos.push(words.len() as u32);
            words.push(b"\xff<end>".to_vec());
        }
        let info = TokRxInfo::new(words.len() as u32, eos[0]);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&eos);
        let env: toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let capabilities = InferenceCapabilities::default();
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, capabilities, &slices)
            .map_err(|e| Error::internal(format!("grammars over this vocabulary: {e}")))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_lexer_states: 20_000,
            max_grammar_size: 200_000,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Arc::new(factory))
    }
}

/// A schema as text. JSON allows any number of blanks between two tokens, and a small model that
/// has begun with them finds no end: so many are enough for any indentation.
fn with_few_blanks(schema: &Value) -> String {
    let mut schema = schema.clone();
    if let Some(object) = schema.as_object_mut() {
        object
            .entry("x-guidance")
            .or_insert_with(|| json!({"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"}));
    }
    schema.to_string()
}

/// A grammar as text and of which kind, within bounds.
fn source(grammar: &Grammar) -> Result<(&'static str, String)> {
    let (kind, text) = match grammar {
        Grammar::JsonObject => ("json", with_few_blanks(&json!({"type": "object"}))),
        Grammar::JsonSchema(schema) => {
            if depth(schema) > MAX_DEPTH {
                return Err(Error::invalid(format!(
                    "the JSON schema is nested more than {MAX_DEPTH} deep"
                )));
            }
            ("json", with_few_blanks(schema))
        }
        Grammar::Regex(regex) => ("regex", regex.clone()),
        Grammar::Choice(choices) if choices.is_empty() || choices.len() > MAX_CHOICES => {
            return Err(Error::invalid(format!(
                "a choice has {} texts; it has between 1 and {MAX_CHOICES}",
                choices.len()
            )));
        }
        Grammar::Choice(choices) => {
            let texts: Vec<String> = choices
                .iter()
                .map(|c| Value::from(c.as_str()).to_string())
                .collect();
            ("lark", format!("start: {}", texts.join(" | ")))
        }
        Grammar::Lark(lark) => ("lark", lark.clone()),
    };
    if text.len() > MAX_BYTES {
        return Err(Error::invalid(format!(
            "the grammar has {} bytes, the limit is {MAX_BYTES}",
            text.len()
        )));
    }
    if kind != "json" && nesting(&text) > MAX_DEPTH {
        return Err(Error::invalid(format!(
            "the grammar has brackets more than {MAX_DEPTH} deep"
        )));
    }
    Ok((kind, text))
}

/// Values inside each other.
fn depth(value: &Value) -> usize {
    let mut deepest = 0;
    let mut left = vec![(value, 1)];
    while let Some((value, depth)) = left.pop() {
        deepest = deepest.max(depth);
        match value {
            Value::Array(items) => left.extend(items.iter().map(|v| (v, depth + 1))),
            Value::Object(map) => left.extend(map.values().map(|v| (v, depth + 1))),
            _ => {}
        }
    }
    deepest
}

/// Brackets inside each other, wherever they stand: never fewer than a parser would see.
fn nesting(text: &str) -> usize {
    let (mut open, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(open);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;
    use kiln_registry::Tokenizer;

    fn guides(eos: &[u32]) -> (Guides, Arc<HfTokenizer>) {
        let folder = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/checkpoints/llava-clip-llama"
        );
        let tokenizer = Arc::new(HfTokenizer::load(&Checkpoint::open(folder).unwrap()).unwrap());
        (Guides::new(tokenizer.clone(), 320, eos), tokenizer)
    }

    /// Whether every token of a text is allowed in its place, and whether the text may end there.
    fn takes(
        guides: &Guides,
        tokenizer: &HfTokenizer,
        grammar: &Grammar,
        text: &str,
    ) -> (bool, bool) {
        let mut matching = guides.compile(grammar).unwrap().start();
        for id in tokenizer.encode(text, false).unwrap() {
            let mut logits = vec![0.0; 320];
            matching.allowed().unwrap().restrict(&mut logits);
            if logits[id as usize] != 0.0 {
                return (false, false);
            }
            matching.push(id).unwrap();
        }
        let ends = matching.is_over() || {
            let mut logits = vec![0.0; 320];
            matching.allowed().unwrap().restrict(&mut logits);
            logits[1] == 0.0
        };
        (true, ends)
    }

    #[test]
    fn a_text_is_taken_exactly_when_the_grammar_has_it() {
        let (guides, tokenizer) = guides(&[1]);
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}},
            "required": ["n"], "additionalProperties": false});
        let cases = [
            (
                Grammar::Regex("[ab]{2,3}é?".to_owned()),
                vec![("aba", true), ("ab", true), ("a", false)],
                vec!["c", "abab"],
            ),
            (
                Grammar::Choice(vec!["yes".to_owned(), "no \"x\"".to_owned()]),
                vec![("yes", true), ("no \"x\"", true), ("no", false)],
                vec!["maybe"],
            ),
            (
                Grammar::JsonSchema(schema),
                vec![("{\"n\": 12}", true), ("{\"n\":", false)],
                vec!["{\"m\"", "[", "{\"n\": \""],
            ),
            (
                Grammar::JsonObject,
                vec![("{\"a\": [1, {}]}", true)],
                vec!["[1]", "1"],
            ),
            (
                Grammar::Lark("start: \"a\" start | \"b\"".to_owned()),
                vec![("aaab", true), ("aa", false)],
                vec!["ba"],
            ),
        ];
        for (grammar, good, bad) in cases {
            for (text, ends) in good {
                assert_eq!(
                    takes(&guides, &tokenizer, &grammar, text),
                    (true, ends),
                    "{grammar:?} {text}"
                );
            }
            for text in bad {
                assert!(
                    !takes(&guides, &tokenizer, &grammar, text).0,
                    "{grammar:?} {text}"
                );
            }
        }
    }

    #[test]
    fn sequences_of_one_guide_are_apart() {
        let (guides, tokenizer) = guides(&[1]);
        let guide = guides.compile(&Grammar::Regex("a*b".to_owned())).unwrap();
        let (mut one, mut other) = (guide.start(), guide.start());
        let b = tokenizer.encode("b", false).unwrap()[0];
        one.push(b).unwrap();
        assert!(one.is_over() && !other.is_over());
        let mut logits = vec![0.0; 320];
        other.allowed().unwrap().restrict(&mut logits);
        assert_eq!(logits[b as usize], 0.0);
        assert_eq!(logits[1], f32::NEG_INFINITY, "it may not end yet");
    }

    #[test]
    fn without_an_end_token_a_text_ends_where_nothing_can_follow() {
        let (guides, tokenizer) = guides(&[]);
        let grammar = Grammar::Choice(vec!["yes".to_owned()]);
        assert_eq!(takes(&guides, &tokenizer, &grammar, "yes"), (true, true));
    }

    /// Each is refused, in bounded time, and good ones are taken afterwards.
    #[test]
    fn hostile_grammars_are_refused() {
        let (guides, tokenizer) = guides(&[1]);
        let a = tokenizer.encode("a", false).unwrap()[0];
        let mut deep = json!({"type": "integer"});
        for _ in 0..100 {
            deep = json!({"type": "array", "items": deep});
        }
        let started = std::time::Instant::now();
        for grammar in [
            Grammar::Regex("(".to_owned()),
            Grammar::Regex("(".repeat(50_000)),
            Grammar::Regex("a".repeat(MAX_BYTES + 1)),
            Grammar::JsonSchema(deep),
            Grammar::JsonSchema(json!({"type": "nonsense"})),
            Grammar::JsonSchema(json!({"$ref": "#/nowhere"})),
            Grammar::Lark("start: (".to_owned()),
            Grammar::Lark("start: nothing".to_owned()),
            Grammar::Lark(format!("start: {}", "(".repeat(40_000))),
            Grammar::Choice(vec![]),
        ] {
            let Err(error) = guides.compile(&grammar) else {
                panic!("it was taken: {grammar:.100?}");
            };
            assert!(error.is_callers_fault(), "{error}");
            assert!(error.to_string().len() < 500, "{error}");
        }
        // What is taken is followed in bounded time, or fails.
        for grammar in [
            Grammar::Regex("((a{1000}){1000}){1000}".to_owned()),
            Grammar::Regex("(a|aa|aaa)*(aa|aaa)*(a*)*b".to_owned()),
            Grammar::Regex(".*a.{900}".to_owned()),
            Grammar::Lark("start: start start | \"a\" | \"\"".to_owned()),
        ] {
            if let Ok(guide) = guides.compile(&grammar) {
                let mut matching = guide.start();
                for _ in 0..100 {
                    if matching.allowed().is_err() || matching.push(a).is_err() {
                        break;
                    }
                }
            }
        }
        assert!(started.elapsed() < Duration::from_secs(60));
        guides
            .compile(&Grammar::Regex("[a-z]+".to_owned()))
            .unwrap();
    }
}
