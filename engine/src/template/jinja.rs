//! The template engine as transformers sets it up, and bounds on what a template can do to the
//! process: a template is code that came with a checkpoint.
//!
//! Work is bounded by fuel, output by a limit, nesting by `source::rewrite`. What remains (deep
//! recursion of the compiler, comparing long strings over and over) is bounded by a thread of its
//! own, with a large stack and a deadline.

use super::filters::{self, Raised};
use super::source::rewrite;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Bytes of source; the largest templates in use have some 50 thousand.
const MAX_SOURCE: usize = 128 << 10;
/// What the compiler's recursion takes for a source of that size, with a margin, and what a run
/// takes. Memory is used only as far as a stack grows.
const COMPILE_STACK: usize = 160 << 20;
const RUN_STACK: usize = 16 << 20;
const DEADLINE: Duration = Duration::from_secs(10);

/// One unit of fuel is one instruction or 64 bytes. A template may look at each message some
/// thousand times, and at all text some dozens of times.
const FUEL: u64 = 200_000;
const FUEL_A_MESSAGE: u64 = 4_000;
const FUEL_A_BYTE: u64 = 1;

/// Output beyond what went in, in bytes, and how often the input may be repeated.
const OUTPUT: usize = 1 << 20;
const REPEATED: usize = 16;

/// Why a template gave no text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Failure {
    /// It called `raise_exception`: the conversation is not one that it takes.
    Raised(String),
    /// It is broken, or does too much.
    Broken(String),
}

/// A compiled template.
#[derive(Debug, Clone)]
pub(super) struct Jinja {
    env: Arc<Environment<'static>>,
    name: &'static str,
    /// Set once a run did not come back: its thread can't be ended, so there is never a second.
    hangs: Arc<AtomicBool>,
}

impl Jinja {
    /// Compiles a template. `name` is the file that it stands in, for messages.
    pub(super) fn compile(name: &'static str, source: &str) -> Result<Self, Failure> {
        if source.len() > MAX_SOURCE {
            return Err(Failure::Broken(format!(
                "a template of {} bytes: {MAX_SOURCE} are the most",
                source.len()
            )));
        }
        let source = rewrite(source).map_err(Failure::Broken)?;
        let env = contained(COMPILE_STACK, &AtomicBool::new(false), move || {
            let mut env = environment();
            env.add_template_owned(name, source)
                .map_err(|e| Failure::Broken(e.to_string()))?;
            Ok(env)
        })?;
        Ok(Self {
            env: Arc::new(env),
            name,
            hangs: Arc::default(),
        })
    }

    /// Renders the template. `messages` and `bytes` say how much goes in.
    pub(super) fn render(
        &self,
        variables: Value,
        messages: usize,
        bytes: usize,
    ) -> Result<String, Failure> {
        if self.hangs.load(Relaxed) {
            return Err(Failure::Broken(
                "it did not come to an end before".to_owned(),
            ));
        }
        let fuel = FUEL
            .saturating_add(FUEL_A_MESSAGE.saturating_mul(messages as u64))
            .saturating_add(FUEL_A_BYTE.saturating_mul(bytes as u64));
        let mut env = Environment::clone(&self.env);
        let name = self.name;
        let text = contained(RUN_STACK, &self.hangs, move || {
            env.set_fuel(Some(fuel));
            env.get_template(name)
                .and_then(|template| template.render(variables))
                .map_err(|e| failure(&e))
        })?;
        let most = OUTPUT.saturating_add(bytes.saturating_mul(REPEATED));
        if text.len() > most {
            return Err(Failure::Broken(format!(
                "it made {} bytes of {bytes}: {most} are the most",
                text.len()
            )));
        }
        Ok(text)
    }
}

/// The settings of transformers' `apply_chat_template`.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
    {
        env.set_syntax(syntax);
    }
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    // Macros may call themselves, some twenty levels deep.
    env.set_recursion_limit(150);
    env.set_debug(false);
    env.remove_global("debug");
    filters::add_to(&mut env);
    env
}

/// Runs work in a thread of its own. What does not come back in time is left behind, and told.
fn contained<T: Send + 'static>(
    stack: usize,
    hangs: &AtomicBool,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let broken = |why: &str| Failure::Broken(why.to_owned());
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("template".to_owned())
        .stack_size(stack)
        .spawn(move || {
            // Nobody waits any more once the deadline has passed.
            let _ = sender.send(work());
        })
        .map_err(|_| broken("no thread could be started for it"))?;
    receiver.recv_timeout(DEADLINE).unwrap_or_else(|e| match e {
        mpsc::RecvTimeoutError::Timeout => {
            hangs.store(true, Relaxed);
            Err(broken("it does not come to an end in time"))
        }
        mpsc::RecvTimeoutError::Disconnected => Err(broken("the template engine can't run it")),
    })
}

