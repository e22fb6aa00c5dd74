//! Another picture is another item: to the hash that caches go by, to the mapper, to the encoder.

use super::Ran;
use crate::fault::{Fault, Of};
use crate::pictures::{of_bytes, picture};
use crate::report::{Piece, Problem};
use crate::subject::Subject;

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    if !subject.entry.supports(kiln_image::MODALITY) {
        return Err("the kit can draw pictures only".to_owned());
    }
    if let Err(fault) = compare(subject, problems) {
        problems.push(fault.problem("a picture"));
    }
    Ok(())
}

fn compare(subject: &Subject, problems: &mut Vec<Problem>) -> Result<(), Fault> {
    let mut claim = |holds: bool, piece: Piece, message: &str, mend: &str| {
        if !holds {
            problems.push(Problem::new(piece, message, mend));
        }
        holds
    };
    let draw = |seed| picture(120, 80, seed).of(Piece::Decoder);
    let [a, same, b] = [draw(1)?, draw(1)?, draw(2)?];
    let bytes = vec![9; 60 * 40 * 3];
    let wide = of_bytes(60, 40, bytes.clone()).of(Piece::Decoder)?;
    let tall = of_bytes(40, 60, bytes).of(Piece::Decoder)?;
    let hashes = "hash type, shape and elements with their lengths, and processor arguments";
    let equal = a.hash() == same.hash();
    claim(
        equal,
        Piece::Decoder,
        "equal pictures have two hashes",
        hashes,
    );
    let other = a.hash() != b.hash();
    claim(other, Piece::Decoder, "two pictures share a hash", hashes);
    let other = wide.hash() != tall.hash();
    claim(
        other,
        Piece::Decoder,
        "equal bytes of two shapes share a hash",
        hashes,
    );

    let [mapped, mapped_b] = [subject.map(&a)?, subject.map(&b)?];
    if !claim(
        mapped != mapped_b,
        Piece::Mapper,
        "two pictures of one size are mapped to the same tensors",
        "map the item's content, not its size alone",
    ) {
        return Ok(());
    }
    let model = subject.model.as_ref();
    let rows = |mapped| subject.encode(model, kiln_image::MODALITY, &[mapped]);
    let [features, features_b] = [rows(&mapped)?, rows(&mapped_b)?];
    if !claim(
        features != features_b,
        Piece::Encoder,
        "two pictures have the same rows",
        "encode the mapped tensors",
    ) {
        return Ok(());
    }
    // The same text about another picture has other logits behind the picture.
    let logits = |item| {
        let ready = subject.ready(subject.prompt(0, std::slice::from_ref(&a)), &[item])?;
        Ok(subject.alone(model, &ready)?.pop())
    };
    claim(
        logits(a.clone())? != logits(b)?,
        Piece::Forward,
        "the same text about two pictures has the same logits",
        "let text positions attend to the positions of items before them",
    );
    Ok(())
}
