//! The page as it is served, and `/inspect` over the built-in model; the page's behaviour is tried
//! in a browser by `cargo xtask page-test`.

use super::*;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;

/// Bytes that the page may take over a slow line.
const MOST_BYTES: usize = 60 * 1024;

async fn get_from(router: Router, path: &str) -> Response<Body> {
    let request = Request::get(path).body(Body::empty()).unwrap();
    router.oneshot(request).await.unwrap()
}

async fn bytes(response: Response<Body>) -> Vec<u8> {
    let body = response.into_body().collect().await.unwrap();
    body.to_bytes().to_vec()
}

#[tokio::test]
async fn the_page_is_served_with_a_strict_policy() {
    for (path, media_type, content) in ASSETS {
        let response = get_from(router(), path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.headers()[CONTENT_TYPE], media_type, "{path}");
        let policy = response.headers()[CONTENT_SECURITY_POLICY]
            .to_str()
            .unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(
            !policy.contains("unsafe") && !policy.contains('*'),
            "{policy}"
        );
        assert_eq!(response.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(bytes(response).await, content, "{path}");
    }
}

/// Everything that a page names lies in the binary; the policy forbids what is inline.
#[test]
fn the_page_needs_nothing_from_elsewhere_and_is_small() {
    let text = |at: usize| std::str::from_utf8(ASSETS[at].2).unwrap();
    let (html, css, js) = (text(0), text(1), text(2));
    for (name, content) in [("html", html), ("css", css), ("js", js)] {
        for outside in ["http:", "https:", "url(", "@import", "import(", "eval("] {
            assert!(!content.contains(outside), "{name} has {outside}");
        }
    }
    for quoted in ["src=\"", "href=\""] {
        for rest in html.split(quoted).skip(1) {
            let path = rest.split('"').next().unwrap();
            let served = ASSETS.iter().any(|(known, ..)| *known == path);
            assert!(served || path.starts_with('#'), "{path} is not served");
        }
    }
    for inline in ["<style", " style=", "onclick=", "javascript:"] {
        assert!(!html.contains(inline), "{inline}");
    }
    assert_eq!(html.matches("<script").count(), 1);
    let size: usize = ASSETS.iter().map(|(.., content)| content.len()).sum();
    assert!(size < MOST_BYTES, "{size} bytes");
}

/// What a script looks up by its id is there.
#[test]
fn every_id_that_the_script_uses_is_in_the_page() {
    let html = std::str::from_utf8(ASSETS[0].2).unwrap();
    let js = std::str::from_utf8(ASSETS[2].2).unwrap();
    let mut ids = 0;
    for rest in js.split("$(\"").skip(1) {
        let id = rest.split('"').next().unwrap();
        assert!(html.contains(&format!("id=\"{id}\"")), "{id}");
        ids += 1;
    }
    assert!(ids > 20, "{ids}");
    for label in html.split("for=\"").skip(1) {
        let id = label.split('"').next().unwrap();
        assert!(html.contains(&format!("id=\"{id}\"")), "{id}");
    }
}

#[cfg(feature = "llava")]
mod inspected {
    use super::*;
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use kiln_engine::{InputPipeline, LoadedModel, ModelOptions};
    use serde_json::{Value, json};
    use std::sync::{Arc, OnceLock};

    fn pipeline() -> Arc<InputPipeline> {
        static LOADED: OnceLock<Arc<InputPipeline>> = OnceLock::new();
        LOADED
            .get_or_init(|| {
                let registry = crate::linked::registry().unwrap();
                let options = ModelOptions::default();
                let checkpoint = builtin::checkpoint();
                let loaded = LoadedModel::load(registry, &checkpoint, &options, &|_, _| {});
                loaded.unwrap().pipeline().clone()
            })
            .clone()
    }

    async fn post(body: String) -> (StatusCode, Value) {
        let request = Request::post("/inspect")
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .unwrap();
        let response = inspect(pipeline()).oneshot(request).await.unwrap();
        let status = response.status();
        (
            status,
            serde_json::from_slice(&bytes(response).await).unwrap(),
        )
    }

    fn data_url(bytes: &[u8]) -> String {
        format!("data:image/png;base64,{}", BASE64_STANDARD.encode(bytes))
    }

    #[tokio::test]
    async fn a_picture_is_told_in_numbers_and_drawn() {
        let images = json!({ "images": [data_url(builtin::PICTURE)] });
        let (status, told) = post(images.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{told}");
        let item = &told["items"][0];
        assert_eq!(item["file"]["format"], "PNG");
        assert_eq!(item["tokens"], 64);
        assert_eq!(item["views"]["count"], 1);
        let grid = item["views"]["patches"].as_array().unwrap();
        let patches: u64 = grid.iter().map(|n| n.as_u64().unwrap()).product();
        assert_eq!(patches, 64);
        let segments = told["prompt"]["segments"].as_array().unwrap();
        let length = |s: &Value| s["to"].as_u64().unwrap() - s["from"].as_u64().unwrap();
        let all: u64 = segments.iter().map(length).sum();
        assert_eq!(Some(all), told["prompt"]["tokens"].as_u64());
        let of_picture: Vec<u64> = segments
            .iter()
            .filter(|s| s["item"] == 0)
            .map(length)
            .collect();
        assert_eq!(of_picture, [64]);
        let sheet = told["sheet"].as_str().unwrap();
        let png = sheet.strip_prefix("data:image/png;base64,").unwrap();
        let sheet = image::load_from_memory(&BASE64_STANDARD.decode(png).unwrap()).unwrap();
        assert!(sheet.width() > 200 && sheet.height() > 200);
    }

    #[tokio::test]
    async fn the_limits_are_told() {
        let response = get_from(inspect(pipeline()), "/inspect").await;
        let takes: Value = serde_json::from_slice(&bytes(response).await).unwrap();
        let image = json!({ "limit_per_prompt": 1, "max_tokens": 64 });
        assert_eq!(takes["modalities"]["image"], image);
        assert_eq!(takes["max_model_len"], 1024);
    }

    #[tokio::test]
    async fn a_bad_picture_is_refused_in_words() {
        let whole = data_url(builtin::PICTURE);
        let cases = [
            (json!({ "images": [] }).to_string(), "no picture"),
            (json!({ "images": ["x"] }).to_string(), "data URL"),
            (
                json!({ "images": ["data:image/png,%89PNG"] }).to_string(),
                "data URL",
            ),
            (
                json!({ "images": ["data:image/png;base64,$"] }).to_string(),
                "data URL",
            ),
            (
                json!({ "images": ["https://example.org/a.png"] }).to_string(),
                "data URL",
            ),
            (
                json!({ "images": [data_url(b"text")] }).to_string(),
                "picture 1",
            ),
            (
                json!({ "images": [data_url(&builtin::PICTURE[..200])] }).to_string(),
                "picture 1",
            ),
            (
                json!({ "images": [whole, whole] }).to_string(),
                "--limit-mm-per-prompt",
            ),
            (json!({ "image": whole }).to_string(), "unknown field"),
            ("{".to_owned(), "JSON"),
        ];
        for (body, words) in cases {
            let (status, told) = post(body.clone()).await;
            let message = told["error"]["message"].as_str().unwrap();
            assert!(status.is_client_error(), "{status} {message}");
            assert!(message.contains(words), "`{words}` is not in `{message}`");
            assert_eq!(told["error"]["type"], "invalid_request_error");
        }
    }
}
