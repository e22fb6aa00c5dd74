//! Prompts whose placeholders and items don't match: the caller's error, in words; never a panic
//! and never a guess. And text around items is left alone.

use super::Ran;
use crate::report::{Piece, Problem};
use crate::subject::Subject;
use kiln_registry::{MediaItem, ProcessedInputs};

const MEND: &str = "return Error::InvalidInput unless there is exactly one placeholder per item: \
                    kiln_registry::expand_placeholders does";

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    let items = match subject.items(1) {
        Ok(items) => items,
        Err(problem) => {
            problems.push(problem);
            return Ok(());
        }
    };
    if !subject.has_media() {
        foreign(subject, problems);
        return Ok(());
    }
    for item in &items {
        let Some(id) = subject.placeholders.get(item.modality()) else {
            continue;
        };
        let item = [item.clone()];
        let words = subject.words(0, 5);
        let twice = [&words[..], &[*id], &words, &[*id]].concat();
        let once = [&words[..], &[*id], &words].concat();
        let two = [item[0].clone(), item[0].clone()];
        refused(
            subject,
            problems,
            "no placeholder for an item",
            words.clone(),
            &item,
        );
        refused(
            subject,
            problems,
            "two placeholders for an item",
            twice.clone(),
            &item,
        );
        refused(
            subject,
            problems,
            "one placeholder for two items",
            once.clone(),
            &two,
        );
        refused(
            subject,
            problems,
            "a placeholder without an item",
            once,
            &[],
        );
        let tokenizer = subject.context.tokenizer();
        if let Some(token) = tokenizer.id_to_token(*id)
            && let Ok(typed) = tokenizer.encode(&format!("What does {token} mean?"), false)
            && typed.contains(id)
        {
            let what = format!("`{token}` typed as text");
            refused(subject, problems, &what, typed, &[]);
        }
        match subject.process(twice.clone(), &two) {
            Ok(processed) => kept(&twice, *id, &processed, problems),
            Err(fault) => problems.push(fault.problem("two items between text")),
        }
    }
    Ok(())
}

fn refused(
    subject: &Subject,
    problems: &mut Vec<Problem>,
    what: &str,
    ids: Vec<u32>,
    items: &[MediaItem],
) {
    let seen = match subject.process(ids, items) {
        Ok(_) => "accepted".to_owned(),
        Err(fault) if fault.error.is_callers_fault() => return,
        Err(fault) => fault.error.to_string(),
    };
    problems.push(Problem::new(
        Piece::Processor,
        format!("{what}: {seen}"),
        MEND,
    ));
}

/// Outside the ranges stand the prompt's own ids, in order.
fn kept(prompt: &[u32], id: u32, processed: &ProcessedInputs, problems: &mut Vec<Problem>) {
    let covered = |at: usize| {
        processed
            .placeholders
            .iter()
            .any(|r| r.range().contains(&at))
    };
    let outside = processed.token_ids.iter().enumerate();
    let outside = outside.filter(|(at, _)| !covered(*at)).map(|(_, id)| *id);
    let text = prompt.iter().filter(|i| **i != id).copied();
    if !outside.eq(text) {
        problems.push(Problem::new(
            Piece::Processor,
            "the ids outside of the placeholder ranges are not the prompt's own",
            "replace placeholder tokens and nothing else",
        ));
    }
}

/// A text-only model is given an item.
fn foreign(subject: &Subject, problems: &mut Vec<Problem>) {
    let Some(item) = crate::media::foreign() else {
        return;
    };
    if subject.process(subject.words(0, 5), &[item]).is_ok() {
        problems.push(Problem::new(
            Piece::Processor,
            "a text-only model accepts an item",
            "refuse items of modalities that the entry does not name",
        ));
    }
}
