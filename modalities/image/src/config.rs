//! `preprocessor_config.json` as a typed struct, with Hugging Face's defaults.
//!
//! The defaults depend on the processor's type: a checkpoint states only what differs.
//!
//! *Source*: Hugging Face transformers, the class attributes of the four image processors and
//! `BaseImageProcessor._set_attributes` (a key that is null takes the default, too).

use crate::pixels::Size;
use crate::resample::Filter;
use kiln_registry::{Error, InputContext, Result};
use serde::Deserialize;
use serde_json::Value;

const FILE: &str = "preprocessor_config.json";
const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// The processors that are known, by what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProcessorKind {
    /// `CLIPImageProcessor`: resize, centre crop, normalise.
    Clip,
    /// `SiglipImageProcessor`: resize to a fixed size, normalise.
    Siglip,
    /// `LlavaImageProcessor`: as CLIP, but `do_pad` squares the picture first.
    Llava,
    /// `LlavaNextImageProcessor`: the whole picture and tiles of it.
    LlavaNext,
}

impl ProcessorKind {
    const ALL: [Self; 4] = [Self::Clip, Self::Siglip, Self::Llava, Self::LlavaNext];

    /// The reference's class name, without the suffix of a backend.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clip => "CLIPImageProcessor",
            Self::Siglip => "SiglipImageProcessor",
            Self::Llava => "LlavaImageProcessor",
            Self::LlavaNext => "LlavaNextImageProcessor",
        }
    }

    /// The kind of a class name; the suffixes "Fast" and "Pil" say only where it runs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that lists the known ones.
    pub fn from_name(name: &str) -> Result<Self> {
        let base = name
            .strip_suffix("Fast")
            .or_else(|| name.strip_suffix("Pil"))
            .unwrap_or(name);
        // `CLIPFeatureExtractor` and its like are the names of years past.
        let base = base.replace("FeatureExtractor", "ImageProcessor");
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == base)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                Error::unsupported(format!(
                    "the image processor `{name}` (known: {known}, each also with \"Fast\")"
                ))
            })
    }

    fn of_model(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "clip" => Self::Clip,
            "siglip" => Self::Siglip,
            "llava" => Self::Llava,
            "llava_next" => Self::LlavaNext,
            _ => return None,
        })
    }
}

/// A size as configurations write it: a number, `[height, width]`, or an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SizeSpec {
    /// Exact height.
    pub height: Option<usize>,
    /// Exact width.
    pub width: Option<usize>,
    /// The short side after resizing; the ratio stays.
    pub shortest_edge: Option<usize>,
    /// The most that the long side may have then.
    pub longest_edge: Option<usize>,
    /// The box that the picture is fitted into: height.
    pub max_height: Option<usize>,
    /// The box that the picture is fitted into: width.
    pub max_width: Option<usize>,
}

impl SizeSpec {
    /// An exact size.
    pub const fn exact(height: usize, width: usize) -> Self {
        Self {
            height: Some(height),
            width: Some(width),
            ..Self::NONE
        }
    }

    /// The short side's length.
    pub const fn shortest(edge: usize) -> Self {
        Self {
            shortest_edge: Some(edge),
            ..Self::NONE
        }
    }

    const NONE: Self = Self {
        height: None,
        width: None,
        shortest_edge: None,
        longest_edge: None,
        max_height: None,
        max_width: None,
    };

    fn from_raw(raw: RawSize, square: bool) -> Self {
        match raw {
            RawSize::Edge(edge) if square => Self::exact(edge, edge),
            RawSize::Edge(edge) => Self::shortest(edge),
            RawSize::Pair([height, width]) => Self::exact(height, width),
            RawSize::Object(o) => Self {
                height: o.height,
                width: o.width,
                shortest_edge: o.shortest_edge,
                longest_edge: o.longest_edge,
                max_height: o.max_height,
                max_width: o.max_width,
            },
        }
    }

    /// Height and width, where both are exact.
    pub fn as_exact(&self) -> Option<Size> {
        Some(Size::new(nonzero(self.width)?, nonzero(self.height)?))
    }
}

/// The reference asks `if size.height`: 0 counts as absent.
pub(crate) fn nonzero(n: Option<usize>) -> Option<usize> {
    n.filter(|n| *n > 0)
}

