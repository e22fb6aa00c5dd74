//! What a model crate submits, built by `const fn`s so that a contradiction is a compile error
//! with a sentence that says the mend.

use crate::{
    Error, InputContext, InputMapper, LoadContext, LoadModel, MediaCounts, MediaItem,
    MultiModalModel, ProcessedInputs, Prompt, PromptInputs, Result,
};

/// The largest number of placeholder positions whose rows one item can take.
#[derive(Debug, Clone, Copy)]
pub enum MaxTokens {
    /// The same for every checkpoint.
    Fixed(usize),
    /// From the configuration: the true bound over every item that the model accepts.
    Computed(fn(&InputContext) -> Result<usize>),
}

/// The input of a start-up run at the maximum.
#[derive(Debug, Clone)]
pub struct DummyInputs {
    /// A prompt with one placeholder token per item; the engine fills it up to the length.
    pub prompt: Prompt,
    /// Items that reach the declared maximum through the real mapper.
    pub items: Vec<MediaItem>,
}

/// Makes dummy inputs of a given number of items; `seq_len` is the longest prompt. They go
/// through the real processor and mapper.
pub type DummyData = fn(&InputContext, seq_len: usize, &MediaCounts) -> Result<DummyInputs>;

/// Expands placeholder tokens and says which positions each item takes. Runs before admission,
/// on any thread. Ids in, ids out: text was tokenised already, so a text prompt and a
/// pre-tokenised one can't differ.
pub type InputProcessor = fn(&InputContext, PromptInputs<'_>) -> Result<ProcessedInputs>;

/// How a model supports one modality.
#[derive(Debug, Clone, Copy)]
pub struct ModalitySupport {
    max_tokens: Option<MaxTokens>,
    mapper: Option<InputMapper>,
}

impl ModalitySupport {
    /// Support without a maximum yet: [`max_tokens`](Self::max_tokens) must follow.
    #[expect(
        clippy::new_without_default,
        reason = "without a maximum it is not a usable value"
    )]
    pub const fn new() -> Self {
        Self {
            max_tokens: None,
            mapper: None,
        }
    }

    /// The most positions that one item can take.
    #[must_use]
    pub const fn max_tokens(mut self, max: MaxTokens) -> Self {
        self.max_tokens = Some(max);
        self
    }

    /// A mapper of the model's own, in place of the modality's default.
    #[must_use]
    pub const fn mapper(mut self, mapper: InputMapper) -> Self {
        self.mapper = Some(mapper);
        self
    }
}

/// The most modalities that one model can have.
pub const MAX_MODALITIES: usize = 8;

