//! The kit is worth something only if it can fail: a model without a fault is clean, and each
//! planted fault is named, with the piece that has it.

mod fault;
mod planted;

use kiln_conformance::{Piece, Report, Suite};
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

fn report<const F: u8>() -> Report {
    let registry = Registry::from_parts([entry::<F>()], MODALITIES.iter().copied()).unwrap();
    Suite::new(registry, checkpoint().path()).run()
}

/// The fault is found by a check, and nothing but its piece is blamed.
fn named<const F: u8>(check: &str, piece: Piece) {
    let report = report::<F>();
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
}

#[test]
fn a_model_without_a_fault_is_clean() {
    let report = report::<{ fault::NONE }>();
    report.assert_clean();
    assert!(report.skipped.is_empty(), "{report}");
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
    an_embedding_that_remembers: EMBED_REMEMBERS, "repeat", Embed;
    attention_that_leaks: ATTENTION_LEAKS, "batch", Attention;
    a_result_that_depends_on_the_batch: BATCH_SIZE_MATTERS, "batch", Forward;
    attention_that_forgets_the_cache: CACHE_FORGOTTEN, "chunks", Attention;
    a_loader_that_ignores_a_missing_tensor: MISSING_IGNORED, "weights", Loader;
    a_loader_that_takes_another_shape: SHAPE_IGNORED, "weights", Loader;
    a_loader_that_ignores_a_surplus_tensor: SURPLUS_IGNORED, "weights", Loader;
    a_loader_that_panics: LOADER_PANICS, "weights", Loader;
    a_forward_pass_that_hides_nan: NAN_HIDDEN, "weights", Forward;
}

#[test]
fn a_folder_without_a_checkpoint_is_a_finding() {
    let empty = tempfile::tempdir().unwrap();
    let registry = Registry::from_parts([entry::<{ fault::NONE }>()], MODALITIES.iter().copied());
    let report = Suite::new(registry.unwrap(), empty.path()).run();
    assert_eq!(report.findings[0].check, "load", "{report}");
    let message = std::panic::catch_unwind(|| report.assert_clean()).unwrap_err();
    let message = message.downcast_ref::<String>().unwrap();
    assert!(
        message.contains("config.json") && message.contains("mend: "),
        "{message}"
    );
}
