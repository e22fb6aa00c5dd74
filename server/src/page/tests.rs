//! The page's files; what it does is tried in a browser by `cargo xtask page-test`, and `/inspect` by
//! the integration test `page`.

use super::*;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;

/// Bytes that the page may take over a slow line.
const MOST_BYTES: usize = 60 * 1024;

async fn get_from(router: Router<()>, path: &str) -> Response<Body> {
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
        let response = get_from(router::<()>(), path).await;
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
