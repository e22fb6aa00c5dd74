//! From a request to what the executor runs: decode media, render the template, tokenise, expand
//! placeholders, check the placeholder law, map media. No tensors on a device; runs on a pool.

use crate::configs::GenerationConfig;
use crate::request::{MediaInput, PromptInput, Request, Usage};
use crate::template::ChatTemplate;
use crate::tokenizer::HfTokenizer;
use kiln_registry::{
    ContentHash, DecodeLimits, Error, HostTensor, InputContext, MediaCounts, MediaItem, MediaKind,
    ModelEntry, NamedTensors, PlaceholderRange, ProcessedInputs, Prompt, PromptInputs, Registry,
    Result, Tokenizer,
};
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
    pub items: Vec<PreparedItem>,
}

impl Prepared {
    /// Tokens of the prompt.
    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.token_ids.len(),
            media_tokens: self.placeholders.iter().map(|p| p.length).sum(),
            completion_tokens: 0,
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
    /// The mapper's tensors.
    Mapped(NamedTensors),
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
        self.check_counts(request.media.iter().map(|m| match m {
            MediaInput::Bytes { modality, .. } => modality.as_str(),
            MediaInput::Item(item) => item.modality(),
        }))?;
        let items = self.decode(&request.media)?;
        let prompt = match &request.prompt {
            PromptInput::Chat(messages) => self.render(messages)?,
            PromptInput::Text(text) => Prompt::Text {
                text: text.clone(),
                add_special_tokens: false,
            },
            PromptInput::Tokens(ids) => Prompt::Tokens(ids.clone()),
        };
        self.prepare_items(prompt, &items, fits)
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
        let token_ids = match prompt {
            Prompt::Tokens(ids) => ids,
            Prompt::Text {
                text,
                add_special_tokens,
            } => self.tokenizer.encode(&text, add_special_tokens)?,
        };
        let processed = self
            .entry
            .process(&self.context, PromptInputs { token_ids, items })?;
        let order = self.check_law(&processed, items)?;
        self.check_ids(&processed)?;
        fits(processed.token_ids.len())?;
        let items = self.pool.install(|| {
            order
                .par_iter()
                .map(|at| self.map(&items[*at]))
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(Prepared {
            token_ids: processed.token_ids,
            placeholders: processed.placeholders,
            items,
        })
    }

    fn check_counts<'a>(&self, modalities: impl Iterator<Item = &'a str>) -> Result<()> {
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

    fn decode(&self, media: &[MediaInput]) -> Result<Vec<MediaItem>> {
        self.pool.install(|| {
            media
                .par_iter()
                .map(|input| match input {
                    MediaInput::Bytes { modality, bytes } => self.decode_item(modality, bytes),
                    MediaInput::Item(item) => {
                        if item.kind() == MediaKind::Embeds {
                            self.check_embeds(item)?;
                        }
                        Ok(item.clone())
                    }
                })
                .collect()
        })
    }

    fn check_embeds(&self, item: &MediaItem) -> Result<()> {
        if !self.allow_embeds {
            return Err(Error::invalid(
                "embeddings as input are off: start with --enable-mm-embeds",
            ));
        }
        let content = item.content()?;
        let most = self.max_tokens.get(item.modality()).copied().unwrap_or(0);
        match (content.shape(), content.as_f32()) {
            ([rows, hidden], Some(_))
                if *hidden == self.shape.hidden_size && (1..=most).contains(rows) =>
            {
                Ok(())
            }
            (shape, _) => Err(Error::invalid(format!(
                "{} embeddings of {} {shape:?}: they must be f32 [rows, {}] with 1 to {most} rows",
                item.modality(),
                content.data().dtype(),
                self.shape.hidden_size
            ))),
        }
    }

    fn render(&self, messages: &[crate::template::Message]) -> Result<Prompt> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::invalid("this checkpoint has no chat template: send the prompt as raw text")
        })?;
        let text = template.render(messages, true)?;
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

    /// Each item has exactly one range, ranges lie apart and inside the prompt, and none takes more
    /// rows than declared. Returns which item each range belongs to.
    fn check_law(&self, processed: &ProcessedInputs, items: &[MediaItem]) -> Result<Vec<usize>> {
        let mut by_modality = BTreeMap::<&str, Vec<usize>>::new();
        for (at, item) in items.iter().enumerate() {
            by_modality.entry(item.modality()).or_default().push(at);
        }
        let mut order = Vec::with_capacity(items.len());
        let mut taken = vec![false; items.len()];
        let mut end = 0;
        for range in &processed.placeholders {
            let broken = |message: String| Error::PlaceholderLaw {
                modality: range.modality.clone(),
                item: range.item,
                message,
            };
            let at = by_modality
                .get(range.modality.as_str())
                .and_then(|list| list.get(range.item))
                .copied()
                .ok_or_else(|| broken("a placeholder range without an item".to_owned()))?;
            if std::mem::replace(&mut taken[at], true) {
                return Err(broken("has two placeholder ranges".to_owned()));
            }
            let inside = range
                .offset
                .checked_add(range.length)
                .is_some_and(|e| e <= processed.token_ids.len());
            if range.offset < end || !inside {
                return Err(broken(format!(
                    "its range {} + {} overlaps another or ends behind the prompt",
                    range.offset, range.length
                )));
            }
            end = range.offset + range.length;
            if range
                .embed_mask
                .as_ref()
                .is_some_and(|m| m.len() != range.length)
            {
                return Err(broken("its mask is not as long as its range".to_owned()));
            }
            let most = self.max_tokens.get(range.modality.as_str()).copied();
            let (rows, most) = (range.rows(), most.unwrap_or(0));
            if rows > most {
                return Err(broken(format!(
                    "{rows} placeholder rows, the declared maximum is {most}"
                )));
            }
            order.push(at);
        }
        match taken.iter().position(|t| !t) {
            None => Ok(order),
            Some(at) => Err(Error::PlaceholderLaw {
                modality: items[at].modality().to_owned(),
                item: at,
                message: "has no placeholder range".to_owned(),
            }),
        }
    }

    /// Ids that the embedding does not have are refused, but for placeholders, which it never sees.
    fn check_ids(&self, processed: &ProcessedInputs) -> Result<()> {
        let covered = |position: usize| {
            processed.placeholders.iter().any(|r| {
                r.range().contains(&position)
                    && r.embed_mask
                        .as_ref()
                        .is_none_or(|mask| mask[position - r.offset])
            })
        };
        let rows = self.shape.embedding_rows;
        let bad = processed
            .token_ids
            .iter()
            .enumerate()
            .find(|(position, id)| **id as usize >= rows && !covered(*position));
        match bad {
            None => Ok(()),
            Some((_, id)) => Err(Error::invalid(format!(
                "there is no token {id}: the model has {rows}"
            ))),
        }
    }

    fn map(&self, item: &MediaItem) -> Result<PreparedItem> {
        let content = match item.kind() {
            MediaKind::Embeds => ItemContent::Embeds(item.content()?.clone()),
            MediaKind::Raw => {
                let mapper = self.registry.mapper(&self.entry, item.modality())?;
                ItemContent::Mapped(mapper(&self.context, item)?)
            }
        };
        Ok(PreparedItem {
            modality: item.modality().to_owned(),
            hash: item.hash(),
            content,
        })
    }
}
