//! Many clients at once on an engine that is short of everything: good requests, bad ones, cancelled
//! ones, by priority, with grammars and several sequences. Every answer is the one that the same
//! request gets alone on an engine without caches, and in the end nothing is left behind.

use crate::runs::{Outcome, alone, assert_idle, finish, options, start, wait_until};
use crate::support::{ask, checkpoint, greedy, pattern};
use kiln_engine::{Engine, Grammar, Policy, PromptInput, Request, SamplingParams};
use kiln_registry::Error;

const CLIENTS: u64 = 6;
const EACH: u64 = 60;

/// Numbers that are the same in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % most
    }
}

/// Requests that share beginnings and pictures.
fn good() -> Vec<Request> {
    let drawn = |n| SamplingParams {
        temperature: 0.9,
        seed: Some(11),
        n,
        ..greedy(9)
    };
    let guided = |grammar| SamplingParams {
        guide: Some(grammar),
        ignore_eos: false,
        ..greedy(20)
    };
    let system = "You are told to be brief and to say what is there, no more. ";
    let mut all = vec![
        ask(system, [], greedy(12)),
        ask(&format!("{system}{system}"), [], greedy(7)),
        ask("abc", [], greedy(30)),
        ask(system, [], drawn(3)),
        ask(
            system,
            [],
            guided(Grammar::Regex("[a-z]{5}( [a-z]{3})*".to_owned())),
        ),
        ask(
            "abc",
            [],
            guided(Grammar::Choice(vec!["yes".to_owned(), "never".to_owned()])),
        ),
    ];
    for seed in 0..5 {
        let pictures = |n: u32| (0..n).map(move |i| pattern(24, 20, (seed + i) % 5));
        let text = format!("{system}<image>What is it?");
        all.push(ask(&text, pictures(1), greedy(8)));
        let text = format!("<image>{system}<image>Which is larger?");
        all.push(ask(&text, pictures(2), drawn(2)));
    }
    all
}

/// Requests that are refused.
fn bad() -> Vec<Request> {
    vec![
        ask("<image>", [], greedy(4)),
        ask("abc", [], greedy(1_000_000)),
        Request::new(PromptInput::Tokens(vec![9_999]), vec![]),
        ask(
            "abc",
            [],
            SamplingParams {
                guide: Some(Grammar::Regex("(".to_owned())),
                ..greedy(4)
            },
        ),
    ]
}

fn client(engine: &Engine, seed: u64, expected: &[(Request, Outcome)], bad: &[Request]) -> u64 {
    let mut draw = Draw(seed);
    let mut cancelled = 0;
    let mut running = vec![];
    for _ in 0..EACH {
        let pick = draw.below(expected.len() as u64) as usize;
        match draw.below(10) {
            0 => {
                let request = bad[draw.below(bad.len() as u64) as usize].clone();
                let error = alone(engine, &request).unwrap_err();
                assert!(error.is_callers_fault(), "{error}");
            }
            1 | 2 => {
                let mut doomed = engine.generate(expected[pick].0.clone()).unwrap();
                for _ in 0..draw.below(5) {
                    let _ = doomed.next();
                }
                drop(doomed);
                cancelled += 1;
            }
            _ => {
                let request = expected[pick].0.clone();
                let request = request.priority(draw.below(7) as i32 - 3);
                running.push((pick, engine.generate(request).unwrap()));
            }
        }
        if running.len() > draw.below(4) as usize {
            let (pick, generation) = running.remove(0);
            let outcome = finish(generation).unwrap();
            assert!(
                outcome == expected[pick].1,
                "request {pick}: another answer"
            );
        }
    }
    for (pick, generation) in running {
        assert!(
            finish(generation).unwrap() == expected[pick].1,
            "request {pick}"
        );
    }
    cancelled
}

#[test]
fn many_clients_on_a_small_engine_get_the_answers_of_a_large_one() {
    let folder = checkpoint("llava-clip-llama");
    let mut plain = options();
    plain.prefix_cache = false;
    (plain.encoder_cache_bytes, plain.processor_cache_bytes) = (0, 0);
    let plain = start(&folder, &plain);
    let expected: Vec<_> = good()
        .into_iter()
        .map(|request| (request.clone(), alone(&plain, &request).unwrap()))
        .collect();
    drop(plain);

    let mut small = options();
    (small.cache.block_size, small.cache.kv_blocks) = (4, Some(42));
    (small.cache.max_batched_tokens, small.cache.max_num_seqs) = (24, 5);
    small.max_num_batched_encoder_tokens = Some(16);
    (small.encoder_cache_bytes, small.processor_cache_bytes) = (2 * 16 * 32 * 4, 60_000);
    small.policy = Policy::Priority;
    small.max_queue = 4096;
    let engine = start(&folder, &small);
    let bad = bad();
    let cancelled: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|seed| {
                scope.spawn({
                    let (engine, expected, bad) = (&engine, &expected, &bad);
                    move || client(engine, seed + 1, expected, bad)
                })
            })
            .collect();
        clients.into_iter().map(|c| c.join().unwrap()).sum()
    });
    assert_idle(&engine);
    wait_until("it is idle", || engine.is_idle());
    let stats = engine.stats();
    assert_eq!(stats.failed, 0, "{stats:?}");
    // Some of the cancelled ones had ended by then.
    assert!(stats.cancelled <= cancelled && cancelled > 0, "{stats:?}");
    for count in [
        stats.preemptions,
        stats.prefix_cache_hits,
        stats.encoder_cache_hits,
        stats.processor_cache_hits,
        stats.rejected_invalid,
    ] {
        assert!(count > 0, "{stats:?}");
    }
    assert!(stats.encoder_cache_bytes <= 2 * 16 * 32 * 4, "{stats:?}");
    engine.drain();
    let refused = engine.generate(expected[0].0.clone()).unwrap_err();
    assert_eq!(refused, Error::ShuttingDown);
}
