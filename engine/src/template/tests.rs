//! Chat templates in the styles of the common model families, rendered as transformers does.

use super::*;
use std::fs;

const FIXTURE: &str =
    include_str!("../../../tests/fixtures/checkpoints/llava-clip-llama/chat_template.jinja");

/// Parts only, media first, and the block that marks answers.
const LLAVA: &str = r##"{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}{# media first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>
' }}{% endfor %}{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"##;

/// A string only, system text inside the first turn, roles that alternate.
const LLAMA_2: &str = r##"{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set turns = messages %}{% set system_message = false %}{% endif %}
{% for message in turns %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if loop.index0 == 0 and system_message != false %}
{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}
{% else %}
{% set content = message['content'] %}
{% endif %}
{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{ ' ' + content.strip() + ' ' + eos_token }}
{%- endif %}
{% endfor %}"##;

/// A string or parts, trimmed; reads `tools`.
const LLAMA_3: &str = r##"{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}
{%- set ns = namespace(system='', first=true) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>

' }}
{%- if tools is not none %}{{- 'Tools' }}{%- endif %}
{{- 'Today: ' + date_string + '
' + ns.system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>

' }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- else %}
        {%- for content in message['content'] %}
            {%- if content['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- elif content['type'] == 'text' %}
                {{- content['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>

' }}
{%- endif %}
"##;

/// A string only.
const CHATML: &str = r##"{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system
You are a helpful assistant.<|im_end|>
' }}
{%- endif %}
{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"##;

/// A string or parts of several modalities, told apart by type or key.
const QWEN2_VL: &str = r##"{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"##;

/// A string or parts, roles that alternate, no system turn.
const MISTRAL: &str = r##"{%- set loop_messages = messages %}
{%- for message in loop_messages if message.role in ['user', 'assistant'] %}
    {%- if (message.role == 'user') != (loop.index0 is even) %}
        {{- raise_exception('After the optional system message, roles must alternate: ' ~ message.role) }}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message.role == 'user' %}
        {%- if message.content is string %}
            {{- '[INST]' ~ message.content ~ '[/INST]' }}
        {%- else %}
            {{- '[INST]' }}
            {%- for block in message.content %}
                {%- if block.type == 'text' %}{{- block.text }}
                {%- elif block.type in ['image', 'image_url'] %}{{- '[IMG]' }}
                {%- else %}{{- raise_exception('Only text and image blocks are supported in message content!') }}
                {%- endif %}
            {%- endfor %}
            {{- '[/INST]' }}
        {%- endif %}
    {%- elif message.role == 'assistant' %}
        {{- (message.content if message.content is string else message.content[0].text) + eos_token }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported, not ' + message.role) }}
    {%- endif %}
{%- endfor %}"##;

/// What newer templates do: macros, namespaces, slices, methods of strings.
const MACROS: &str = r##"{%- macro render_content(content, do_count=true) %}
    {%- if content is string %}{{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for item in content %}
            {%- if 'image' in item or item.type == 'image' %}<img>{% elif 'text' in item %}{{ item.text }}{% endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == 'user' %}
        {%- set ns.multi_step = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = render_content(message.content) | trim %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {{- '[think ' ~ thought|tojson ~ ']' if loop.index0 > ns.last else '' }}
    {%- endif %}
    {{- message.role|title + ':' + (' ' if not loop.last else '\t') + content + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"##;

fn template(source: &str) -> Result<ChatTemplate> {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens.map(|(name, token)| (name.to_owned(), token.to_owned()));
    ChatTemplate::new(JINJA, source, tokens.into())
}

fn part(text: &str) -> ContentPart {
    match text.strip_prefix('@') {
        Some(modality) => ContentPart::Media {
            modality: modality.to_owned(),
        },
        None => ContentPart::Text(text.to_owned()),
    }
}

fn conversation(name: &str) -> Vec<Message> {
    let turns: &[(&str, &[&str])] = match name {
        "ask" => &[("user", &["Hi <b> & \"you\""])],
        "turns" => &[
            ("system", &["Be brief."]),
            ("user", &[" What? "]),
            ("assistant", &["<think>\nhm\n</think>\n\nThis."]),
            ("user", &["Why?"]),
        ],
        "image" => &[
            ("user", &["@image", "What is it?"]),
            ("assistant", &["A cat."]),
            ("user", &["And", "@image", "here?"]),
        ],
        _ => &[("user", &["a"]), ("user", &["b"])],
    };
    turns
        .iter()
        .map(|(role, content)| Message {
            role: (*role).to_owned(),
            content: content.iter().map(|text| part(text)).collect(),
            extra: serde_json::Map::new(),
        })
        .collect()
}

/// Expected: `render_jinja_template` of transformers 5.23 with `add_generation_prompt`, over the
/// content that the template's format asks for.
#[test]
fn templates_render_as_in_transformers() {
    for (source, format, expected) in [
        (
            FIXTURE,
            ContentFormat::Both,
            vec![
                ("ask", Ok("<s>USER: Hi <b> & \"you\" ASSISTANT:")),
                (
                    "turns",
                    Ok(
                        "<s>SYSTEM: Be brief. USER:  What?  ASSISTANT: <think>\nhm\n</think>\n\nThis. USER: Why? ASSISTANT:",
                    ),
                ),
                (
                    "image",
                    Ok(
                        "<s>USER: <image>\nWhat is it? ASSISTANT: A cat. USER: And<image>\nhere? ASSISTANT:",
                    ),
                ),
                ("broken", Ok("<s>USER: a USER: b ASSISTANT:")),
            ],
        ),
        (
            LLAVA,
            ContentFormat::Parts,
            vec![
                ("ask", Ok("USER: Hi <b> & \"you\" ASSISTANT:")),
                (
                    "turns",
                    Ok(
                        "Be brief. USER:  What?  ASSISTANT: <think>\nhm\n</think>\n\nThis. USER: Why? ASSISTANT:",
                    ),
                ),
                (
                    "image",
                    Ok(
                        "USER: <image>\nWhat is it? ASSISTANT: A cat. USER: <image>\nAnd here? ASSISTANT:",
                    ),
                ),
                ("broken", Ok("USER: a USER: b ASSISTANT:")),
            ],
        ),
        (
            LLAMA_2,
            ContentFormat::Text,
            vec![
                ("ask", Ok("<s>[INST] Hi <b> & \"you\" [/INST]")),
                (
                    "turns",
                    Ok(
                        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n What? [/INST] <think>\nhm\n</think>\n\nThis. </s><s>[INST] Why? [/INST]",
                    ),
                ),
                (
                    "broken",
                    Err("Conversation roles must alternate user/assistant/user/assistant/..."),
                ),
            ],
        ),
        (
            LLAMA_3,
            ContentFormat::Both,
            vec![
                (
                    "ask",
                    Ok(
                        "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi <b> & \"you\"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                    ),
                ),
                (
                    "turns",
                    Ok(
                        "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhat?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>\nhm\n</think>\n\nThis.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                    ),
                ),
                (
                    "image",
                    Ok(
                        "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<|image|>What is it?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd<|image|>here?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                    ),
                ),
                (
                    "broken",
                    Ok(
                        "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nb<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                    ),
                ),
            ],
        ),
        (
            CHATML,
            ContentFormat::Text,
            vec![
                (
                    "ask",
                    Ok(
                        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi <b> & \"you\"<|im_end|>\n<|im_start|>assistant\n",
                    ),
                ),
                (
                    "turns",
                    Ok(
                        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n What? <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nThis.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
                    ),
                ),
                (
                    "broken",
                    Ok(
                        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n",
                    ),
                ),
            ],
        ),
        (
            QWEN2_VL,
            ContentFormat::Both,
            vec![
                (
                    "ask",
                    Ok("<|im_start|>user\nHi <b> & \"you\"<|im_end|>\n<|im_start|>assistant\n"),
                ),
                (
                    "turns",
                    Ok(
                        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n What? <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nThis.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
                    ),
                ),
                (
                    "image",
                    Ok(
                        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nAnd<|vision_start|><|image_pad|><|vision_end|>here?<|im_end|>\n<|im_start|>assistant\n",
                    ),
                ),
                (
                    "broken",
                    Ok(
                        "<|im_start|>user\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n",
                    ),
                ),
            ],
        ),
        (
            MISTRAL,
            ContentFormat::Both,
            vec![
                ("ask", Ok("<s>[INST]Hi <b> & \"you\"[/INST]")),
                (
                    "turns",
                    Err("Only user and assistant roles are supported, not system"),
                ),
                (
                    "image",
                    Ok("<s>[INST][IMG]What is it?[/INST]A cat.</s>[INST]And[IMG]here?[/INST]"),
                ),
                (
                    "broken",
                    Err("After the optional system message, roles must alternate: user"),
                ),
            ],
        ),
        (
            MACROS,
            ContentFormat::Both,
            vec![
                ("ask", Ok("User:\tHi <b> & \"you\"\nAssistant:")),
                (
                    "turns",
                    Ok("System: Be brief.\nUser: What?\nAssistant: This.\nUser:\tWhy?\nAssistant:"),
                ),
                (
                    "image",
                    Ok(
                        "User: <img>What is it?\nAssistant: A cat.\nUser:\tAnd<img>here?\nAssistant:",
                    ),
                ),
                ("broken", Ok("User: a\nUser:\tb\nAssistant:")),
            ],
        ),
    ] {
        let template = template(source).unwrap();
        assert_eq!(template.format, format, "{source}");
        for (name, expected) in expected {
            let expected = expected.map(str::to_owned).map_err(Error::invalid);
            let rendered = template.render(&conversation(name), &TemplateArgs::default());
            assert_eq!(rendered, expected, "{name} in {source}");
        }
    }
}

#[test]
fn media_without_a_place_are_refused() {
    let image = conversation("image");
    for source in [LLAMA_2, CHATML] {
        let error = template(source)
            .unwrap()
            .render(&image, &TemplateArgs::default())
            .unwrap_err();
        assert!(error.is_callers_fault(), "{error}");
        assert!(error.to_string().contains("takes no image"), "{error}");
    }
    let video = [Message::user("What happens?", ["video"])];
    assert!(
        template(QWEN2_VL)
            .unwrap()
            .render(&video, &TemplateArgs::default())
            .unwrap()
            .contains("<|video_pad|>")
    );
    for source in [FIXTURE, LLAVA, MISTRAL] {
        let rendered = template(source)
            .unwrap()
            .render(&video, &TemplateArgs::default());
        assert!(
            rendered.unwrap_err().to_string().contains("takes no video"),
            "{source}"
        );
    }
    assert!(
        template(LLAVA)
            .unwrap()
            .render(&[], &TemplateArgs::default())
            .unwrap_err()
            .is_callers_fault()
    );
}

#[test]
fn text_parts_of_a_string_format_are_lines() {
    let message = Message {
        role: "user".to_owned(),
        content: vec![part("a"), part("b")],
        extra: serde_json::Map::new(),
    };
    let rendered = template(LLAMA_2)
        .unwrap()
        .render(
            &[message],
            &TemplateArgs {
                add_generation_prompt: false,
                ..TemplateArgs::default()
            },
        )
        .unwrap();
    assert_eq!(rendered, "<s>[INST] a\nb [/INST]");
}

#[test]
fn a_conversation_of_a_thousand_turns_is_within_bounds() {
    let text = "word ".repeat(400);
    let turns: Vec<_> = (0..1000)
        .map(|i| Message::text(["user", "assistant"][i % 2], text.as_str()))
        .collect();
    for source in [
        FIXTURE, LLAVA, LLAMA_2, LLAMA_3, CHATML, QWEN2_VL, MISTRAL, MACROS,
    ] {
        let rendered = template(source)
            .unwrap()
            .render(&turns, &TemplateArgs::default())
            .unwrap();
        assert!(rendered.len() > 1000 * text.len() / 2, "{source}");
    }
}

#[test]
fn a_template_is_found_in_every_place_that_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, content: &str| fs::write(folder.path().join(file), content).unwrap();
    let ask = conversation("ask");
    let load = || ChatTemplate::load(&Checkpoint::open(folder.path()).unwrap());
    write("config.json", "{}");
    assert!(load().unwrap().is_none());
    // Each file stands before the ones above it.
    for (file, content, expected) in [
        (
            PROCESSOR,
            r#"{"chat_template": "1{{ messages[0].content }}"}"#,
            "1",
        ),
        (
            TOKENIZER,
            r#"{"bos_token": {"content": "<s>"}, "chat_template": [
                {"name": "rag", "template": "{{ no }}"},
                {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]}"#,
            "<s>",
        ),
        (
            LEGACY,
            r#"{"chat_template": "3{{ messages[0].content }}"}"#,
            "3",
        ),
        (JINJA, "4\r\n{{ messages[0].content }}\n", "4\n"),
    ] {
        write(file, content);
        let template = load().unwrap().unwrap();
        assert_eq!(
            template.render(&ask, &TemplateArgs::default()).unwrap(),
            format!("{expected}Hi <b> & \"you\""),
            "{file}"
        );
    }
    assert_eq!(load().unwrap().unwrap().bos_token(), Some("<s>"));
    for broken in [
        "{% if %}",
        "{{ messages|nothing }}",
        "{% for i in range(9**9) %}{% endfor %}",
    ] {
        write(JINJA, broken);
        let error = load().unwrap_err().to_string();
        assert!(error.starts_with("chat_template.jinja: "), "{error}");
    }
    fs::write(folder.path().join(JINJA), [0xFF]).unwrap();
    assert!(load().is_err());
    fs::remove_file(folder.path().join(JINJA)).unwrap();
    write(LEGACY, r#"{"chat_template": 3}"#);
    assert!(load().unwrap_err().to_string().contains("chat_template"));
}

#[test]
fn tools_and_arguments_and_further_keys_reach_the_template() {
    let source = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}\
                  {% for m in messages %}[{{ m.role }}:{{ m.content }}\
                  {% if m.tool_calls %}{{ m.tool_calls[0].function.name }}{% endif %}]{% endfor %}\
                  {% if thinking %}<think>{% endif %}{% if add_generation_prompt %}A:{% endif %}";
    let template = template(source).unwrap();
    let mut call = Message::text("assistant", "");
    call.extra = serde_json::json!({"tool_calls": [{"function": {"name": "look"}}]})
        .as_object()
        .unwrap()
        .clone();
    let args = TemplateArgs {
        tools: vec![serde_json::json!({"type": "function", "function": {"name": "look"}})],
        kwargs: serde_json::json!({"thinking": true})
            .as_object()
            .unwrap()
            .clone(),
        ..TemplateArgs::default()
    };
    assert_eq!(
        template
            .render(&[Message::text("user", "hi"), call], &args)
            .unwrap(),
        "{\"type\": \"function\", \"function\": {\"name\": \"look\"}}[user:hi][assistant:look]<think>A:"
    );
    for name in RESERVED {
        let mut args = TemplateArgs::default();
        args.kwargs.insert(name.to_owned(), true.into());
        let error = template
            .render(&[Message::text("user", "hi")], &args)
            .unwrap_err();
        assert!(
            error.is_callers_fault() && error.to_string().contains(name),
            "{error}"
        );
    }
}

#[test]
fn a_final_message_is_gone_on_with() {
    let template = template(CHATML).unwrap();
    let go_on = TemplateArgs {
        add_generation_prompt: false,
        continue_final_message: true,
        ..TemplateArgs::default()
    };
    let turns = [
        Message::text("user", "Count"),
        Message::text("assistant", "One, two, "),
    ];
    let text = template.render(&turns, &go_on).unwrap();
    assert!(
        text.ends_with("One, two, ") || text.ends_with("One, two,"),
        "{text:?}"
    );
    let both = TemplateArgs {
        add_generation_prompt: true,
        ..go_on
    };
    assert!(
        template
            .render(&turns, &both)
            .unwrap_err()
            .is_callers_fault()
    );
}

/// Arguments that a template can't work with are the caller's fault, and cost no more than fuel.
#[test]
fn hostile_arguments_end_with_an_error() {
    let template = template("{% for i in range(n or 1) %}{% for j in range(n or 1) %}x{% endfor %}{% endfor %}{{ messages[0].content }}").unwrap();
    let mut args = TemplateArgs::default();
    args.kwargs.insert("n".to_owned(), 90_000.into());
    let error = template
        .render(&[Message::text("user", "hi")], &args)
        .unwrap_err();
    assert!(error.is_callers_fault(), "{error}");
}
