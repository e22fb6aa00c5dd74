//! From a request to what the executor runs: decode media, render the template, tokenise, expand
//! placeholders, check the placeholder law, map media, compile the grammar. No tensors on a device;
//! runs on a pool.

mod items;
mod law;
mod media;

use crate::cache::ProcessorCache;
use crate::configs::{GenerationConfig, SamplingDefaults};
use crate::event::Usage;
use crate::request::{MediaInput, PromptInput, Request, TemplateArgs};
use crate::sampling::{Guide, Guides};
use crate::stats::Stats;
use crate::template::{ChatTemplate, Message};
use crate::tokenizer::HfTokenizer;
pub use items::PreparedItems;
use kiln_registry::{
    ContentHash, DecodeLimits, Error, HostTensor, InputContext, MediaCounts, MediaItem, ModelEntry,
    NamedTensors, PlaceholderRange, Prompt, PromptInputs, Registry, Result, Tokenizer,
};
use media::Resolved;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A request ready to run.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The prompt's ids after expansion.
    pub token_ids: Vec<u32>,
    /// The positions of each item, in order.
    pub placeholders: Vec<PlaceholderRange>,
    /// What each placeholder range is filled from.
    pub items: PreparedItems,
    /// What its text must be.
    pub(crate) guide: Option<Guide>,
}

impl Prepared {
    /// Tokens of the prompt.
    pub fn usage(&self) -> Usage {
        let mut media = BTreeMap::new();
        for range in &self.placeholders {
            *media.entry(range.modality.clone()).or_default() += range.length;
        }
        Usage {
            prompt_tokens: self.token_ids.len(),
            media,
            ..Usage::default()
        }
    }
}

/// One item, mapped.
#[derive(Debug, Clone)]
pub struct PreparedItem {
    /// The modality's name.
    pub modality: String,
    /// The item's identity.
    pub hash: ContentHash,
    /// What the encoder takes, or the rows themselves.
    pub content: ItemContent,
}

/// What an item's rows are made from.
#[derive(Debug, Clone)]
pub enum ItemContent {
    /// The mapper's tensors, which the processor cache may share.
    Mapped(Arc<NamedTensors>),
    /// Embeddings that the caller computed, `[rows, hidden]`.
    Embeds(HostTensor),
}

/// What the pipeline must know of the loaded model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelShape {
    pub(crate) embedding_rows: usize,
    pub(crate) hidden_size: usize,
    pub(crate) vocab_size: usize,
}

/// The input side of a loaded checkpoint. Shared by all threads.
pub struct InputPipeline {
    pub(crate) registry: Arc<Registry>,
    pub(crate) entry: ModelEntry,
    pub(crate) context: InputContext,
    pub(crate) tokenizer: Arc<HfTokenizer>,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) generation: GenerationConfig,
    pub(crate) shape: ModelShape,
    pub(crate) max_tokens: BTreeMap<&'static str, usize>,
    pub(crate) decode_limits: DecodeLimits,
    pub(crate) allow_embeds: bool,
    pub(crate) pool: rayon::ThreadPool,
    pub(crate) guides: Guides,
    pub(crate) processor_cache: ProcessorCache,
    pub(crate) stats: Arc<Stats>,
}

impl InputPipeline {
    /// The model's configuration, tokenizer and limits.
    pub fn context(&self) -> &InputContext {
        &self.context
    }

    /// The model's registration.
    pub fn entry(&self) -> &ModelEntry {
        &self.entry
    }

    /// The tokenizer, for decoding.
    pub fn tokenizer(&self) -> &Arc<HfTokenizer> {
        &self.tokenizer
    }

