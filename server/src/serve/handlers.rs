//! What each path does.

use crate::openai::api::Api;
use crate::openai::chat_reply::ChatChunks;
use crate::openai::completion_reply::{self, CompletionChunks};
use crate::openai::tokenize::{Detokenized, Tokenized};
use crate::openai::{ApiError, ChatRequest, CompletionRequest};
use crate::serve::router::events;
use crate::serve::state::Shared;
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// A list of models.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<ModelCard>,
}

/// A model that is served.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelCard {
    id: String,
    object: &'static str,
    /// When it was loaded, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
    /// The name of the model that this is another name of.
    root: String,
    /// Tokens that one sequence may have.
    max_model_len: usize,
    /// What it takes beside text, with the most items of a prompt and the most tokens of an item.
    modalities: std::collections::BTreeMap<String, ModalityCard>,
}

/// What a model takes of a modality.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModalityCard {
    max_items: usize,
    max_tokens: usize,
}

pub(crate) async fn chat(
    State(state): State<Shared>,
    request: Request,
) -> Result<Response, ApiError> {
    let request: ChatRequest = state.body(request).await?;
    if request.output.streams() {
        let (run, plan) = state.api.start_chat(request).await?;
        return Ok(events(run, ChatChunks::new(plan)));
    }
    Ok(Json(state.api.chat(request).await?).into_response())
}

pub(crate) async fn completions(
    State(state): State<Shared>,
    request: Request,
) -> Result<Response, ApiError> {
    let request: CompletionRequest = state.body(request).await?;
    let streams = request.output.streams();
    let (run, plan) = state.api.start_completion(request).await?;
    if streams {
        return Ok(events(run, CompletionChunks::new(plan)));
    }
    Ok(Json(completion_reply::collect(run, plan).await?).into_response())
}

pub(crate) async fn tokenize(
    State(state): State<Shared>,
    request: Request,
) -> Result<Json<Tokenized>, ApiError> {
    let request = state.body(request).await?;
    state.api.tokenize(request).await.map(Json)
}

pub(crate) async fn detokenize(
    State(state): State<Shared>,
    request: Request,
) -> Result<Json<Detokenized>, ApiError> {
    let request = state.body(request).await?;
    state.api.detokenize(request).await.map(Json)
}

pub(crate) async fn models(State(state): State<Shared>) -> Json<ModelList> {
    let api = &state.api;
    Json(ModelList {
        object: "list",
        data: api.names.iter().map(|name| card(api, name)).collect(),
    })
}

pub(crate) async fn model(
    State(state): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<ModelCard>, ApiError> {
    let name = state.api.model(Some(&id))?;
    Ok(Json(card(&state.api, &name)))
}

fn card(api: &Api, name: &str) -> ModelCard {
    let limits = api.pipeline().context().limits();
    let modalities = api
        .pipeline()
        .max_tokens()
        .iter()
        .map(|(modality, tokens)| {
            let card = ModalityCard {
                max_items: limits.get(modality),
                max_tokens: *tokens,
            };
            ((*modality).to_owned(), card)
        });
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created: api.created,
        owned_by: "kiln",
        root: api.names[0].clone(),
        max_model_len: api.engine.profile().max_model_len,
        modalities: modalities.collect(),
    }
}

/// Whether the process lives: a supervisor restarts it otherwise.
pub(crate) async fn health(State(state): State<Shared>) -> Result<StatusCode, ApiError> {
    state.alive().map(|()| StatusCode::OK)
}

/// Whether requests are taken: a load balancer sends them elsewhere otherwise.
pub(crate) async fn ready(State(state): State<Shared>) -> Result<StatusCode, ApiError> {
    state.ready().map(|()| StatusCode::OK)
}

pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

pub(crate) async fn metrics(State(state): State<Shared>) -> Response {
    let text = state.api.metrics.text(&state.api.engine.stats());
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
