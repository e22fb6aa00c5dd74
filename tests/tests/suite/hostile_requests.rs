//! Requests that ask for what can't be: each is answered with an error that says whose fault it
//! is, and the next good request gets what it always got.

use crate::broken::Copy;
use crate::runs::{
    Outcome, alone, assert_idle, finish, options, start, start_roomy, together, wait_until,
};
use crate::support::{ask, case, checkpoint, greedy, load, model_options, pattern, read};
use kiln_engine::{Engine, Event, MediaInput, PromptInput, Request, SamplingParams};
use kiln_registry::{Error, HostTensor, MediaItem};
use std::time::{Duration, Instant};

const LLAVA: &str = "llava-clip-llama";

fn good() -> Request {
    case("llava-clip-llama.two").request(32)
}

/// The caller's fault, told without anything of our memory or files; then all is as before.
fn refused(engine: &Engine, what: &str, request: Request) -> Error {
    let error = alone(engine, &request)
        .err()
        .unwrap_or_else(|| panic!("{what}: answered"));
    assert!(error.is_callers_fault(), "{what}: {error:?}");
    for leak in [" 0x", ".rs", "panicked", env!("CARGO_MANIFEST_DIR")] {
        assert!(!error.to_string().contains(leak), "{what}: {error}");
    }
    error
}

fn image(bytes: Vec<u8>) -> Request {
    let media = MediaInput::bytes("image", bytes);
    Request {
        media: vec![media],
        ..ask("<image>What?", [], greedy(4))
    }
}

#[test]
fn media_that_can_not_be_taken() {
    let engine = start(&checkpoint(LLAVA), &options());
    let before = alone(&engine, &good()).unwrap();
    let pictures = |n: usize| (0..n).map(|seed| pattern(9, 9, seed as u32));

    let error = refused(
        &engine,
        "four",
        ask(&"<image>".repeat(4), pictures(4), greedy(4)),
    );
    let limit = Error::TooManyItems {
        modality: "image".to_owned(),
        given: 4,
        limit: 3,
    };
    assert_eq!(error, limit);
    refused(&engine, "no bytes", image(vec![]));
    refused(&engine, "no picture", image(b"<svg/>".to_vec()));
    let png = read("processors/inputs/rgb.png");
    refused(
        &engine,
        "half a picture",
        image(png[..png.len() / 2].to_vec()),
    );
    let mut smell = image(png.clone());
    smell.media = vec![MediaInput::bytes("smell", png)];
    refused(&engine, "another modality", smell);

    for (placeholders, items) in [(1, 0), (0, 1), (2, 1), (1, 2), (3, 2)] {
        let text = format!("USER: {} ASSISTANT:", "<image>".repeat(placeholders));
        let what = format!("{placeholders} placeholders, {items} items");
        let error = refused(&engine, &what, ask(&text, pictures(items), greedy(4)));
        assert!(error.to_string().contains("<image>"), "{what}: {error}");
    }
    assert!(alone(&engine, &good()).unwrap() == before);

    let text_only = start(&checkpoint("text-llama"), &options());
    let error = refused(
        &text_only,
        "a picture for a text model",
        ask("a", pictures(1), greedy(1)),
    );
    assert!(error.to_string().contains("text only"), "{error}");
}

#[test]
fn tokens_and_parameters_that_are_none() {
    let engine = start(&checkpoint(LLAVA), &options());
    let before = alone(&engine, &good()).unwrap();
    let tokens = |ids: &[u32]| Request {
        prompt: PromptInput::Tokens(ids.to_vec()),
        ..ask("", [], greedy(4))
    };
    for id in [320, 4_000_000, u32::MAX] {
        let error = refused(&engine, "unknown", tokens(&[5, id, 6]));
        assert!(error.to_string().contains(&id.to_string()), "{error}");
    }
    assert!(
        alone(&engine, &tokens(&[319])).is_ok(),
        "the model's, though not the tokenizer's"
    );
    refused(&engine, "a placeholder's id", tokens(&[5, 3, 6]));
    refused(&engine, "no token", tokens(&[]));
    refused(&engine, "no text", ask("", [], greedy(4)));

    let long = ask(&"x".repeat(100_000), [], greedy(4));
    assert!(matches!(
        refused(&engine, "long", long),
        Error::ContextLength { context: 512, .. }
    ));
    let endless = refused(&engine, "endless", ask("x", [], greedy(usize::MAX)));
    assert!(
        matches!(endless, Error::ContextLength { context: 512, .. }),
        "{endless:?}"
    );

    let base = SamplingParams {
        temperature: 1.0,
        ..greedy(4)
    };
    for sampling in [
        SamplingParams {
            n: 1_000_000_000,
            ..base.clone()
        },
        SamplingParams {
            n: 0,
            ..base.clone()
        },
        SamplingParams {
            temperature: f32::NAN,
            ..base.clone()
        },
        SamplingParams {
            top_p: f32::INFINITY,
            ..base.clone()
        },
        SamplingParams {
            max_tokens: Some(0),
            ..base.clone()
        },
        SamplingParams {
            stop_token_ids: vec![320],
            ..base
        },
    ] {
        let what = format!("{sampling:?}");
        refused(&engine, &what, ask("x", [], sampling));
    }
    assert!(alone(&engine, &good()).unwrap() == before);
    assert_idle(&engine);
}

