//! What is known of each request: an id, a span, a line in the log when its answer has gone out, and
//! counts. A panic in a handler is that request's error alone.

use crate::openai::{ApiError, Rejection};
use crate::serve::options::LogFormat;
use crate::serve::state::{InFlight, Shared};
use anyhow::Result;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use hyper::body::{Frame, SizeHint};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tracing::{Instrument, Span};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: &str = "traceparent";

/// Names longer than this are no ids.
const MAX_ID: usize = 128;

/// Writes the log to stderr. A program that has a log already keeps it.
pub(crate) fn log(format: LogFormat) -> Result<()> {
    let filter = || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(stderr_is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(filter()))
        .try_init();
    Ok(())
}

fn stderr_is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}

/// Stands before every route.
pub(crate) async fn watch(State(state): State<Shared>, request: Request, next: Next) -> Response {
    let id = id_of(&request);
    let span = span_of(&request, &id);
    let mut sent = Sent {
        began: Instant::now(),
        status: 0,
        span: span.clone(),
        _in_flight: state.begin(),
    };
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
    let mut response = match answer.instrument(span).await {
        Ok(response) => response,
        Err(_) => ApiError::internal("a handler panicked").into_response(),
    };
    let status = response.status().as_u16();
    state.api.metrics.response(status);
    if let Some(Rejection(reason)) = response.extensions().get() {
        state.api.metrics.rejected(reason);
    } else if status >= 400 {
        // From a layer that knows no JSON.
        let mut whole = ApiError::new(
            response.status(),
            "the request can't be served as it was sent",
        )
        .into_response();
        for (name, value) in response.headers() {
            if name == "allow" {
                whole.headers_mut().insert(name, value.clone());
            }
        }
        response = whole;
        state.api.metrics.rejected("other");
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    // The guard lives as long as the body: until the last byte is sent, or the client is gone.
    sent.status = status;
    response.map(|body| Body::new(Watched { body, _sent: sent }))
}

/// The client's id of a request, or one of ours.
fn id_of(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID);
    let good = given.and_then(|id| id.to_str().ok()).filter(|id| {
        !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(|b| b.is_ascii_graphic())
    });
    match good {
        Some(id) => id.to_owned(),
        None => uuid::Uuid::new_v4().to_string(),
    }
}

fn span_of(request: &Request, id: &str) -> Span {
    let trace = request
        .headers()
        .get(TRACEPARENT)
        .and_then(|value| trace_id(value.to_str().ok()?))
        .unwrap_or_default();
    tracing::info_span!(
        "request",
        id,
        method = request.method().as_str(),
        path = request.uri().path(),
        trace,
    )
}

/// The trace that a W3C `traceparent` names.
fn trace_id(header: &str) -> Option<&str> {
    let mut parts = header.split('-');
    let (version, trace, parent) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let known = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(parent, 16);
    (known && trace.bytes().any(|b| b != b'0')).then_some(trace)
}

/// A body, and who hears of its end.
struct Watched {
    body: Body,
    _sent: Sent,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer on its way; gone when the answer is.
struct Sent {
    began: Instant,
    status: u16,
    span: Span,
    _in_flight: InFlight,
}

impl Drop for Sent {
    fn drop(&mut self) {
        let seconds = self.began.elapsed().as_secs_f64();
        let status = self.status;
        self.span.in_scope(|| match status {
            // The client left before there was an answer.
            0 => tracing::info!(seconds, "gone"),
            500.. => tracing::error!(status, seconds, "answered"),
            _ => tracing::info!(status, seconds, "answered"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_names_its_trace() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let header = format!("00-{trace}-00f067aa0ba902b7-01");
        assert_eq!(trace_id(&header), Some(trace));
        for bad in [
            "",
            "00",
            "00-0-0-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
    }
}
