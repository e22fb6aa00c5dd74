//! What is kept between requests: it changes where the work goes, and no bit of an answer.

use crate::runs::{Outcome, alone, assert_idle, builtin, options, start, together};
use crate::support::{ask, case, cases, checkpoint, greedy, pattern, read};
use kiln_engine::{Engine, EngineOptions, MediaInput, PromptInput, Request, SamplingParams};
use kiln_registry::WeightDType;

const LLAVA: &str = "llava-clip-llama";

fn small_blocks() -> EngineOptions {
    let mut options = options();
    (options.cache.block_size, options.cache.kv_blocks) = (4, Some(512));
    options
}

fn without_caches(mut options: EngineOptions) -> EngineOptions {
    options.prefix_cache = false;
    (options.encoder_cache_bytes, options.processor_cache_bytes) = (0, 0);
    options
}

/// Every case three times over: the second and third time most of the prompt is cached, in whole
/// steps, in chunks that end inside of images, and where blocks are so few that some are lost.
#[test]
fn a_repeated_prompt_is_cached_and_has_the_same_bits() {
    for case in cases() {
        // A reference that went beyond the positions of its model: parity's matter.
        if case.name == "text-llama.long" {
            continue;
        }
        let request = case.request(8);
        let folder = checkpoint(&case.checkpoint);
        for dtype in [WeightDType::F32, WeightDType::BF16] {
            let mut plain = small_blocks();
            plain.model.dtype = dtype;
            let fresh = alone(&start(&folder, &without_caches(plain.clone())), &request).unwrap();
            assert_eq!(fresh.usage.cached_tokens, 0);
            let few = (fresh.usage.prompt_tokens + 8).div_ceil(4) + 1;
            for (tokens, blocks) in [(512, 512), (5, 512), (7, few)] {
                let mut options = plain.clone();
                options.cache.max_batched_tokens = tokens;
                options.cache.kv_blocks = Some(blocks);
                let engine = start(&folder, &options);
                for round in 0..3 {
                    let outcome = alone(&engine, &request).unwrap();
                    let what = format!("{} {dtype:?} {tokens} {blocks}, {round}", case.name);
                    assert!(outcome == fresh, "{what}: other bits");
                    let prompt = outcome.usage.prompt_tokens;
                    let expected = if round == 0 { 0 } else { (prompt - 1) / 4 * 4 };
                    assert_eq!(outcome.usage.cached_tokens, expected, "{what}");
                }
                assert_idle(&engine);
                let stats = engine.stats();
                assert!(stats.prefix_cache_hits > 0 || fresh.usage.prompt_tokens <= 4);
                assert!(stats.cached_blocks > 0 && stats.cached_blocks <= blocks as u64);
            }
        }
    }
}

fn tokens_of(request: &Request, engine: &Engine) -> Vec<u32> {
    let prepared = engine.pipeline().prepare(request).unwrap();
    prepared.token_ids
}

/// The ids of a prompt with a picture are those of another picture, and of no picture where the
/// placeholder's id is text: only the content tells them apart.
#[test]
fn the_same_ids_with_another_picture_share_nothing_behind_it() {
    let engine = start(&checkpoint(LLAVA), &small_blocks());
    let text = "USER: <image>\nWhat is it? ASSISTANT:";
    for seed in 1..4 {
        let request = ask(text, [pattern(30, 20, seed)], greedy(8));
        let outcome = alone(&engine, &request).unwrap();
        let fresh = start(&checkpoint(LLAVA), &without_caches(small_blocks()));
        assert!(
            outcome == alone(&fresh, &request).unwrap(),
            "picture {seed}"
        );
        let before = tokens_of(&request, &engine);
        let image = before.windows(2).position(|w| w[0] == w[1]).unwrap();
        assert!(outcome.usage.cached_tokens <= image, "{:?}", outcome.usage);
    }
    // Two pictures, then the same two the other way round.
    let pair = |a, b| {
        let text = format!("<image><image>{text}").replace("USER: <image>", "USER:");
        ask(&text, [pattern(9, 9, a), pattern(9, 9, b)], greedy(8))
    };
    let fresh = start(&checkpoint(LLAVA), &without_caches(small_blocks()));
    for (a, b) in [(7, 8), (8, 7), (7, 7), (7, 8)] {
        let expected = alone(&fresh, &pair(a, b)).unwrap();
        assert!(alone(&engine, &pair(a, b)).unwrap() == expected, "{a} {b}");
    }
}

