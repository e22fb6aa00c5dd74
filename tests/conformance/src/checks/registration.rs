//! What the entry and the loaded model say of themselves, and what a model does with a modality
//! that it does not have.

use super::Ran;
use crate::fault::guard;
use crate::report::{Piece, Problem};
use crate::subject::Subject;
use kiln_registry::{Error, MediaCounts, NamedTensors, Registry};

/// A modality that nobody has.
const UNKNOWN: &str = "kiln-conformance-unknown";

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    let (entry, context) = (&subject.entry, &subject.context);
    let mut claim = |holds: bool, piece: Piece, message: String, mend: &str| {
        if !holds {
            problems.push(Problem::new(piece, message, mend));
        }
    };
    for architecture in entry.architectures() {
        let found = subject.registry.find(&[(*architecture).to_owned()]);
        claim(
            found.is_ok_and(|found| found.crate_name() == entry.crate_name()),
            Piece::Registration,
            format!("the registry does not find this entry by `{architecture}`"),
            "name each architecture in one entry, as config.json spells it",
        );
    }
    let specs = || subject.registry.modalities().copied();
    claim(
        !entry.architectures().is_empty() && !entry.crate_name().is_empty(),
        Piece::Registration,
        "the entry names no architecture, or not its crate".to_owned(),
        "ModelEntry::new::<Model>(env!(\"CARGO_PKG_NAME\"), &[\"...\"])",
    );
    claim(
        Registry::from_parts([*entry, *entry], specs()).is_err()
            && (specs().next().is_none()
                || Registry::from_parts([*entry], specs().chain(specs().take(1))).is_err()),
        Piece::Registration,
        "an entry or a modality that is submitted twice is accepted".to_owned(),
        "build a registry by Registry::collect or Registry::from_parts",
    );
    for modality in entry.modalities() {
        claim(
            subject.registry.mapper(entry, modality).is_ok(),
            Piece::Registration,
            format!("{modality} has no mapper"),
            "link the modality's crate, or give the entry a mapper of its own",
        );
        let limit = subject.registry.modality(modality).map(|spec| spec.limit());
        claim(
            limit.as_ref().is_ok_and(|limit| *limit > 0),
            Piece::Registration,
            format!("the default limit of {modality} items is {limit:?}"),
            "link the modality's crate; its default limit is at least 1",
        );
        let most = guard(|| entry.max_tokens(context, modality));
        claim(
            most.is_ok(),
            Piece::Maximum,
            format!("{modality}: {most:?}"),
            "compute the maximum from the configuration; it is above 0",
        );
        let short = context.clone().with_max_model_len(8);
        claim(
            guard(|| entry.max_tokens(&short, modality)) == most,
            Piece::Maximum,
            format!("the maximum of {modality} changes with the context length"),
            "the maximum is that of one item, from the configuration alone",
        );
    }
    let unknown = guard(|| entry.max_tokens(context, UNKNOWN));
    claim(
        matches!(unknown, Err(Error::Unsupported(_))),
        Piece::Registration,
        format!("a modality that the model does not have: {unknown:?}"),
        "answer Error::Unsupported",
    );
    let empty = guard(|| entry.make_dummy_data(context, 9, &MediaCounts::new()));
    claim(
        empty.as_ref().is_ok_and(|dummy| dummy.items.is_empty()),
        Piece::DummyData,
        "dummy data without items fails or has some".to_owned(),
        "give as many items as MediaCounts says, none included",
    );
    let model = subject.model.as_ref();
    let tensors = NamedTensors::new();
    claim(
        guard(|| model.encode(UNKNOWN, &[&tensors]).map(drop))
            .is_err_and(|e| !matches!(e, Error::Internal(_))),
        Piece::Encoder,
        "a modality that the model does not have is encoded, or panics".to_owned(),
        "answer Error::Unsupported",
    );
    let kv = model.kv_spec();
    for (what, number) in [
        ("kv_spec().layers", kv.layers),
        ("kv_spec().kv_heads", kv.kv_heads),
        ("kv_spec().head_dim", kv.head_dim),
        ("vocab_size", model.vocab_size()),
        ("hidden_size", model.hidden_size()),
        ("embedding_rows", model.embedding_rows()),
        ("max_position_embeddings", model.max_position_embeddings()),
        ("weight_bytes", model.weight_bytes()),
    ] {
        claim(
            number > 0,
            Piece::Shape,
            format!("{what} is 0"),
            "say what the checkpoint has",
        );
    }
    let last = model.embedding_rows().saturating_sub(1) as u32;
    let embeds = subject.embed(model, &[0, last]);
    claim(
        embeds.is_ok(),
        Piece::Embed,
        format!("ids 0 and {last}: {:?}", embeds.err().map(|f| f.error)),
        "embed every id below `embedding_rows` to `hidden_size` elements of f32",
    );
    Ok(())
}
