//! What is known of each request: an id, a span, a line in the log when its answer has gone out, and
//! counts. A panic in a handler is that request's error alone.

use crate::openai::{ApiError, Rejection};
use crate::serve::options::{LogFormat, ServerArgs};
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

/// What has to be told that the process ends.
#[derive(Default)]
pub(crate) struct Log {
    #[cfg(feature = "otlp")]
    exporter: Option<super::otlp::Exporter>,
}

impl Log {
    /// Sends what is still held back.
    pub(crate) fn end(self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = self.exporter {
            exporter.end();
        }
    }
}

/// Writes the log to stderr, and sends spans to a collector where there is one. A program that has
/// a log already keeps it.
///
/// # Errors
/// For a collector that can't be.
pub(crate) fn log(options: &ServerArgs) -> Result<Log> {
    let format = options.log_format;
    let filter = || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(stderr_is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter()));
    #[cfg(feature = "otlp")]
    if let Some(endpoint) = &options.otlp_endpoint {
        let (layer, exporter) = super::otlp::layer(endpoint)?;
        let _ = registry.with(layer.with_filter(filter())).try_init();
        return Ok(Log {
            exporter: Some(exporter),
        });
    }
    let _ = registry.try_init();
    Ok(Log::default())
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
        polled: matches!(request.uri().path(), "/health" | "/ready" | "/metrics"),
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
    let parent = request.headers().get(TRACEPARENT);
    let parent = parent.and_then(|value| Parent::read(value.to_str().ok()?));
    let span = tracing::info_span!(
        "request",
        id,
        method = request.method().as_str(),
        path = request.uri().path(),
        trace = parent.map(|parent| parent.trace),
    );
    #[cfg(feature = "otlp")]
    if let Some(parent) = parent {
        super::otlp::adopt(&span, parent);
    }
    span
}

/// What a W3C `traceparent` says: of which trace a request is part, and under which span.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Parent<'a> {
    pub(super) trace: &'a str,
    pub(super) span: &'a str,
}

impl<'a> Parent<'a> {
    /// `None` for what is no valid header.
    fn read(header: &'a str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, length| {
            let digits = text.bytes();
            text.len() == length
                && digits
                    .into_iter()
                    .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let some = |text: &str| text.bytes().any(|b| b != b'0');
        let known = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16);
        (known && some(trace) && some(span)).then_some(Self { trace, span })
    }
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
    /// Supervisors ask every few seconds: that is no news.
    polled: bool,
    span: Span,
    _in_flight: InFlight,
}

impl Drop for Sent {
    fn drop(&mut self) {
        let seconds = self.began.elapsed().as_secs_f64();
        let status = self.status;
        self.span.in_scope(|| match status {
            200 if self.polled => tracing::debug!(status, seconds, "answered"),
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
        let span = "00f067aa0ba902b7";
        assert_eq!(Parent::read(&header), Some(Parent { trace, span }));
        for bad in [
            "",
            "00",
            "00-0-0-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Parent::read(bad), None, "{bad}");
        }
    }
}
