use kiln_registry::*;

struct Model;
impl LoadModel for Model {
    fn load(_: &LoadContext<'_>) -> Result<Box<dyn MultiModalModel>> {
        Err(Error::unsupported("a test entry"))
    }
}

inventory::submit! {
    ModelEntry::new::<Model>("crate-a", &["AForCausalLM", "AForCausalLM"])
}

fn main() {
    let _ = MaxTokens::Fixed(1);
    let _ = ModalitySupport::new();
}