/// The item whose rows are the caller's own.
fn embeds(shape: [usize; 2], rows: Vec<f32>) -> MediaInput {
    MediaInput::Item(MediaItem::embeds(
        "image",
        HostTensor::f32(shape, rows).unwrap(),
    ))
}

#[test]
fn embeddings_as_input_are_off_unless_switched_on() {
    let case = case("llava-clip-llama.one");
    let trace = load(&checkpoint(LLAVA), &model_options())
        .unwrap()
        .trace(&case.request(1), 1, true)
        .unwrap();
    let rows = &trace.features[0];
    let mut request = case.request(32);
    request.media = vec![MediaInput::Item(MediaItem::embeds("image", rows.clone()))];

    let off = start(&checkpoint(LLAVA), &options());
    let error = refused(&off, "off", request.clone());
    assert!(error.to_string().contains("--enable-mm-embeds"), "{error}");

    let mut options = options();
    options.model.enable_mm_embeds = true;
    let on = start(&checkpoint(LLAVA), &options);
    let encoded = alone(&on, &case.request(32)).unwrap();
    assert!(
        alone(&on, &request).unwrap() == encoded,
        "the same rows, the same bits"
    );
    for (shape, what) in [
        ([16, 31], "too narrow"),
        ([16, 33], "too wide"),
        ([0, 32], "no rows"),
        ([17, 32], "more rows than declared"),
    ] {
        let mut request = request.clone();
        request.media = vec![embeds(shape, vec![0.5; shape[0] * shape[1]])];
        let error = refused(&on, what, request);
        assert!(error.to_string().contains("32"), "{what}: {error}");
    }
    let mut wrong = request.clone();
    let integers = HostTensor::i64([16, 32], vec![1; 16 * 32]).unwrap();
    wrong.media = vec![MediaInput::Item(MediaItem::embeds("image", integers))];
    refused(&on, "integers", wrong);

    // Rows of no numbers fail their own request; the one beside it does not see them.
    let mut poison = request.clone();
    poison.media = vec![embeds([16, 32], vec![f32::NAN; 16 * 32])];
    let outcomes = together(&on, &[case.request(32), poison, case.request(32)]);
    assert!(outcomes[1].is_err());
    assert!(outcomes[0].as_ref() == Ok(&encoded) && outcomes[2].as_ref() == Ok(&encoded));
    assert_idle(&on);
}

#[test]
fn a_flood_is_refused_and_the_admitted_finish() {
    let mut options = options();
    options.max_queue = 2;
    options.cache.max_num_seqs = 1;
    let engine = start_roomy(LLAVA, options);
    let expected = alone(&engine, &good()).unwrap();

    // One runs, two wait.
    let mut running = engine
        .generate(case("llava-clip-llama.one").request(100_000))
        .unwrap();
    let mut events = running.by_ref().map(|event| event.unwrap());
    assert!(events.any(|event| matches!(event, Event::Token { .. })));
    let waiting: Vec<_> = (0..2)
        .map(|n| {
            let generation = engine.generate(good()).unwrap();
            wait_until("it waits", || engine.stats().waiting == n + 1);
            generation
        })
        .collect();
    for _ in 0..1000 {
        let error = engine.generate(good()).expect_err("the queue is full");
        assert!(matches!(error, Error::Overloaded(_)), "{error:?}");
        assert!(!error.is_callers_fault());
    }
    drop(running);
    for generation in waiting {
        assert!(finish(generation).unwrap() == expected);
    }
    assert_idle(&engine);
}

#[test]
fn a_template_without_end_runs_out_of_fuel() {
    let endless = [
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% for i in range(99999999999) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 99999999999 }}",
        "{{ 'x' | center(99999999999) }}",
    ];
    for template in endless {
        let copy = Copy::of(LLAVA);
        copy.write("chat_template.jinja", template);
        let start_time = Instant::now();
        let engine = match Engine::load(copy.path(), &options()) {
            Ok(engine) => engine,
            Err(Error::Checkpoint { .. }) => continue,
            Err(error) => panic!("{template}: {error:?}"),
        };
        let error = alone(&engine, &Request::about_images("Hi", [])).expect_err(template);
        assert!(
            start_time.elapsed() < Duration::from_secs(10),
            "{template}: {error}"
        );
        assert_answers(&engine);
    }
    for template in [
        "{% for %}",
        "{{ raise_exception('no') }}",
        "{{ messages[99].content.x }}",
    ] {
        let copy = Copy::of(LLAVA);
        copy.write("chat_template.jinja", template);
        match Engine::load(copy.path(), &options()) {
            Ok(engine) => {
                alone(&engine, &Request::about_images("Hi", [])).expect_err(template);
                assert_answers(&engine);
            }
            Err(error) => assert!(
                matches!(error, Error::Checkpoint { .. }),
                "{template}: {error:?}"
            ),
        }
    }
}

fn assert_answers(engine: &Engine) -> Outcome {
    let outcome = alone(engine, &case("llava-clip-llama.one").request(4)).unwrap();
    assert_eq!(
        outcome.answer().tokens,
        case("llava-clip-llama.one").greedy()[..4]
    );
    outcome
}
