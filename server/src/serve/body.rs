//! Bodies: read within a bound on bytes, on time, and on what all of them hold together, then
//! parsed, large ones off the async threads.

use crate::openai::ApiError;
use crate::openai::json::{FromJson, parse};
use crate::serve::state::State;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;

/// From here on parsing would hold an async thread for too long.
const LARGE: usize = 32 << 10;

impl State {
    /// The request's body as what it is meant to be.
    ///
    /// # Errors
    /// 408, 413, 415, 429, or 400 that names the field at fault.
    pub(crate) async fn body<T: FromJson + Send + 'static>(
        &self,
        request: Request,
    ) -> Result<T, ApiError> {
        is_json(request.headers())?;
        let body = request.into_body();
        let read = tokio::time::timeout(self.body_timeout, self.read(body));
        let (bytes, held) = read.await.map_err(|_| {
            ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body took longer than --body-timeout",
            )
        })??;
        if bytes.len() < LARGE {
            return parse(&bytes);
        }
        let parsed = tokio::task::spawn_blocking(move || {
            let _held = held;
            parse(&bytes)
        });
        parsed.await.map_err(ApiError::internal)?
    }

    async fn read(
        &self,
        mut body: Body,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), ApiError> {
        let most = self.max_body_bytes;
        let too_large = || {
            ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body has more than {most} bytes, the limit of --max-body-bytes"),
            )
        };
        let hint = axum::body::HttpBody::size_hint(&body).lower();
        if hint > most as u64 {
            return Err(too_large());
        }
        let mut bytes = BytesMut::new();
        let mut held: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::invalid("the body broke off"))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > most {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
            let (have, want) = (
                held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits),
                bytes.len() >> 10,
            );
            if want > have {
                let more = u32::try_from(want - have).unwrap_or(u32::MAX);
                let permit = self.body_budget.clone().try_acquire_many_owned(more);
                let permit = permit.map_err(|_| {
                    ApiError::overloaded("too many large bodies are being read: try again later")
                })?;
                match &mut held {
                    Some(held) => held.merge(permit),
                    None => held = Some(permit),
                }
            }
        }
        Ok((bytes.freeze(), held))
    }
}

fn is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(|kind| kind.trim().to_ascii_lowercase());
    match given {
        Some(kind) if kind == "application/json" || kind.ends_with("+json") => Ok(()),
        // A web page could send any other type without asking first.
        _ => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body must be JSON: Content-Type: application/json",
        )),
    }
}
