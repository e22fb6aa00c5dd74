//! What was said, with the files that it was about: as the engine takes it, and as the API does.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use kiln_engine::{ContentPart, MediaInput, Message, PromptInput, Request, SamplingParams};
use serde_json::{Value, json};
use std::path::Path;

/// A file of a question.
#[derive(Debug, Clone)]
pub(super) struct Attachment {
    /// The file's name without its folders.
    pub(super) name: String,
    modality: &'static str,
    bytes: Bytes,
}

impl Attachment {
    /// # Errors
    /// When the file can't be read.
    pub(super) fn read(modality: &'static str, path: &Path) -> Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            modality,
            bytes: bytes.into(),
        })
    }

    /// A content part of the API. The server finds a file's format out by itself; of sound the API
    /// wants it named.
    fn part(&self) -> Value {
        let content = BASE64_STANDARD.encode(&self.bytes);
        match self.modality {
            "audio" => {
                let format = self.name.rsplit('.').next().unwrap_or_default();
                json!({
                    "type": "input_audio",
                    "input_audio": { "data": content, "format": format.to_ascii_lowercase() },
                })
            }
            modality => {
                let kind = format!("{modality}_url");
                let media_type = match image::guess_format(&self.bytes) {
                    Ok(format) => format.to_mime_type(),
                    Err(_) => "application/octet-stream",
                };
                let url = format!("data:{media_type};base64,{content}");
                json!({ "type": &kind, &kind: { "url": url } })
            }
        }
    }
}

struct Turn {
    role: &'static str,
    text: String,
    files: Vec<Attachment>,
}

/// Questions and answers in turn, behind a system message.
#[derive(Default)]
pub(super) struct Conversation {
    pub(super) system: Option<String>,
    turns: Vec<Turn>,
}

impl Conversation {
    pub(super) fn new(system: Option<String>) -> Self {
        Self {
            system,
            turns: vec![],
        }
    }

    /// Forgets all but the system message.
    pub(super) fn clear(&mut self) {
        self.turns.clear();
    }

    pub(super) fn ask(&mut self, text: String, files: Vec<Attachment>) {
        self.turns.push(Turn {
            role: "user",
            text,
            files,
        });
    }

    pub(super) fn answered(&mut self, text: String) {
        self.turns.push(Turn {
            role: "assistant",
            text,
            files: vec![],
        });
    }

    /// The last question was not asked.
    pub(super) fn take_back(&mut self) {
        self.turns.pop();
    }

    /// As the engine takes it: files of a turn before its text.
    pub(super) fn request(&self, sampling: SamplingParams) -> Request {
        let system = self.system.iter().map(|text| Message::text("system", text));
        let turns = self.turns.iter().map(|turn| {
            let files = turn.files.iter().map(|file| ContentPart::Media {
                modality: file.modality.to_owned(),
            });
            Message {
                role: turn.role.to_owned(),
                extra: serde_json::Map::new(),
                content: files
                    .chain([ContentPart::Text(turn.text.clone())])
                    .collect(),
            }
        });
        let files = self.turns.iter().flat_map(|turn| &turn.files);
        let files = files.map(|file| MediaInput::bytes(file.modality, file.bytes.clone()));
        let messages = system.chain(turns).collect();
        Request::new(PromptInput::Chat(messages), files.collect()).sampling(sampling)
    }

    /// As `messages` of the API.
    pub(super) fn messages(&self) -> Vec<Value> {
        let message = |role: &str, content: Value| json!({ "role": role, "content": content });
        let system = self
            .system
            .iter()
            .map(|text| message("system", json!(text)));
        let turns = self.turns.iter().map(|turn| {
            if turn.files.is_empty() {
                return message(turn.role, json!(turn.text));
            }
            let text = json!({ "type": "text", "text": turn.text });
            let parts: Vec<Value> = turn
                .files
                .iter()
                .map(Attachment::part)
                .chain([text])
                .collect();
            message(turn.role, json!(parts))
        });
        system.chain(turns).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let file = |name: &str, modality, bytes: &'static [u8]| Attachment {
            name: name.to_owned(),
            modality,
            bytes: Bytes::from_static(bytes),
        };
        let mut conversation = Conversation::new(Some("Be brief.".to_owned()));
        let files = vec![
            file("a.png", "image", crate::builtin::PICTURE),
            file("b.WAV", "audio", b"RIFF"),
        ];
        conversation.ask("What is it?".to_owned(), files);
        conversation.answered("A star.".to_owned());
        conversation.ask("Lost.".to_owned(), vec![]);
        conversation.take_back();
        conversation.ask("Which colour?".to_owned(), vec![]);

        let request = conversation.request(SamplingParams::default());
        let PromptInput::Chat(messages) = request.prompt else {
            panic!("no chat");
        };
        let roles: Vec<&str> = messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert_eq!(messages[1].content.len(), 3);
        assert_eq!(request.media.len(), 2);

        let sent = conversation.messages();
        let roles: Vec<_> = sent.iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        let parts = sent[1]["content"].as_array().unwrap();
        let url = parts[0]["image_url"]["url"].as_str().unwrap();
        assert!(url.starts_with("data:image/png;base64,iVBOR"), "{url:.40}");
        assert_eq!(parts[1]["input_audio"]["format"], "wav");
        assert_eq!(parts[2]["text"], "What is it?");
        assert_eq!(sent[3]["content"], "Which colour?");
        conversation.clear();
        assert_eq!(conversation.messages().len(), 1);
    }
}
