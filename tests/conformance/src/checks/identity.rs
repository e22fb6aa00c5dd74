//! Another item is another item: to the hash that caches go by, to the mapper, to the encoder.

use super::Ran;
use crate::fault::{Fault, Of};
use crate::media::{Draw, drawn};
use crate::report::{Piece, Problem};
use crate::subject::Subject;
use kiln_registry::{HostData, HostTensor, MediaItem, NamedTensors};

const HASHES: &str =
    "hash type, shape, name and elements with their lengths, and processor arguments";

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    if !subject.has_media() {
        return Err("a text-only model".to_owned());
    }
    let mut ran = Err("the kit can't draw what this model takes".to_owned());
    for draw in subject.entry.modalities().filter_map(drawn) {
        ran = Ok(());
        let found = compare(subject, draw, problems)
            .and_then(|()| hashes(draw, problems))
            .and_then(|()| files(subject, draw, problems));
        if let Err(fault) = found {
            problems.push(fault.problem(&format!("an {} item", draw.modality())));
        }
    }
    ran
}

/// Two items of one shape, all the way.
fn compare(subject: &Subject, draw: &dyn Draw, problems: &mut Vec<Problem>) -> Result<(), Fault> {
    let modality = draw.modality();
    let mut claim = |holds: bool, piece: Piece, message: &str, mend: &str| {
        if !holds {
            problems.push(Problem::new(piece, format!("{modality}: {message}"), mend));
        }
        holds
    };
    let shape: Vec<_> = draw.usual(0).iter().map(|side| side * 5).collect();
    let drawn = |seed| draw.draw(&shape, seed).of(Piece::Decoder);
    let [a, same, b] = [drawn(1)?, drawn(1)?, drawn(2)?];
    claim(
        a.hash() == same.hash(),
        Piece::Decoder,
        "equal items have two hashes",
        HASHES,
    );
    claim(
        a.hash() != b.hash(),
        Piece::Decoder,
        "two items share a hash",
        HASHES,
    );
    let [mapped, mapped_b] = [subject.map(&a)?, subject.map(&b)?];
    if !claim(
        mapped != mapped_b,
        Piece::Mapper,
        "two items of one size are mapped to the same tensors",
        "map the item's content, not its size alone",
    ) {
        return Ok(());
    }
    let model = subject.model.as_ref();
    let rows = |mapped| subject.encode(model, modality, &[mapped]);
    let [features, features_b] = [rows(&mapped)?, rows(&mapped_b)?];
    if !claim(
        features != features_b,
        Piece::Encoder,
        "two items have the same rows",
        "encode the mapped tensors",
    ) {
        return Ok(());
    }
    // The same text about another item has other logits behind the item.
    let logits = |item| {
        let ready = subject.ready(subject.prompt(0, std::slice::from_ref(&a)), &[item])?;
        Ok(subject.alone(model, &ready)?.pop())
    };
    claim(
        logits(a.clone())? != logits(b)?,
        Piece::Forward,
        "the same text about two items has the same logits",
        "let text positions attend to the positions of items before them",
    );
    Ok(())
}

/// The same bytes under another shape, type, name, modality or kind, and with other processor
/// arguments, never share a hash.
fn hashes(draw: &dyn Draw, problems: &mut Vec<Problem>) -> Result<(), Fault> {
    let modality = draw.modality();
    let item = draw.draw(&draw.usual(0), 1).of(Piece::Decoder)?;
    let content = item.content().of(Piece::Decoder)?;
    let bytes = match content.data() {
        HostData::U8(bytes) => bytes.clone(),
        HostData::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        HostData::I64(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let (words, _) = bytes.as_chunks();
    let (longs, _) = bytes.as_chunks();
    let floats: Vec<f32> = words.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let ints: Vec<i64> = longs.iter().map(|b| i64::from_le_bytes(*b)).collect();
    let mut turned = content.shape().to_vec();
    turned.reverse();
    if turned == content.shape() {
        turned.insert(0, 1);
    }
    let flat = |data: HostData| HostTensor::new([data.len()], data);
    let tensors = [
        ("as drawn", Ok(content.clone())),
        (
            "in another shape",
            HostTensor::new(turned, content.data().clone()),
        ),
        ("as a list of bytes", flat(HostData::U8(bytes.clone()))),
        ("as floats", flat(HostData::F32(floats.clone()))),
        ("as integers", flat(HostData::I64(ints))),
    ];
    let mut all = vec![];
    for (what, tensor) in tensors {
        let tensor = tensor.of(Piece::Decoder)?;
        all.push((what, MediaItem::raw(modality, tensor).hash()));
    }
    let again = || content.clone();
    let named = |name: &str| NamedTensors::new().with(name, again());
    let both = named(MediaItem::CONTENT).with("more", again());
    let floats = flat(HostData::F32(floats)).of(Piece::Decoder)?;
    let hash = item.hash();
    all.extend([
        (
            "under another name",
            MediaItem::raw_with(modality, named("other")).hash(),
        ),
        (
            "with a second tensor",
            MediaItem::raw_with(modality, both).hash(),
        ),
        (
            "of another modality",
            MediaItem::raw("kiln-conformance", again()).hash(),
        ),
        ("as embeddings", MediaItem::embeds(modality, floats).hash()),
        ("with processor arguments", hash.and(b"{\"size\": 336}")),
        (
            "with other processor arguments",
            hash.and(b"{\"size\": 672}"),
        ),
    ]);
    for (at, (what, hash)) in all.iter().enumerate() {
        if let Some((other, _)) = all[..at].iter().find(|(_, other)| other == hash) {
            problems.push(Problem::new(
                Piece::Decoder,
                format!("{modality}: the same bytes {other} and {what} share a hash"),
                HASHES,
            ));
        }
    }
    Ok(())
}

/// Files whose samples are the same bytes in other modes, and files of one mode with other samples,
/// are decoded to items that share nothing.
fn files(subject: &Subject, draw: &dyn Draw, problems: &mut Vec<Problem>) -> Result<(), Fault> {
    let mut all = vec![];
    let twins = draw.twins();
    let first = twins.first().cloned();
    let other = first.map(|(shape, mode)| (shape, mode, 2));
    let twins = twins.into_iter().map(|(shape, mode)| (shape, mode, 1));
    for (shape, mode, seed) in twins.chain(other) {
        let (name, bytes) = draw.file(&shape, mode, seed);
        let item = subject.decode(draw.modality(), &bytes)?;
        all.push((format!("{name} (seed {seed})"), item.hash()));
    }
    for (at, (what, hash)) in all.iter().enumerate() {
        if let Some((other, _)) = all[..at].iter().find(|(_, other)| other == hash) {
            problems.push(Problem::new(
                Piece::Decoder,
                format!("{other} and {what} are decoded to the same item"),
                "decode what the file says, mode and all",
            ));
        }
    }
    Ok(())
}
