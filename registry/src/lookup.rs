//! The registry: what is linked into this binary, sorted and checked once at start-up.

use crate::{Error, InputMapper, MODALITIES, ModalitySpec, ModelEntry, Result};
use std::collections::BTreeMap;

/// A cargo feature of the binary and the architectures that it links, whether it is on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownFeature {
    /// The feature's name.
    pub feature: &'static str,
    /// The architectures that it links.
    pub architectures: &'static [&'static str],
}

/// Every linked model and modality.
#[derive(Debug, Clone)]
pub struct Registry {
    models: Vec<ModelEntry>,
    by_architecture: BTreeMap<&'static str, usize>,
    modalities: BTreeMap<&'static str, ModalitySpec>,
    known: &'static [KnownFeature],
}

impl Registry {
    /// Collects what is linked.
    ///
    /// # Errors
    /// [`Error::Registration`] when two crates claim one architecture or one modality (it names
    /// both), or a model takes a modality that no linked crate provides a mapper for.
    pub fn collect() -> Result<Self> {
        Self::from_parts(
            inventory::iter::<ModelEntry>.into_iter().copied(),
            MODALITIES.iter().copied(),
        )
    }

    /// A registry of given parts: for tests, and for those who link nothing.
    ///
    /// # Errors
    /// As [`Registry::collect`].
    pub fn from_parts(
        models: impl IntoIterator<Item = ModelEntry>,
        modalities: impl IntoIterator<Item = ModalitySpec>,
    ) -> Result<Self> {
        let mut by_name = BTreeMap::<&'static str, ModalitySpec>::new();
        for spec in modalities {
            if let Some(other) = by_name.insert(spec.name(), spec) {
                let (a, b) = sorted(other.crate_name(), spec.crate_name());
                return Err(Error::Registration(format!(
                    "the modality `{}` is submitted twice, by {a} and by {b}: link only one",
                    spec.name()
                )));
            }
        }
        let mut models: Vec<_> = models.into_iter().collect();
        // inventory's order is unspecified: sort, so that listings and errors are stable.
        models.sort_by_key(|entry| (entry.architectures(), entry.crate_name()));
        let mut by_architecture = BTreeMap::new();
        for (index, entry) in models.iter().enumerate() {
            for architecture in entry.architectures() {
                if let Some(other) = by_architecture.insert(*architecture, index) {
                    let other: &ModelEntry = &models[other];
                    let (a, b) = sorted(other.crate_name(), entry.crate_name());
                    return Err(Error::Registration(format!(
                        "two crates claim the architecture {architecture}: {a} and {b}. \
                         Build with the feature of only one of them"
                    )));
                }
            }
            for modality in entry.modalities() {
                let mapped = entry.mapper(modality).is_some()
                    || by_name
                        .get(modality)
                        .is_some_and(|spec| spec.mapper().is_some());
                if !mapped {
                    return Err(Error::Registration(format!(
                        "{} takes {modality} input, but no linked crate maps it: link a modality \
                         crate with a default mapper, or give the entry a mapper of its own",
                        entry.crate_name()
                    )));
                }
            }
        }
        Ok(Self {
            models,
            by_architecture,
            modalities: by_name,
            known: &[],
        })
    }

    /// The same, knowing what features of the binary would link: an unknown architecture's error
    /// then names the feature that is off.
    #[must_use]
    pub fn with_known_features(mut self, known: &'static [KnownFeature]) -> Self {
        self.known = known;
        self
    }

    /// Linked models, sorted by architecture.
    pub fn models(&self) -> &[ModelEntry] {
        &self.models
    }

    /// Linked modalities, sorted by name.
    pub fn modalities(&self) -> impl Iterator<Item = &ModalitySpec> {
        self.modalities.values()
    }

    /// A linked modality.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that lists what is linked.
    pub fn modality(&self, name: &str) -> Result<&ModalitySpec> {
        self.modalities.get(name).ok_or_else(|| {
            let linked: Vec<_> = self.modalities.keys().copied().collect();
            Error::unsupported(format!(
                "the modality `{name}` (linked: {})",
                if linked.is_empty() {
                    "none".to_owned()
                } else {
                    linked.join(", ")
                }
            ))
        })
    }

    /// The first model that loads one of the architectures of a `config.json`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that lists what is linked and, where a feature that is off would
    /// link it, names the feature.
    pub fn find(&self, architectures: &[String]) -> Result<&ModelEntry> {
        let found = architectures
            .iter()
            .find_map(|a| self.by_architecture.get(a.as_str()));
        if let Some(index) = found {
            return Ok(&self.models[*index]);
        }
        let wanted = if architectures.is_empty() {
            "a checkpoint whose config.json names no architecture".to_owned()
        } else {
            format!("the architecture {}", architectures.join(", "))
        };
        let linked: Vec<_> = self.by_architecture.keys().copied().collect();
        let linked = if linked.is_empty() {
            "no model".to_owned()
        } else {
            linked.join(", ")
        };
        let mend = self
            .known
            .iter()
            .find(|k| {
                architectures
                    .iter()
                    .any(|a| k.architectures.contains(&a.as_str()))
            })
            .map(|k| format!(". Build with `--features {}` to link it", k.feature))
            .unwrap_or_default();
        Err(Error::unsupported(format!(
            "{wanted}. This binary links: {linked}{mend}"
        )))
    }