/// Prompts of several lengths with one beginning, short and long by turns. With dynamic RoPE a long
/// one has other keys at the same positions, so it may share with none of another length.
#[test]
fn beginnings_are_shared_only_where_the_keys_are_the_same() {
    for (name, dynamic) in [
        ("text-llama", true),
        ("text-mistral", false),
        ("text-qwen2", false),
    ] {
        let context = {
            let engine = start(&checkpoint(name), &options());
            engine.profile().max_model_len
        };
        let mut roomy = small_blocks();
        roomy.cache.kv_blocks = Some(4 * context);
        let engine = start(&checkpoint(name), &roomy);
        let fresh = start(&checkpoint(name), &without_caches(roomy.clone()));
        let ids = |n: usize| (0..n as u32).map(|p| 20 + p % 97).collect::<Vec<_>>();
        let mut hits = 0;
        for length in [
            9,
            context / 2,
            13,
            context - 8,
            context / 2,
            40.min(context - 8),
        ] {
            let request =
                Request::new(PromptInput::Tokens(ids(length)), vec![]).sampling(greedy(8));
            let expected = alone(&fresh, &request).unwrap();
            let outcome = alone(&engine, &request).unwrap();
            assert!(
                outcome == expected,
                "{name}: {length} tokens, {:?}",
                outcome.usage
            );
            hits += outcome.usage.cached_tokens;
        }
        assert!(hits > 0, "{name}, dynamic: {dynamic}");
    }
}

/// The next turn of a conversation takes the answer's blocks, too.
#[test]
fn a_generated_answer_is_cached_for_the_next_turn() {
    let engine = start(&checkpoint(LLAVA), &small_blocks());
    let fresh = start(&checkpoint(LLAVA), &without_caches(small_blocks()));
    let prompt: Vec<u32> = (20..51).collect();
    let first = Request::new(PromptInput::Tokens(prompt.clone()), vec![]).sampling(greedy(24));
    let answer = alone(&engine, &first).unwrap().answer().tokens.clone();
    let turn = [&prompt[..], &answer, &[5, 6, 7]].concat();
    let second = Request::new(PromptInput::Tokens(turn), vec![]).sampling(greedy(8));
    let outcome = alone(&engine, &second).unwrap();
    // All but the answer's last token has run.
    assert_eq!(outcome.usage.cached_tokens, (31 + 23) / 4 * 4);
    assert!(outcome == alone(&fresh, &second).unwrap());
}

/// Equal requests at once: one computes, the others take what it computed.
#[test]
fn equal_prompts_at_once_are_computed_once() {
    let engine = start(&checkpoint(LLAVA), &small_blocks());
    let request = case("llava-clip-llama.two").request(8);
    let outcomes = together(&engine, &vec![request.clone(); 6]);
    let fresh = start(&checkpoint(LLAVA), &without_caches(small_blocks()));
    let expected = alone(&fresh, &request).unwrap();
    let outcomes: Vec<Outcome> = outcomes.into_iter().map(|o| o.unwrap()).collect();
    assert!(outcomes.iter().all(|o| *o == expected));
    let stats = engine.stats();
    assert_eq!(stats.encoded_items, 2, "{stats:?}");
    let cached = outcomes
        .iter()
        .filter(|o| o.usage.cached_tokens > 0)
        .count();
    assert_eq!(cached, 5);

    // And the sequences of one request.
    let engine = start(&checkpoint(LLAVA), &small_blocks());
    let three = request.clone().sampling(SamplingParams {
        temperature: 0.8,
        seed: Some(7),
        n: 3,
        ..greedy(8)
    });
    let outcome = alone(&engine, &three).unwrap();
    assert!(outcome == alone(&fresh, &three).unwrap());
    let stats = engine.stats();
    assert_eq!(stats.encoded_items, 2, "{stats:?}");
    assert!(stats.prefix_cache_hits >= 2 * ((outcome.usage.prompt_tokens as u64 - 1) / 4 * 4));
}

fn about_sample(question: &str, sampling: SamplingParams) -> Request {
    let picture = std::fs::read(crate::support::asset("sample.png")).unwrap();
    Request::about_images(question, [picture.into()]).sampling(sampling)
}

#[test]
fn a_repeated_picture_is_neither_decoded_nor_encoded_again() {
    let mut options = options();
    options.prefix_cache = false;
    let engine = builtin(&options);
    let fresh = builtin(&without_caches(options));
    let mut timings = vec![];
    for (round, question) in ["What is it?", "What colour is it?", "What is it?"]
        .iter()
        .enumerate()
    {
        let request = about_sample(question, greedy(8));
        let outcome = alone(&engine, &request).unwrap();
        assert!(outcome == alone(&fresh, &request).unwrap(), "{question}");
        let stats = engine.stats();
        assert_eq!(stats.encoded_items, 1);
        assert_eq!(
            (stats.encoder_cache_queries, stats.encoder_cache_hits),
            (round as u64 + 1, round as u64)
        );
        assert_eq!(
            (stats.processor_cache_queries, stats.processor_cache_hits),
            (round as u64 + 1, round as u64)
        );
        timings.push((outcome.timing.encoded_items, outcome.timing.cached_items));
    }
    assert_eq!(timings, [(1, 0), (0, 1), (0, 1)]);
    assert!(engine.stats().encoder_cache_bytes > 0 && engine.stats().processor_cache_bytes > 0);
    assert_eq!(fresh.stats().encoded_items, 3);
    assert_eq!(
        fresh.stats().encoder_cache_bytes + fresh.stats().processor_cache_bytes,
        0
    );
}