/// An image processor's configuration, every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessorConfig {
    /// `image_processor_type`.
    pub kind: ProcessorKind,
    /// Whether to resize.
    pub do_resize: bool,
    /// To what.
    pub size: SizeSpec,
    /// With which filter.
    pub resample: Filter,
    /// Whether to cut the middle out.
    pub do_center_crop: bool,
    /// Of which size.
    pub crop_size: Option<SizeSpec>,
    /// Whether to multiply by `rescale_factor`.
    pub do_rescale: bool,
    /// Usually 1/255.
    pub rescale_factor: f64,
    /// Whether to subtract the mean and divide by the standard deviation.
    pub do_normalize: bool,
    /// Mean of each channel.
    pub image_mean: [f64; 3],
    /// Standard deviation of each channel.
    pub image_std: [f64; 3],
    /// LLaVA: whether to square the picture first, on the mean colour. CLIP and SigLIP: whether
    /// to pad with zeros to `pad_size` last. LLaVA-NeXT: pads batches only, no effect here.
    pub do_pad: bool,
    /// Where `do_pad` pads to, for CLIP and SigLIP.
    pub pad_size: Option<SizeSpec>,
    /// LLaVA-NeXT's resolutions, `[height, width]` each.
    pub image_grid_pinpoints: Vec<[usize; 2]>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawSize {
    Edge(usize),
    Pair([usize; 2]),
    Object(RawSizeObject),
}