    /// The mapper of a model's modality: its own, or the modality's default.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the model does not take the modality.
    pub fn mapper(&self, entry: &ModelEntry, modality: &str) -> Result<InputMapper> {
        if !entry.supports(modality) {
            return Err(Error::unsupported(format!(
                "{modality} input by this model (it takes {})",
                entry.describe_modalities()
            )));
        }
        entry
            .mapper(modality)
            .or_else(|| self.modalities.get(modality).and_then(|spec| spec.mapper()))
            .ok_or_else(|| Error::internal(format!("{modality} has no mapper")))
    }
}

fn sorted<'a>(a: &'a str, b: &'a str) -> (&'a str, &'a str) {
    if a <= b { (a, b) } else { (b, a) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        InputContext, LoadContext, LoadModel, MaxTokens, MediaItem, ModalitySupport,
        MultiModalModel, NamedTensors,
    };

    struct Never;
    impl LoadModel for Never {
        fn load(_: &LoadContext<'_>) -> Result<Box<dyn MultiModalModel>> {
            Err(Error::unsupported("a test entry"))
        }
    }

    fn map(_: &InputContext, _: &MediaItem) -> Result<NamedTensors> {
        Ok(NamedTensors::new())
    }

    const TEXT: ModelEntry = ModelEntry::new::<Never>("crate-text", &["AForCausalLM"]);
    const OTHER: ModelEntry =
        ModelEntry::new::<Never>("crate-other", &["BForCausalLM", "AForCausalLM"]);
    const VISION: ModelEntry =
        ModelEntry::new::<Never>("crate-vision", &["VForConditionalGeneration"])
            .image(ModalitySupport::new().max_tokens(MaxTokens::Fixed(4)));
    const IMAGE: ModalitySpec = ModalitySpec::new("image", "crate-image").default_mapper(map);

    #[test]
    fn two_crates_with_one_architecture_are_both_named() {
        let message = Registry::from_parts([TEXT, OTHER], [])
            .unwrap_err()
            .to_string();
        for part in ["AForCausalLM", "crate-text", "crate-other"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn two_crates_with_one_modality_are_both_named() {
        let twin = ModalitySpec::new("image", "crate-twin");
        let message = Registry::from_parts([], [IMAGE, twin])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("crate-image") && message.contains("crate-twin"),
            "{message}"
        );
    }

    #[test]
    fn a_modality_without_any_mapper_is_refused() {
        let message = Registry::from_parts([VISION], []).unwrap_err().to_string();
        assert!(
            message.contains("crate-vision") && message.contains("image"),
            "{message}"
        );
        assert!(Registry::from_parts([VISION], [IMAGE]).is_ok());
    }

    #[test]
    fn an_unknown_architecture_lists_what_is_linked_and_the_feature() {
        static KNOWN: &[KnownFeature] = &[KnownFeature {
            feature: "zeta",
            architectures: &["ZForCausalLM"],
        }];
        let registry = Registry::from_parts([TEXT, VISION], [IMAGE])
            .unwrap()
            .with_known_features(KNOWN);
        let message = registry
            .find(&["ZForCausalLM".into()])
            .unwrap_err()
            .to_string();
        for part in [
            "ZForCausalLM",
            "AForCausalLM",
            "VForConditionalGeneration",
            "--features zeta",
        ] {
            assert!(message.contains(part), "{message}");
        }
        let message = registry
            .find(&["QForCausalLM".into()])
            .unwrap_err()
            .to_string();
        assert!(!message.contains("--features"), "{message}");
        assert!(registry.find(&[]).is_err());
    }

    #[test]
    fn the_first_known_architecture_wins_and_listings_are_sorted() {
        let registry = Registry::from_parts([VISION, TEXT], [IMAGE]).unwrap();
        let names: Vec<_> = registry
            .models()
            .iter()
            .map(ModelEntry::crate_name)
            .collect();
        assert_eq!(names, ["crate-text", "crate-vision"]);
        let wanted = ["Unknown".to_owned(), "VForConditionalGeneration".to_owned()];
        assert_eq!(registry.find(&wanted).unwrap().crate_name(), "crate-vision");
        assert!(registry.mapper(&TEXT, "image").is_err());
        assert!(registry.mapper(&VISION, "image").is_ok());
    }
}
