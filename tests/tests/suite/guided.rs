//! Structured output on the built-in model: whatever it would like to say, the text is one that the
//! grammar has.

use crate::runs::{alone, assert_idle, builtin, options};
use kiln_engine::{EngineOptions, FinishReason, Grammar, Request, SamplingParams};
use serde_json::{Value, json};

fn ask(grammar: Grammar, sampling: SamplingParams) -> Request {
    let picture = std::fs::read(crate::support::asset("sample.png")).unwrap();
    Request::about_images("What is in the picture?", [picture.into()]).sampling(SamplingParams {
        guide: Some(grammar),
        max_tokens: Some(120),
        ..sampling
    })
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "shape": {"enum": ["circle", "square"]},
            "count": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["shape", "count"],
        "additionalProperties": false,
    })
}

fn hot(n: usize) -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        seed: Some(5),
        n,
        ..SamplingParams::default()
    }
}

#[test]
fn a_schema_a_pattern_and_a_choice_are_kept() {
    let engine = builtin(&options());
    for sampling in [SamplingParams::default(), hot(4)] {
        let run = |grammar| alone(&engine, &ask(grammar, sampling.clone())).unwrap();
        for answer in run(Grammar::JsonSchema(schema())).answers {
            assert_eq!(answer.reason, Some(FinishReason::Stop), "{}", answer.text);
            let json: Value = serde_json::from_str(&answer.text)
                .unwrap_or_else(|e| panic!("{e}: {}", answer.text));
            let shape = json["shape"].as_str().unwrap();
            assert!(["circle", "square"].contains(&shape), "{json}");
            assert!((1..=9).contains(&json["count"].as_i64().unwrap()), "{json}");
        }
        for answer in run(Grammar::Regex("[0-9]{3}-[xyz]+!".to_owned())).answers {
            let (digits, rest) = answer.text.split_once('-').unwrap();
            assert!(digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()));
            let cut = answer.reason == Some(FinishReason::Length);
            let letters = rest.strip_suffix('!').unwrap_or(rest);
            assert!(letters.bytes().all(|b| b"xyz".contains(&b)), "{rest}");
            assert!(cut || rest.ends_with('!'), "{rest}");
        }
        let choices = ["a zebra", "an \"emu\"", "é"].map(str::to_owned).to_vec();
        for answer in run(Grammar::Choice(choices.clone())).answers {
            assert!(choices.contains(&answer.text), "{}", answer.text);
            assert_eq!(answer.reason, Some(FinishReason::Stop));
        }
    }
    // Without a grammar none of it comes by chance.
    let free = Request {
        sampling: SamplingParams {
            max_tokens: Some(120),
            ..SamplingParams::default()
        },
        ..ask(Grammar::JsonObject, SamplingParams::default())
    };
    let free = alone(&engine, &free).unwrap();
    assert!(serde_json::from_str::<Value>(&free.answer().text).is_err());
    assert_idle(&engine);
}

/// The grammar's state goes along when a sequence gives its blocks back.
#[test]
fn a_preempted_sequence_goes_on_in_its_grammar() {
    let request = ask(Grammar::Regex("([a-z] ){50}".to_owned()), hot(4));
    let roomy = alone(&builtin(&options()), &request).unwrap();
    let prompt = roomy.usage.prompt_tokens;
    let mut small: EngineOptions = options();
    (small.cache.block_size, small.prefix_cache) = (4, false);
    small.cache.kv_blocks = Some((prompt + 124).div_ceil(4) + (prompt + 20).div_ceil(4));
    let engine = builtin(&small);
    let preempted = alone(&engine, &request).unwrap();
    assert!(engine.stats().preemptions > 0, "{:?}", engine.stats());
    assert_eq!(
        u64::from(preempted.timing.preemptions),
        engine.stats().preemptions
    );
    assert!(preempted == roomy);
}

#[test]
fn a_grammar_that_is_none_is_the_callers_fault() {
    let engine = builtin(&options());
    for grammar in [
        Grammar::Regex("(".to_owned()),
        Grammar::JsonSchema(json!({"type": "nonsense"})),
        Grammar::Lark("start: nowhere".to_owned()),
        Grammar::Choice(vec![]),
    ] {
        let error = alone(&engine, &ask(grammar, SamplingParams::default())).unwrap_err();
        assert!(error.is_callers_fault(), "{error}");
    }
    assert_idle(&engine);
    assert_eq!(engine.stats().rejected_invalid, 4);
}

#[test]
fn min_tokens_and_logprobs_are_as_asked() {
    let engine = builtin(&options());
    let picture = std::fs::read(crate::support::asset("sample.png")).unwrap();
    let request = |sampling| {
        Request::about_images("What is it?", [picture.clone().into()]).sampling(sampling)
    };
    let base = SamplingParams {
        max_tokens: Some(60),
        ..SamplingParams::default()
    };
    let free = alone(&engine, &request(base.clone())).unwrap();
    assert_eq!(free.answer().reason, Some(FinishReason::Stop));
    let least = free.usage.completion_tokens + 5;
    let longer = alone(
        &engine,
        &request(SamplingParams {
            min_tokens: least,
            ..base.clone()
        }),
    )
    .unwrap();
    assert!(longer.answer().tokens.len() >= least);
    assert!(longer.answer().tokens.starts_with(&free.answer().tokens));

    let top = SamplingParams {
        logprobs: Some(3),
        ..base
    };
    for event in engine.generate(request(top)).unwrap() {
        if let kiln_engine::Event::Token { token, .. } = event.unwrap() {
            assert_eq!(token.top_logprobs.len(), 3);
            assert_eq!(token.top_logprobs[0], (token.id, token.logprob), "greedy");
            assert!(token.top_logprobs.is_sorted_by(|a, b| a.1 >= b.1));
        }
    }
}
