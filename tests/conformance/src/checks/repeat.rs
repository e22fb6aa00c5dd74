//! The same call twice, the same prompt in two forms: equal. What a result depends on is in the
//! arguments, or caches lie.

use super::Ran;
use crate::fault::Fault;
use crate::report::{Piece, Problem};
use crate::subject::Subject;

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    let found = pieces(subject, problems).map_err(|fault| fault.problem("a repeated call"));
    if let Err(problem) = found {
        problems.push(problem);
    }
    typed(subject, problems);
    Ok(())
}

fn pieces(subject: &Subject, problems: &mut Vec<Problem>) -> Result<(), Fault> {
    let model = subject.model.as_ref();
    let mut same = |piece: Piece, what: &str, equal: bool| {
        if !equal {
            problems.push(Problem::new(
                piece,
                format!("{what}: the same call gives another result the second time"),
                "keep no state between calls: what a request has is in its arguments and in the KV \
                 cache",
            ));
        }
        equal
    };
    let items = subject.items(1).unwrap_or_default();
    let prompt = subject.prompt(0, &items);
    let [first, second] = [
        subject.process(prompt.clone(), &items)?,
        subject.process(prompt.clone(), &items)?,
    ];
    same(Piece::Processor, "a prompt", first == second);
    for item in &items {
        // Another item in between, so that what is kept of it shows.
        let other = subject.items(2).unwrap_or_default();
        let mapped = subject.map(item)?;
        for between in &other {
            subject.map(between)?;
        }
        if !same(Piece::Mapper, "an item", mapped == subject.map(item)?) {
            continue;
        }
        let encode = || subject.encode(model, item.modality(), &[&mapped]);
        let features = encode()?;
        for between in other.iter().filter(|o| o.modality() == item.modality()) {
            subject.encode(model, between.modality(), &[&subject.map(between)?])?;
        }
        same(Piece::Encoder, "an item", features == encode()?);
    }
    let [a, b] = [subject.words(0, 7), subject.words(5, 9)];
    let embeds = subject.embed(model, &a)?;
    subject.embed(model, &b)?;
    if same(
        Piece::Embed,
        "token ids",
        embeds == subject.embed(model, &a)?,
    ) {
        let [a, b] = [subject.ready(a, &[])?, subject.ready(b, &[])?];
        let logits = subject.alone(model, &a)?;
        subject.alone(model, &b)?;
        let again = subject.alone(model, &a)?;
        same(Piece::Forward, "a prompt on a new cache", logits == again);
    }
    Ok(())
}

/// The placeholder written in a text is the one id that a tokenised prompt has.
fn typed(subject: &Subject, problems: &mut Vec<Problem>) {
    let tokenizer = subject.context.tokenizer();
    for (modality, id) in &subject.placeholders {
        let Some(token) = tokenizer.id_to_token(*id) else {
            continue; // Ids beyond the tokenizer's can't be written.
        };
        let ids = tokenizer.encode(&format!("One {token} two"), false);
        let found = ids.map_or(0, |ids| ids.iter().filter(|i| *i == id).count());
        if found != 1 {
            problems.push(Problem::new(
                Piece::Tokenizer,
                format!("the {modality} placeholder `{token}` in a text has its id {found} times"),
                "add the placeholder to the tokenizer as a special token",
            ));
        }
    }
}
