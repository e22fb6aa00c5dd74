//! `POST /inspect`: how the loaded model sees pictures, for the page and for programs.

use crate::inspect;
use crate::openai::json::{At, wire};
use crate::openai::{Api, ApiError};
use crate::serve::Shared;
use anyhow::Context;
use axum::Json;
use axum::extract::{Request, State};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use image::ImageFormat;
use kiln_registry::Error;
use serde_json::Value;
use std::io::Cursor;
use tokio::sync::Semaphore;

/// Sheets that are drawn at a time; more requests wait.
static SHEETS: Semaphore = Semaphore::const_new(2);

wire! {
    /// Pictures to look at.
    pub(crate) struct InspectRequest {
        /// Data URLs of the pictures of one prompt.
        images: Vec<String>,
    }
}

/// What `kiln inspect` says of pictures, as JSON, with the sheet as a data URL. Pictures are given by
/// their content; the limits are those of a request.
pub(crate) async fn handle(
    State(state): State<Shared>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let request: InspectRequest = state.body(request).await?;
    let urls = request.images.unwrap_or_default();
    // Before any is decoded: so many pictures as the limit allows, not as the body holds.
    let counted = urls.iter().map(|_| kiln_image::MODALITY);
    state.api.pipeline().check_counts(counted)?;
    let mut images = Vec::with_capacity(urls.len());
    for (url, number) in urls.into_iter().zip(1..) {
        let param = At::Field(&At::Root, "images");
        let param = At::Index(&param, number - 1);
        if !url.starts_with("data:") {
            return Err(ApiError::field(param, "it must be a data URL"));
        }
        let content = state.api.fetcher.url(url).await;
        let content = content.map_err(|e| ApiError::from(e).param(param.to_string()))?;
        images.push((format!("picture {number}"), content));
    }
    let turn = SHEETS.acquire().await.map_err(ApiError::internal)?;
    let drawn = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        look(&state.api, &images)
    });
    // A panic is this request's alone.
    drawn.await.map_err(ApiError::internal)?.map(Json)
}

fn look(api: &Api, images: &[(String, Bytes)]) -> Result<Value, ApiError> {
    let inspection = inspect::inspect(api.pipeline(), images).map_err(in_words)?;
    let mut png = Cursor::new(Vec::new());
    inspection
        .sheet()
        .write_to(&mut png, ImageFormat::Png)
        .context("the sheet can't be written")
        .map_err(ApiError::internal)?;
    let png = BASE64_STANDARD.encode(png.into_inner());
    let mut data = inspection.data();
    data["sheet"] = format!("data:image/png;base64,{png}").into();
    Ok(data)
}

/// With the picture that it is about.
fn in_words(error: anyhow::Error) -> ApiError {
    match error.downcast_ref::<Error>() {
        Some(cause) if cause.is_callers_fault() => {
            let mut refusal = ApiError::from(cause.clone());
            refusal.message = format!("{error:#}");
            refusal
        }
        _ => ApiError::internal(format!("{error:#}")),
    }
}
