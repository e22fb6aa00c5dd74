//! What a typed line means: a command, files, a question.

use std::path::{Path, PathBuf};

/// Endings of sounds; any other file is taken for a picture.
const SOUNDS: [&str; 5] = ["wav", "flac", "mp3", "ogg", "oga"];
const VIDEOS: [&str; 4] = ["mp4", "mkv", "webm", "mov"];

/// A file with its modality.
type File = (&'static str, PathBuf);

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Nothing,
    /// Files at the beginning, then the question; either may be empty, not both.
    Ask(Vec<File>, String),
    Attach(&'static str, PathBuf),
    System(Option<String>),
    Clear,
    Help,
    Quit,
    /// A command that there is not, or one that lacks something, in words.
    Unknown(String),
}

impl Line {
    /// `is_file`: whether a path is that of a file.
    pub(super) fn parse(text: &str, is_file: &dyn Fn(&Path) -> bool) -> Self {
        let text = text.trim();
        if text.is_empty() {
            return Self::Nothing;
        }
        let (files, rest) = leading_files(text, is_file);
        if !files.is_empty() {
            return Self::Ask(files, rest.to_owned());
        }
        if !text.starts_with('/') {
            return Self::Ask(vec![], text.to_owned());
        }
        let (command, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        match command {
            "/image" => attach("image", command, rest),
            "/video" => attach("video", command, rest),
            "/audio" => attach("audio", command, rest),
            "/system" => Self::System((!rest.is_empty()).then(|| rest.to_owned())),
            "/clear" | "/new" => Self::Clear,
            "/help" | "/?" => Self::Help,
            "/quit" | "/exit" | "/q" => Self::Quit,
            _ if command.matches('/').count() > 1 => Self::Unknown(format!("file {command}")),
            _ => Self::Unknown(format!("command {command}")),
        }
    }
}

fn attach(modality: &'static str, command: &str, rest: &str) -> Line {
    match word(rest) {
        // A path with spaces need not be quoted here: nothing else follows.
        Some((_, left)) if !left.is_empty() && !rest.contains(['\'', '"', '\\']) => {
            Line::Attach(modality, path(rest))
        }
        Some((first, _)) => Line::Attach(modality, path(&first)),
        None => Line::Unknown(format!("path behind {command}")),
    }
}

/// Files that a line begins with, as terminals paste them: quoted, or with backslashes before what a
/// shell would take for its own.
fn leading_files<'a>(text: &'a str, is_file: &dyn Fn(&Path) -> bool) -> (Vec<File>, &'a str) {
    let mut files = vec![];
    let mut rest = text;
    // A path with spaces that is pasted alone.
    if looks_like_a_path(text) && is_file(Path::new(text)) {
        let path = PathBuf::from(text);
        return (vec![(modality(&path), path)], "");
    }
    while let Some((first, left)) = word(rest) {
        let path = path(&first);
        // A lone word is a word, even where a file has its name.
        if !looks_like_a_path(&first) || !is_file(&path) {
            break;
        }
        files.push((modality(&path), path));
        rest = left;
    }
    (files, rest)
}

fn looks_like_a_path(word: &str) -> bool {
    word.contains(['/', '\\']) || Path::new(word).extension().is_some()
}

fn path(text: &str) -> PathBuf {
    match url::Url::parse(text).map(|url| url.to_file_path()) {
        Ok(Ok(path)) => path,
        _ => match (text.strip_prefix("~/"), std::env::home_dir()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(text),
        },
    }
}

fn modality(path: &Path) -> &'static str {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    let ending = ending.to_ascii_lowercase();
    if SOUNDS.contains(&&*ending) {
        "audio"
    } else if VIDEOS.contains(&&*ending) {
        "video"
    } else {
        "image"
    }
}

/// The first word, by a shell's rules of quoting, and what is behind it.
fn word(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') if word.is_empty() => quote = Some(c),
            (None, '\\') if cfg!(not(windows)) => word.extend(chars.next().map(|(_, c)| c)),
            (None, c) if c.is_whitespace() => return Some((word, text[at..].trim_start())),
            (None, c) => word.push(c),
        }
    }
    // A quote that is never closed was none.
    (!word.is_empty() && quote.is_none()).then_some((word, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Line {
        let files = [
            "/tmp/a.png",
            "/tmp/two words.png",
            "b.wav",
            "c.mp4",
            "README",
            "/quit",
        ];
        Line::parse(text, &|path| files.iter().any(|f| Path::new(f) == path))
    }

    fn asks(files: &[(&'static str, &str)], text: &str) -> Line {
        let files = files.iter().map(|(m, f)| (*m, PathBuf::from(f)));
        Line::Ask(files.collect(), text.to_owned())
    }

    #[test]
    fn commands() {
        assert_eq!(parse("  "), Line::Nothing);
        assert_eq!(parse("/help"), Line::Help);
        assert_eq!(parse("/clear"), Line::Clear);
        assert_eq!(parse("/exit"), Line::Quit);
        assert_eq!(
            parse("/system  Be brief. "),
            Line::System(Some("Be brief.".into()))
        );
        assert_eq!(parse("/system"), Line::System(None));
        assert_eq!(
            parse("/image x y.png"),
            Line::Attach("image", "x y.png".into())
        );
        assert_eq!(
            parse("/audio 'x y.wav'"),
            Line::Attach("audio", "x y.wav".into())
        );
        assert_eq!(parse("/frob x"), Line::Unknown("command /frob".into()));
        assert_eq!(
            parse("/tmp/absent.png"),
            Line::Unknown("file /tmp/absent.png".into())
        );
        assert_eq!(parse("/image"), Line::Unknown("path behind /image".into()));
    }

    #[test]
    fn a_pasted_path_is_a_file_and_the_rest_a_question() {
        assert_eq!(parse("/tmp/a.png"), asks(&[("image", "/tmp/a.png")], ""));
        assert_eq!(
            parse("'/tmp/a.png' b.wav  What is this?"),
            asks(
                &[("image", "/tmp/a.png"), ("audio", "b.wav")],
                "What is this?"
            )
        );
        let spaced = asks(&[("image", "/tmp/two words.png")], "");
        assert_eq!(parse("/tmp/two words.png"), spaced);
        assert_eq!(parse("'/tmp/two words.png'"), spaced);
        assert_eq!(parse("\"/tmp/two words.png\""), spaced);
        #[cfg(unix)]
        {
            assert_eq!(parse("/tmp/two\\ words.png"), spaced);
            assert_eq!(parse("file:///tmp/two%20words.png"), spaced);
        }
        assert_eq!(parse("c.mp4 why?"), asks(&[("video", "c.mp4")], "why?"));
    }

    #[test]
    fn what_only_looks_like_a_path_stays_a_question() {
        assert_eq!(parse("README"), asks(&[], "README"));
        assert_eq!(parse("Is it 1.5 or 2?"), asks(&[], "Is it 1.5 or 2?"));
        assert_eq!(parse("'tis odd"), asks(&[], "'tis odd"));
        assert_eq!(
            parse("What's in /tmp/a.png?"),
            asks(&[], "What's in /tmp/a.png?")
        );
        assert_eq!(parse("a\\"), asks(&[], "a\\"));
        assert_eq!(parse("\\"), asks(&[], "\\"));
    }
}
