//! Requests through the whole engine: however they are batched, chunked, preempted or cancelled,
//! each gets the reference's tokens and the same bits.

use crate::broken::Copy;
use crate::runs::{Outcome, alone, assert_idle, options, start, start_roomy, together, wait_until};
use crate::support::{case, cases, checkpoint, greedy, load, model_options};
use kiln_engine::{CacheOptions, EngineOptions, Event, FinishReason, Request, SamplingParams};
use kiln_registry::{Error, Result, WeightDType};
use std::collections::{BTreeMap, BTreeSet};

const LLAVA: &str = "llava-clip-llama";

fn with(dtype: WeightDType, change: impl FnOnce(&mut CacheOptions)) -> EngineOptions {
    let mut options = options();
    options.model.dtype = dtype;
    change(&mut options.cache);
    options
}

/// Requests of each checkpoint with the tokens that transformers chooses: its cases, and the first
/// of them twice more.
fn by_checkpoint() -> BTreeMap<String, Vec<(Request, Vec<u32>)>> {
    let mut all = BTreeMap::<String, Vec<_>>::new();
    for case in cases() {
        let expected = case.greedy();
        // A reference that went beyond the positions of its model: parity's matter.
        if case.name == "text-llama.long" {
            continue;
        }
        let request = case.request(expected.len());
        all.entry(case.checkpoint)
            .or_default()
            .push((request, expected));
    }
    for requests in all.values_mut() {
        requests.extend([requests[0].clone(), requests[0].clone()]);
    }
    all
}

fn unwrapped(name: &str, outcomes: Vec<Result<Outcome>>) -> Vec<Outcome> {
    let unwrap = |outcome: Result<Outcome>| outcome.unwrap_or_else(|e| panic!("{name}: {e}"));
    outcomes.into_iter().map(unwrap).collect()
}

#[test]
fn alone_together_chunked_or_preempted_the_bits_are_the_same() {
    let preemptions: u64 = by_checkpoint()
        .into_iter()
        .map(|(name, requests)| {
            let (requests, expected): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
            let (bits, preemptions) = same_bits(&name, WeightDType::F32, &requests);
            for (outcome, expected) in bits.iter().zip(&expected) {
                let tokens = &outcome.answer().tokens;
                assert_eq!(tokens, expected, "{name}: transformers' tokens");
                assert_eq!(outcome.answer().reason, Some(FinishReason::Length));
            }
            // Other kernels, and other tokens where the file holds more than two bytes.
            preemptions + same_bits(&name, WeightDType::BF16, &requests).1
        })
        .sum();
    assert!(preemptions > 0);
}

/// Runs requests one by one, then all at once under several settings; each must come to the same.
/// Also how often a sequence was preempted.
fn same_bits(name: &str, dtype: WeightDType, requests: &[Request]) -> (Vec<Outcome>, u64) {
    let folder = checkpoint(name);
    let one_by_one = start(&folder, &with(dtype, |_| ()));
    let bits = requests.iter().map(|r| alone(&one_by_one, r));
    let bits = unwrapped(name, bits.collect());
    drop(one_by_one);

    // The longest sequence fits, two of them never do.
    let longest = bits.iter().map(|b| b.usage.prompt_tokens + 32).max();
    let scarce = longest.unwrap().div_ceil(4) + 1;
    let settings = [
        ("together", with(dtype, |_| ())),
        // Chunks end inside of images.
        ("chunked", with(dtype, |c| c.max_batched_tokens = 5)),
        (
            "one token a step",
            with(dtype, |c| c.max_batched_tokens = 1),
        ),
        (
            "short of blocks",
            with(dtype, |c| (c.block_size, c.kv_blocks) = (4, Some(scarce))),
        ),
        (
            "blocks of one",
            with(dtype, |c| (c.block_size, c.kv_blocks) = (1, Some(2048))),
        ),
    ];
    let mut preemptions = 0;
    for (setting, options) in settings {
        let engine = start(&folder, &options);
        let outcomes = unwrapped(name, together(&engine, requests));
        assert!(
            outcomes == bits,
            "{name} {dtype:?}, {setting}: other bits than alone"
        );
        assert_idle(&engine);
        let stats = engine.stats();
        assert_eq!(stats.finished, requests.len() as u64, "{name}, {setting}");
        preemptions += stats.preemptions;
    }
    (bits, preemptions)
}

