//! Answers, appended a whole line at a time, and what a run that was ended in the midst has left.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// The most work that a power cut may take.
const SYNC: Duration = Duration::from_secs(5);

pub(super) struct Output {
    file: File,
    name: String,
    answered: HashSet<String>,
    before: u64,
    synced: Instant,
}

impl Output {
    /// Opens or makes the file, reads which requests it answers, and cuts off a last line that was
    /// not written whole.
    ///
    /// # Errors
    /// When it can't be read or written, or holds something else than answers.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("can't write {name}"))?;
        let mut answered = HashSet::new();
        let (mut whole, mut before) = (0u64, 0u64);
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            let answer: Value = serde_json::from_slice(&line).with_context(|| {
                format!("line {} of {name} is no answer of a batch", before + 1)
            })?;
            let key = answer["custom_id"].as_str();
            // What has no identity is known by its message, which tells the line.
            let key = key.or(answer.pointer("/error/message").and_then(Value::as_str));
            answered.extend(key.map(str::to_owned));
            whole += length as u64;
            before += 1;
        }
        file.set_len(whole)
            .with_context(|| format!("can't mend {name}"))?;
        file.seek(SeekFrom::Start(whole))?;
        Ok(Self {
            file,
            name,
            answered,
            before,
            synced: Instant::now(),
        })
    }

    /// What is answered already: identities, and messages of lines that had none.
    pub(super) fn take_answered(&mut self) -> HashSet<String> {
        std::mem::take(&mut self.answered)
    }

    /// Lines that were there.
    pub(super) fn before(&self) -> u64 {
        self.before
    }

    /// Appends an answer.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(super) fn append(&mut self, answer: &Value) -> Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        // At once, so that only the end of the process in its midst leaves half a line.
        self.file
            .write_all(&line)
            .with_context(|| format!("can't write {}", self.name))?;
        if self.synced.elapsed() >= SYNC {
            self.sync()?;
        }
        Ok(())
    }

    /// What was written outlives a power cut from here on.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.synced = Instant::now();
        self.file
            .sync_data()
            .with_context(|| format!("can't write {}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn a_torn_line_is_cut_off_and_whole_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let mut output = Output::open(&path).unwrap();
        assert!(output.take_answered().is_empty());
        let answer = json!({ "custom_id": "a", "error": null });
        let nameless = json!({ "custom_id": null, "error": { "message": "line 3: bad" } });
        output.append(&answer).unwrap();
        output.append(&nameless).unwrap();
        drop(output);
        let whole = fs::read(&path).unwrap();
        for torn in [&b""[..], b"{", b"{\"custom_id\": \"b\"}"] {
            fs::write(&path, [&whole, torn].concat()).unwrap();
            let mut output = Output::open(&path).unwrap();
            let answered = output.take_answered();
            assert_eq!(answered, HashSet::from(["a".into(), "line 3: bad".into()]));
            assert_eq!(output.before(), 2);
            output.append(&answer).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().count(), 3, "{text}");
            assert!(
                text.lines()
                    .all(|l| serde_json::from_str::<Value>(l).is_ok())
            );
        }
    }

    #[test]
    fn another_file_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        fs::write(&path, "dear diary\n").unwrap();
        assert!(Output::open(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "dear diary\n");
    }
}
