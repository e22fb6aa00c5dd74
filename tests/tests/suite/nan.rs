//! Weights that are no numbers: the requests that they touch fail, the others keep their bits, even
//! in blocks that held NaN before.

use crate::broken::Copy;
use crate::runs::{alone, assert_idle, options, start, together};
use crate::support::{ask, case, checkpoint, greedy};
use kiln_engine::{PromptInput, Request};
use kiln_registry::Error;

const LLAVA: &str = "llava-clip-llama";

fn good() -> Request {
    case("llava-clip-llama.two").request(32)
}

#[test]
fn nan_in_weights_fails_only_what_touches_it() {
    // The row of one token that no prompt of the fixtures has.
    let poisoned = 319u32;
    let copy = Copy::of(LLAVA);
    copy.edit_tensors(|tensors| {
        let embedding = tensors
            .get_mut("language_model.model.embed_tokens.weight")
            .unwrap();
        let row = 32 * 4 * poisoned as usize..32 * 4 * (poisoned as usize + 1);
        embedding.data[row]
            .as_chunks_mut::<4>()
            .0
            .fill(f32::NAN.to_le_bytes());
    });
    // So few blocks that the good requests get those that held NaN.
    let mut options = options();
    options.cache.kv_blocks = Some(12);
    let healthy = start(&checkpoint(LLAVA), &options);
    let expected = alone(&healthy, &good()).unwrap();
    let engine = start(copy.path(), &options);
    let bad = Request {
        prompt: PromptInput::Tokens([&[5; 90][..], &[poisoned], &[5; 30]].concat()),
        ..ask("", [], greedy(4))
    };
    for round in 0..4 {
        let outcomes = together(&engine, &[good(), bad.clone(), good(), bad.clone()]);
        for at in [1, 3] {
            let error = outcomes[at]
                .as_ref()
                .err()
                .unwrap_or_else(|| panic!("NaN was sampled"));
            assert!(!error.is_callers_fault(), "{error:?}");
        }
        for at in [0, 2] {
            assert!(
                outcomes[at].as_ref() == Ok(&expected),
                "round {round}: {:?}",
                outcomes[at]
            );
        }
        assert_idle(&engine);
    }
    assert_eq!(engine.stats().failed, 8);
}

#[test]
fn nan_in_every_logit_is_an_error_and_the_engine_lives() {
    let copy = Copy::of(LLAVA);
    copy.edit_tensors(|tensors| {
        let head = tensors.get_mut("language_model.lm_head.weight").unwrap();
        head.data
            .as_chunks_mut::<4>()
            .0
            .fill(f32::NAN.to_le_bytes());
    });
    let engine = start(copy.path(), &options());
    for _ in 0..3 {
        let error = alone(&engine, &good()).unwrap_err();
        assert!(matches!(error, Error::Internal(_)), "{error:?}");
    }
    assert_idle(&engine);
}