/// Three drawn sequences of one request: all are admitted at the same moment.
fn three(seed: u64) -> Request {
    let sampling = SamplingParams {
        temperature: 0.8,
        seed: Some(seed),
        n: 3,
        ..greedy(40)
    };
    case("llava-clip-llama.two").request(1).sampling(sampling)
}

#[test]
fn a_preempted_draw_is_drawn_again_alike() {
    let folder = checkpoint(LLAVA);
    let bits = alone(&start(&folder, &options()), &three(7)).unwrap();
    // 58 tokens of prompt, of which 56 are shared, and 40 new ones: three prompts fit, three whole
    // sequences don't.
    let small = with(WeightDType::F32, |c| {
        (c.block_size, c.kv_blocks) = (4, Some(40))
    });
    let engine = start(&folder, &small);
    let preempted = alone(&engine, &three(7)).unwrap();
    assert!(engine.stats().preemptions > 0, "{:?}", engine.stats());
    assert!(preempted == bits);
    assert_eq!(preempted.usage.completion_tokens, 120);
}

#[test]
fn a_seed_repeats_and_sequences_differ() {
    let engine = start(&checkpoint(LLAVA), &options());
    let first = alone(&engine, &three(7)).unwrap();
    assert_eq!(first.answers.len(), 3);
    assert!(first == alone(&engine, &three(7)).unwrap());
    assert!(first != alone(&engine, &three(8)).unwrap());
    let distinct: BTreeSet<_> = first.answers.iter().map(|a| &a.tokens).collect();
    assert_eq!(distinct.len(), 3);
    // Without a seed one is drawn each time.
    let mut unseeded = three(0);
    unseeded.sampling.seed = None;
    assert!(alone(&engine, &unseeded).unwrap() != alone(&engine, &unseeded).unwrap());
}

#[test]
fn a_dropped_receiver_cancels_and_nobody_else_notices() {
    let engine = start_roomy(LLAVA, options());
    let other = case("llava-clip-llama.two").request(200);
    let undisturbed = alone(&engine, &other).unwrap();

    let mut doomed = engine
        .generate(case("llava-clip-llama.three").request(100_000))
        .unwrap();
    let tokens = doomed.by_ref().map(|event| event.unwrap());
    assert!(
        tokens
            .take(3)
            .any(|event| matches!(event, Event::Token { .. }))
    );
    let running = engine.generate(other.clone()).unwrap();
    drop(doomed);
    assert!(crate::runs::finish(running).unwrap() == undisturbed);
    assert_idle(&engine);
    assert_eq!((engine.stats().cancelled, engine.stats().failed), (1, 0));

    // Before it is even prepared, too.
    for _ in 0..50 {
        drop(engine.generate(other.clone()).unwrap());
    }
    wait_until("50 cancelled", || engine.stats().cancelled == 51);
    assert_idle(&engine);
    assert!(alone(&engine, &other).unwrap() == undisturbed);
}

