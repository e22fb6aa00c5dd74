//! API keys: whoever has none is told so, and nothing about how near a guess was.

use crate::openai::ApiError;
use crate::serve::state::Shared;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use subtle::{Choice, ConstantTimeEq};

/// The keys that are taken; none: no key is asked for.
pub(crate) struct ApiKeys(Vec<String>);

impl ApiKeys {
    /// # Errors
    /// For an empty key, which everyone has.
    pub(crate) fn new(keys: Vec<String>) -> anyhow::Result<Self> {
        anyhow::ensure!(
            keys.iter().all(|key| !key.trim().is_empty()),
            "--api-key is empty: leave it out, and no key is asked for"
        );
        Ok(Self(keys))
    }

    /// Every key is compared, and every byte, wherever they differ.
    fn take(&self, given: &[u8]) -> bool {
        let any = self.0.iter().fold(Choice::from(0), |any, key| {
            any | key.as_bytes().ct_eq(given)
        });
        any.into()
    }
}

/// Lets a request through that brings a key.
pub(crate) async fn require_key(
    State(state): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if !state.keys.0.is_empty() {
        let given = request.headers().get(header::AUTHORIZATION);
        let token = given.and_then(|value| {
            let (scheme, token) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
        });
        if !token.is_some_and(|token| state.keys.take(token.trim_ascii())) {
            let message = "an API key is wanted: Authorization: Bearer KEY";
            let error = ApiError::new(StatusCode::UNAUTHORIZED, message);
            return Err(error.code("invalid_api_key"));
        }
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_keys_are_taken() {
        let keys = ApiKeys::new(vec!["first".into(), "second".into()]).unwrap();
        for key in ["first", "second"] {
            assert!(keys.take(key.as_bytes()));
        }
        for key in ["", "firs", "firstt", "First", "third"] {
            assert!(!keys.take(key.as_bytes()), "{key}");
        }
        assert!(ApiKeys::new(vec![" ".into()]).is_err());
    }
}
