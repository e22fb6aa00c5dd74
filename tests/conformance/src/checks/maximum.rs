//! The declared maximum: nothing in the sweep is above it, and dummy data reaches it through the
//! real processor, mapper and encoder.

use super::Ran;
use crate::report::{Piece, Problem};
use crate::subject::{ITEMS, Subject};
use kiln_registry::MediaKind;

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    if !subject.has_media() {
        return Err("a text-only model".to_owned());
    }
    for modality in subject.entry.modalities() {
        if let Err(problem) = check_modality(subject, modality, problems) {
            problems.push(problem);
        }
    }
    Ok(())
}

fn check_modality(
    subject: &Subject,
    modality: &str,
    problems: &mut Vec<Problem>,
) -> Result<(), Problem> {
    let most = subject
        .entry
        .max_tokens(&subject.context, modality)
        .map_err(|error| {
            Problem::new(
                Piece::Maximum,
                error,
                "compute the largest number of rows that an item can take from the configuration",
            )
        })?;
    let sweep = subject.sweep().counted.iter();
    let largest = sweep
        .filter(|c| c.modality == modality)
        .max_by_key(|c| c.rows);
    if let Some(largest) = largest.filter(|c| c.rows > most) {
        problems.push(Problem::new(
            Piece::Maximum,
            format!(
                "{} takes {} rows, the declared maximum is {most}",
                largest.what, largest.rows
            ),
            "declare the true bound over every item that is accepted, not that of a usual one",
        ));
        return Ok(());
    }
    let largest = largest.map_or(0, |c| c.rows);
    for count in 1..=ITEMS {
        let (_, items) = subject.dummy(modality, count)?;
        if items.len() != count || items.iter().any(|i| i.kind() != MediaKind::Raw) {
            return Err(Problem::new(
                Piece::DummyData,
                format!("{} item(s) where {count} were asked for", items.len()),
                "give as many decoded items as MediaCounts says",
            ));
        }
        let counted = subject
            .count("dummy data", &items)
            .map_err(|fault| fault.problem("dummy data"))?;
        let mut rows = counted.iter().map(|c| c.rows);
        if let Some(reached) = rows.find(|rows| *rows != most) {
            // Nothing that was seen goes beyond dummy data: then the maximum is what is off.
            let (piece, mend) = if reached > most || largest <= reached {
                let mend = "lower the maximum to what an item can take, or make dummy data that \
                            takes as much";
                (Piece::Maximum, mend)
            } else {
                let mend = "make dummy items of the size that takes the most rows";
                (Piece::DummyData, mend)
            };
            return Err(Problem::new(
                piece,
                format!(
                    "dummy data takes {reached} rows, the largest item of the sweep {largest}, the \
                     declared maximum is {most}"
                ),
                mend,
            ));
        }
    }
    Ok(())
}
