//! Media items: decoded media on their way to a mapper, with the identity that caches go by.

use crate::{HostData, HostTensor, NamedTensors, Result};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// blake3 over type, shape and elements: equal exactly for equal media. Same bytes under another
/// shape or type have another hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// The hash of named tensors and of what else tells two items apart (the modality, what
    /// kind of content it is).
    pub fn of(domain: &[&str], tensors: &NamedTensors) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            // Lengths go in too, or ("ab", "c") and ("a", "bc") would be one.
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for part in domain {
            field(part.as_bytes());
        }
        for (name, tensor) in tensors.iter() {
            field(name.as_bytes());
            field(tensor.data().dtype().as_bytes());
            let shape: Vec<u8> = tensor
                .shape()
                .iter()
                .flat_map(|d| (*d as u64).to_le_bytes())
                .collect();
            field(&shape);
            match tensor.data() {
                HostData::U8(v) => field(v),
                HostData::F32(v) => {
                    field(&v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
                }
                HostData::I64(v) => {
                    field(&v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
                }
            }
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// The hash of a list of byte strings: another list has another hash, however it is cut.
    pub fn of_fields(fields: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for field in fields {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// This hash with more context mixed in, such as processor arguments.
    #[must_use]
    pub fn and(self, context: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher.update(context);
        Self(*hasher.finalize().as_bytes())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..8] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Whether an item still has to be mapped and encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaKind {
    /// Decoded media: mapped, then encoded by the model.
    Raw,
    /// Embeddings that the caller computed: they skip mapper and encoder. Off unless switched on.
    Embeds,
}

/// One decoded image, video or audio clip.
///
/// The content is named host tensors, so that the core knows no modality: an image is
/// [`MediaItem::CONTENT`] as `u8 [height, width, 3]`, embeddings are [`MediaItem::CONTENT`] as
/// `f32 [tokens, hidden]`.
/// Cheap to clone: copies share the content.
#[derive(Debug, Clone)]
pub struct MediaItem {
    modality: String,
    kind: MediaKind,
    content: Arc<NamedTensors>,
    /// Made when it is first asked for: an item whose size alone matters is never read.
    hash: OnceLock<ContentHash>,
}

impl PartialEq for MediaItem {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.modality == other.modality && self.content == other.content
    }
}

impl MediaItem {
    /// The name of the tensor that every item has.
    pub const CONTENT: &'static str = "content";

    /// A decoded item of one tensor.
    pub fn raw(modality: impl Into<String>, content: HostTensor) -> Self {
        let tensors = NamedTensors::new().with(Self::CONTENT, content);
        Self::new(modality.into(), MediaKind::Raw, tensors)
    }

    /// A decoded item of several tensors, one of them named [`MediaItem::CONTENT`] (a video's
    /// frames and their time stamps, say).
    pub fn raw_with(modality: impl Into<String>, content: NamedTensors) -> Self {
        Self::new(modality.into(), MediaKind::Raw, content)
    }

    /// Embeddings that the caller computed.
    ///
    /// # Shapes
    /// `embeds`: f32 `[tokens, hidden]`, `hidden` the backbone's width.
    pub fn embeds(modality: impl Into<String>, embeds: HostTensor) -> Self {
        let tensors = NamedTensors::new().with(Self::CONTENT, embeds);
        Self::new(modality.into(), MediaKind::Embeds, tensors)
    }

    fn new(modality: String, kind: MediaKind, content: NamedTensors) -> Self {
        Self {
            modality,
            kind,
            content: Arc::new(content),
            hash: OnceLock::new(),
        }
    }

    /// The modality's name.
    pub fn modality(&self) -> &str {
        &self.modality
    }

    /// Whether it still has to be mapped and encoded.
    pub fn kind(&self) -> MediaKind {
        self.kind
    }

    /// All tensors of the content.
    pub fn tensors(&self) -> &NamedTensors {
        &self.content
    }

    /// The main tensor.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when the modality crate left it out.
    pub fn content(&self) -> Result<&HostTensor> {
        self.content
            .get(Self::CONTENT)
            .ok_or_else(|| crate::Error::internal(format!("a {} item is empty", self.modality)))
    }

    /// Its identity. The first call reads the whole content.
    pub fn hash(&self) -> ContentHash {
        let kind = match self.kind {
            MediaKind::Raw => "raw",
            MediaKind::Embeds => "embeds",
        };
        *self
            .hash
            .get_or_init(|| ContentHash::of(&[&self.modality, kind], &self.content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_bytes_with_another_shape_type_or_kind_are_another_item() {
        let item = |shape: [usize; 3]| {
            MediaItem::raw("image", HostTensor::u8(shape, vec![7; 12]).unwrap()).hash()
        };
        assert_eq!(item([2, 2, 3]), item([2, 2, 3]));
        assert_ne!(item([2, 2, 3]), item([1, 4, 3]));
        let tensor = HostTensor::f32([2, 2], vec![1.0; 4]).unwrap();
        let raw = MediaItem::raw("image", tensor.clone());
        assert_ne!(
            raw.hash(),
            MediaItem::embeds("image", tensor.clone()).hash()
        );
        assert_ne!(raw.hash(), MediaItem::raw("video", tensor).hash());
        assert_ne!(raw.hash(), raw.hash().and(b"size=336"));
        let fields = |fields: &[&[u8]]| ContentHash::of_fields(fields);
        assert_ne!(fields(&[b"ab", b"c"]), fields(&[b"a", b"bc"]));
        assert_ne!(fields(&[b"ab"]), fields(&[b"ab", b""]));
    }
}
