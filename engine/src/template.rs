//! A checkpoint's chat template: from a conversation to the prompt's text, as transformers'
//! `apply_chat_template` renders it.

mod clock;
mod filters;
mod jinja;
mod json;
mod source;
#[cfg(test)]
mod tests;
mod values;

use crate::Checkpoint;
use crate::json_file::{malformed, object};
use crate::request::TemplateArgs;
use crate::special_tokens::SpecialTokens;
use jinja::{Failure, Jinja};
use kiln_registry::{CheckpointFiles, Error, Result};
use minijinja::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use values::{bytes_of, object_of, value_of};

const JINJA: &str = "chat_template.jinja";
const LEGACY: &str = "chat_template.json";
const TOKENIZER: &str = "tokenizer_config.json";
const PROCESSOR: &str = "processor_config.json";

/// What a caller's variables may not be called: the engine gives them, or they are none of the
/// template's.
const RESERVED: [&str; 6] = [
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
];

/// Text that no template writes by itself.
const SENTINEL: &str = "KilnProbe7";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template takes.
    pub role: String,
    /// What is said, in order.
    pub content: Vec<ContentPart>,
    /// Further keys, such as `tool_calls`, `tool_call_id` and `name`.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentPart {
    /// Text.
    Text(String),
    /// The place of an item. The template writes the model's placeholder there.
    Media {
        /// The modality's name, which templates know as the part's type.
        modality: String,
    },
}

impl Message {
    /// A message of text alone.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: vec![ContentPart::Text(text.into())],
            extra: serde_json::Map::new(),
        }
    }

    /// A user's message: items of these modalities, then the text.
    pub fn user<M: Into<String>>(
        text: impl Into<String>,
        modalities: impl IntoIterator<Item = M>,
    ) -> Self {
        let media = modalities.into_iter().map(|modality| ContentPart::Media {
            modality: modality.into(),
        });
        Self {
            role: "user".to_owned(),
            content: media.chain([ContentPart::Text(text.into())]).collect(),
            extra: serde_json::Map::new(),
        }
    }
}

/// What a template expects as a message's `content`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentFormat {
    /// One string.
    Text,
    /// A list of parts.
    Parts,
    /// Both, with the same result.
    Both,
}

/// A checkpoint's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    jinja: Jinja,
    file: &'static str,
    special_tokens: BTreeMap<String, String>,
    format: ContentFormat,
    /// Which modalities the template has a place for; found out when first asked.
    takes: Arc<Mutex<BTreeMap<String, bool>>>,
    source: Arc<str>,
}

impl ChatTemplate {
    /// The template of a checkpoint: `chat_template.jinja`, else `chat_template` in
    /// `chat_template.json`, `tokenizer_config.json` or `processor_config.json`. `None` when there
    /// is none.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] that names the file of a template that can't be compiled or run.
    pub fn load(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let Some((file, source)) = find(checkpoint)? else {
            return Ok(None);
        };
        let special_tokens = SpecialTokens::load(checkpoint)?
            .all_named()
            .map(|(name, token)| (name.to_owned(), token.to_owned()))
            .collect();
        Self::new(file, &source, special_tokens).map(Some)
    }

    fn new(
        file: &'static str,
        source: &str,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut template = Self {
            jinja: Jinja::compile(file, source).map_err(|e| fault(file, e))?,
            file,
            special_tokens,
            format: ContentFormat::Text,
            takes: Arc::default(),
            source: source.into(),
        };
        template.format = template.probe_format()?;
        Ok(template)
    }

    /// The template as it stands in its file.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The literal beginning-of-sequence token that the template may write.
    pub fn bos_token(&self) -> Option<&str> {
        self.special_tokens.get("bos_token").map(String::as_str)
    }

