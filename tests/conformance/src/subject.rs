//! What is under test: an entry, a checkpoint, the model that it loads, and the calls that the
//! engine makes, one by one.

use crate::drive::Features;
use crate::fault::{Fault, Of, guard};
use crate::media::drawn;
use crate::report::{Piece, Problem};
use crate::sweep::Sweep;
use burn::tensor::Device;
use kiln_engine::{Checkpoint, HfTokenizer, architectures, processor_config};
use kiln_registry::{
    CheckpointFiles, Encoded, Error, InputContext, LoadContext, MediaCounts, MediaItem, ModelEntry,
    MultiModalModel, NamedTensors, ProcessedInputs, Prompt, PromptInputs, Registry, Result,
    Tokenizer, WeightDType,
};
use serde_json::Value;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Items of each modality that a prompt may have here.
pub(crate) const ITEMS: usize = 3;
/// Plain text, whose ids prompts are made of.
const TEXT: &str = "The quick brown fox jumps over the lazy dog, while 42 zebras graze.";

/// A prompt as processor and mapper make it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prepared {
    pub(crate) processed: ProcessedInputs,
    /// By placeholder range: the modality and its tensors.
    pub(crate) mapped: Vec<(String, NamedTensors)>,
}

pub(crate) struct Subject {
    pub(crate) registry: Arc<Registry>,
    pub(crate) entry: ModelEntry,
    pub(crate) folder: PathBuf,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) context: InputContext,
    pub(crate) model: Box<dyn MultiModalModel>,
    pub(crate) device: Device,
    /// The id of each modality's placeholder token, as dummy data has it.
    pub(crate) placeholders: BTreeMap<String, u32>,
    text: Vec<u32>,
    pub(crate) sweep: OnceCell<Sweep>,
}

impl Subject {
    /// Loads a checkpoint; what fails here leaves nothing to check.
    pub(crate) fn open(registry: Arc<Registry>, folder: &Path) -> Result<Self, Problem> {
        let files = |error: Error| {
            Problem::new(
                Piece::Loader,
                format!("{}: {error}", folder.display()),
                "give the kit a folder with config.json, tokenizer.json and model.safetensors",
            )
        };
        let checkpoint = Checkpoint::open(folder).map_err(files)?;
        let config = checkpoint.json("config.json").map_err(files)?;
        let config = config.unwrap_or_default();
        let entry = *registry.find(&architectures(&config)).map_err(|error| {
            Problem::new(
                Piece::Registration,
                error,
                "name the checkpoint's architecture in ModelEntry::new, and link the crate: \
                     `use my_model as _;`",
            )
        })?;
        let processor = processor_config(&checkpoint, None).map_err(files)?;
        let tokenizer = Arc::new(HfTokenizer::load(&checkpoint).map_err(files)?);
        let text = tokenizer.encode(TEXT, false).map_err(files)?;
        let limits = entry
            .modalities()
            .fold(MediaCounts::new(), |limits, m| limits.with(m, ITEMS));
        let context = InputContext::new(config, processor, tokenizer, limits, usize::MAX);
        let device = Device::flex();
        let model = load(&entry, &context, &checkpoint, &device).map_err(|error| {
            Problem::new(
                Piece::Loader,
                format!("the checkpoint does not load: {error}"),
                "ask for the tensors that the checkpoint has, in the shapes of its config.json",
            )
        })?;
        let context = context.with_max_model_len(model.max_position_embeddings());
        let mut subject = Self {
            registry,
            entry,
            folder: folder.to_owned(),
            checkpoint,
            context,
            model,
            device,
            placeholders: BTreeMap::new(),
            text,
            sweep: OnceCell::new(),
        };
        let modalities: Vec<_> = subject.entry.modalities().collect();
        for modality in modalities {
            let id = subject.find_placeholder(modality)?;
            subject.placeholders.insert(modality.to_owned(), id);
        }
        subject.text.retain(|id| {
            (*id as usize) < subject.model.embedding_rows()
                && !subject.placeholders.values().any(|p| p == id)
        });
        if subject.text.len() < 4 {
            return Err(Problem::new(
                Piece::Tokenizer,
                format!("only {} ids for {TEXT:?}", subject.text.len()),
                "give the tiny checkpoint a tokenizer that knows plain English text",
            ));
        }
        Ok(subject)
    }

