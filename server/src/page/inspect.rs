//! `/inspect`: how the loaded model sees a picture, for the page and for programs.

use crate::inspect as run;
use anyhow::{Context, Result, anyhow};
use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use image::ImageFormat;
use kiln_engine::InputPipeline;
use kiln_registry::Error;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Cursor;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Sheets that are drawn at a time; more requests wait.
const AT_ONCE: usize = 2;

/// `GET /inspect`: what the model takes. `POST /inspect` with `{"images": ["data:..."]}`: what
/// `kiln inspect` says of these pictures, with the sheet as a data URL. Pictures are given by their
/// content alone; the limits are those of a request.
pub(crate) fn inspect(pipeline: Arc<InputPipeline>) -> Router {
    let shared = Shared {
        pipeline,
        turns: Arc::new(Semaphore::new(AT_ONCE)),
    };
    Router::new()
        .route("/inspect", get(takes).post(pictures))
        .with_state(shared)
}

#[derive(Clone)]
struct Shared {
    pipeline: Arc<InputPipeline>,
    turns: Arc<Semaphore>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pictures {
    images: Vec<String>,
}

async fn takes(State(shared): State<Shared>) -> Json<Value> {
    let pipeline = &shared.pipeline;
    let limits = pipeline.context().limits();
    let modalities: serde_json::Map<String, Value> = pipeline
        .max_tokens()
        .iter()
        .map(|(modality, tokens)| {
            let takes = json!({ "limit_per_prompt": limits.get(modality), "max_tokens": tokens });
            ((*modality).to_owned(), takes)
        })
        .collect();
    Json(json!({
        "modalities": modalities,
        "max_model_len": pipeline.context().max_model_len(),
    }))
}

async fn pictures(
    State(shared): State<Shared>,
    body: Result<Json<Pictures>, JsonRejection>,
) -> Response {
    let pictures = match body {
        Ok(Json(pictures)) => pictures,
        Err(rejection) => return refusal(rejection.status(), &rejection.body_text()),
    };
    // The semaphore is never closed.
    let Ok(turn) = shared.turns.clone().acquire_owned().await else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
    };
    let pipeline = shared.pipeline;
    let drawn = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        look(&pipeline, &pictures.images)
    });
    match drawn.await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(error)) => {
            let callers = error
                .downcast_ref::<Error>()
                .is_some_and(Error::is_callers_fault);
            if callers {
                refusal(StatusCode::BAD_REQUEST, &format!("{error:#}"))
            } else {
                refusal(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the picture can't be inspected",
                )
            }
        }
        // A panic is this request's alone.
        Err(_) => refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "inspecting the picture failed",
        ),
    }
}

fn look(pipeline: &InputPipeline, urls: &[String]) -> Result<Value> {
    // Before any is decoded: so many bytes as the limit allows, not as the body holds.
    let limit = pipeline.context().limits().get(kiln_image::MODALITY);
    if pipeline.entry().supports(kiln_image::MODALITY) && urls.len() > limit {
        return Err(anyhow!(Error::TooManyItems {
            modality: kiln_image::MODALITY.to_owned(),
            given: urls.len(),
            limit,
        }));
    }
    let images = urls
        .iter()
        .zip(1..)
        .map(|(url, number)| Ok((format!("picture {number}"), content(url)?)))
        .collect::<Result<Vec<_>>>()?;
    let inspection = run::inspect(pipeline, &images)?;
    let mut png = Cursor::new(Vec::new());
    inspection
        .sheet()
        .write_to(&mut png, ImageFormat::Png)
        .context("the sheet can't be written")?;
    let mut data = inspection.data();
    data["sheet"] = format!(
        "data:image/png;base64,{}",
        BASE64_STANDARD.encode(png.into_inner())
    )
    .into();
    Ok(data)
}

/// The bytes of a data URL.
fn content(url: &str) -> Result<Bytes, Error> {
    let invalid =
        || Error::invalid("each of `images` must be a data URL, such as data:image/png;base64,...");
    let (kind, text) = url
        .strip_prefix("data:")
        .and_then(|rest| rest.split_once(','))
        .ok_or_else(invalid)?;
    if !kind.ends_with(";base64") {
        return Err(invalid());
    }
    let bytes = BASE64_STANDARD.decode(text.trim()).map_err(|_| invalid())?;
    Ok(Bytes::from(bytes))
}

/// An error in the form that OpenAI's clients know.
fn refusal(status: StatusCode, message: &str) -> Response {
    let kind = if status.is_client_error() {
        "invalid_request_error"
    } else {
        "server_error"
    };
    let body = json!({
        "error": { "message": message, "type": kind, "param": Value::Null, "code": Value::Null }
    });
    (status, Json(body)).into_response()
}
