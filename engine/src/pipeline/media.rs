//! A request's media: decoded and mapped, or found in the processor cache.

use super::{InputPipeline, ItemContent, PreparedItem};
use crate::cache::{Alias, Known};
use crate::request::MediaInput;
use kiln_registry::{Error, MediaItem, MediaKind, NamedTensors, Result};
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Bytes of a client's name for an item.
const MAX_UUID: usize = 256;

/// An item, and what is known of it.
pub(super) struct Resolved {
    pub(super) item: MediaItem,
    mapped: Option<Arc<NamedTensors>>,
    /// What leads to it next time.
    aliases: Vec<Alias>,
}

impl Resolved {
    /// An item of which nothing is known.
    pub(super) fn new(item: MediaItem) -> Self {
        Self {
            item,
            mapped: None,
            aliases: vec![],
        }
    }

    fn known(known: Known, aliases: Vec<Alias>) -> Self {
        Self {
            item: known.item,
            mapped: Some(known.mapped),
            aliases,
        }
    }
}

impl InputPipeline {
    /// The items of a request, in order.
    pub(super) fn resolve(&self, media: &[MediaInput]) -> Result<Vec<Resolved>> {
        let cached = self.processor_cache.is_on();
        self.pool.install(|| {
            media
                .par_iter()
                .map(|input| match input {
                    MediaInput::Bytes {
                        modality,
                        bytes,
                        uuid,
                    } => self.resolve_bytes(modality, bytes, uuid.as_deref(), cached),
                    MediaInput::Uuid { modality, uuid } => self.resolve_uuid(modality, uuid),
                    MediaInput::Item(item) if item.kind() == MediaKind::Embeds => {
                        self.check_embeds(item)?;
                        Ok(Resolved::new(item.clone()))
                    }
                    MediaInput::Item(item) => Ok(self.resolve_item(item.clone(), vec![], cached)),
                })
                .collect()
        })
    }

    fn resolve_bytes(
        &self,
        modality: &str,
        bytes: &[u8],
        uuid: Option<&str>,
        cached: bool,
    ) -> Result<Resolved> {
        let name = uuid.map(|uuid| uuid_alias(modality, uuid)).transpose()?;
        // Another request's item of the same name is no answer: the bytes say what it is.
        if !cached {
            return Ok(Resolved::new(self.decode_item(modality, bytes)?));
        }
        let file = Alias::of_bytes(modality, bytes);
        let aliases = std::iter::once(file).chain(name).collect();
        if let Some(known) = self.processor_cache.find(&file) {
            self.count_lookup(true);
            return Ok(Resolved::known(known, aliases));
        }
        let item = self.decode_item(modality, bytes)?;
        Ok(self.resolve_item(item, aliases, cached))
    }

    fn resolve_uuid(&self, modality: &str, uuid: &str) -> Result<Resolved> {
        let alias = uuid_alias(modality, uuid)?;
        let known = self.processor_cache.find(&alias);
        self.count_lookup(known.is_some());
        let known = known.ok_or_else(|| {
            Error::invalid(format!(
                "no {modality} of this uuid is cached (any more): send its content again"
            ))
        })?;
        Ok(Resolved::known(known, vec![]))
    }

    fn resolve_item(&self, item: MediaItem, aliases: Vec<Alias>, cached: bool) -> Resolved {
        if !cached {
            return Resolved::new(item);
        }
        let known = self.processor_cache.find_item(&item.hash());
        self.count_lookup(known.is_some());
        match known {
            Some(known) => Resolved::known(known, aliases),
            None => Resolved {
                item,
                mapped: None,
                aliases,
            },
        }
    }

    fn count_lookup(&self, hit: bool) {
        self.stats.processor_cache_queries.fetch_add(1, Relaxed);
        self.stats
            .processor_cache_hits
            .fetch_add(u64::from(hit), Relaxed);
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

    /// What the encoder takes of an item.
    pub(super) fn map(&self, resolved: &Resolved) -> Result<PreparedItem> {
        let item = &resolved.item;
        let content = match (item.kind(), &resolved.mapped) {
            (MediaKind::Embeds, _) => ItemContent::Embeds(item.content()?.clone()),
            (MediaKind::Raw, Some(mapped)) => {
                self.keep(item, mapped, &resolved.aliases);
                ItemContent::Mapped(mapped.clone())
            }
            (MediaKind::Raw, None) => {
                let mapper = self.registry.mapper(&self.entry, item.modality())?;
                let mapped = Arc::new(mapper(&self.context, item)?);
                self.keep(item, &mapped, &resolved.aliases);
                ItemContent::Mapped(mapped)
            }
        };
        Ok(PreparedItem {
            modality: item.modality().to_owned(),
            hash: item.hash(),
            content,
        })
    }

    fn keep(&self, item: &MediaItem, mapped: &Arc<NamedTensors>, aliases: &[Alias]) {
        if !self.processor_cache.is_on() {
            return;
        }
        let known = Known {
            item: item.clone(),
            mapped: mapped.clone(),
        };
        self.processor_cache.insert(known, aliases);
        let held = self.processor_cache.held() as u64;
        self.stats.processor_cache_bytes.store(held, Relaxed);
    }
}

fn uuid_alias(modality: &str, uuid: &str) -> Result<Alias> {
    if uuid.is_empty() || uuid.len() > MAX_UUID {
        return Err(Error::invalid(format!(
            "the uuid of a {modality} has {} bytes; it has between 1 and {MAX_UUID}",
            uuid.len()
        )));
    }
    Ok(Alias::of_uuid(modality, uuid))
}