    /// Dummy data of one item has one placeholder token; it is where the item's range begins.
    fn find_placeholder(&self, modality: &str) -> Result<u32, Problem> {
        let (ids, items) = self.dummy(modality, 1)?;
        let processed = guard(|| {
            let token_ids = ids.clone();
            let items = &items;
            self.entry
                .process(&self.context, PromptInputs { token_ids, items })
        })
        .of(Piece::Processor)
        .map_err(|fault| fault.problem("dummy data of one item"))?;
        let found = processed.placeholders.first();
        found
            .and_then(|range| ids.get(range.offset).copied())
            .ok_or_else(|| {
                Problem::new(
                    Piece::Processor,
                    format!("dummy data of one {modality} item has no placeholder range"),
                    "return one PlaceholderRange per item: kiln_registry::expand_placeholders does",
                )
            })
    }

    /// Dummy data of so many items of a modality, tokenised.
    pub(crate) fn dummy(
        &self,
        modality: &str,
        count: usize,
    ) -> Result<(Vec<u32>, Vec<MediaItem>), Problem> {
        let counts = MediaCounts::new().with(modality, count);
        let dummy = guard(|| self.entry.make_dummy_data(&self.context, 64, &counts));
        let dummy = dummy
            .of(Piece::DummyData)
            .map_err(|fault| fault.problem(&format!("dummy data of {count} {modality} item(s)")))?;
        let ids = match dummy.prompt {
            Prompt::Tokens(ids) => ids,
            Prompt::Text {
                text,
                add_special_tokens,
            } => self
                .context
                .tokenizer()
                .encode(&text, add_special_tokens)
                .of(Piece::Tokenizer)
                .map_err(|fault| fault.problem("the text of dummy data"))?,
        };
        Ok((ids, dummy.items))
    }

    /// So many ids of plain text; other ones for another seed.
    pub(crate) fn words(&self, seed: usize, count: usize) -> Vec<u32> {
        let ids = self.text.iter().cycle().skip(seed * 3);
        ids.take(count).copied().collect()
    }

    /// An item of each modality, drawn by the seed where the kit can draw, dummy data elsewhere.
    pub(crate) fn items(&self, seed: u64) -> Result<Vec<MediaItem>, Problem> {
        let modalities = self.entry.modalities();
        modalities
            .map(|modality| {
                if let Some(draw) = drawn(modality) {
                    return draw
                        .draw(&draw.usual(seed), seed)
                        .of(Piece::Engine)
                        .map_err(|fault| fault.problem("an item that the kit draws"));
                }
                let (_, items) = self.dummy(modality, 1)?;
                items.into_iter().next().ok_or_else(|| {
                    Problem::new(
                        Piece::DummyData,
                        "gives no item",
                        "give as many as are asked for",
                    )
                })
            })
            .collect()
    }

    /// A prompt with a placeholder for each item, text before, between and behind.
    pub(crate) fn prompt(&self, seed: usize, items: &[MediaItem]) -> Vec<u32> {
        let mut ids = self.words(seed, 4);
        for (at, item) in items.iter().enumerate() {
            ids.extend(self.placeholders.get(item.modality()));
            ids.extend(self.words(seed + at + 1, 3));
        }
        ids
    }

    pub(crate) fn process(
        &self,
        token_ids: Vec<u32>,
        items: &[MediaItem],
    ) -> Result<ProcessedInputs, Fault> {
        guard(|| {
            self.entry
                .process(&self.context, PromptInputs { token_ids, items })
        })
        .of(Piece::Processor)
    }