    /// The prompt's text.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for no messages, for a conversation that the template refuses, with
    /// its own words, for media that it has no place for, for arguments that it can't work with.
    /// [`Error::Checkpoint`] for a template that fails by itself or does too much.
    pub fn render(&self, messages: &[Message], args: &TemplateArgs) -> Result<String> {
        let Some(last) = messages.last() else {
            return Err(Error::invalid("the conversation has no messages"));
        };
        for part in messages.iter().flat_map(|message| &message.content) {
            if let ContentPart::Media { modality } = part
                && !self.takes(modality)
            {
                return Err(Error::invalid(format!(
                    "this checkpoint's chat template takes no {modality}: send the prompt as raw \
                     text, with the model's own placeholders"
                )));
            }
        }
        if let Some(name) = RESERVED.iter().find(|n| args.kwargs.contains_key(**n)) {
            return Err(Error::invalid(format!(
                "chat_template_kwargs: `{name}` can't be set there"
            )));
        }
        if args.continue_final_message && args.add_generation_prompt {
            return Err(Error::invalid(
                "continue_final_message and add_generation_prompt exclude each other",
            ));
        }
        let text = self.run(messages, self.format, args).map_err(|failure| {
            let own = args.tools.is_empty()
                && args.kwargs.is_empty()
                && messages.iter().all(|m| m.extra.is_empty());
            match failure {
                // Whose fault it is can't be told: the caller brought part of the program's data.
                Failure::Broken(_) if !own => Error::invalid(
                    "the chat template can't work with these tools, template arguments or message \
                     fields",
                ),
                failure => fault(self.file, failure),
            }
        })?;
        if args.continue_final_message {
            return cut_behind(text, last);
        }
        Ok(text)
    }

    fn run(
        &self,
        messages: &[Message],
        format: ContentFormat,
        args: &TemplateArgs,
    ) -> Result<String, Failure> {
        let given = messages.iter().map(|message| {
            let extra: usize = message.extra.values().map(bytes_of).sum();
            message.role.len() + extra + message.content.iter().map(size).sum::<usize>()
        });
        let arguments = args.tools.iter().chain(args.kwargs.values()).map(bytes_of);
        let bytes = given.chain(arguments).sum();
        let list: Vec<Value> = messages.iter().map(|m| message_value(m, format)).collect();
        let mut variables: BTreeMap<&str, Value> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .collect();
        variables.insert("documents", Value::from(()));
        for (name, value) in &args.kwargs {
            variables.insert(name, value_of(value));
        }
        variables.insert("messages", Value::from(list));
        let generation = args.add_generation_prompt;
        variables.insert("add_generation_prompt", generation.into());
        let tools: Vec<Value> = args.tools.iter().map(value_of).collect();
        let tools = match tools.is_empty() {
            true => Value::from(()),
            false => tools.into(),
        };
        variables.insert("tools", tools);
        self.jinja
            .render(Value::from(variables), messages.len(), bytes)
    }

    /// Renders a message with its text as a string and as a part, and sees which comes out clean:
    /// a template that wants a string fails on a list, drops it, or prints it as code.
    fn probe_format(&self) -> Result<ContentFormat> {
        let probe = [Message::text("user", SENTINEL)];
        let text = self.run(&probe, ContentFormat::Text, &TemplateArgs::default());
        let parts = self.run(&probe, ContentFormat::Parts, &TemplateArgs::default());
        let clean = |rendered: &Result<String, Failure>| {
            rendered.as_ref().is_ok_and(|text| {
                text.contains(SENTINEL) && !text.contains("'type'") && !text.contains("\"type\"")
            })
        };
        match (clean(&text), clean(&parts)) {
            (true, true) if text == parts => Ok(ContentFormat::Both),
            (_, true) => Ok(ContentFormat::Parts),
            (true, false) => Ok(ContentFormat::Text),
            (false, false) => match (text, parts) {
                (Err(Failure::Broken(_)), Err(broken @ Failure::Broken(_))) => {
                    Err(fault(self.file, broken))
                }
                // It refuses a single user message; requests will tell.
                _ => Ok(ContentFormat::Text),
            },
        }
    }

    /// Whether an item of a modality leaves a trace in the prompt.
    fn takes(&self, modality: &str) -> bool {
        if self.format == ContentFormat::Text {
            return false;
        }
        let mut known = self.takes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(takes) = known.get(modality) {
            return *takes;
        }
        let without = self.run(
            &[Message::text("user", SENTINEL)],
            ContentFormat::Parts,
            &TemplateArgs::default(),
        );
        let with = self.run(
            &[Message::user(SENTINEL, [modality])],
            ContentFormat::Parts,
            &TemplateArgs::default(),
        );
        let takes = with.as_ref().is_ok_and(|text| text.contains(SENTINEL)) && with != without;
        // Modalities come from the program, not from clients, so there are few.
        known.insert(modality.to_owned(), takes);
        takes
    }
}

