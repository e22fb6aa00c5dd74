//! `kiln chat`: a conversation in the terminal, with an engine in this process or with a running
//! server.
//!
//! Everything that is about the conversation is the same for both; they differ in one type, the
//! [`Partner`]. Ctrl-C stops an answer, not the program. Standard input need not be a terminal:
//! then lines are read as they come, and nothing is prompted.

mod args;
mod conversation;
mod input;
mod interrupts;
mod line;
mod partner;
mod remote;

pub(crate) use args::ChatArgs;

use anyhow::{Result, bail};
use conversation::{Attachment, Conversation};
use input::Input;
use interrupts::Interrupts;
use line::Line;
use partner::{Answer, Figures, Partner, Piece};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

const HELP: &str = "\
Type a question; Ctrl-C stops its answer. A path at the beginning, typed or dropped here, is a file
that the question is about.
  /image PATH   a picture for the next question; /video and /audio likewise
  /system TEXT  the system message; without TEXT: none
  /clear        forget the conversation
  /help         this
  /quit         leave, as does Ctrl-D";

pub(crate) fn chat(args: &ChatArgs) -> Result<()> {
    let mut partner = Partner::new(args)?;
    let mut input = Input::new()?;
    let interrupts = Interrupts::watch()?;
    if input.is_interactive() {
        eprintln!("{}: /help says what can be typed.", partner.name());
    }
    let mut chat = Chat {
        conversation: Conversation::new(args.system.clone()),
        pending: args.media()?,
        verbose: args.verbose,
        failed: false,
    };
    while let Some(text) = input.next(chat.pending.len())? {
        match Line::parse(&text, &|path| path.is_file()) {
            Line::Nothing => {}
            Line::Quit => break,
            Line::Help => eprintln!("{HELP}"),
            Line::Clear => {
                chat.conversation.clear();
                chat.pending.clear();
                eprintln!("The conversation begins anew.");
            }
            Line::System(text) => chat.conversation.system = text,
            Line::Attach(modality, path) => chat.attach(modality, &path),
            Line::Unknown(command) => {
                eprintln!("There is no {command}; /help says what there is.");
                chat.failed = true;
            }
            Line::Ask(files, question) => {
                let all_read = files.iter().all(|(modality, path)| {
                    let before = chat.pending.len();
                    chat.attach(modality, path);
                    chat.pending.len() > before
                });
                if all_read && !question.is_empty() {
                    chat.ask(&mut partner, question, &interrupts)?;
                }
            }
        }
    }
    // A person has seen what failed; a script looks at the exit code.
    if chat.failed && !input.is_interactive() {
        bail!("not all lines were answered");
    }
    Ok(())
}

struct Chat {
    conversation: Conversation,
    /// Files of the next question.
    pending: Vec<Attachment>,
    verbose: bool,
    failed: bool,
}

impl Chat {
    fn attach(&mut self, modality: &'static str, path: &Path) {
        match Attachment::read(modality, path) {
            Ok(attachment) => {
                eprintln!("[{modality}: {}]", attachment.name);
                self.pending.push(attachment);
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &anyhow::Error) {
        eprintln!("kiln: {error:#}");
        self.failed = true;
    }

    /// Asks, and writes the answer as it comes. A question that failed is taken back.
    ///
    /// # Errors
    /// When standard output can't be written.
    fn ask(&mut self, partner: &mut Partner, text: String, interrupts: &Interrupts) -> Result<()> {
        self.conversation
            .ask(text, std::mem::take(&mut self.pending));
        let asked = Instant::now();
        let mut answer = match partner.ask(&self.conversation) {
            Ok(answer) => answer,
            Err(error) => {
                self.conversation.take_back();
                self.fail(&error);
                return Ok(());
            }
        };
        let mut shown = Shown::default();
        let outcome = interrupts.guard(shown.write(&mut answer, asked));
        // Dropping it cancels what is still under way.
        drop(answer);
        if !shown.text.is_empty() {
            println!();
        }
        match outcome {
            Some(Ok(figures)) => {
                self.conversation.answered(shown.text.clone());
                if self.verbose {
                    eprintln!("{}", shown.words(figures.as_ref(), asked));
                }
            }
            Some(Err(Failed::Output(error))) => return Err(error.into()),
            Some(Err(Failed::Answer(error))) => {
                self.conversation.take_back();
                self.fail(&error);
            }
            None => {
                eprintln!("[stopped]");
                self.conversation.answered(shown.text);
            }
        }
        Ok(())
    }
}

enum Failed {
    Output(std::io::Error),
    Answer(anyhow::Error),
}

/// What has come of an answer.
#[derive(Default)]
struct Shown {
    text: String,
    first: Option<Instant>,
}

impl Shown {
    async fn write(
        &mut self,
        answer: &mut Answer,
        asked: Instant,
    ) -> Result<Option<Figures>, Failed> {
        // What a terminal would obey, a model must not say.
        let tame = std::io::stdout().is_terminal();
        while let Some(piece) = answer.next().await {
            match piece.map_err(Failed::Answer)? {
                Piece::Text(text) if text.is_empty() => {}
                Piece::Text(text) => {
                    self.first.get_or_insert_with(Instant::now);
                    let mut out = std::io::stdout().lock();
                    let written = if tame {
                        out.write_all(tamed(&text).as_bytes())
                    } else {
                        out.write_all(text.as_bytes())
                    };
                    written.and_then(|()| out.flush()).map_err(Failed::Output)?;
                    self.text.push_str(&text);
                }
                Piece::End(figures) => {
                    self.first.get_or_insert(asked);
                    return Ok(figures);
                }
            }
        }
        Ok(None)
    }

    fn words(&self, figures: Option<&Figures>, asked: Instant) -> String {
        let first = self.first.unwrap_or(asked);
        let mut words = format!(
            "[time to first token {:.3} s",
            (first - asked).as_secs_f64()
        );
        if let Some(figures) = figures {
            let decoding = first.elapsed().as_secs_f64();
            let rest = figures.completion_tokens.saturating_sub(1);
            if rest > 0 && decoding > 0.0 {
                words.push_str(&format!(", {:.1} tokens/s", rest as f64 / decoding));
            }
            words.push_str(&format!("; {figures}"));
        }
        words.push(']');
        words
    }
}

/// Without control characters but for line ends and tabs.
fn tamed(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_terminal_is_given_no_orders() {
        assert_eq!(super::tamed("a\u{1b}[2Jb\r\nc\td\u{9b}"), "a[2Jb\nc\td");
    }
}
