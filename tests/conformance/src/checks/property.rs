//! The law as a property: files of any size in any mode, one or several to a prompt, from decoder to
//! encoder. What breaks it is made smaller until nothing smaller does. The seed is fixed, so that a
//! failure comes again.

use super::law;
use crate::media::{Draw, drawn};
use crate::report::Problem;
use crate::subject::{ITEMS, Subject};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

/// Prompts, and shapes for the input processor alone.
const PROMPTS: u32 = 48;
const SHAPES: u32 = 512;
/// Elements of a drawn item: decoding and encoding more is left to the sweep.
const MOST: usize = 100_000;

/// The axes of an item, its mode and its seed.
type Drawn = (Vec<usize>, usize, u64);

/// The first prompt, made smaller, that breaks the law or fails.
pub(super) fn falsify(subject: &Subject) -> Option<Problem> {
    subject
        .entry
        .modalities()
        .filter_map(drawn)
        .find_map(|draw| {
            let item = (axes(draw), 0..draw.modes(), any::<u64>());
            let prompt = vec(item, 1..=ITEMS);
            let smallest = smallest(PROMPTS, prompt, |prompt| {
                judge(subject, draw, prompt).is_none()
            });
            judge(subject, draw, &smallest?)
        })
}

/// A shape, made smaller, of which `holds` is false.
pub(super) fn shape(draw: &dyn Draw, holds: impl Fn(&[usize]) -> bool) -> Option<Vec<usize>> {
    smallest(SHAPES, axes(draw), |shape| holds(shape))
}

/// Evenly over orders of magnitude.
fn axes(draw: &dyn Draw) -> impl Strategy<Value = Vec<usize>> + use<> {
    let axes = draw.longest().iter().map(|longest| {
        let longest = (*longest).max(2);
        prop_oneof![1..=longest.min(32), 1..=longest.min(256), 1..=longest]
    });
    axes.collect::<Vec<_>>()
}

fn smallest<S: Strategy>(
    cases: u32,
    strategy: S,
    holds: impl Fn(&S::Value) -> bool,
) -> Option<S::Value> {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 512,
        ..Config::default()
    };
    let seed = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let found = TestRunner::new_with_rng(config, seed).run(&strategy, |value| {
        prop_assert!(holds(&value));
        Ok(())
    });
    match found {
        Err(TestError::Fail(_, value)) => Some(value),
        _ => None,
    }
}

/// A prompt of files, from decoder to encoder.
fn judge(subject: &Subject, draw: &dyn Draw, prompt: &[Drawn]) -> Option<Problem> {
    let mut what = vec![];
    let mut items = vec![];
    for (shape, mode, seed) in prompt {
        let (name, bytes) = draw.file(&bounded(shape), *mode, *seed);
        match subject.decode(draw.modality(), &bytes) {
            Ok(item) => items.push(item),
            Err(fault) => return Some(fault.problem(&name)),
        }
        what.push(name);
    }
    match subject.count(&what.join(", "), &items) {
        Ok(counted) => counted.iter().find_map(|item| law::judge(subject, item)),
        Err(fault) if fault.error.is_callers_fault() => None,
        Err(fault) => Some(fault.problem(&what.join(", "))),
    }
}

/// The shape with its longest axis cut until it has few enough elements.
fn bounded(shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    while shape.iter().product::<usize>() > MOST {
        let Some(longest) = shape.iter_mut().max() else {
            break;
        };
        *longest = longest.div_ceil(2);
    }
    shape
}