fn failure(error: &Error) -> Failure {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return Failure::Raised(message.clone());
        }
        source = cause.source();
    }
    Failure::Broken(match error.kind() {
        ErrorKind::OutOfFuel => "it takes too many steps or too much memory".to_owned(),
        _ => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn run(source: &str) -> Result<String, Failure> {
        Jinja::compile("chat_template.jinja", source)?.render(Value::from(()), 1, 0)
    }

    /// Each of these hangs, aborts the process or takes gigabytes without the bounds.
    #[test]
    fn hostile_templates_end_with_an_error() {
        let double = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}\
                      {% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
        let unrolled = "{% set x = [1] %}".to_owned() + &"{% set x = [x, x] %}".repeat(60);
        let deep = |open: &str, close: &str| open.repeat(60_000) + "1" + &close.repeat(60_000);
        for source in [
            "{% for i in range(10**9) %}x{% endfor %}",
            "{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}",
            "{{ 'a' * 10**9 }}",
            "{{ ('a' * 1000000) | replace('a', 'a' * 1000000) }}",
            "{{ '{:>1000000000}'.format('a') }}",
            "{{ '%1000000000s' | format('a') }}",
            "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
            "{% macro m(x) %}{{ m([x, x]) }}{% endmacro %}{{ m([1]) }}",
            "{% for x in [[1]] recursive %}{{ loop([[x, x]]) }}{% endfor %}",
            "{% include 'chat_template.jinja' %}",
            &(double.to_owned() + "{{ ns.x == ns.y }}"),
            &(double.to_owned() + "{{ ns.x }}"),
            &(unrolled.clone() + "{{ x | tojson }}"),
            &(unrolled + "{{ x ~ x }}"),
            "{% set ns = namespace(x=[1]) %}{% for i in range(9000) %}{% set ns.x = [ns.x] %}{% endfor %}",
            "{{ 10**10**10 }}",
            &("{{ [".to_owned() + &"[".repeat(60_000) + " }}"),
            &format!("{{% if {} %}}", "(".repeat(60_000)),
        ] {
            let started = Instant::now();
            let shown = &source[..source.len().min(80)];
            assert!(matches!(run(source), Err(Failure::Broken(_))), "{shown}");
            assert!(started.elapsed() < Duration::from_secs(3), "{shown}");
        }
        // Long chains compile on the large stack; whether they give a text does not matter.
        for source in [
            format!("{{{{ {} }}}}", deep("-", "")),
            format!("{{{{ {} }}}}", deep("1+", "")),
            format!("{{{{ {} }}}}", deep("x", ".a")),
            format!("{{{{ {} }}}}", deep("", "|e")),
            format!("{{{{ {} }}}}", "not ".repeat(30_000) + "1"),
            format!(
                "{{% set {} = 1 %}}",
                "(".repeat(60_000) + "a" + &")".repeat(60_000)
            ),
            "{% if 1 %}".to_owned() + &"{% elif 2 %}".repeat(10_000) + "{% endif %}",
        ] {
            let _ = run(&source);
        }
        assert!(matches!(
            run(&" ".repeat(MAX_SOURCE + 1)),
            Err(Failure::Broken(_))
        ));
    }

    /// A namespace that contains itself would overflow the stack when it is printed or compared;
    /// it takes copies instead.
    #[test]
    fn nothing_contains_itself() {
        for (value, expected) in [
            ("ns", "1"),
            ("[ns]", "1"),
            ("ns.items()", "1"),
            ("{'b': [ns]}", "1"),
        ] {
            let source = format!(
                "{{% set ns = namespace(a=1) %}}{{% for i in range(3) %}}{{% set ns.a = {value} %}}{{% endfor %}}\
                 {{% set other = namespace(a=1) %}}{{% set other.a = other %}}\
                 {{{{ ns.a|string|length > 0 and ns != other and 1 }}}}"
            );
            assert_eq!(run(&source).unwrap(), expected, "{value}");
        }
    }

    #[test]
    fn a_raised_exception_is_told_from_a_fault() {
        assert_eq!(
            run(
                "{% macro m() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ m() }}"
            ),
            Err(Failure::Raised("roles must alternate".to_owned()))
        );
        let Err(Failure::Broken(message)) = run("a\n{{ nothing.at.all }}") else {
            panic!("it can't be rendered");
        };
        assert!(message.contains("chat_template.jinja:2"), "{message}");
    }

    #[test]
    fn whitespace_scopes_and_loops_are_jinjas() {
        // Expected: what jinja2 renders with transformers' settings.
        for (source, expected) in [
            ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
            ("{%- generation %}\n a {% endgeneration %}\nb", " a b"),
            (
                "{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "012",
            ),
            (
                "{% set x = 1 %}{% for i in [2] %}{% set x = i %}{% endfor %}{{ x }}",
                "1",
            ),
            (
                "{{ '<' }}{{ {'a': '<'}|tojson }}{{ nothing }}",
                "<{\"a\": \"<\"}",
            ),
            (
                "{% set ns = namespace() %}{% set ns.a = {'b': (1, [2])} %}{{ ns.a.b[1][0] }}{{ ns.a.b }}",
                "2(1, [2])",
            ),
            (
                "{% set x = [1, 2]|map('string') %}{{ x|join('-') }}{{ x|join }}",
                "1-212",
            ),
            (
                "{% set x = {'a': 1}.items() %}{% for k, v in x %}{{ k }}{{ v }}{% endfor %}",
                "a1",
            ),
            ("{{ ' a '.strip() ~ 'x'.upper() + ('b' * 2) }}", "aXbb"),
        ] {
            assert_eq!(run(source).unwrap(), expected, "{source}");
        }
    }
}
