//! A request has the same bits whoever its neighbours are. First the neighbours' content changes
//! and nothing else: what differs then was seen. Then their number and order.

use super::Ran;
use crate::drive::{Ready, Rows};
use crate::fault::Fault;
use crate::report::{Piece, Problem};
use crate::subject::Subject;

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    for found in [items(subject, problems), requests(subject, problems)] {
        if let Err(fault) = found {
            problems.push(fault.problem("a batch"));
        }
    }
    Ok(())
}

/// Items in one call of the encoder.
fn items(subject: &Subject, problems: &mut Vec<Problem>) -> Result<(), Fault> {
    let model = subject.model.as_ref();
    for modality in subject.entry.modalities() {
        let mut mapped = vec![];
        for seed in [1, 4, 7] {
            // Seeds that are one modulo 3 make pictures of one size.
            let drawn = subject.items(seed).unwrap_or_default();
            for item in drawn.iter().filter(|i| i.modality() == modality) {
                mapped.push(subject.map(item)?);
            }
        }
        let [a, b, c] = &mapped[..] else {
            continue;
        };
        let alone = subject.encode(model, modality, &[a])?.pop();
        let beside_b = subject.encode(model, modality, &[a, b])?.swap_remove(0);
        let beside_c = subject.encode(model, modality, &[a, c])?.swap_remove(0);
        let behind = subject.encode(model, modality, &[c, b, a])?.pop();
        let mend = "encode each item by itself: no attention between items, no reduction over them";
        if beside_b != beside_c {
            let message = format!("an {modality} item's rows depend on the item beside it");
            problems.push(Problem::new(Piece::Encoder, message, mend));
        } else if alone.as_ref() != Some(&beside_b) || alone != behind {
            let message = format!("an {modality} item's rows depend on how many are encoded");
            problems.push(Problem::new(Piece::Encoder, message, mend));
        }
        let whole = subject.encode(model, modality, &[c, b, a])?;
        if subject.encode_in_pieces(model, modality, &[c, b, a])? != whole {
            problems.push(Problem::new(
                Piece::Encoder,
                format!("{modality} items have other rows where they are encoded in pieces"),
                "give in `begin_encode` what `encode` gives, item by item and in its order",
            ));
        }
    }
    Ok(())
}

/// Requests in one step.
fn requests(subject: &Subject, problems: &mut Vec<Problem>) -> Result<(), Fault> {
    let model = subject.model.as_ref();
    let prompts = prompts(subject)?;
    let alone: Vec<Rows> = prompts
        .iter()
        .map(|prompt| subject.alone(model, prompt))
        .collect::<Result<_, _>>()?;

    // The same lengths beside the first prompt, other content.
    let first = &prompts[0];
    let neighbours = [
        &prompts[1],
        &subject.ready(subject.words(8, prompts[1].len()), &[])?,
    ];
    let mut beside = vec![];
    for neighbour in neighbours {
        beside.push(subject.together(model, &[first, neighbour])?.swap_remove(0));
        beside.push(subject.together(model, &[neighbour, first])?.swap_remove(1));
    }
    if beside[0] != beside[2] || beside[1] != beside[3] {
        problems.push(Problem::new(
            Piece::Attention,
            "the logits of a prompt depend on what its neighbour in the step says",
            "bound attention by BatchLayout's offsets and block tables; reduce over no row but the \
             token's own",
        ));
        return Ok(());
    }
    let orders: [&[usize]; 4] = [&[0, 1], &[0, 1, 2, 3], &[3, 1, 0, 2], &[2, 2, 0]];
    for order in orders {
        let order: Vec<_> = order.iter().map(|at| at % prompts.len()).collect();
        let batch: Vec<_> = order.iter().map(|at| &prompts[*at]).collect();
        let logits = subject.together(model, &batch)?;
        if order
            .iter()
            .zip(&logits)
            .any(|(at, rows)| *rows != alone[*at])
        {
            problems.push(Problem::new(
                Piece::Forward,
                format!(
                    "a prompt in a step of {} has other bits than alone",
                    order.len()
                ),
                "use the operators of kiln_nn::ops, which reduce in an order fixed by the row; let \
                 nothing depend on the number of tokens or sequences in the step",
            ));
            return Ok(());
        }
    }
    Ok(())
}

/// Two texts, and two prompts with an item where the model has a modality.
fn prompts(subject: &Subject) -> Result<Vec<Ready>, Fault> {
    let mut prompts = vec![
        subject.ready(subject.words(0, 11), &[])?,
        subject.ready(subject.words(2, 17), &[])?,
    ];
    for seed in [1, 2] {
        let items = subject.items(seed).unwrap_or_default();
        let ids = subject.prompt(seed as usize, &items);
        prompts.push(subject.ready(ids, &items)?);
    }
    Ok(prompts)
}
