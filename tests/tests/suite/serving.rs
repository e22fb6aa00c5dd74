//! What a server leans on: who is first, how much may wait, how an engine is brought to an end, and
//! that running streams go on while prompts come.

use crate::runs::{Outcome, alone, assert_idle, finish, options, start, start_roomy, wait_until};
use crate::support::{ask, case, checkpoint, greedy, pattern};
use kiln_engine::{Engine, EngineOptions, Event, Generation, Policy, PromptInput, Request};
use kiln_registry::Error;

const LLAVA: &str = "llava-clip-llama";

fn text(tokens: usize, new: usize) -> Request {
    let ids = (0..tokens as u32).map(|p| 20 + p % 90).collect();
    Request::new(PromptInput::Tokens(ids), vec![]).sampling(greedy(new))
}

/// An engine of one sequence at a time, and a request that keeps it busy until it is dropped.
fn busy(change: impl FnOnce(&mut EngineOptions)) -> (Engine, Generation) {
    let mut options = options();
    options.cache.max_num_seqs = 1;
    change(&mut options);
    let engine = start_roomy(LLAVA, options);
    let mut running = engine.generate(text(9, 100_000)).unwrap();
    let first = running.by_ref().map(|event| event.unwrap());
    assert!(
        first
            .take(2)
            .any(|event| matches!(event, Event::Token { .. }))
    );
    (engine, running)
}

#[test]
fn a_lower_priority_number_runs_first() {
    for (policy, expected) in [
        (Policy::Fcfs, [0, 1, 2, 3]),
        (Policy::Priority, [2, 1, 3, 0]),
    ] {
        let (engine, running) = busy(|o| o.policy = policy);
        let mut waiting = vec![];
        for (at, priority) in [7, 0, -7, 0].into_iter().enumerate() {
            let request = text(9 + at, 3).priority(priority);
            waiting.push((request.arrival, engine.generate(request).unwrap()));
            wait_until("it waits", || engine.stats().waiting == at as u64 + 1);
        }
        drop(running);
        let waiting = waiting.into_iter().enumerate();
        let mut began: Vec<_> = waiting
            .map(|(at, (arrival, generation))| {
                let outcome = finish(generation).unwrap();
                (arrival + outcome.timing.queued, at)
            })
            .collect();
        began.sort();
        let order: Vec<usize> = began.into_iter().map(|(_, at)| at).collect();
        assert_eq!(order, expected, "{policy:?}");
        assert_idle(&engine);
    }
}

#[test]
fn too_much_in_the_queue_is_refused_and_counted() {
    let (engine, running) = busy(|o| (o.max_queue, o.max_queue_tokens) = (3, 40));
    let first = engine.generate(text(30, 2)).unwrap();
    wait_until("it waits", || engine.stats().waiting == 1);
    assert_eq!(engine.stats().waiting_tokens, 30);
    // Known only when it is prepared.
    let error = alone(&engine, &text(20, 2)).unwrap_err();
    assert!(
        matches!(error, Error::Overloaded(_)) && error.is_retryable(),
        "{error}"
    );
    let second = engine.generate(text(10, 2)).unwrap();
    wait_until("it waits", || engine.stats().waiting == 2);
    let error = engine.generate(text(1, 2)).unwrap_err();
    assert_eq!(error.code(), "rate_limit_exceeded");
    assert_eq!(engine.stats().rejected_queue_tokens, 1);
    drop(running);
    finish(first).unwrap();
    finish(second).unwrap();
    alone(&engine, &text(1, 2)).unwrap();
    assert_idle(&engine);
}

#[test]
fn items_in_preparation_are_bounded() {
    let mut options = options();
    options.media_queue = 2;
    let engine = start(&checkpoint(LLAVA), &options);
    let three = |seed: u32| {
        let pictures = (0..3).map(move |i| pattern(900, 700, 3 * seed + i));
        ask("<image><image><image>What?", pictures, greedy(2))
    };
    let requests: Vec<_> = (0..20).map(three).collect();
    let (taken, refused): (Vec<_>, Vec<_>) = requests
        .into_iter()
        .map(|request| engine.generate(request))
        .partition(|taken| taken.is_ok());
    assert!(!taken.is_empty() && !refused.is_empty(), "{}", taken.len());
    assert_eq!(engine.stats().rejected_media_queue, refused.len() as u64);
    for generation in taken {
        finish(generation.unwrap()).unwrap();
    }
    // One request alone may have more than the queue holds; text is never held up.
    alone(&engine, &three(99)).unwrap();
    alone(&engine, &text(9, 2)).unwrap();
    assert_idle(&engine);
}

