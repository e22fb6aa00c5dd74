//! Routes, and what stands before all of them.

use crate::openai::run::Run;
use crate::openai::{ApiError, sse};
use crate::page;
use crate::serve::state::Shared;
use crate::serve::{auth, docs, handlers, trace};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

/// The whole service. `origins`: of web pages that may call it.
///
/// # Errors
/// For an origin that is none.
pub(crate) fn router(state: Shared, origins: &[String]) -> anyhow::Result<Router> {
    let inference = Router::new()
        .route("/v1/chat/completions", post(handlers::chat))
        .route("/v1/completions", post(handlers::completions))
        .route("/tokenize", post(handlers::tokenize))
        .route("/detokenize", post(handlers::detokenize))
        .route("/inspect", post(page::inspect))
        // What else asks the model for something goes here: it is refused while the server drains.
        .layer(middleware::from_fn_with_state(state.clone(), while_ready));
    let keyed = Router::new()
        .route("/v1/models", get(handlers::models))
        .route("/v1/models/{*id}", get(handlers::model))
        .route("/version", get(handlers::version))
        .route("/metrics", get(handlers::metrics))
        .merge(inference)
        .layer(middleware::from_fn_with_state(
            state.clone(),
            auth::require_key,
        ));
    let open = Router::new()
        .route("/health", get(handlers::health))
        .route("/ready", get(handlers::ready))
        .route("/openapi.json", get(docs::openapi))
        .route("/docs", get(docs::page));
    let mut app = open
        // Neither does the page: it asks for the key.
        .merge(page::router())
        .merge(keyed)
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method);
    if let Some(cors) = cors(origins)? {
        app = app.layer(cors);
    }
    Ok(app
        .layer(middleware::from_fn_with_state(state.clone(), trace::watch))
        .with_state(state))
}

async fn while_ready(
    State(state): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    state.ready()?;
    Ok(next.run(request).await)
}

async fn nothing_here(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(100).collect();
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {path}; /docs says what there is"),
    )
    .code("not_found")
}

async fn wrong_method(request: Request) -> ApiError {
    let method = request.method().as_str();
    let method: String = method.chars().take(20).collect();
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("this path takes no {method}; /docs says what it takes"),
    )
    .code("method_not_allowed")
}

fn cors(origins: &[String]) -> anyhow::Result<Option<CorsLayer>> {
    if origins.is_empty() {
        return Ok(None);
    }
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let values = origins.iter().map(|origin| {
            HeaderValue::from_str(origin)
                .map_err(|_| anyhow::anyhow!("--cors-origin {origin} is no origin"))
        });
        AllowOrigin::list(values.collect::<anyhow::Result<Vec<_>>>()?)
    };
    Ok(Some(
        CorsLayer::new()
            .allow_origin(origin)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(Any)
            .expose_headers(Any),
    ))
}

/// A response of server-sent events.
pub(crate) fn events(run: Run, chunks: impl sse::Chunks) -> Response {
    let body = Body::from_stream(sse::stream(run, chunks));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    let fixed = HeaderValue::from_static;
    headers.insert(
        header::CONTENT_TYPE,
        fixed("text/event-stream; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, fixed("no-cache"));
    // nginx would hold tokens back otherwise.
    headers.insert("x-accel-buffering", fixed("no"));
    response
}
