//! Where lines come from: an editor with history on a terminal, plain lines elsewhere.

use anyhow::Result;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::fs;
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

/// Lines that are remembered.
const REMEMBERED: usize = 1000;

pub(super) enum Input {
    Terminal {
        editor: Box<DefaultEditor>,
        history: Option<PathBuf>,
    },
    Lines(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Input {
    pub(super) fn new() -> Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Lines(std::io::stdin().lock().lines()));
        }
        let config = rustyline::Config::builder()
            .max_history_size(REMEMBERED)?
            .auto_add_history(true)
            .build();
        let mut editor = DefaultEditor::with_config(config)?;
        let history = history_file();
        if let Some(file) = &history {
            // There is none the first time.
            let _ = editor.load_history(file);
        }
        Ok(Self::Terminal {
            editor: Box::new(editor),
            history,
        })
    }

    /// Whether a person types.
    pub(super) fn is_interactive(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next line; `None` at the end. `files`: how many wait for the next question.
    ///
    /// # Errors
    /// When the terminal or standard input can't be read.
    pub(super) fn next(&mut self, files: usize) -> Result<Option<String>> {
        let (editor, history) = match self {
            Self::Lines(lines) => return Ok(lines.next().transpose()?),
            Self::Terminal { editor, history } => (editor, history),
        };
        let prompt = match files {
            0 => "> ".to_owned(),
            1 => "[1 file] > ".to_owned(),
            n => format!("[{n} files] > "),
        };
        loop {
            match editor.readline(&prompt) {
                Ok(line) => {
                    if let Some(file) = history {
                        // Not to remember is no reason to stop.
                        let _ = editor.append_history(file);
                    }
                    return Ok(Some(line));
                }
                Err(ReadlineError::Interrupted) => eprintln!("Ctrl-D or /quit leaves."),
                Err(ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Where the system keeps what programs remember.
fn history_file() -> Option<PathBuf> {
    let folder = match std::env::var_os("XDG_STATE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::home_dir()?.join(".local").join("state"),
    };
    let folder = folder.join("kiln");
    fs::create_dir_all(&folder).ok()?;
    Some(folder.join("chat-history"))
}