/// With the prefix cached the picture's rows are not even asked for.
#[test]
fn a_repeated_prompt_on_the_built_in_model_skips_its_prefill() {
    let engine = builtin(&options());
    let request = about_sample("What is it?", greedy(8));
    let first = alone(&engine, &request).unwrap();
    let steps = engine.stats().steps;
    let second = alone(&engine, &request).unwrap();
    assert!(first == second);
    assert_eq!(first.usage.cached_tokens, 0);
    assert_eq!(
        second.usage.cached_tokens,
        (first.usage.prompt_tokens - 1) / 16 * 16
    );
    assert_eq!(engine.stats().encoded_items, 1);
    assert!(engine.stats().steps - steps <= steps);
    assert!(first.usage.media_tokens() > 16);
}

#[test]
fn an_item_may_be_sent_by_its_uuid_alone() {
    let engine = start(&checkpoint(LLAVA), &options());
    let media = |bytes: Option<&str>, uuid: &str| {
        let (modality, uuid) = ("image".to_owned(), uuid.to_owned());
        let media = match bytes {
            Some(file) => MediaInput::Bytes {
                modality,
                bytes: read(&format!("processors/inputs/{file}")).into(),
                uuid: Some(uuid),
            },
            None => MediaInput::Uuid { modality, uuid },
        };
        let mut request = ask("<image>What?", [], greedy(8));
        request.media = vec![media];
        request
    };
    let unknown = alone(&engine, &media(None, "a")).unwrap_err();
    assert!(
        unknown.is_callers_fault() && unknown.to_string().contains("uuid"),
        "{unknown}"
    );
    let sent = alone(&engine, &media(Some("rgb.png"), "a")).unwrap();
    assert!(alone(&engine, &media(None, "a")).unwrap() == sent);
    assert!(alone(&engine, &media(None, "b")).is_err());
    // The bytes say what it is, whatever the name was before.
    let other = alone(&engine, &media(Some("l.png"), "a"));
    if let Ok(other) = other {
        assert!(other != sent);
        assert!(alone(&engine, &media(None, "a")).unwrap() == other);
    }
    for name in ["", &"x".repeat(300)] {
        assert!(
            alone(&engine, &media(Some("rgb.png"), name))
                .unwrap_err()
                .is_callers_fault()
        );
    }
    assert_idle(&engine);
}

/// Budgets that hold one picture, or none: pictures come and go, and no answer changes.
#[test]
fn small_budgets_change_no_answer() {
    let text = "<image><image><image>What?";
    let pictures = |n: u32| (0..3).map(move |i| pattern(20, 20, (n + i) % 5));
    let fresh = start(&checkpoint(LLAVA), &without_caches(small_blocks()));
    let requests: Vec<Request> = (0..10).map(|n| ask(text, pictures(n), greedy(4))).collect();
    let expected: Vec<_> = requests.iter().map(|r| alone(&fresh, r).unwrap()).collect();
    // Rows of one picture: 16 of 32 floats.
    for (rows, tokens) in [
        (16 * 32 * 4, 512),
        (16 * 32 * 4, 7),
        (1, 512),
        (3 * 16 * 32 * 4, 19),
    ] {
        let mut options = small_blocks();
        options.encoder_cache_bytes = rows;
        options.processor_cache_bytes = 40_000;
        options.cache.max_batched_tokens = tokens;
        options.max_num_batched_encoder_tokens = Some(16);
        let engine = start(&checkpoint(LLAVA), &options);
        let outcomes: Vec<_> = together(&engine, &requests)
            .into_iter()
            .map(|o| o.unwrap())
            .collect();
        assert!(outcomes == expected, "{rows} bytes, {tokens} tokens a step");
        assert_idle(&engine);
        let stats = engine.stats();
        assert!(stats.encoder_cache_bytes <= rows as u64, "{stats:?}");
        assert!(stats.processor_cache_bytes <= 40_000, "{stats:?}");
    }
}

/// Prompts share blocks under the same salt alone, and a salt changes no bit of an answer. The salt
/// is no text of the prompt: an equal salt on another prompt shares as far as the prompts agree.
#[test]
fn prompts_of_different_salts_share_no_blocks() {
    let engine = builtin(&options());
    let plain = about_sample("What is it?", greedy(8));
    let under = |salt: &str| Request {
        cache_salt: Some(salt.to_owned()),
        ..plain.clone()
    };
    let first = alone(&engine, &plain).unwrap();
    let full = (first.usage.prompt_tokens - 1) / 16 * 16;
    assert!(full > 0 && first.usage.cached_tokens == 0);
    for (request, cached) in [
        (under("a"), 0),
        (under("b"), 0),
        (under("a"), full),
        (under("b"), full),
        (plain.clone(), full),
        (under("ab"), 0),
    ] {
        let outcome = alone(&engine, &request).unwrap();
        let salt = &request.cache_salt;
        assert_eq!(outcome.usage.cached_tokens, cached, "{salt:?}");
        assert!(outcome == first, "{salt:?}: other bits");
    }
    let error = alone(&engine, &under("")).unwrap_err();
    assert!(error.to_string().contains("cache_salt"), "{error}");
    assert_idle(&engine);
}