/// A model: what `inventory::submit!` takes.
///
/// ```
/// use kiln_registry::*;
/// # struct Llava;
/// # impl LoadModel for Llava {
/// #     fn load(_: &LoadContext<'_>) -> Result<Box<dyn MultiModalModel>> { unimplemented!() }
/// # }
/// inventory::submit! {
///     ModelEntry::new::<Llava>(env!("CARGO_PKG_NAME"), &["MyVlmForConditionalGeneration"])
///         .image(ModalitySupport::new().max_tokens(MaxTokens::Fixed(576)))
/// }
/// ```
#[derive(Clone, Copy)]
pub struct ModelEntry {
    crate_name: &'static str,
    architectures: &'static [&'static str],
    load: fn(&LoadContext<'_>) -> Result<Box<dyn MultiModalModel>>,
    modalities: [Option<(&'static str, ModalitySupport)>; MAX_MODALITIES],
    dummy_data: DummyData,
    input_processor: InputProcessor,
}

inventory::collect!(ModelEntry);

impl ModelEntry {
    /// A text-only model of the crate `crate_name` (`env!("CARGO_PKG_NAME")`) that loads the
    /// `architectures` (Hugging Face's key in `config.json`).
    ///
    /// # Panics
    /// At compile time, when there is no architecture, an empty name, or one name twice.
    pub const fn new<M: LoadModel>(
        crate_name: &'static str,
        architectures: &'static [&'static str],
    ) -> Self {
        assert!(
            !crate_name.is_empty(),
            "a model needs its crate's name: env!(\"CARGO_PKG_NAME\")"
        );
        assert!(
            !architectures.is_empty(),
            "a model needs an architecture: give the names of config.json's `architectures` that it loads"
        );
        let mut i = 0;
        while i < architectures.len() {
            assert!(
                !architectures[i].is_empty(),
                "an architecture name is empty: give the name in config.json's `architectures`"
            );
            let mut j = 0;
            while j < i {
                assert!(
                    !str_eq(architectures[i], architectures[j]),
                    "an architecture is named twice: remove one of the two"
                );
                j += 1;
            }
            i += 1;
        }
        Self {
            crate_name,
            architectures,
            load: M::load,
            modalities: [None; MAX_MODALITIES],
            dummy_data: text_only_dummy_data,
            input_processor: identity_processor,
        }
    }

    /// Supports images. Short for `.modality("image", support)`.
    ///
    /// # Panics
    /// As [`modality`](Self::modality).
    #[must_use]
    pub const fn image(self, support: ModalitySupport) -> Self {
        self.modality("image", support)
    }

    /// Supports videos. Short for `.modality("video", support)`.
    ///
    /// # Panics
    /// As [`modality`](Self::modality).
    #[must_use]
    pub const fn video(self, support: ModalitySupport) -> Self {
        self.modality("video", support)
    }

    /// Supports audio. Short for `.modality("audio", support)`.
    ///
    /// # Panics
    /// As [`modality`](Self::modality).
    #[must_use]
    pub const fn audio(self, support: ModalitySupport) -> Self {
        self.modality("audio", support)
    }

    /// Supports a modality by its name.
    ///
    /// # Panics
    /// At compile time, when the support has no maximum or one of 0, or the modality is declared
    /// twice.
    #[must_use]
    pub const fn modality(mut self, name: &'static str, support: ModalitySupport) -> Self {
        assert!(
            !name.is_empty(),
            "a modality needs a name, such as \"image\""
        );
        match support.max_tokens {
            None => panic!(
                "a modality needs its maximum of tokens: ModalitySupport::new().max_tokens(MaxTokens::Fixed(n)) or MaxTokens::Computed(f)"
            ),
            Some(MaxTokens::Fixed(0)) => panic!(
                "a modality's maximum of tokens is 0: give the most placeholder positions that one item can take"
            ),
            Some(_) => {}
        }
        let mut i = 0;
        while i < MAX_MODALITIES {
            match self.modalities[i] {
                Some((declared, _)) => assert!(
                    !str_eq(declared, name),
                    "a modality is declared twice: merge the two into one ModalitySupport"
                ),
                None => {
                    self.modalities[i] = Some((name, support));
                    return self;
                }
            }
            i += 1;
        }
        panic!("a model has more modalities than MAX_MODALITIES: raise it in kiln-registry")
    }

    /// Dummy data for start-up profiling. Left out: text only.
    #[must_use]
    pub const fn dummy_data(mut self, dummy_data: DummyData) -> Self {
        self.dummy_data = dummy_data;
        self
    }

    /// The input processor. Left out: identity.
    #[must_use]
    pub const fn input_processor(mut self, processor: InputProcessor) -> Self {
        self.input_processor = processor;
        self
    }

    /// The crate that submitted it.
    pub fn crate_name(&self) -> &'static str {
        self.crate_name
    }

    /// The architectures it loads.
    pub fn architectures(&self) -> &'static [&'static str] {
        self.architectures
    }

    /// The names of its modalities, in the order of declaration.
    pub fn modalities(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.modalities.iter().flatten().map(|(name, _)| *name)
    }

    /// Whether it supports a modality.
    pub fn supports(&self, modality: &str) -> bool {
        self.support(modality).is_some()
    }

    /// The maximum of tokens of one item as declared, unless the modality is not supported.
    pub fn declared_max_tokens(&self, modality: &str) -> Option<MaxTokens> {
        self.support(modality)
            .and_then(|support| support.max_tokens)
    }

    /// The maximum of tokens of one item for a checkpoint.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a modality that the model does not have; what the model's own
    /// computation answers; [`Error::Registration`] when that is 0.
    pub fn max_tokens(&self, ctx: &InputContext, modality: &str) -> Result<usize> {
        let max = match self.declared_max_tokens(modality) {
            Some(MaxTokens::Fixed(n)) => n,
            Some(MaxTokens::Computed(compute)) => compute(ctx)?,
            None => {
                return Err(Error::unsupported(format!(
                    "{modality} input by this model (it takes {})",
                    self.describe_modalities()
                )));
            }
        };
        if max == 0 {
            return Err(Error::Registration(format!(
                "{}: the computed maximum of {modality} tokens is 0",
                self.crate_name
            )));
        }
        Ok(max)
    }

    /// The model's own mapper of a modality, if it brings one.
    pub fn mapper(&self, modality: &str) -> Option<InputMapper> {
        self.support(modality).and_then(|support| support.mapper)
    }

    /// Makes dummy inputs.
    ///
    /// # Errors
    /// What the model's own function answers.
    pub fn make_dummy_data(
        &self,
        ctx: &InputContext,
        seq_len: usize,
        counts: &MediaCounts,
    ) -> Result<DummyInputs> {
        (self.dummy_data)(ctx, seq_len, counts)
    }

    /// Expands placeholders.
    ///
    /// # Errors
    /// What the model's own function answers.
    pub fn process(&self, ctx: &InputContext, inputs: PromptInputs<'_>) -> Result<ProcessedInputs> {
        (self.input_processor)(ctx, inputs)
    }

    /// Loads a checkpoint.
    ///
    /// # Errors
    /// See [`LoadModel::load`].
    pub fn load(&self, ctx: &LoadContext<'_>) -> Result<Box<dyn MultiModalModel>> {
        (self.load)(ctx)
    }

    /// The modalities in words, for messages.
    pub fn describe_modalities(&self) -> String {
        let names: Vec<_> = self.modalities().collect();
        if names.is_empty() {
            "text only".to_owned()
        } else {
            names.join(", ")
        }
    }

    fn support(&self, modality: &str) -> Option<&ModalitySupport> {
        self.modalities
            .iter()
            .flatten()
            .find(|(name, _)| *name == modality)
            .map(|(_, s)| s)
    }
}

impl std::fmt::Debug for ModelEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelEntry")
            .field("crate_name", &self.crate_name)
            .field("architectures", &self.architectures)
            .field("modalities", &self.modalities().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// The dummy data of a model that brings none: text alone.
fn text_only_dummy_data(
    _: &InputContext,
    seq_len: usize,
    counts: &MediaCounts,
) -> Result<DummyInputs> {
    if let Some((modality, _)) = counts.iter().find(|(_, n)| *n > 0) {
        return Err(Error::Registration(format!(
            "the model has {modality} input but no dummy data: add .dummy_data(f) to its entry"
        )));
    }
    Ok(DummyInputs {
        prompt: Prompt::Tokens(vec![0; seq_len]),
        items: vec![],
    })
}

/// The input processor of a model that brings none: nothing to expand.
fn identity_processor(_: &InputContext, inputs: PromptInputs<'_>) -> Result<ProcessedInputs> {
    if let Some(item) = inputs.items.first() {
        return Err(Error::unsupported(format!(
            "{} input by this model",
            item.modality()
        )));
    }
    Ok(ProcessedInputs {
        token_ids: inputs.token_ids,
        placeholders: vec![],
    })
}

const fn str_eq(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}