    /// The most tokens of one item, by modality.
    pub fn max_tokens(&self) -> &BTreeMap<&'static str, usize> {
        &self.max_tokens
    }

    /// The checkpoint's chat template.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The sampling parameters that the checkpoint recommends.
    pub fn sampling_defaults(&self) -> SamplingDefaults {
        self.generation.sampling_defaults()
    }

    /// Whether the checkpoint brings a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// Decodes one item as [`prepare`](Self::prepare) does, within the same limits.
    ///
    /// # Errors
    /// As [`kiln_registry::ModalitySpec::decode`].
    pub fn decode_item(&self, modality: &str, bytes: &[u8]) -> Result<MediaItem> {
        self.registry
            .modality(modality)?
            .decode(bytes, &self.decode_limits)
    }

    /// Prepares a request.
    ///
    /// # Errors
    /// [`Error::is_callers_fault`] ones for what the caller sent; [`Error::PlaceholderLaw`] for a
    /// fault of the model crate.
    pub fn prepare(&self, request: &Request) -> Result<Prepared> {
        let new = request.sampling.max_tokens;
        self.prepare_if(request, |prompt| self.check_length(prompt, new))
    }

    /// The same without a bound on the prompt's length: what a trace takes.
    pub(crate) fn prepare_any_length(&self, request: &Request) -> Result<Prepared> {
        self.prepare_if(request, |_| Ok(()))
    }

    fn prepare_if(
        &self,
        request: &Request,
        fits: impl FnOnce(usize) -> Result<()>,
    ) -> Result<Prepared> {
        request.sampling.validate(self.shape.vocab_size)?;
        if request
            .mm_processor_kwargs
            .as_ref()
            .is_some_and(|k| !k.is_empty())
        {
            return Err(Error::unsupported(
                "mm_processor_kwargs of a request: start with --mm-processor-kwargs",
            ));
        }
        let salt = request.cache_salt.as_deref().map(salt_of).transpose()?;
        self.check_counts(request.media.iter().map(MediaInput::modality))?;
        let guide = request.sampling.guide.as_ref();
        let guide = guide
            .map(|grammar| self.guides.compile(grammar))
            .transpose()?;
        let items = self.resolve(&request.media)?;
        let prompt = match &request.prompt {
            PromptInput::Chat(messages) => self.render(messages, &request.template)?,
            PromptInput::Text(text) => Prompt::Text {
                text: text.clone(),
                add_special_tokens: false,
            },
            PromptInput::Tokens(ids) => Prompt::Tokens(ids.clone()),
        };
        let prepared = self.prepare_resolved(prompt, items, fits)?;
        let items = prepared.items.salted(salt);
        Ok(Prepared {
            guide,
            items,
            ..prepared
        })
    }

    /// The part of [`prepare`](Self::prepare) behind decoding and rendering: what dummy data goes
    /// through, too. `fits` sees the prompt's length before any item is mapped: a prompt that is too
    /// long costs no more than its tokens.
    pub(crate) fn prepare_items(
        &self,
        prompt: Prompt,
        items: &[MediaItem],
        fits: impl FnOnce(usize) -> Result<()>,
    ) -> Result<Prepared> {
        let items = items.iter().cloned().map(Resolved::new).collect();
        self.prepare_resolved(prompt, items, fits)
    }

    fn prepare_resolved(
        &self,
        prompt: Prompt,
        resolved: Vec<Resolved>,
        fits: impl FnOnce(usize) -> Result<()>,
    ) -> Result<Prepared> {
        let token_ids = match prompt {
            Prompt::Tokens(ids) => ids,
            Prompt::Text {
                text,
                add_special_tokens,
            } => self.tokenizer.encode(&text, add_special_tokens)?,
        };
        let items: Vec<MediaItem> = resolved.iter().map(|r| r.item.clone()).collect();
        let inputs = PromptInputs {
            token_ids,
            items: &items,
        };
        let processed = self.entry.process(&self.context, inputs)?;
        let order = self.check_law(&processed, &items)?;
        self.check_ids(&processed)?;
        fits(processed.token_ids.len())?;
        let items = self.pool.install(|| {
            order
                .par_iter()
                .map(|at| self.map(&resolved[*at]))
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(Prepared {
            token_ids: processed.token_ids,
            placeholders: processed.placeholders,
            items: items.into(),
            guide: None,
        })
    }

    /// Whether a prompt may have these items, told by their modalities.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a modality that the model does not take, and
    /// [`Error::TooManyItems`].
    pub fn check_counts<'a>(&self, modalities: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut counts = MediaCounts::new();
        for modality in modalities {
            counts.set(modality, counts.get(modality) + 1);
        }
        for (modality, given) in counts.iter() {
            if !self.entry.supports(modality) {
                return Err(Error::invalid(format!(
                    "this model takes no {modality} input ({})",
                    self.entry.describe_modalities()
                )));
            }
            let limit = self.context.limits().get(modality);
            if given > limit {
                return Err(Error::TooManyItems {
                    modality: modality.to_owned(),
                    given,
                    limit,
                });
            }
        }
        Ok(())
    }

    fn render(&self, messages: &[Message], args: &TemplateArgs) -> Result<Prompt> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::invalid("this checkpoint has no chat template: send the prompt as raw text")
        })?;
        let text = template.render(messages, args)?;
        // As the reference: its processors add the tokenizer's special tokens unless the template
        // wrote them; its tokenizers leave all to the template.
        let processor = self.entry.modalities().next().is_some();
        let written = template
            .bos_token()
            .is_some_and(|bos| text.starts_with(bos));
        Ok(Prompt::Text {
            text,
            add_special_tokens: processor && !written,
        })
    }

    fn check_length(&self, prompt: usize, new: Option<usize>) -> Result<()> {
        let context = self.context.max_model_len();
        let new = new.unwrap_or(1);
        if prompt.saturating_add(new) > context {
            return Err(Error::ContextLength {
                prompt,
                new,
                context,
            });
        }
        Ok(())
    }
}

/// What a salt is told by. An empty one would look like protection and be none.
fn salt_of(salt: &str) -> Result<ContentHash> {
    if salt.is_empty() {
        return Err(Error::invalid("cache_salt: it is empty"));
    }
    Ok(ContentHash::of_fields(&[salt.as_bytes()]))
}
