//! What const evaluation refuses, message by message, and what the linker brings to the registry.

use kiln_registry::{
    Error, InputContext, LoadContext, LoadModel, MODALITIES, MaxTokens, MediaItem, ModalitySpec,
    ModalitySupport, ModelEntry, MultiModalModel, NamedTensors, Registry, Result, inventory,
};

#[test]
fn contradictions_do_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

struct Submitted;
impl LoadModel for Submitted {
    fn load(_: &LoadContext<'_>) -> Result<Box<dyn MultiModalModel>> {
        Err(Error::unsupported("a test entry"))
    }
}

fn map(_: &InputContext, _: &MediaItem) -> Result<NamedTensors> {
    Ok(NamedTensors::new())
}

inventory::submit! {
    ModelEntry::new::<Submitted>(env!("CARGO_PKG_NAME"), &["SubmittedForConditionalGeneration"])
        .modality("smell", ModalitySupport::new().max_tokens(MaxTokens::Fixed(3)))
}

#[linkme::distributed_slice(MODALITIES)]
#[linkme(crate = kiln_registry::linkme)]
static SMELL: ModalitySpec = ModalitySpec::new("smell", env!("CARGO_PKG_NAME"))
    .default_mapper(map)
    .default_limit(2);

#[test]
fn what_is_linked_is_found() {
    let registry = Registry::collect().unwrap();
    let entry = registry
        .find(&["SubmittedForConditionalGeneration".to_owned()])
        .unwrap();
    assert_eq!(entry.modalities().collect::<Vec<_>>(), ["smell"]);
    assert!(
        registry.mapper(entry, "smell").is_ok(),
        "the modality's default mapper"
    );
    assert_eq!(registry.modality("smell").unwrap().limit(), 2);
    assert!(
        registry
            .modality("taste")
            .unwrap_err()
            .to_string()
            .contains("smell")
    );
}