    /// What a model and its processor are configured by.
    pub(crate) fn configs(&self) -> [&Value; 2] {
        [self.context.config(), self.context.processor()]
    }

    pub(crate) fn map(&self, item: &MediaItem) -> Result<NamedTensors, Fault> {
        let mapper = self.registry.mapper(&self.entry, item.modality());
        let mapper = mapper.of(Piece::Registration)?;
        guard(|| mapper(&self.context, item)).of(Piece::Mapper)
    }

    /// Processed and mapped, in the order of the placeholder ranges. Each item must have exactly
    /// one range, inside the prompt and behind the one before.
    pub(crate) fn prepare(&self, ids: Vec<u32>, items: &[MediaItem]) -> Result<Prepared, Fault> {
        let processed = self.process(ids, items)?;
        let broken = |message: String| Fault {
            piece: Piece::Processor,
            error: Error::internal(message),
        };
        if processed.placeholders.len() != items.len() {
            let ranges = processed.placeholders.len();
            let message = format!("{ranges} placeholder range(s) for {} item(s)", items.len());
            return Err(broken(message));
        }
        let mut end = 0;
        let mut mapped = vec![];
        for range in &processed.placeholders {
            let item = items
                .iter()
                .filter(|item| item.modality() == range.modality)
                .nth(range.item);
            let inside = range.offset >= end && range.range().end <= processed.token_ids.len();
            let masked = range
                .embed_mask
                .as_ref()
                .is_none_or(|m| m.len() == range.length);
            let (Some(item), true, true) = (item, inside, masked) else {
                return Err(broken(format!("a range that fits no item: {range:?}")));
            };
            end = range.range().end;
            mapped.push((range.modality.clone(), self.map(item)?));
        }
        Ok(Prepared { processed, mapped })
    }

    /// The rows of items of one modality.
    pub(crate) fn encode(
        &self,
        model: &dyn MultiModalModel,
        modality: &str,
        items: &[&NamedTensors],
    ) -> Result<Vec<Features>, Fault> {
        guard(|| one_each(model.encode(modality, items)?, items.len())).of(Piece::Encoder)
    }

    /// The same in pieces.
    pub(crate) fn encode_in_pieces(
        &self,
        model: &dyn MultiModalModel,
        modality: &str,
        items: &[&NamedTensors],
    ) -> Result<Vec<Features>, Fault> {
        let items: Vec<_> = items.iter().map(|item| Arc::new((*item).clone())).collect();
        guard(|| {
            let mut task = model.begin_encode(modality, &items)?;
            while task.remaining() > 0 {
                let before = task.remaining();
                task.advance()?;
                if task.remaining() >= before {
                    return Err(Error::internal(format!(
                        "{before} pieces are left, and one piece later as many"
                    )));
                }
            }
            one_each(task.finish()?, items.len())
        })
        .of(Piece::Encoder)
    }

    /// Loads the checkpoint with other files.
    pub(crate) fn load(&self, files: &dyn CheckpointFiles) -> Result<Box<dyn MultiModalModel>> {
        load(&self.entry, &self.context, files, &self.device)
    }

    pub(crate) fn has_media(&self) -> bool {
        self.entry.modalities().next().is_some()
    }
}

fn one_each(encoded: Vec<Encoded>, items: usize) -> Result<Vec<Features>, Error> {
    if encoded.len() != items {
        return Err(Error::internal(format!(
            "{} result(s) for {items} item(s)",
            encoded.len()
        )));
    }
    let features = encoded.into_iter().map(|e| Features::of(e.features));
    features.collect()
}

fn load(
    entry: &ModelEntry,
    input: &InputContext,
    files: &dyn CheckpointFiles,
    device: &Device,
) -> Result<Box<dyn MultiModalModel>> {
    guard(|| {
        entry.load(&LoadContext {
            input,
            files,
            device,
            dtype: WeightDType::F32,
            quantize: None,
            derived: None,
            progress: &|_, _| {},
        })
    })
}
