//! `kiln run`: one question, the answer as it comes, and how fast it came.

use crate::builtin;
use crate::cli::RunArgs;
use crate::load::{checkpoint, load, read_media};
use anyhow::{Result, bail};
use kiln_engine::{Engine, Event, FinishReason, Generation, Message, PromptInput, Request, Usage};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let model = args
        .model_dir
        .as_deref()
        .unwrap_or(Path::new(builtin::NAME));
    let is_builtin = model.as_os_str() == builtin::NAME;
    let (mut media, counts) = read_media(&args.media)?;
    if is_builtin && media.is_empty() && !args.raw_prompt {
        media.push(("image", builtin::picture()));
    }
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None if media.is_empty() => bail!(kiln_registry::Error::invalid(format!(
            "no question: kiln run {} 'TEXT'",
            model.display()
        ))),
        None => builtin::QUESTION.to_owned(),
    };
    if args.model_dir.is_none() {
        eprintln!("The built-in model about the built-in picture (assets/sample.png): {prompt}");
    }
    let options = args.load.options(&counts)?;
    let began = Instant::now();
    let loaded = load(&checkpoint(model)?, &options)?;
    let engine = Engine::start(loaded, &args.cache.engine(options))?;
    let ready = began.elapsed();

    let mut request = Request::about(prompt.clone(), media).sampling(args.sampling.params());
    if args.raw_prompt {
        request.prompt = PromptInput::Text(prompt);
    } else if let (Some(system), PromptInput::Chat(messages)) = (&args.system, &mut request.prompt)
    {
        messages.insert(0, Message::text("system", system));
    }
    let asked = Instant::now();
    let answer = show(engine.generate(request)?, args.sampling.n, asked)?;
    eprintln!("{}", answer.figures(ready, args.sampling.n));
    Ok(())
}

/// What an answer took.
struct Answer {
    usage: Usage,
    first: Duration,
    whole: Duration,
    cut: bool,
}

/// Prints text as it comes; of several sequences each whole, when it has ended.
fn show(events: Generation, n: usize, asked: Instant) -> Result<Answer> {
    let mut out = std::io::stdout().lock();
    let mut texts = vec![String::new(); n];
    let (mut first, mut cut) = (None, false);
    let mut usage = Usage::default();
    for event in events {
        match event? {
            Event::Accepted { .. } => {}
            Event::Token { index, text, .. } => {
                first.get_or_insert_with(|| asked.elapsed());
                if n == 1 {
                    out.write_all(text.as_bytes())?;
                    out.flush()?;
                } else if let Some(whole) = texts.get_mut(index) {
                    whole.push_str(&text);
                }
            }
            Event::Finished {
                index,
                reason,
                text,
            } => {
                first.get_or_insert_with(|| asked.elapsed());
                cut |= reason == FinishReason::Length;
                if n == 1 {
                    writeln!(out, "{text}")?;
                } else if let Some(whole) = texts.get(index) {
                    writeln!(out, "[{}] {whole}{text}", index + 1)?;
                }
            }
            Event::Done { usage: all, .. } => usage = all,
        }
    }
    Ok(Answer {
        usage,
        first: first.unwrap_or_default(),
        whole: asked.elapsed(),
        cut,
    })
}

impl Answer {
    fn figures(&self, ready: Duration, sequences: usize) -> String {
        let Usage {
            prompt_tokens,
            completion_tokens,
            ..
        } = self.usage;
        let media_tokens = self.usage.media_tokens();
        let decoding = (self.whole - self.first).as_secs_f64();
        // The first token of each sequence is the prompt's work, not decoding.
        let rate = match completion_tokens.saturating_sub(sequences) {
            n if n > 0 && decoding > 0.0 => format!("{:.1}", n as f64 / decoding),
            _ => "-".to_owned(),
        };
        let cut = if self.cut {
            " (cut off: --max-tokens, or the context is full)"
        } else {
            ""
        };
        format!(
            "{prompt_tokens} prompt tokens ({media_tokens} of media), {completion_tokens} new \
             tokens{cut}; loaded in {:.2} s, time to first token {:.3} s, {rate} tokens/s",
            ready.as_secs_f64(),
            self.first.as_secs_f64(),
        )
    }
}
