//! What a modality crate submits: how bytes become an item and an item named tensors.

use crate::{Error, InputContext, MediaItem, NamedTensors, Result};

/// Modalities of every linked modality crate, collected at link time. Submit with
///
/// ```
/// use kiln_registry::{linkme, DecodeLimits, MediaItem, ModalitySpec, Result, MODALITIES};
///
/// fn decode(_bytes: &[u8], _limits: &DecodeLimits) -> Result<MediaItem> {
///     unimplemented!()
/// }
///
/// #[linkme::distributed_slice(MODALITIES)]
/// #[linkme(crate = kiln_registry::linkme)]
/// static SMELL: ModalitySpec = ModalitySpec::new("smell", env!("CARGO_PKG_NAME"))
///     .media_types(&["application/smell"])
///     .decoder(decode);
/// ```
#[linkme::distributed_slice]
pub static MODALITIES: [ModalitySpec];

/// Turns an item into the tensors that the model's `encode` takes, under Hugging Face's names.
///
/// Called on the media pool, once per item of kind [`crate::MediaKind::Raw`]; its result may be
/// cached by the item's hash, so it depends on its arguments alone. The first axis of every
/// tensor counts items: it is 1.
pub type InputMapper = fn(&InputContext, &MediaItem) -> Result<NamedTensors>;

/// Turns bytes into an item. Sniffs the format from the bytes, checks the limits on the header
/// before it allocates, and answers bad bytes with [`Error::InvalidInput`] of a fixed text.
pub type Decoder = fn(&[u8], &DecodeLimits) -> Result<MediaItem>;

/// Bounds on what a decoder may be asked to do. A request can't raise them.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeLimits {
    /// Encoded bytes of one item.
    pub max_bytes: usize,
    /// Width or height of a picture or frame, in pixels.
    pub max_side: u32,
    /// Pixels of one picture or frame.
    pub max_pixels: u64,
    /// Frames of a video.
    pub max_frames: usize,
    /// Seconds of audio or video.
    pub max_seconds: f64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            max_side: 16_384,
            max_pixels: 64 << 20,
            max_frames: 4096,
            max_seconds: 1800.0,
        }
    }
}

/// A modality: its name, what it accepts, and the defaults that models inherit.
#[derive(Debug, Clone, Copy)]
pub struct ModalitySpec {
    name: &'static str,
    crate_name: &'static str,
    media_types: &'static [&'static str],
    decoder: Option<Decoder>,
    default_mapper: Option<InputMapper>,
    default_limit: usize,
}

impl ModalitySpec {
    /// A modality called `name`, of the crate `crate_name` (`env!("CARGO_PKG_NAME")`).
    ///
    /// # Panics
    /// At compile time, when the name is empty.
    pub const fn new(name: &'static str, crate_name: &'static str) -> Self {
        assert!(
            !name.is_empty(),
            "a modality needs a name, such as \"image\""
        );
        Self {
            name,
            crate_name,
            media_types: &[],
            decoder: None,
            default_mapper: None,
            default_limit: 1,
        }
    }

    /// The media types that the decoder accepts (`image/png`), for messages and HTTP.
    #[must_use]
    pub const fn media_types(mut self, types: &'static [&'static str]) -> Self {
        self.media_types = types;
        self
    }

    /// How bytes become an item.
    #[must_use]
    pub const fn decoder(mut self, decoder: Decoder) -> Self {
        self.decoder = Some(decoder);
        self
    }

    /// The mapper of models that bring none of their own.
    #[must_use]
    pub const fn default_mapper(mut self, mapper: InputMapper) -> Self {
        self.default_mapper = Some(mapper);
        self
    }

    /// Items per prompt where `--limit-mm-per-prompt` says nothing. Without this call: 1.
    #[must_use]
    pub const fn default_limit(mut self, limit: usize) -> Self {
        self.default_limit = limit;
        self
    }

    /// The modality's name, as in `--limit-mm-per-prompt image=2`.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The crate that submitted it.
    pub const fn crate_name(&self) -> &'static str {
        self.crate_name
    }

    /// The media types that the decoder accepts.
    pub const fn accepts(&self) -> &'static [&'static str] {
        self.media_types
    }

    /// Items per prompt by default.
    pub const fn limit(&self) -> usize {
        self.default_limit
    }

    /// The mapper of models that bring none of their own, if the modality has one.
    pub const fn mapper(&self) -> Option<InputMapper> {
        self.default_mapper
    }

    /// Decodes one item.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for bytes that are not a medium of this modality or exceed the
    /// limits; [`Error::Unsupported`] when the modality takes no bytes at all.
    pub fn decode(&self, bytes: &[u8], limits: &DecodeLimits) -> Result<MediaItem> {
        if bytes.len() > limits.max_bytes {
            return Err(Error::invalid(format!(
                "the {} has {} bytes, the limit is {}",
                self.name,
                bytes.len(),
                limits.max_bytes
            )));
        }
        match self.decoder {
            Some(decode) => decode(bytes, limits),
            None => Err(Error::unsupported(format!(
                "{} items from bytes",
                self.name
            ))),
        }
    }
}
