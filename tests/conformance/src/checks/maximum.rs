//! The declared maximum: nothing in the sweep is above it, nor any shape of a far denser one that the
//! input processor sees alone, and dummy data reaches it through the real processor, mapper and
//! encoder.

use super::{Ran, law, property};
use crate::media::{Draw, drawn};
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
    match drawn(modality) {
        Some(draw) => exhaust(subject, draw, most, problems),
        None => Ok(()),
    }
}

/// Every shape that time allows, through the input processor alone.
fn exhaust(
    subject: &Subject,
    draw: &dyn Draw,
    most: usize,
    problems: &mut Vec<Problem>,
) -> Result<(), Problem> {
    let positions = |shape: &[usize]| {
        subject
            .positions(draw, shape)
            .map_err(|fault| fault.problem(&draw.name(shape)))
    };
    let named = draw.shapes(subject.configs()).into_iter();
    let mut above = None;
    for shape in named.chain(draw.every_shape()) {
        if positions(&shape)? > most {
            above = Some(shape);
            break;
        }
    }
    let Some(found) = above.or_else(|| {
        property::shape(draw, |shape| {
            positions(shape).is_ok_and(|rows| rows <= most)
        })
    }) else {
        return Ok(());
    };
    let shape = shrink(&found, |shape| {
        positions(shape).is_ok_and(|rows| rows > most)
    });
    let rows = positions(&shape)?;
    // Which of the two is wrong shows in the encoder.
    let counted = draw.draw(&shape, 1).ok().and_then(|item| {
        let counted = subject.count(&draw.name(&shape), &[item]).ok()?;
        law::judge(subject, counted.first()?)
    });
    problems.push(counted.unwrap_or_else(|| {
        Problem::new(
            Piece::Maximum,
            format!(
                "{} takes {rows} positions, the declared maximum is {most}",
                draw.name(&shape)
            ),
            "declare the true bound over every item that is accepted, not that of a usual one",
        )
    }));
    Ok(())
}

/// A smaller shape of which the same holds, where no axis can be halved or be one less.
fn shrink(shape: &[usize], holds: impl Fn(&[usize]) -> bool) -> Vec<usize> {
    let mut shape = shape.to_vec();
    loop {
        let smaller = (0..shape.len()).find_map(|axis| {
            let side = shape[axis];
            let tries = [1, side / 2, side - 1].into_iter();
            let mut tries = tries.filter(|n| (1..side).contains(n)).map(|n| {
                let mut smaller = shape.clone();
                smaller[axis] = n;
                smaller
            });
            tries.find(|smaller| holds(smaller))
        });
        match smaller {
            Some(smaller) => shape = smaller,
            None => return shape,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::shrink;

    #[test]
    fn what_is_told_is_the_smallest_of_its_kind() {
        let above = |shape: &[usize]| shape[0] > 40 && shape[1] % 7 == 3;
        assert_eq!(shrink(&[4000, 703], above), [41, 703]);
        assert_eq!(shrink(&[4000, 3], above), [41, 3]);
        assert_eq!(shrink(&[5], |_| false), [5]);
    }
}
