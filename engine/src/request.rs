//! What goes into the engine: a prompt, its media, and how to answer.

use crate::SamplingParams;
use crate::template::Message;
use bytes::Bytes;
use kiln_registry::MediaItem;
use serde_json::{Map, Value};
use std::time::Instant;

/// The text of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptInput {
    /// A conversation, for the checkpoint's chat template.
    Chat(Vec<Message>),
    /// Text as it is: special tokens written in it count, none is added.
    Text(String),
    /// Token ids, one placeholder id per item.
    Tokens(Vec<u32>),
}

/// An image, video or audio clip of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum MediaInput {
    /// Encoded bytes of a modality.
    Bytes {
        /// The modality's name, such as `image`.
        modality: String,
        /// The file's content; its format is found out from the bytes.
        bytes: Bytes,
        /// A name under which later requests may refer to the item, while it is cached.
        uuid: Option<String>,
    },
    /// An item that was sent before under this name and is cached still.
    Uuid {
        /// The modality's name.
        modality: String,
        /// The name.
        uuid: String,
    },
    /// An item that is decoded already, or embeddings that the caller computed.
    Item(MediaItem),
}

impl MediaInput {
    /// Encoded bytes without a name.
    pub fn bytes(modality: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        Self::Bytes {
            modality: modality.into(),
            bytes: bytes.into(),
            uuid: None,
        }
    }

    /// The modality's name.
    pub fn modality(&self) -> &str {
        match self {
            Self::Bytes { modality, .. } | Self::Uuid { modality, .. } => modality,
            Self::Item(item) => item.modality(),
        }
    }
}

/// What a chat template is given beside the messages.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateArgs {
    /// Tools that the model may call, as JSON objects.
    pub tools: Vec<Value>,
    /// Further variables (`chat_template_kwargs`).
    pub kwargs: Map<String, Value>,
    /// Whether the prompt ends with the start of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends with the last message's text, so that the model goes on with it.
    pub continue_final_message: bool,
}

impl Default for TemplateArgs {
    fn default() -> Self {
        Self {
            tools: Vec::new(),
            kwargs: Map::new(),
            add_generation_prompt: true,
            continue_final_message: false,
        }
    }
}

/// A request. Media stand in the order of their placeholders.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The text.
    pub prompt: PromptInput,
    /// The media.
    pub media: Vec<MediaInput>,
    /// How to choose tokens, and when to end.
    pub sampling: SamplingParams,
    /// Under the policy `priority` a lower number runs first.
    pub priority: i32,
    /// Part of the names of the prompt's KV blocks: prompts share what is cached of them only under
    /// the same salt, so that how fast an answer comes tells a client nothing of prompts whose salt
    /// it does not know. Encoded items are found by their content whatever the salt.
    pub cache_salt: Option<String>,
    /// What the chat template is given beside the messages.
    pub template: TemplateArgs,
    /// Laid over the processor's configuration for this request. Refused where it is not empty: what
    /// a request may take was profiled for the engine's own configuration.
    pub mm_processor_kwargs: Option<Map<String, Value>>,
    /// When it came: [`Timing`](crate::Timing) counts from here.
    pub arrival: Instant,
}

impl Request {
    /// A request that is answered greedily.
    pub fn new(prompt: PromptInput, media: Vec<MediaInput>) -> Self {
        Self {
            prompt,
            media,
            sampling: SamplingParams::default(),
            priority: 0,
            cache_salt: None,
            template: TemplateArgs::default(),
            mm_processor_kwargs: None,
            arrival: Instant::now(),
        }
    }

    /// One user message with items before the text, in this order, answered greedily. `media`: the
    /// modality and the file's content of each.
    pub fn about<M: Into<String>>(
        text: impl Into<String>,
        media: impl IntoIterator<Item = (M, Bytes)>,
    ) -> Self {
        let media = media.into_iter();
        let media: Vec<MediaInput> = media
            .map(|(m, bytes)| MediaInput::bytes(m, bytes))
            .collect();
        let message = Message::user(text, media.iter().map(MediaInput::modality));
        Self::new(PromptInput::Chat(vec![message]), media)
    }

    /// [`about`](Self::about) images alone.
    pub fn about_images(text: impl Into<String>, images: impl IntoIterator<Item = Bytes>) -> Self {
        Self::about(text, images.into_iter().map(|bytes| ("image", bytes)))
    }

    /// The same with other sampling parameters.
    #[must_use]
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }

    /// The same with another priority.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }
}
