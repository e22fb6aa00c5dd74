//! `POST /tokenize` and `/detokenize`, as vLLM has them: what a prompt is to the model.

use crate::openai::chat::ChatRequest;
use crate::openai::json::wire;
use crate::openai::json::{At, Fields, FromJson};
use crate::openai::{Api, ApiError, Head};
use kiln_registry::Tokenizer;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

wire! {
    /// A text to tokenise; a chat is sent as to /v1/chat/completions.
    pub(crate) struct TokenizeText {
        /// Which model.
        model: String,
        /// The text.
        prompt: String,
        /// Whether the tokenizer adds its special tokens. Default: true.
        add_special_tokens: bool,
        /// Whether to tell each token's text, too.
        return_token_strs: bool,
    }
}

wire! {
    /// Tokens to make text of.
    pub(crate) struct DetokenizeRequest {
        /// Which model.
        model: String,
        /// Their ids.
        tokens: Vec<u32>,
    }
}

/// A text, or a chat with what its template takes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TokenizeRequest {
    Text(TokenizeText),
    Chat(Box<ChatRequest>, bool),
}

impl FromJson for TokenizeRequest {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        let mut fields = Fields::of(value, at)?;
        if !fields.has("messages") {
            return TokenizeText::take(&mut fields, at).map(Self::Text);
        }
        let strings = fields.take("return_token_strs", at)?.unwrap_or(false);
        Ok(Self::Chat(
            Box::new(ChatRequest::take(&mut fields, at)?),
            strings,
        ))
    }

    fn schema() -> Value {
        serde_json::json!({"anyOf": [
            TokenizeText::schema(),
            {"$ref": "#/components/schemas/ChatRequest"},
        ]})
    }
}

/// The tokens of a prompt.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tokenized {
    count: usize,
    /// Tokens that one sequence may have.
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// The text of tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Detokenized {
    prompt: String,
}

/// Tokens that one call turns to text.
const MAX_TOKENS: usize = 1 << 20;

impl Api {
    /// The tokens of a text or chat: those of media as many as the model sees.
    ///
    /// # Errors
    /// As for a completion of it.
    pub(crate) async fn tokenize(&self, request: TokenizeRequest) -> Result<Tokenized, ApiError> {
        let (tokens, strings) = match request {
            TokenizeRequest::Text(text) => {
                self.model(text.model.as_deref())?;
                let Some(prompt) = text.prompt else {
                    return Err(ApiError::field(
                        "prompt",
                        "it is missing, and so is messages",
                    ));
                };
                let specials = text.add_special_tokens.unwrap_or(true);
                let tokenizer = self.pipeline().tokenizer().clone();
                let work = move || tokenizer.encode(&prompt, specials);
                (
                    blocking(work).await?,
                    text.return_token_strs.unwrap_or(false),
                )
            }
            TokenizeRequest::Chat(chat, strings) => {
                let head = Head::new("tok", self.model(chat.model.as_deref())?);
                let (request, _) = chat.into_request(self, head).await?;
                let pipeline = self.engine.pipeline().clone();
                let prepared = blocking(move || pipeline.prepare(&request)).await?;
                (prepared.token_ids.to_vec(), strings)
            }
        };
        let pipeline = self.pipeline();
        Ok(Tokenized {
            count: tokens.len(),
            max_model_len: self.engine.profile().max_model_len,
            token_strs: strings.then(|| {
                let text = |id: &u32| pipeline.tokenizer().id_to_token(*id).unwrap_or_default();
                tokens.iter().map(text).collect()
            }),
            tokens,
        })
    }

    /// The text of tokens.
    ///
    /// # Errors
    /// 400 for ids that are no tokens.
    pub(crate) async fn detokenize(
        &self,
        request: DetokenizeRequest,
    ) -> Result<Detokenized, ApiError> {
        self.model(request.model.as_deref())?;
        let Some(tokens) = request.tokens else {
            return Err(ApiError::field("tokens", "it is missing"));
        };
        let tokenizer = self.pipeline().tokenizer().clone();
        if let Some(id) = tokens
            .iter()
            .find(|id| tokenizer.id_to_token(**id).is_none())
        {
            return Err(ApiError::field("tokens", format!("there is no token {id}")));
        }
        if tokens.len() > MAX_TOKENS {
            return Err(ApiError::field("tokens", format!("at most {MAX_TOKENS}")));
        }
        let prompt = blocking(move || tokenizer.decode(&tokens, false)).await?;
        Ok(Detokenized { prompt })
    }
}

/// Work that takes a while, off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> kiln_registry::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(ApiError::internal)??)
}
