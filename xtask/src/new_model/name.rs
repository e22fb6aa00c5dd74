//! A model's name in all its forms.

use super::Like;
use anyhow::{Result, ensure};
use serde_json::Value;

/// What Cargo, or this workspace, gives another meaning.
const TAKEN: [&str; 14] = [
    "nn",
    "all-models",
    "default",
    "cuda",
    "registry",
    "image",
    "video",
    "audio",
    "engine",
    "tests",
    "demo",
    "demo-eval",
    "conformance",
    "test",
];

/// `shiny-vl` and what follows from it.
#[derive(Debug, Clone)]
pub(super) struct Name {
    pub(super) kebab: String,
    pub(super) architecture: String,
}

impl Name {
    /// # Errors
    /// When it is not in kebab case, or has a meaning already.
    pub(super) fn parse(name: &str) -> Result<Self> {
        let words = name.split('-');
        let word = |word: &str| {
            let all = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            !word.is_empty() && word.chars().all(all)
        };
        ensure!(
            words.clone().all(word) && name.starts_with(|c: char| c.is_ascii_lowercase()),
            "`{name}` is no name: lower-case words of letters and digits with `-` between them, \
             such as shiny-vl"
        );
        ensure!(
            name.len() <= 40,
            "`{name}` is longer than 40 letters: take a shorter one"
        );
        ensure!(
            !TAKEN.contains(&name),
            "`{name}` has a meaning in this workspace already: take another one"
        );
        Ok(Self {
            kebab: name.to_owned(),
            architecture: String::new(),
        })
    }

    /// With an architecture: the config's, or one made of the name.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and for a config whose architecture is no name.
    pub(super) fn new(name: &str, like: Like, config: Option<&Value>) -> Result<Self> {
        let name = Self::parse(name)?;
        let end = match like {
            Like::Text => "ForCausalLM",
            Like::Llava | Like::LlavaNext => "ForConditionalGeneration",
        };
        let given = config.and_then(|config| config["architectures"][0].as_str());
        let architecture = match given {
            Some(given) => given.to_owned(),
            None => format!("{}{end}", name.camel()),
        };
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        ensure!(
            !architecture.is_empty() && architecture.chars().all(word),
            "the config's architecture `{architecture}` is no name: correct `architectures` in it"
        );
        Ok(Self {
            architecture,
            ..name
        })
    }

    pub(super) fn package(&self) -> String {
        format!("kiln-{}", self.kebab)
    }

    /// The crate as Rust writes it.
    pub(super) fn krate(&self) -> String {
        self.package().replace('-', "_")
    }

    /// `ShinyVl`
    pub(super) fn camel(&self) -> String {
        let words = self.kebab.split('-');
        words
            .map(|word| {
                let (first, rest) = word.split_at(1);
                first.to_uppercase() + rest
            })
            .collect()
    }

    /// `shiny_vl`, as `model_type` has it.
    pub(super) fn snake(&self) -> String {
        self.kebab.replace('-', "_")
    }
}
