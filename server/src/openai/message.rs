//! Messages of a conversation and their parts: text, and media by URL, by base64 or by the name
//! under which they were sent before.

use crate::openai::ApiError;
use crate::openai::json::{At, Fields, FromJson};
use serde_json::{Map, Value, json};

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChatMessage {
    pub(crate) role: String,
    pub(crate) content: Vec<Part>,
    /// What else templates look at: tool calls, the id of the call that is answered, a name.
    pub(crate) extra: Map<String, Value>,
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    /// Text; never looked at for links.
    Text(String),
    /// An image, video or audio clip.
    Media(MediaPart),
}

/// An image, video or audio clip as the client names it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MediaPart {
    pub(crate) modality: &'static str,
    /// Where its content is; without one, `uuid` says which it was.
    pub(crate) source: Option<MediaSource>,
    pub(crate) uuid: Option<String>,
    /// The field, for errors.
    pub(crate) param: String,
}

/// Where an item's content is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum MediaSource {
    /// A data, http, https or file URL.
    Url(String),
    /// The content, in base64.
    Base64(String),
    /// Rows that the caller computed.
    Embeds {
        /// In base64: f32, little endian.
        data: String,
        shape: Vec<usize>,
        dtype: String,
    },
}

/// Names of items are keys of a cache: no novels.
const MAX_UUID: usize = 256;

impl FromJson for ChatMessage {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        let mut fields = Fields::of(value, at)?;
        let mut role: String = fields.need("role", at)?;
        if role == "developer" {
            // OpenAI's newer name, which no template knows.
            "system".clone_into(&mut role);
        }
        let content = fields.take::<Content>("content", at)?;
        let tool_calls = fields
            .take::<Vec<Value>>("tool_calls", at)?
            .map(|calls| {
                let list = At::Field(at, "tool_calls");
                let calls = calls.into_iter().enumerate();
                calls
                    .map(|(index, call)| with_parsed_arguments(call, &At::Index(&list, index)))
                    .collect::<Result<Vec<_>, _>>()
            })
            .transpose()?;
        if content.is_none() && tool_calls.is_none() && role != "assistant" {
            return Err(At::Field(at, "content").missing());
        }
        let mut extra = Map::new();
        for name in ["name", "tool_call_id", "reasoning_content"] {
            if let Some(text) = fields.take::<String>(name, at)? {
                extra.insert(name.to_owned(), text.into());
            }
        }
        if let Some(calls) = tool_calls.filter(|calls| !calls.is_empty()) {
            extra.insert("tool_calls".to_owned(), calls.into());
        }
        Ok(Self {
            role,
            content: content.map(|content| content.0).unwrap_or_default(),
            extra,
        })
    }

    fn schema() -> Value {
        json!({
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": {"type": "string", "description": "system, user, assistant, tool"},
                "content": Content::schema(),
                "name": {"type": "string"},
                "tool_calls": {"type": "array", "items": {"type": "object"}},
                "tool_call_id": {"type": "string"},
            }
        })
    }
}

/// A call of an earlier turn. Its arguments travel as a string of JSON; templates write them out as
/// the object that they are.
fn with_parsed_arguments(mut call: Value, at: &At<'_>) -> Result<Value, ApiError> {
    let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else {
        return Err(At::Field(at, "function").missing());
    };
    if let Some(Value::String(text)) = function.get("arguments")
        && let Ok(parsed @ Value::Object(_)) = serde_json::from_str(text)
    {
        function.insert("arguments".to_owned(), parsed);
    }
    Ok(call)
}

/// `content`: a string or a list of parts.
struct Content(Vec<Part>);

impl FromJson for Content {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        match value {
            Value::String(text) => Ok(Self(vec![Part::Text(text)])),
            Value::Array(_) => Vec::from_json(value, at).map(Self),
            other => Err(at.wanted("a string or a list of parts", &other)),
        }
    }

    fn schema() -> Value {
        json!({"anyOf": [{"type": "string"}, Vec::<Part>::schema()]})
    }
}