#[test]
fn sequences_end_where_they_are_told_to() {
    let engine = start(&checkpoint(LLAVA), &options());
    let case = case("llava-clip-llama.none");
    let whole = alone(&engine, &case.request(32)).unwrap();
    let whole = whole.answer();
    let with = |change: &dyn Fn(&mut SamplingParams)| {
        let mut request = case.request(32);
        change(&mut request.sampling);
        alone(&engine, &request).unwrap()
    };

    // A string of two tokens' text is met, and not sent.
    let letters: Vec<(usize, char)> = whole.text.char_indices().collect();
    let pair = letters
        .windows(3)
        .skip(4)
        .find(|w| w.iter().all(|(_, c)| c.is_ascii()));
    let at = pair.expect("three ASCII characters in a row")[0].0;
    let stop = whole.text[at..at + 3].to_owned();
    let stopped = with(&|s| s.stop = vec!["never met".to_owned(), stop.clone()]);
    assert_eq!(
        stopped.answer().text,
        whole.text.split(&stop).next().unwrap()
    );
    assert_eq!(stopped.answer().reason, Some(FinishReason::Stop));
    assert!(stopped.usage.completion_tokens <= 32);
    let unmet = with(&|s| s.stop = vec!["never met".to_owned()]);
    assert_eq!(unmet.answer(), whole);

    // A stop token ends it, is counted, and has no text.
    let id = whole.tokens[6];
    let first = whole.tokens.iter().position(|t| *t == id).unwrap();
    let stopped = with(&|s| s.stop_token_ids = vec![id]);
    assert_eq!(stopped.answer().tokens, whole.tokens[..first]);
    assert_eq!(stopped.answer().reason, Some(FinishReason::Stop));
    assert_eq!(stopped.usage.completion_tokens, first + 1);

    for most in [1, 2, 31] {
        let short = with(&|s| s.max_tokens = Some(most));
        assert_eq!(short.answer().tokens, whole.tokens[..most]);
        assert_eq!(short.answer().reason, Some(FinishReason::Length));
        assert_eq!(short.usage.completion_tokens, most);
    }
}

#[test]
fn the_end_of_a_sequence_is_the_checkpoints_own() {
    let case = case("llava-clip-llama.none");
    let tokens = case.greedy();
    let end = tokens[9];
    let first = tokens.iter().position(|t| *t == end).unwrap();
    let copy = Copy::of(LLAVA);
    copy.edit("generation_config.json", |config| {
        config["eos_token_id"] = serde_json::json!([318, end]);
    });
    let engine = start(copy.path(), &options());
    let mut request = case.request(32);
    assert_eq!(
        alone(&engine, &request).unwrap().answer().tokens,
        tokens,
        "ignored"
    );
    request.sampling.ignore_eos = false;
    let ended = alone(&engine, &request).unwrap();
    assert_eq!(ended.answer().tokens, tokens[..first]);
    assert_eq!(ended.answer().reason, Some(FinishReason::Stop));
    let trace = load(copy.path(), &model_options())
        .unwrap()
        .trace(&request, 32, false)
        .unwrap();
    assert_eq!(trace.greedy, tokens[..=first]);
}

#[test]
fn without_a_number_a_sequence_fills_the_context() {
    let mut options = options();
    options.model.max_model_len = Some(45);
    let engine = start(&checkpoint(LLAVA), &options);
    let case = case("llava-clip-llama.one");
    let mut request = case.request(1);
    request.sampling.max_tokens = None;
    let outcome = alone(&engine, &request).unwrap();
    assert_eq!(outcome.usage.prompt_tokens, 32);
    assert_eq!(outcome.answer().tokens, case.greedy()[..13]);
    assert_eq!(outcome.answer().reason, Some(FinishReason::Length));
    let error = alone(&engine, &case.request(14)).unwrap_err();
    let refused = Error::ContextLength {
        prompt: 32,
        new: 14,
        context: 45,
    };
    assert_eq!(error, refused);
}

#[test]
fn a_chat_is_the_text_that_its_template_makes() {
    let engine = start(&checkpoint(LLAVA), &options());
    let picture = crate::support::read("processors/inputs/rgb.png");
    let chat = Request::about_images("What is it?", [picture.clone().into()]).sampling(greedy(8));
    let mut text = chat.clone();
    text.prompt =
        kiln_engine::PromptInput::Text("<s>USER: <image>\nWhat is it? ASSISTANT:".to_owned());
    let chat = alone(&engine, &chat).unwrap();
    assert!(chat == alone(&engine, &text).unwrap());
    assert_eq!(chat.usage.media_tokens(), 16);
}
