//! Errors as OpenAI's API answers them: `{"error": {"message", "type", "param", "code"}}` with the
//! status that clients act on. What is no fault of the caller is logged, and told in fixed words:
//! no address, path or backtrace leaves the server.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kiln_registry::Error;
use serde::Serialize;
use std::fmt;

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field at fault.
    pub(crate) param: Option<String>,
    /// What programs tell errors apart by.
    pub(crate) code: Option<&'static str>,
    /// Seconds after which another attempt makes sense.
    retry_after: Option<u32>,
}

/// The body.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorObject,
}

/// What went wrong.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ErrorObject {
    /// One sentence for people.
    message: String,
    /// The class: `invalid_request_error`, `rate_limit_error`, `server_error`, ...
    r#type: &'static str,
    /// The field at fault, where there is one.
    param: Option<String>,
    /// The cause, for programs.
    code: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl fmt::Display) -> Self {
        Self {
            status,
            message: message.to_string(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// A request that can't be served as it was sent.
    pub(crate) fn invalid(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The same, with the field at fault.
    pub(crate) fn field(param: impl fmt::Display, message: impl fmt::Display) -> Self {
        let param = param.to_string();
        Self::invalid(format!("{param}: {message}")).param(param)
    }

    /// A fault of ours: the cause goes to the log, not to the client.
    pub(crate) fn internal(cause: impl fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the server failed to answer this request; its log says why",
        )
    }

    /// More than can be taken now.
    pub(crate) fn overloaded(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, message)
            .code("rate_limit_exceeded")
            .retry_after(1)
    }

    /// The server is about to end.
    pub(crate) fn shutting_down() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is shutting down and takes no new requests",
        )
        .code("shutting_down")
        .retry_after(5)
    }

    #[must_use]
    pub(crate) fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    #[must_use]
    pub(crate) fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The class that OpenAI's clients know.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// Under what the metric of rejections counts it.
    pub(crate) fn reason(&self) -> &'static str {
        match (self.code, self.status.as_u16()) {
            (Some(code), _) => code,
            (_, 401) => "unauthorized",
            (_, 404) => "not_found",
            (_, 405) => "method_not_allowed",
            (_, 408) => "timeout",
            (_, 413) => "body_too_large",
            (_, 415) => "content_type",
            (_, 500..) => "server_error",
            _ => "invalid_request",
        }
    }

    /// The body, as JSON.
    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorObject {
                message: self.message.clone(),
                r#type: self.kind(),
                param: self.param.clone(),
                code: self.code,
            },
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match &error {
            Error::InvalidInput(_) => Self::invalid(error),
            Error::Unsupported(_) => Self::invalid(error).code("unsupported"),
            Error::TooManyItems { .. } => Self::invalid(error).code("too_many_items"),
            Error::ContextLength { .. } => Self::invalid(error).code("context_length_exceeded"),
            Error::Overloaded(_) => Self::overloaded(error),
            Error::ShuttingDown => Self::shutting_down(),
            // It names a file inside the checkpoint, and what is wrong with it: the template, mostly.
            Error::Checkpoint { .. } => {
                tracing::error!(%error, "the checkpoint failed a request");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
            }
            _ => Self::internal(error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For the middleware that counts rejections.
        response.extensions_mut().insert(Rejection(self.reason()));
        response
    }
}

/// Why a response is an error; an extension of the response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rejection(pub(crate) &'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_four_keys_and_no_more() {
        let error = ApiError::field("messages[0].role", "is missing");
        let body = serde_json::to_value(error.body()).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"error": {
                "message": "messages[0].role: is missing",
                "type": "invalid_request_error",
                "param": "messages[0].role",
                "code": null,
            }})
        );
    }

    #[test]
    fn what_is_our_fault_is_not_told() {
        let error = ApiError::from(Error::internal("thread panicked at /src/x.rs:3, 0x7f00"));
        assert_eq!(error.status.as_u16(), 500);
        assert!(!error.message.contains("0x") && !error.message.contains(".rs"));
        assert_eq!(error.kind(), "server_error");
        let busy = ApiError::from(Error::Overloaded("busy".into())).into_response();
        assert_eq!(busy.status().as_u16(), 429);
        assert_eq!(busy.headers()["retry-after"], "1");
    }
}