impl FromJson for Part {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        if let Value::String(text) = value {
            return Ok(Self::Text(text));
        }
        let mut fields = Fields::of(value, at)?;
        let kind: String = fields.need("type", at)?;
        let media = |modality, source: Option<MediaSource>, uuid: Option<String>, name: &str| {
            let param = At::Field(at, name).to_string();
            if uuid
                .as_ref()
                .is_some_and(|uuid| uuid.is_empty() || uuid.len() > MAX_UUID)
            {
                let range = format!("it must have 1 to {MAX_UUID} bytes");
                return Err(ApiError::field(At::Field(at, "uuid"), range));
            }
            if source.is_none() && uuid.is_none() {
                return Err(ApiError::field(param, "it is missing, and so is a uuid"));
            }
            Ok(Self::Media(MediaPart {
                modality,
                source,
                uuid,
                param,
            }))
        };
        match kind.as_str() {
            "text" | "input_text" | "output_text" | "refusal" => {
                let name = if kind == "refusal" { "refusal" } else { "text" };
                fields.need(name, at).map(Self::Text)
            }
            "image_url" | "video_url" | "audio_url" => {
                let modality = match kind.as_str() {
                    "image_url" => "image",
                    "video_url" => "video",
                    _ => "audio",
                };
                let url = fields.take::<Url>(&kind, at)?;
                let uuid = fields.take::<String>("uuid", at)?;
                let uuid = uuid.or(url.as_ref().and_then(|url| url.uuid.clone()));
                let source = url.and_then(|url| url.url).map(MediaSource::Url);
                media(modality, source, uuid, &kind)
            }
            "input_audio" => {
                let data = fields.take::<InputAudio>("input_audio", at)?;
                let uuid = fields.take("uuid", at)?;
                let source = data.map(|audio| MediaSource::Base64(audio.0));
                media("audio", source, uuid, "input_audio")
            }
            "image_embeds" => {
                let source = fields.need::<Embeds>("image_embeds", at)?.0;
                media("image", Some(source), None, "image_embeds")
            }
            other => Err(ApiError::field(
                At::Field(at, "type"),
                format!(
                    "`{other}` is none of text, image_url, video_url, audio_url, input_audio, \
                     image_embeds"
                ),
            )),
        }
    }

    fn schema() -> Value {
        let url = json!({"type": "object", "required": ["url"], "properties": {
            "url": {"type": "string", "description": "a data, https, http or file URL"},
            "detail": {"type": "string", "description": "accepted; every model sees a picture in the detail that it was made for"},
        }});
        let part = |kind: &str, content: Value| {
            json!({"type": "object", "required": ["type"], "properties": {
                "type": {"const": kind},
                kind: content,
                "uuid": {"type": "string", "description": "a name under which the item may be sent again without its content"},
            }})
        };
        json!({"anyOf": [
            {"type": "object", "required": ["type", "text"],
             "properties": {"type": {"const": "text"}, "text": {"type": "string"}}},
            part("image_url", url.clone()),
            part("video_url", url.clone()),
            part("audio_url", url),
            part("input_audio", json!({"type": "object", "properties": {
                "data": {"type": "string", "description": "base64"},
                "format": {"type": "string", "description": "accepted; the format is found out from the bytes"},
            }})),
            part("image_embeds", json!({"type": "object", "properties": {
                "data": {"type": "string", "description": "base64 of little-endian float32"},
                "shape": {"type": "array", "items": {"type": "integer"}},
                "dtype": {"type": "string"},
            }})),
        ]})
    }
}

/// A URL as an object, as OpenAI's API has it, or bare, as some clients send it.
struct Url {
    url: Option<String>,
    uuid: Option<String>,
}

impl FromJson for Url {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        if let Value::String(url) = value {
            return Ok(Self {
                url: Some(url),
                uuid: None,
            });
        }
        let mut fields = Fields::of(value, at)?;
        let url: Option<String> = fields.take("url", at)?;
        let uuid: Option<String> = fields.take("uuid", at)?;
        fields.take::<String>("detail", at)?;
        if url.is_none() && uuid.is_none() {
            return Err(At::Field(at, "url").missing());
        }
        Ok(Self { url, uuid })
    }

    fn schema() -> Value {
        json!({})
    }
}

struct InputAudio(String);

impl FromJson for InputAudio {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        let mut fields = Fields::of(value, at)?;
        fields.take::<String>("format", at)?;
        fields.need("data", at).map(Self)
    }

    fn schema() -> Value {
        json!({})
    }
}

struct Embeds(MediaSource);

impl FromJson for Embeds {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        let mut fields = Fields::of(value, at)?;
        Ok(Self(MediaSource::Embeds {
            data: fields.need("data", at)?,
            shape: fields.need("shape", at)?,
            dtype: fields
                .take("dtype", at)?
                .unwrap_or_else(|| "float32".to_owned()),
        }))
    }

    fn schema() -> Value {
        json!({})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(value: Value) -> Result<ChatMessage, ApiError> {
        ChatMessage::from_json(value, &At::Root)
    }

    #[test]
    fn parts_keep_their_order() {
        let url = "data:image/png;base64,AA==";
        let message = message(json!({"role": "user", "content": [
            {"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": url, "detail": "low"}, "uuid": "one"},
            "b",
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            {"type": "video_url", "video_url": url},
            {"type": "image_url", "image_url": null, "uuid": "one"},
        ]}))
        .unwrap();
        let seen: Vec<String> = message
            .content
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Media(media) => format!("{} {:?}", media.modality, media.uuid),
            })
            .collect();
        assert_eq!(
            seen,
            [
                "a",
                "image Some(\"one\")",
                "b",
                "audio None",
                "video None",
                "image Some(\"one\")"
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (value, param) in [
            (json!({"content": "x"}), "role"),
            (json!({"role": "user"}), "content"),
            (json!({"role": "user", "content": 3}), "content"),
            (json!({"role": "user", "content": [3]}), "content[0]"),
            (
                json!({"role": "user", "content": [{"type": "smell"}]}),
                "content[0].type",
            ),
            (
                json!({"role": "user", "content": [{"type": "image_url"}]}),
                "content[0].image_url",
            ),
            (
                json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
                "content[0].image_url.url",
            ),
            (
                json!({"role": "user", "content": [{"type": "image_url", "uuid": ""}]}),
                "content[0].uuid",
            ),
            (
                json!({"role": "assistant", "tool_calls": [{}]}),
                "tool_calls[0].function",
            ),
        ] {
            let error = message(value.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{value}");
        }
    }

    #[test]
    fn arguments_of_earlier_calls_are_objects_again() {
        let call = json!({"id": "1", "type": "function",
            "function": {"name": "f", "arguments": "{\"x\": 1}"}});
        let message = message(json!({"role": "assistant", "tool_calls": [call]})).unwrap();
        assert_eq!(
            message.extra["tool_calls"][0]["function"]["arguments"]["x"],
            1
        );
    }
}