#[derive(Deserialize)]
struct RawSizeObject {
    height: Option<usize>,
    width: Option<usize>,
    shortest_edge: Option<usize>,
    longest_edge: Option<usize>,
    max_height: Option<usize>,
    max_width: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PerChannel {
    One(f64),
    Three([f64; 3]),
}

impl PerChannel {
    fn get(self) -> [f64; 3] {
        match self {
            Self::One(v) => [v; 3],
            Self::Three(v) => v,
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    size: Option<RawSize>,
    default_to_square: Option<bool>,
    resample: Option<u64>,
    do_center_crop: Option<bool>,
    crop_size: Option<RawSize>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<PerChannel>,
    image_std: Option<PerChannel>,
    do_pad: Option<bool>,
    pad_size: Option<RawSize>,
    image_grid_pinpoints: Option<Vec<[usize; 2]>>,
}

impl ImageProcessorConfig {
    /// The defaults of a processor.
    pub fn defaults(kind: ProcessorKind) -> Self {
        let siglip = kind == ProcessorKind::Siglip;
        let anyres = kind == ProcessorKind::LlavaNext;
        Self {
            kind,
            do_resize: true,
            size: if siglip {
                SizeSpec::exact(224, 224)
            } else {
                SizeSpec::shortest(224)
            },
            resample: Filter::Bicubic,
            do_center_crop: !siglip,
            crop_size: (!siglip).then_some(SizeSpec::exact(224, 224)),
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: if siglip { [0.5; 3] } else { CLIP_MEAN },
            image_std: if siglip { [0.5; 3] } else { CLIP_STD },
            do_pad: anyres,
            pad_size: None,
            image_grid_pinpoints: if anyres {
                vec![[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
            } else {
                vec![]
            },
        }
    }

    /// The configuration of a loaded checkpoint.
    ///
    /// # Errors
    /// As [`ImageProcessorConfig::from_value`].
    pub fn from_context(ctx: &InputContext) -> Result<Self> {
        let model_type = ctx.config().get("model_type").and_then(Value::as_str);
        Self::from_value(ctx.processor(), model_type)
    }

    /// The configuration in a JSON object. Where it names no type, the model's type decides, as
    /// in the reference's automatic classes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown type; [`Error::Checkpoint`] for a value that makes
    /// no sense.
    pub fn from_value(value: &Value, model_type: Option<&str>) -> Result<Self> {
        let wrong = |message: String| Error::checkpoint(FILE, message);
        let raw = Raw::deserialize(value).map_err(|e| wrong(e.to_string()))?;
        let kind = match raw.image_processor_type.or(raw.feature_extractor_type) {
            Some(name) => ProcessorKind::from_name(&name)?,
            None => model_type
                .and_then(ProcessorKind::of_model)
                .ok_or_else(|| {
                    let known = ProcessorKind::ALL.map(ProcessorKind::name).join(", ");
                    wrong(format!(
                        "`image_processor_type` is missing: name one of {known}"
                    ))
                })?,
        };
        let default = Self::defaults(kind);
        let square = raw.default_to_square.unwrap_or(false);
        let resample = match raw.resample {
            None => default.resample,
            Some(number) => Filter::from_pillow(number)
                .ok_or_else(|| wrong(format!("`resample` is {number}, known are 0 to 5")))?,
        };
        let config = Self {
            kind,
            do_resize: raw.do_resize.unwrap_or(default.do_resize),
            size: raw
                .size
                .map_or(default.size, |s| SizeSpec::from_raw(s, square)),
            resample,
            do_center_crop: raw.do_center_crop.unwrap_or(default.do_center_crop),
            crop_size: raw
                .crop_size
                .map(|s| SizeSpec::from_raw(s, true))
                .or(default.crop_size),
            do_rescale: raw.do_rescale.unwrap_or(default.do_rescale),
            rescale_factor: raw.rescale_factor.unwrap_or(default.rescale_factor),
            do_normalize: raw.do_normalize.unwrap_or(default.do_normalize),
            image_mean: raw.image_mean.map_or(default.image_mean, PerChannel::get),
            image_std: raw.image_std.map_or(default.image_std, PerChannel::get),
            do_pad: raw.do_pad.unwrap_or(default.do_pad),
            pad_size: raw.pad_size.map(|s| SizeSpec::from_raw(s, true)),
            image_grid_pinpoints: raw
                .image_grid_pinpoints
                .unwrap_or(default.image_grid_pinpoints),
        };
        config.check().map_err(wrong)?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        // Far above any tower's input, and low enough that no product overflows.
        const MOST: usize = 1 << 16;
        let sizes = [Some(self.size), self.crop_size, self.pad_size];
        for s in sizes.into_iter().flatten() {
            let all = [
                s.height,
                s.width,
                s.shortest_edge,
                s.longest_edge,
                s.max_height,
                s.max_width,
            ];
            if all.into_iter().flatten().any(|n| n > MOST) {
                return Err(format!("a size exceeds {MOST} pixels"));
            }
        }
        if self
            .image_grid_pinpoints
            .as_flattened()
            .iter()
            .any(|n| *n == 0 || *n > MOST)
        {
            return Err(format!(
                "`image_grid_pinpoints` must lie between 1 and {MOST}"
            ));
        }
        if self.kind == ProcessorKind::LlavaNext && self.image_grid_pinpoints.is_empty() {
            return Err("`image_grid_pinpoints` is empty".into());
        }
        if self.do_center_crop && self.crop_size.and_then(|s| s.as_exact()).is_none() {
            return Err("`crop_size` needs height and width".into());
        }
        let normal = |v: &[f64; 3]| v.iter().all(|x| x.is_finite());
        if !normal(&self.image_mean) || !normal(&self.image_std) || self.image_std.contains(&0.0) {
            return Err("`image_mean` and `image_std` must be finite, `image_std` not 0".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<ImageProcessorConfig> {
        ImageProcessorConfig::from_value(&value, None)
    }

    #[test]
    fn defaults_hang_on_the_type() {
        let clip = parse(json!({"image_processor_type": "CLIPImageProcessorFast"})).unwrap();
        assert_eq!(clip, ImageProcessorConfig::defaults(ProcessorKind::Clip));
        assert_eq!(clip.size, SizeSpec::shortest(224));
        assert!(clip.do_center_crop && !clip.do_pad);
        let siglip = parse(json!({"image_processor_type": "SiglipImageProcessor"})).unwrap();
        assert_eq!(
            (siglip.size, siglip.do_center_crop),
            (SizeSpec::exact(224, 224), false)
        );
        assert_eq!(siglip.image_mean, [0.5; 3]);
        let next = parse(json!({"image_processor_type": "LlavaNextImageProcessorPil"})).unwrap();
        assert_eq!(next.image_grid_pinpoints.len(), 5);
    }

    #[test]
    fn old_spellings_are_understood_and_null_is_the_default() {
        let old = parse(
            json!({"feature_extractor_type": "CLIPFeatureExtractor", "size": 336,
            "crop_size": 336, "image_mean": null, "do_resize": null, "resample": 2,
            "unknown_key": [1]}),
        )
        .unwrap();
        assert_eq!(old.size, SizeSpec::shortest(336));
        assert_eq!(old.crop_size, Some(SizeSpec::exact(336, 336)));
        assert_eq!((old.image_mean, old.do_resize), (CLIP_MEAN, true));
        assert_eq!(old.resample, Filter::Bilinear);
        let untyped = ImageProcessorConfig::from_value(&json!({}), Some("siglip")).unwrap();
        assert_eq!(untyped.kind, ProcessorKind::Siglip);
    }

    #[test]
    fn what_can_not_be_followed_is_named() {
        let message = |value| parse(value).unwrap_err().to_string();
        let unknown = message(json!({"image_processor_type": "ViTImageProcessor"}));
        assert!(unknown.contains("ViTImageProcessor") && unknown.contains("SiglipImageProcessor"));
        assert!(message(json!({})).contains("image_processor_type"));
        let kind = "CLIPImageProcessor";
        for (key, value) in [
            ("resample", json!(9)),
            ("crop_size", json!({"height": 3})),
            ("image_std", json!([0.0, 1.0, 1.0])),
            ("size", json!(1_000_000)),
        ] {
            let error = message(json!({"image_processor_type": kind, key: value}));
            assert!(
                error.starts_with("preprocessor_config.json"),
                "{key}: {error}"
            );
        }
    }
}
