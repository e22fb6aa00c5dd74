//! The web page at `/`: ask about pictures, watch the answer come, see how the model saw them.
//!
//! Three hand-written files that are part of the binary. The page loads nothing from elsewhere, and
//! its content security policy forbids that it ever does; what it asks, it asks through the same
//! endpoints as any other client, and `/inspect`.

mod inspect;

#[cfg(test)]
mod tests;

use crate::builtin;
use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::http::{HeaderName, header::X_CONTENT_TYPE_OPTIONS};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
pub(crate) use inspect::{InspectRequest, handle as inspect};

/// Scripts, styles, pictures and connections of this server alone; pictures that a person chose are
/// `data:` and `blob:` URLs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// Path, media type, content.
const ASSETS: [(&str, &str, &[u8]); 5] = [
    (
        "/",
        "text/html; charset=utf-8",
        include_bytes!("index.html"),
    ),
    (
        "/page/page.css",
        "text/css; charset=utf-8",
        include_bytes!("page.css"),
    ),
    (
        "/page/page.js",
        "text/javascript; charset=utf-8",
        include_bytes!("page.js"),
    ),
    (
        "/page/icon.svg",
        "image/svg+xml",
        include_bytes!("icon.svg"),
    ),
    ("/page/sample.png", "image/png", builtin::PICTURE),
];

/// The page and what it is made of. These routes hold nothing that is secret: a page that can't be
/// opened can't ask for the key.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.into_iter().fold(Router::new(), |router, asset| {
        let (path, media_type, content) = asset;
        router.route(path, serve(media_type, content))
    })
}

fn serve<S: Clone + Send + Sync + 'static>(
    media_type: &'static str,
    content: &'static [u8],
) -> MethodRouter<S> {
    let headers: [(HeaderName, &str); 5] = [
        (CONTENT_TYPE, media_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // A newer binary has a newer page.
        (CACHE_CONTROL, "no-cache"),
    ];
    get(async move || (headers, content).into_response())
}
