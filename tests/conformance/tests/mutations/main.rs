//! The kit is worth something only if it can fail: a model without a fault is clean, and each
//! planted fault is named, with the piece that has it.

mod fault;
mod planted;
mod reference;

use kiln_conformance::{Piece, Report, Suite, alone};
use kiln_registry::{MODALITIES, Registry};
use planted::entry;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A checkpoint with drawn weights.
fn checkpoint() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| fs::write(folder.path().join(name), content).unwrap();
    write(
        "config.json",
        br#"{"architectures": ["PlantedForConditionalGeneration"], "model_type": "planted"}"#,
    );
    let fixtures =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/checkpoints/llava-clip-llama");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        write(name, &fs::read(fixtures.join(name)).unwrap());
    }
    let mut state = 1u32;
    let mut drawn = |count: usize| -> Vec<u8> {
        let number = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes()
        };
        (0..count).flat_map(number).collect()
    };
    let shapes = [
        ("embed.weight", [320, 8]),
        ("vision.weight", [8, 3]),
        ("qkv.weight", [24, 8]),
        ("out.weight", [8, 8]),
        ("head.weight", [320, 8]),
    ];
    let data = shapes.map(|(name, [n, k])| (name, [n, k], drawn(n * k)));
    let views = data.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap();
        (*name, view)
    });
    write(
        "model.safetensors",
        &safetensors::serialize(views, None).unwrap(),
    );
    folder
}

/// What is linked, with the planted model, and the planted decoder where that is the fault.
fn registry<const F: u8>() -> Registry {
    let modalities = MODALITIES.iter().map(|linked| match F {
        fault::DECODER_IGNORES_FILE => linked.decoder(planted::decode),
        _ => *linked,
    });
    Registry::from_parts([entry::<F>()], modalities).unwrap()
}

fn report<const F: u8>() -> Report {
    Suite::new(registry::<F>(), checkpoint().path()).run()
}

/// The fault is found by a check, and nothing but its piece is blamed.
fn named<const F: u8>(check: &str, piece: Piece) -> Report {
    blamed(report::<F>(), check, piece)
}

fn blamed(report: Report, check: &str, piece: Piece) -> Report {
    assert!(
        report
            .findings
            .iter()
            .any(|f| (f.check, f.piece) == (check, piece)),
        "[{check}] {piece} was expected in: {report}"
    );
    assert!(
        report
            .findings
            .iter()
            .all(|f| f.piece == piece && !f.mend.is_empty()),
        "only {piece} was expected in: {report}"
    );
    report
}