#[test]
fn a_draining_engine_finishes_what_it_took() {
    let engine = start(&checkpoint(LLAVA), &options());
    assert!(engine.is_alive() && engine.is_idle() && !engine.is_draining());
    let request = case("llava-clip-llama.two").request(32);
    let expected = alone(&engine, &request).unwrap();
    let taken: Vec<_> = (0..5)
        .map(|_| engine.generate(request.clone()).unwrap())
        .collect();
    assert!(!engine.is_idle());
    engine.drain();
    assert_eq!(engine.generate(request).unwrap_err(), Error::ShuttingDown);
    assert_eq!(engine.stats().rejected_shutdown, 1);
    for generation in taken {
        assert!(finish(generation).unwrap() == expected);
    }
    wait_until("it is idle", || engine.is_idle());
    assert!(engine.is_alive() && engine.is_draining());
}

#[test]
fn an_aborted_engine_ends_what_it_took() {
    let (engine, running) = busy(|_| ());
    let waiting = engine.generate(text(9, 4)).unwrap();
    wait_until("it waits", || engine.stats().waiting == 1);
    engine.abort();
    for generation in [running, waiting] {
        let last = generation.last().unwrap();
        assert_eq!(last.unwrap_err(), Error::ShuttingDown);
    }
    wait_until("it is idle", || engine.is_idle());
    assert_idle(&engine);
    assert_eq!(
        engine.generate(text(9, 4)).unwrap_err(),
        Error::ShuttingDown
    );
    assert!(engine.is_alive());
}

/// A stream gets a token in every step, while long prompts with pictures come.
#[test]
fn a_running_stream_does_not_wait_for_prompts() {
    let mut options = options();
    options.cache.max_batched_tokens = 64;
    options.long_prefill_token_threshold = Some(8);
    let engine = start_roomy(LLAVA, options);
    let mut stream = engine.generate(text(9, 100_000)).unwrap();
    while !matches!(stream.next().unwrap().unwrap(), Event::Token { .. }) {}
    let long = ask(
        &format!("<image><image>{}", "What is it? ".repeat(40)),
        [pattern(30, 20, 1), pattern(20, 30, 2)],
        greedy(4),
    );
    let steps = engine.stats().steps;
    let outcome = alone(&engine, &long).unwrap();
    let tokens = outcome.usage.prompt_tokens;
    let taken = engine.stats().steps - steps;
    assert!(
        taken >= (tokens / 8) as u64,
        "{tokens} tokens in {taken} steps"
    );
    let after = engine.stats();
    // The stream and the request are all that ran, so every step had the stream's token.
    let streamed = after.generation_tokens - 4;
    assert!(streamed + 2 >= after.steps, "{after:?}");
    drop(stream);
    assert_idle(&engine);
}

/// A picture goes through its tower in pieces while a stream runs, and comes out with the same bits;
/// a client that leaves meanwhile leaves nothing behind.
#[test]
fn pictures_are_encoded_beside_a_stream() {
    for checkpoint in [LLAVA, "llava-next-clip-mistral"] {
        let mut options = options();
        options.encoder_cache_bytes = 1;
        options.prefix_cache = false;
        let engine = start_roomy(checkpoint, options);
        let question = |seed: u32| {
            let pictures = [pattern(30, 20, seed), pattern(20, 30, seed + 1)];
            ask("<image>What is it?<image>", pictures, greedy(6))
        };
        let idle: Vec<Outcome> = [1, 4, 7]
            .map(|seed| alone(&engine, &question(seed)).unwrap())
            .into();
        let mut stream = engine.generate(text(9, 100_000)).unwrap();
        while !matches!(stream.next().unwrap().unwrap(), Event::Token { .. }) {}
        let encoded = engine.stats().encoded_items;
        for (seed, idle) in [1, 4, 7].into_iter().zip(&idle) {
            drop(engine.generate(question(seed + 100)).unwrap());
            assert_eq!(&alone(&engine, &question(seed)).unwrap(), idle);
        }
        let both: Vec<_> = [1, 4]
            .map(|seed| engine.generate(question(seed)).unwrap())
            .into();
        for (generation, idle) in both.into_iter().zip(&idle) {
            assert_eq!(&finish(generation).unwrap(), idle);
        }
        let stats = engine.stats();
        assert!(stats.encoded_items >= encoded + 10, "{stats:?}");
        drop(stream);
        assert_idle(&engine);
    }
}

#[test]
fn processor_arguments_of_a_request_are_refused_unless_empty() {
    let engine = start(&checkpoint(LLAVA), &options());
    let mut request = case("llava-clip-llama.one").request(2);
    request.mm_processor_kwargs = Some(serde_json::Map::new());
    alone(&engine, &request).unwrap();
    let kwargs = serde_json::json!({"do_resize": false});
    request.mm_processor_kwargs = kwargs.as_object().cloned();
    let error = alone(&engine, &request).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
}
