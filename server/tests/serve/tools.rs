//! Tools: a call that must come, and calls in free text. The built-in model knows nothing of tools,
//! so what it writes is held to a text; the way from there to the client is the real one.

use crate::server::{Server, repo};
use serde_json::{Value, json};

/// The built-in model with a template that tells of tools.
fn server(template: &str) -> (Server, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(repo("assets/kiln-demo")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    (Server::of(folder.path().to_str().unwrap(), &[]), folder)
}

const HERMES: &str = "{%- if tools -%}Call with <tool_call>: {%- for tool in tools -%}\
{{ tool | tojson }}{%- endfor -%}{%- endif -%}\
{%- for message in messages -%}{{ message['role'] }}: {{ message['content'] }}\
{%- if message.tool_calls -%}{%- for call in message.tool_calls -%}\
{{ call.function.arguments.x }}{%- endfor -%}{%- endif -%}{%- endfor -%} ASSISTANT:";

fn body(more: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 400,
        "temperature": 0,
        "tools": [
            {"type": "function", "function": {"name": "look", "parameters": {
                "type": "object", "properties": {"x": {"enum": [1, 2]}},
                "required": ["x"], "additionalProperties": false}}},
            {"type": "function", "function": {"name": "rest", "parameters": {
                "type": "object", "properties": {}, "additionalProperties": false}}},
        ],
    });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

/// The message of a stream, put together as clients do.
fn assembled(server: &Server, body: &Value) -> Value {
    let mut body = body.clone();
    body["stream"] = true.into();
    let (mut content, mut calls, mut reason) = (String::new(), Vec::<Value>::new(), Value::Null);
    for event in server.chat(&body).events() {
        let choice = &event["choices"][0];
        content.push_str(choice["delta"]["content"].as_str().unwrap_or(""));
        for delta in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let index = delta["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert!(
                    delta["id"].is_string() && delta["type"] == "function",
                    "{delta}"
                );
                calls.push(json!({"name": delta["function"]["name"], "arguments": ""}));
            }
            let arguments = delta["function"]["arguments"].as_str().unwrap();
            let sofar = calls[index]["arguments"].as_str().unwrap().to_owned();
            calls[index]["arguments"] = (sofar + arguments).into();
        }
        if choice["finish_reason"].is_string() {
            reason = choice["finish_reason"].clone();
        }
    }
    json!({"content": content, "calls": calls, "reason": reason})
}

fn whole(server: &Server, body: &Value) -> Value {
    let response = server.chat(body);
    assert_eq!(response.status, 200, "{}", response.text());
    let choice = response.json()["choices"][0].clone();
    let calls = choice["message"]["tool_calls"].as_array().cloned();
    let calls: Vec<Value> = calls.unwrap_or_default();
    json!({
        "content": choice["message"]["content"].as_str().unwrap_or(""),
        "calls": calls.iter().map(|call| call["function"].clone()).collect::<Vec<_>>(),
        "reason": choice["finish_reason"],
    })
}

#[test]
fn calls_in_free_text_are_found() {
    let (server, _folder) = server(HERMES);
    let text = "I see. <tool_call>\n{\"name\": \"look\", \"arguments\": {\"x\": 1}}\n</tool_call>";
    let called = body(json!({"guided_choice": [text]}));
    let expected = json!({
        "content": "I see.",
        "calls": [{"name": "look", "arguments": "{\"x\": 1}"}],
        "reason": "tool_calls",
    });
    assert_eq!(whole(&server, &called), expected);
    assert_eq!(assembled(&server, &called), expected);
    // Without tools, or with none to choose, it is text.
    for plain in [
        body(json!({"guided_choice": [text], "tool_choice": "none"})),
        body(json!({"guided_choice": [text], "tools": null})),
    ] {
        let seen = whole(&server, &plain);
        assert_eq!(
            (&seen["content"], &seen["reason"]),
            (&json!(text), &json!("stop"))
        );
        assert_eq!(assembled(&server, &plain), seen);
    }
    server.is_well();
}

#[test]
fn mistrals_calls_are_found_in_both_forms() {
    let template = HERMES.replace("<tool_call>", "[TOOL_CALLS]");
    let (server, _folder) = server(&template);
    let expected = json!({
        "content": "",
        "calls": [{"name": "look", "arguments": "{\"x\": 1}"}],
        "reason": "tool_calls",
    });
    for text in [
        "[TOOL_CALLS][{\"name\": \"look\", \"arguments\": {\"x\": 1}}]",
        "[TOOL_CALLS]look[ARGS]{\"x\": 1}",
        "[TOOL_CALLS]look{\"x\": 1}",
        "look{\"x\": 1}",
    ] {
        let called = body(json!({"guided_choice": [text]}));
        assert_eq!(whole(&server, &called), expected, "{text}");
        assert_eq!(assembled(&server, &called), expected, "{text}");
    }
    server.is_well();
}

#[test]
fn a_call_that_must_come_comes() {
    let (server, _folder) = server(HERMES);
    let named = body(json!({"tool_choice": {"type": "function", "function": {"name": "look"}}}));
    let seen = whole(&server, &named);
    let arguments = seen["calls"][0]["arguments"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    assert!(
        matches!(arguments["x"].as_u64(), Some(1 | 2)),
        "{arguments}"
    );
    assert_eq!(
        (&seen["calls"][0]["name"], &seen["reason"]),
        (&json!("look"), &json!("stop"))
    );
    assert_eq!(assembled(&server, &named), seen);

    let required = body(json!({"tool_choice": "required", "parallel_tool_calls": false}));
    let seen = whole(&server, &required);
    assert_eq!(seen["calls"].as_array().unwrap().len(), 1, "{seen}");
    assert_eq!(seen["reason"], "tool_calls");
    assert_eq!(assembled(&server, &required), seen);
    for (more, param) in [
        (
            json!({"tool_choice": "required", "tools": []}),
            "tool_choice",
        ),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "none"}}}),
            "tool_choice",
        ),
        (
            json!({"tool_choice": "required", "guided_regex": "a"}),
            "tool_choice",
        ),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
        ),
    ] {
        assert_eq!(server.chat(&body(more)).error(400)["param"], param);
    }
    server.is_well();
}

#[test]
fn the_template_sees_tools_and_earlier_calls() {
    let (server, _folder) = server(HERMES);
    let tokens = |more: Value| {
        let response = server.post("/tokenize", &body(more));
        response.json()["count"].as_u64().unwrap()
    };
    let shown = tokens(json!({}));
    let hidden = tokens(json!({"tool_choice": "none"}));
    assert!(shown > hidden + 50, "{shown} {hidden}");
    let history = |arguments: &str| {
        let call = json!({"id": "1", "type": "function",
                          "function": {"name": "look", "arguments": arguments}});
        tokens(json!({"tools": null, "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "b"},
        ]}))
    };
    assert_eq!(history("{\"x\": 12345}"), history("{\"x\": 1}") + 4);
}