/// What the findings say.
fn said(report: &Report) -> String {
    let messages = report.findings.iter().map(|f| f.message.as_str());
    messages.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_model_without_a_fault_is_clean() {
    let report = report::<{ fault::NONE }>();
    report.assert_clean();
    let skipped: Vec<_> = report.skipped.iter().map(|s| s.check).collect();
    assert_eq!(skipped, ["parity"], "{report}");
    assert!(
        report.to_string().contains("fixtures.py --reference"),
        "{report}"
    );
    assert_eq!(report.passed.len(), 10, "{report}");
}

macro_rules! faults {
    ($($name:ident: $fault:ident, $check:literal, $piece:ident;)*) => {$(
        #[test]
        fn $name() {
            named::<{ fault::$fault }>($check, Piece::$piece);
        }
    )*};
}

faults! {
    a_processor_off_by_one: PROCESSOR_OFF_BY_ONE, "law", Processor;
    a_processor_that_loses_an_item: PROCESSOR_LOSES_ITEM, "law", Processor;
    a_processor_that_takes_typed_placeholders: PLACEHOLDER_TYPED, "placeholders", Processor;
    a_processor_that_panics: PROCESSOR_PANICS, "placeholders", Processor;
    a_processor_that_eats_text: PROCESSOR_EATS_TEXT, "placeholders", Processor;
    a_maximum_too_small: MAXIMUM_TOO_SMALL, "maximum", Maximum;
    a_maximum_too_large: MAXIMUM_TOO_LARGE, "maximum", Maximum;
    a_maximum_of_zero: MAXIMUM_ZERO, "registration", Maximum;
    dummy_data_that_is_short: DUMMY_SHORT, "maximum", DummyData;
    dummy_data_of_too_few_items: DUMMY_TOO_FEW, "maximum", DummyData;
    a_mapper_that_drops_its_item: MAPPER_DROPS_ITEM, "law", Mapper;
    a_mapper_that_duplicates_its_item: MAPPER_DUPLICATES_ITEM, "law", Mapper;
    a_mapper_that_ignores_the_picture: MAPPER_IGNORES_PICTURE, "identity", Mapper;
    a_mapper_that_remembers: MAPPER_REMEMBERS, "repeat", Mapper;
    an_encoder_short_of_a_row: ENCODER_SHORT, "law", Encoder;
    an_encoder_that_ignores_its_input: ENCODER_IGNORES_INPUT, "identity", Encoder;
    an_encoder_that_mixes_items: ENCODER_MIXES_ITEMS, "batch", Encoder;
    pieces_that_turn_items_round: PIECES_IN_ANOTHER_ORDER, "batch", Encoder;
    pieces_that_have_no_end: PIECES_WITHOUT_END, "batch", Encoder;
    an_embedding_that_remembers: EMBED_REMEMBERS, "repeat", Embed;
    attention_that_leaks: ATTENTION_LEAKS, "batch", Attention;
    a_result_that_depends_on_the_batch: BATCH_SIZE_MATTERS, "batch", Forward;
    attention_that_forgets_the_cache: CACHE_FORGOTTEN, "chunks", Attention;
    a_loader_that_ignores_a_missing_tensor: MISSING_IGNORED, "weights", Loader;
    a_loader_that_takes_another_shape: SHAPE_IGNORED, "weights", Loader;
    a_loader_that_ignores_a_surplus_tensor: SURPLUS_IGNORED, "weights", Loader;
    a_loader_that_panics: LOADER_PANICS, "weights", Loader;
    a_forward_pass_that_hides_nan: NAN_HIDDEN, "weights", Forward;
    a_decoder_that_ignores_the_file: DECODER_IGNORES_FILE, "identity", Decoder;
    steps_of_single_tokens_that_differ: DECODE_STEPS_DIFFER, "engine", Forward;
}

#[test]
fn a_processor_that_is_wrong_at_rare_sizes() {
    let report = named::<{ fault::RARE_SIZE_OFF_BY_ONE }>("law", Piece::Processor);
    // Of three files in other modes, one is left: of the first mode, no wider than the fault wants.
    assert!(said(&report).contains("a grey PNG of 4x"), "{report}");
}

#[test]
fn a_size_above_the_maximum_that_no_list_has() {
    let report = named::<{ fault::RARE_SIZE_ABOVE_MAXIMUM }>("maximum", Piece::Maximum);
    assert!(said(&report).contains("a picture of 2501x40 "), "{report}");
}

macro_rules! memory_faults {
    ($($name:ident: $fault:ident, $piece:ident;)*) => {$(
        #[test]
        fn $name() {
            alone(concat!(module_path!(), "::", stringify!($name)), || {
                let registry = registry::<{ fault::$fault }>();
                let report = Suite::new(registry, checkpoint().path()).memory();
                println!("{}", blamed(report, "memory", Piece::$piece));
            });
        }
    )*};
}

memory_faults! {
    an_encoder_that_takes_more_for_real_items: ENCODER_HUNGRY, Encoder;
    a_kv_cache_that_is_copied: CACHE_COPIED, Forward;
}

#[test]
fn a_model_without_a_fault_keeps_its_promise_of_memory() {
    alone(
        concat!(
            module_path!(),
            "::a_model_without_a_fault_keeps_its_promise_of_memory"
        ),
        || {
            let registry = registry::<{ fault::NONE }>();
            let report = Suite::new(registry, checkpoint().path()).memory();
            report.assert_clean();
            assert_eq!(report.passed, ["memory"], "{report}");
        },
    );
}

#[test]
fn a_test_that_is_not_there_does_not_pass_for_one_that_ran() {
    let ran = std::panic::catch_unwind(|| alone("mutations::no_such_test", || ()));
    let message = ran.unwrap_err();
    let message = message.downcast_ref::<String>().unwrap();
    assert!(message.contains("no test `no_such_test`"), "{message}");
}

#[test]
fn what_fails_alone_fails_here() {
    let name = concat!(module_path!(), "::what_fails_alone_fails_here");
    let child = std::env::var_os("KILN_CONFORMANCE_ALONE").is_some();
    let ran = std::panic::catch_unwind(|| alone(name, || panic!("planted")));
    let message = ran.unwrap_err();
    if child {
        std::panic::resume_unwind(message);
    }
    let message = message.downcast_ref::<String>().unwrap();
    assert!(message.contains("planted"), "{message}");
}

/// The checkpoint with what the model without a fault computes as the reference.
fn with_reference() -> TempDir {
    let folder = checkpoint();
    let reference = folder.path().join("reference");
    fs::create_dir(&reference).unwrap();
    reference::write(&reference, registry::<{ fault::NONE }>(), folder.path());
    folder
}

#[test]
fn a_model_that_is_the_reference_is_clean() {
    let report = Suite::new(registry::<{ fault::NONE }>(), with_reference().path()).run();
    report.assert_clean();
    assert!(report.passed.contains(&"parity"), "{report}");
}

macro_rules! parity_faults {
    ($($name:ident: $fault:ident, $piece:ident, $tensor:literal;)*) => {$(
        #[test]
        fn $name() {
            let registry = registry::<{ fault::$fault }>();
            let report = Suite::new(registry, with_reference().path()).run();
            let report = blamed(report, "parity", Piece::$piece);
            assert!(said(&report).contains($tensor), "{report}");
        }
    )*};
}

parity_faults! {
    a_mapper_off_by_a_thousandth: MAPPER_SCALED, Mapper, "pixel_values";
    a_projector_off_by_a_thousandth: PROJECTOR_SCALED, Encoder, "image_features.0";
    logits_off_by_a_thousandth: LOGITS_SCALED, Forward, "logits";
}

#[test]
fn a_folder_without_a_checkpoint_is_a_finding() {
    let empty = tempfile::tempdir().unwrap();
    let report = Suite::new(registry::<{ fault::NONE }>(), empty.path()).run();
    assert_eq!(report.findings[0].check, "load", "{report}");
    let message = std::panic::catch_unwind(|| report.assert_clean()).unwrap_err();
    let message = message.downcast_ref::<String>().unwrap();
    assert!(
        message.contains("config.json") && message.contains("mend: "),
        "{message}"
    );
}
