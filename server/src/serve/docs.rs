//! The OpenAPI document and a page that shows it. Requests are described by the lists that they are
//! parsed by, so that the two can't differ; answers by their types.

use crate::openai::answer::{ChatChunk, ChatCompletion, TextCompletion};
use crate::openai::json::FromJson;
use crate::openai::tokenize::{DetokenizeRequest, Detokenized, TokenizeRequest, Tokenized};
use crate::openai::{ChatRequest, CompletionRequest, ErrorBody};
use crate::page::InspectRequest;
use crate::serve::handlers::{ModelCard, ModelList};
use axum::Json;
use axum::http::{HeaderName, header};
use axum::response::Html;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use utoipa::ToSchema;

/// A path: method, what it does, the request's schema, the answer's.
type PathDoc = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

const PATHS: [PathDoc; 13] = [
    (
        "/v1/chat/completions",
        "post",
        "Answer a conversation",
        "ChatRequest",
        "ChatCompletion",
    ),
    (
        "/v1/completions",
        "post",
        "Go on with a text",
        "CompletionRequest",
        "TextCompletion",
    ),
    ("/v1/models", "get", "List what is served", "", "ModelList"),
    (
        "/v1/models/{id}",
        "get",
        "Describe a model",
        "",
        "ModelCard",
    ),
    (
        "/tokenize",
        "post",
        "Tokens of a text or conversation",
        "TokenizeRequest",
        "Tokenized",
    ),
    (
        "/detokenize",
        "post",
        "Text of tokens",
        "DetokenizeRequest",
        "Detokenized",
    ),
    (
        "/inspect",
        "post",
        "How the model sees pictures",
        "InspectRequest",
        "",
    ),
    ("/health", "get", "Whether the process lives", "", ""),
    ("/ready", "get", "Whether requests are taken", "", ""),
    ("/version", "get", "The server's version", "", ""),
    ("/metrics", "get", "Prometheus metrics", "", ""),
    ("/openapi.json", "get", "This document", "", ""),
    ("/docs", "get", "This document as a page", "", ""),
];

pub(crate) async fn openapi() -> Json<Value> {
    Json(document())
}

fn document() -> Value {
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let content = |name: &str| json!({"application/json": {"schema": reference(name)}});
    let mut paths = Map::new();
    for (path, method, summary, request, answer) in PATHS {
        let mut good = json!({"description": "OK"});
        if !answer.is_empty() {
            good["content"] = content(answer);
        }
        if answer == "ChatCompletion" {
            good["content"]["text/event-stream"] = json!({"schema": reference("ChatChunk")});
        }
        let bad = json!({"description": "An error", "content": content("ErrorBody")});
        let mut operation = json!({
            "summary": summary,
            "responses": {"200": good, "default": bad},
        });
        if !request.is_empty() {
            operation["requestBody"] = json!({"required": true, "content": content(request)});
        }
        if path.contains("{id}") {
            operation["parameters"] = json!([{
                "name": "id", "in": "path", "required": true, "schema": {"type": "string"},
            }]);
        }
        if !matches!(path, "/health" | "/ready" | "/openapi.json" | "/docs") {
            operation["security"] = json!([{"key": []}]);
        }
        paths.insert(path.to_owned(), json!({method: operation}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Kiln", "version": env!("CARGO_PKG_VERSION"),
                 "description": "An OpenAI-compatible server of multimodal language models."},
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn schemas() -> Map<String, Value> {
    let mut found = Vec::new();
    macro_rules! answers {
        ($($type:ty),+) => {$(
            found.push((<$type>::name().into_owned(), <$type as utoipa::PartialSchema>::schema()));
            <$type as ToSchema>::schemas(&mut found);
        )+};
    }
    answers!(
        ChatCompletion,
        ChatChunk<'static>,
        TextCompletion,
        ModelList,
        ModelCard,
        Tokenized,
        Detokenized,
        ErrorBody
    );
    let mut out = Map::new();
    for (name, schema) in found {
        out.insert(name, serde_json::to_value(schema).unwrap_or_default());
    }
    out.insert("ChatRequest".to_owned(), ChatRequest::schema());
    out.insert("CompletionRequest".to_owned(), CompletionRequest::schema());
    out.insert("TokenizeRequest".to_owned(), TokenizeRequest::schema());
    out.insert("DetokenizeRequest".to_owned(), DetokenizeRequest::schema());
    out.insert("InspectRequest".to_owned(), InspectRequest::schema());
    out
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
padding:0 1rem;color-scheme:light dark}code{font-family:ui-monospace,monospace}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;\
border-bottom:1px solid color-mix(in srgb,currentColor 20%,transparent)}";

/// The page: no script, nothing from elsewhere.
pub(crate) async fn page() -> ([(HeaderName, &'static str); 1], Html<String>) {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    (
        [(header::CONTENT_SECURITY_POLICY, policy)],
        Html(render(&document())),
    )
}

fn render(document: &Value) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Kiln: the API</title>\
         <style>{STYLE}</style><h1>Kiln: the API</h1>\
         <p>As OpenAI's, with more parameters. The same for programs: \
         <a href=\"/openapi.json\">/openapi.json</a>.</p>"
    );
    for (path, method, summary, request, answer) in PATHS {
        let method = method.to_uppercase();
        let _ = write!(
            out,
            "<h2><code>{method} {}</code></h2><p>{}.</p>",
            escape(path),
            escape(summary)
        );
        for (title, name) in [("Request", request), ("Answer", answer)] {
            let properties = &document["components"]["schemas"][name]["properties"];
            let Some(properties) = properties.as_object() else {
                continue;
            };
            let _ = write!(out, "<h3>{title}</h3><table>");
            for (field, schema) in properties {
                let _ = write!(
                    out,
                    "<tr><td><code>{}</code><td>{}<td>{}",
                    escape(field),
                    escape(&kind(schema)),
                    escape(schema["description"].as_str().unwrap_or_default()),
                );
            }
            out.push_str("</table>");
        }
    }
    out.push_str("</html>");
    out
}

/// A schema's type in a word.
fn kind(schema: &Value) -> String {
    let list = |key: &str| {
        let all = schema[key].as_array()?.iter().map(kind);
        Some(all.collect::<Vec<_>>().join(" or "))
    };
    match &schema["type"] {
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => {
            let kinds: Vec<_> = kinds.iter().filter_map(Value::as_str).collect();
            kinds.join(" or ")
        }
        _ => list("anyOf")
            .or_else(|| list("oneOf"))
            .or_else(|| {
                schema["$ref"]
                    .as_str()?
                    .rsplit('/')
                    .next()
                    .map(str::to_owned)
            })
            .unwrap_or_else(|| "any".to_owned()),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reference leads somewhere.
    #[test]
    fn the_document_is_whole() {
        let document = document();
        let text = document.to_string();
        let names = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(names.contains_key(name), "{name}");
        }
        let chat = &names["ChatRequest"]["properties"];
        for field in [
            "messages",
            "top_k",
            "guided_json",
            "stream",
            "tools",
            "seed",
        ] {
            assert!(chat[field]["description"].is_string(), "{field}");
        }
        let page = render(&document);
        for path in PATHS {
            assert!(page.contains(&escape(path.0)), "{}", path.0);
        }
        assert!(!page.contains("<script") && !page.contains("http:") && !page.contains("src="));
    }
}