/// The template's source and the file that it stands in.
fn find(checkpoint: &Checkpoint) -> Result<Option<(&'static str, String)>> {
    if let Some(bytes) = checkpoint.read(JINJA)? {
        let source = String::from_utf8(bytes.to_vec())
            .map_err(|_| Error::checkpoint(JINJA, "it must be UTF-8 text"))?;
        // As Python reads text.
        return Ok(Some((JINJA, source.replace("\r\n", "\n"))));
    }
    for file in [LEGACY, TOKENIZER, PROCESSOR] {
        let Some(content) = object(checkpoint, file)? else {
            continue;
        };
        let template = match content.get("chat_template") {
            None | Some(serde_json::Value::Null) => continue,
            Some(serde_json::Value::Array(list)) => list
                .iter()
                .find(|one| one.get("name").and_then(|name| name.as_str()) == Some("default"))
                .and_then(|one| one.get("template")),
            // A map of names to templates, or the template itself.
            Some(one) => one.get("default").or(Some(one)),
        };
        let source = template
            .and_then(|template| template.as_str())
            .ok_or_else(|| {
                malformed(
                    file,
                    "chat_template",
                    "a string, or a list with one named `default`",
                )
            })?;
        return Ok(Some((file, source.to_owned())));
    }
    Ok(None)
}

fn message_value(message: &Message, format: ContentFormat) -> Value {
    let content = match (format, message.content.as_slice()) {
        // A message of one text is the plain case: some templates take parts of a user only.
        (ContentFormat::Both, [ContentPart::Text(text)]) => Value::from(text.as_str()),
        (ContentFormat::Text, parts) => {
            let texts: Vec<_> = parts
                .iter()
                .filter_map(|part| match part {
                    ContentPart::Text(text) => Some(text.as_str()),
                    ContentPart::Media { .. } => None,
                })
                .collect();
            Value::from(texts.join("\n"))
        }
        (_, parts) => parts.iter().map(part_value).collect::<Vec<_>>().into(),
    };
    let said = [
        ("role".to_owned(), Value::from(message.role.as_str())),
        ("content".to_owned(), content),
    ];
    let extra = message.extra.iter().map(|(k, v)| (k.clone(), value_of(v)));
    object_of(said.into_iter().chain(extra))
}

/// The prompt up to the end of the last message's text, as transformers cuts it.
fn cut_behind(mut prompt: String, last: &Message) -> Result<String> {
    let Some(ContentPart::Text(text)) = last.content.last() else {
        return Err(Error::invalid(
            "continue_final_message needs a last message that ends with text",
        ));
    };
    let at = prompt.rfind(text.trim()).ok_or_else(|| {
        Error::invalid(
            "continue_final_message: the chat template changes the last message, so that the \
             prompt can't end with it",
        )
    })?;
    // Templates may strip the text; where this one does not, its own space at the end stays.
    let whole = text.trim_start();
    let end = match prompt[at..].starts_with(whole) {
        true => at + whole.len(),
        false => at + text.trim().len(),
    };
    prompt.truncate(end);
    Ok(prompt)
}

fn part_value(part: &ContentPart) -> Value {
    match part {
        ContentPart::Text(text) => Value::from_pairs([("type", "text"), ("text", text)]),
        ContentPart::Media { modality } => Value::from_pairs([("type", modality.as_str())]),
    }
}

fn size(part: &ContentPart) -> usize {
    match part {
        ContentPart::Text(text) => text.len(),
        ContentPart::Media { modality } => modality.len(),
    }
}

fn fault(file: &str, failure: Failure) -> Error {
    match failure {
        Failure::Raised(message) => Error::invalid(message),
        Failure::Broken(message) => Error::checkpoint(file, format!("chat template: {message}")),
    }
}
