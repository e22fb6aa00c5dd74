//! A prompt with items, cut at every position: each cut gives the unchunked bits, inside an item
//! too. One cache serves all cuts, as blocks are reused in the engine: what an earlier request left
//! there must not be seen.

use super::Ran;
use crate::drive::{BLOCK, Part};
use crate::fault::Fault;
use crate::report::{Piece, Problem};
use crate::subject::Subject;

/// Every cut of a prompt of so many tokens is tried; in a longer one, as many, evenly spread.
const CUTS: usize = 512;

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    if let Err(fault) = cuts(subject, problems) {
        problems.push(fault.problem("a prompt in chunks"));
    }
    Ok(())
}

fn cuts(subject: &Subject, problems: &mut Vec<Problem>) -> Result<(), Fault> {
    let model = subject.model.as_ref();
    let items = subject.items(1).unwrap_or_default();
    let ready = subject.ready(subject.prompt(0, &items), &items)?;
    let whole = subject.alone(model, &ready)?;
    let len = ready.len();
    let mut cache = subject.cache(model, len + BLOCK);
    // Odd blocks from the end, then even ones: neighbours in the sequence lie apart.
    let count = len.div_ceil(BLOCK) as u32;
    let blocks: Vec<u32> = (0..count).rev().filter(|b| b % 2 == 1).collect();
    let even = (0..count).filter(|b| b % 2 == 0);
    let blocks: Vec<u32> = blocks.into_iter().chain(even).collect();

    let every = len.div_ceil(CUTS);
    let two: Vec<Vec<usize>> = (1..len)
        .step_by(every)
        .map(|cut| vec![0, cut, len])
        .collect();
    let single: Vec<usize> = (0..=len).collect();
    for bounds in two.iter().chain([&single]) {
        let mut rows = vec![];
        for pair in bounds.windows(2) {
            let part = Part {
                ready: &ready,
                range: pair[0]..pair[1],
                blocks: blocks.clone(),
            };
            rows.extend(subject.step(model, &mut cache, &[part])?.swap_remove(0));
        }
        if rows != whole {
            let row = rows.iter().zip(&whole).position(|(a, b)| a != b);
            let cut = match bounds.len() {
                3 => format!("cut at position {}", bounds[1]),
                _ => "run token by token".to_owned(),
            };
            problems.push(Problem::new(
                Piece::Attention,
                format!(
                    "a prompt of {len} tokens {cut} has other logits, first at position {}",
                    row.unwrap_or(0)
                ),
                "attend over the cached context up to BatchLayout's context_lens, take positions \
                 from BatchLayout, and let length-dependent embeddings go by prompt_len",
            ));
            return Ok(());
        }
    }
    Ok(())
}
