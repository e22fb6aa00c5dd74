//! What a failure of the hub means, and what to do about it.

use super::ModelId;
use super::settings::Settings;
use hf_hub::api::sync::ApiError;

/// The words for a person.
pub(super) fn words(error: &ApiError, model: &ModelId, settings: &Settings) -> String {
    let endpoint = &settings.endpoint;
    let page = format!("{endpoint}/{}", model.id);
    match status(error) {
        // The hub tells strangers the same of what is not there and of what they may not see.
        Some(401) if settings.token.is_none() => format!(
            "{endpoint} shows no {model} to everybody (401): mind the spelling, or, if it is gated \
             or private, accept its licence at {page} and set HF_TOKEN"
        ),
        Some(401) => format!(
            "{endpoint} does not accept the token (401): is HF_TOKEN, or the token file, still \
             valid?"
        ),
        Some(403) => format!(
            "{model} is gated (403): accept its licence at {page} with the account that the token \
             belongs to"
        ),
        Some(404) => format!(
            "{endpoint} has no {model} (404): mind the spelling; a local folder of this name is \
             not there either"
        ),
        Some(429) => format!("{endpoint} wants fewer requests (429): try again later"),
        Some(code) => format!("{endpoint} answered {code} for {model}"),
        None if is_no_connection(error) => format!(
            "{endpoint} can't be reached for {model} ({}), and the cache ({}) does not hold it; a \
             local folder of this name is not there either",
            cause(error),
            settings.cache.display()
        ),
        None => format!("fetching {model} failed: {}", cause(error)),
    }
}

/// Whether the hub could not be asked at all.
pub(super) fn is_no_connection(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => !matches!(
            **error,
            ureq::Error::StatusCode(_) | ureq::Error::Json(_) | ureq::Error::BadUri(_)
        ),
        _ => false,
    }
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
}

/// Without the names of the layers that it came through.
fn cause(error: &ApiError) -> String {
    match error {
        ApiError::RequestError(error) => error.to_string(),
        ApiError::TooManyRetries(error) => cause(error),
        ApiError::IoError(error) => error.to_string(),
        other => other.to_string(),
    }
}
