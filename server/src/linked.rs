//! The one list of model crates. A crate that is only a dependency is not linked: it takes a `use`
//! behind its feature, and then `inventory` finds what it submits.

use kiln_registry::{KnownFeature, Registry, Result};
use std::sync::Arc;

/// Names each model's feature, crate and architectures once: links the crate where the feature is
/// on, and keeps the names where it is off, so that an error can say which feature to turn on.
macro_rules! models {
    ($($feature:literal $krate:ident [$($architecture:literal),+];)+) => {
        $(#[cfg(feature = $feature)] use $krate as _;)+

        /// What each feature links.
        pub(crate) const KNOWN: &[KnownFeature] = &[$(KnownFeature {
            feature: $feature,
            architectures: &[$($architecture),+],
        }),+];

        /// Whether each feature is on, in the same order.
        #[cfg(test)]
        const ON: &[bool] = &[$(cfg!(feature = $feature)),+];
    };
}

models! {
    "llava" kiln_llava ["LlavaForConditionalGeneration"];
    "llava-next" kiln_llava_next ["LlavaNextForConditionalGeneration"];
    "text" kiln_text ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"];
}

/// What is linked into this binary.
pub(crate) fn registry() -> Result<Arc<Registry>> {
    Ok(Arc::new(Registry::collect()?.with_known_features(KNOWN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list says exactly what the linked crates submit.
    #[test]
    fn names_agree_with_what_is_submitted() {
        let registry = registry().unwrap();
        let linked: Vec<&str> = registry
            .models()
            .iter()
            .flat_map(|m| m.architectures().iter().copied())
            .collect();
        for architecture in &linked {
            assert!(
                KNOWN.iter().any(|k| k.architectures.contains(architecture)),
                "{architecture}"
            );
        }
        for (known, on) in KNOWN.iter().zip(ON) {
            for architecture in known.architectures {
                assert_eq!(linked.contains(architecture), *on, "{architecture}");
            }
        }
    }
}
