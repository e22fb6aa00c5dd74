//! For every item: positions of the processor = rows of the encoder. Where they differ, dummy data
//! and the declared maximum say which of the two is right.

use super::{Ran, property};
use crate::report::{Piece, Problem};
use crate::subject::Subject;
use crate::sweep::Counted;

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    if !subject.has_media() {
        return Err("a text-only model".to_owned());
    }
    let sweep = subject.sweep();
    problems.extend(sweep.problems.iter().cloned());
    let broken = |counted| judge(subject, counted);
    problems.extend(sweep.counted.iter().filter_map(broken));
    if problems.is_empty() {
        problems.extend(property::falsify(subject));
    }
    if sweep.counted.is_empty() && problems.is_empty() {
        problems.push(Problem::new(
            Piece::Mapper,
            format!("all {} items of the sweep are refused", sweep.refused),
            "accept what the modality's decoder gives",
        ));
    }
    Ok(())
}

/// What is wrong with the two counts of an item.
pub(super) fn judge(subject: &Subject, counted: &Counted) -> Option<Problem> {
    if counted.positions != counted.rows {
        let (piece, why) = blame(subject, counted);
        return Some(Problem::new(
            piece,
            format!(
                "{}: the input processor makes {} positions, the encoder {} rows{why}",
                counted.what, counted.positions, counted.rows
            ),
            "compute both from one function of the item's size",
        ));
    }
    (counted.positions == 0).then(|| {
        Problem::new(
            Piece::Processor,
            format!("{} takes no position at all", counted.what),
            "every item that is accepted takes at least one position",
        )
    })
}

/// Of processor, encoder and declared maximum two agree on dummy data, mostly.
fn blame(subject: &Subject, counted: &Counted) -> (Piece, &'static str) {
    let most = subject
        .entry
        .max_tokens(&subject.context, &counted.modality);
    let dummy = subject.dummy(&counted.modality, 1).ok();
    let dummy = dummy.and_then(|(_, items)| subject.count("dummy data", &items).ok()?.pop());
    match (dummy, most) {
        (Some(d), Ok(most)) if d.rows == most && d.positions != most => (
            Piece::Processor,
            " (on dummy data the encoder gives the declared maximum)",
        ),
        (Some(d), Ok(most)) if d.positions == most && d.rows != most => (
            Piece::Encoder,
            " (on dummy data the processor makes the declared maximum)",
        ),
        _ => (Piece::Processor, " (or the encoder is wrong)"),
    }
}
