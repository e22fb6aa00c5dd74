//! A video processor's configuration: how frames are chosen, and what becomes of each.

use crate::sample::FrameSampling;
use kiln_image::{ImageProcessorConfig, ProcessorKind};
use kiln_registry::{Error, InputContext, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

const FILE: &str = "video_preprocessor_config.json";
/// Far above any context, and low enough that dummy data of so many frames fits.
const MOST_FRAMES: usize = 4096;

/// Keys of an image processor that mean nothing, or something else, for a frame.
const NOT_FOR_FRAMES: [&str; 3] = ["image_grid_pinpoints", "feature_extractor_type", "do_pad"];

/// A video processor's configuration, every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoProcessorConfig {
    /// Which frames are taken.
    pub sampling: FrameSampling,
    /// What becomes of a frame: a picture's configuration, without tiles and padding.
    pub frame: ImageProcessorConfig,
}

#[derive(Deserialize, Default)]
struct Raw {
    do_sample_frames: Option<bool>,
    num_frames: Option<usize>,
    fps: Option<f64>,
    max_frames: Option<usize>,
}

impl VideoProcessorConfig {
    /// The configuration of a loaded checkpoint.
    ///
    /// The engine lays `video_preprocessor_config.json` and the object `video_processor` of
    /// `processor_config.json` into the processor's configuration as `video_processor`. Keys that it
    /// lacks are the image processor's (a saved one lacks none). As in the reference,
    /// `do_sample_frames`, `num_frames` and `fps` are unset where nobody sets them: then all frames
    /// are taken, up to `max_frames` (by default [`crate::DEFAULT_MAX_FRAMES`]). Given at the top level, where
    /// the caller's processor arguments are, they come first.
    ///
    /// # Errors
    /// As [`ImageProcessorConfig::from_value`], and [`Error::Checkpoint`] for a number of frames that
    /// makes no sense.
    pub fn from_context(ctx: &InputContext) -> Result<Self> {
        let model_type = ctx.config().get("model_type").and_then(Value::as_str);
        Self::from_value(ctx.processor(), model_type)
    }

    /// The configuration in a JSON object: see [`from_context`](Self::from_context).
    ///
    /// # Errors
    /// As there.
    pub fn from_value(value: &Value, model_type: Option<&str>) -> Result<Self> {
        let wrong = |message: String| Error::checkpoint(FILE, message);
        let own = match value.get("video_processor") {
            None | Some(Value::Null) => &Value::Object(Map::new()),
            Some(object @ Value::Object(_)) => object,
            Some(_) => return Err(wrong("`video_processor` is no object".into())),
        };
        let parse = |v: &Value| Raw::deserialize(v).map_err(|e| wrong(e.to_string()));
        let (over, below) = (parse(value)?, parse(own)?);
        let asked = over.num_frames.is_some() || over.fps.is_some();
        let sampled = over
            .do_sample_frames
            .or(asked.then_some(true))
            .or(below.do_sample_frames)
            .unwrap_or(true);
        let (num_frames, fps) = match (over.num_frames, over.fps) {
            _ if !sampled => (None, None),
            (None, None) => (below.num_frames, below.fps),
            given => given,
        };
        let max_frames = over.max_frames.or(below.max_frames);
        if [num_frames, max_frames]
            .into_iter()
            .flatten()
            .any(|n| !(1..=MOST_FRAMES).contains(&n))
        {
            return Err(wrong(format!(
                "`num_frames` and `max_frames` lie between 1 and {MOST_FRAMES}"
            )));
        }
        if fps.is_some_and(|fps| !(fps.is_finite() && fps > 0.0)) {
            return Err(wrong("`fps` must be a number above 0".into()));
        }
        let mut frame = value.as_object().cloned().unwrap_or_default();
        let tiles = frame
            .get("image_processor_type")
            .and_then(Value::as_str)
            .is_some_and(|name| {
                ProcessorKind::from_name(name).is_ok_and(|kind| kind == ProcessorKind::LlavaNext)
            });
        if tiles {
            frame.insert("image_processor_type".into(), "CLIPImageProcessor".into());
        }
        for key in NOT_FOR_FRAMES {
            frame.remove(key);
        }
        if let Some(own) = own.as_object() {
            let own = own.iter().filter(|(key, _)| {
                key.as_str() != "image_processor_type" && !NOT_FOR_FRAMES.contains(&key.as_str())
            });
            frame.extend(own.map(|(key, value)| (key.clone(), value.clone())));
        }
        let model_type = model_type.map(|name| match name {
            "llava_next" => "clip",
            other => other,
        });
        Ok(Self {
            sampling: FrameSampling {
                num_frames,
                fps,
                max_frames,
            },
            frame: ImageProcessorConfig::from_value(&Value::Object(frame), model_type)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_image::SizeSpec;
    use serde_json::json;

    fn parse(value: Value) -> Result<VideoProcessorConfig> {
        VideoProcessorConfig::from_value(&value, None)
    }

    #[test]
    fn a_frame_is_a_picture_unless_the_video_processor_says_otherwise() {
        let image = json!({"image_processor_type": "CLIPImageProcessor", "resample": 2});
        let same = parse(image.clone()).unwrap();
        assert_eq!(
            same.frame,
            ImageProcessorConfig::from_value(&image, None).unwrap()
        );
        assert_eq!(same.sampling, FrameSampling::default());
        let mut own = image;
        own["video_processor"] = json!({
            "video_processor_type": "LlavaNextVideoVideoProcessor",
            "size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336},
        });
        let own = parse(own).unwrap();
        assert_eq!(own.frame.size, SizeSpec::shortest(336));
        assert_eq!(own.frame.resample, same.frame.resample);
    }

    #[test]
    fn frames_have_no_tiles() {
        let next = json!({"image_processor_type": "LlavaNextImageProcessorFast", "do_pad": true,
            "image_grid_pinpoints": [[336, 672]]});
        let frame = parse(next).unwrap().frame;
        assert_eq!((frame.kind, frame.do_pad), (ProcessorKind::Clip, false));
    }

    #[test]
    fn the_callers_sampling_comes_first() {
        let with = |top: Value, own: Value| {
            let mut value = json!({"image_processor_type": "CLIPImageProcessor"});
            value
                .as_object_mut()
                .unwrap()
                .extend(top.as_object().unwrap().clone());
            value["video_processor"] = own;
            parse(value).unwrap().sampling
        };
        let sampling = |num_frames, fps, max_frames| FrameSampling {
            num_frames,
            fps,
            max_frames,
        };
        assert_eq!(
            with(json!({}), json!({"num_frames": 8})),
            sampling(Some(8), None, None)
        );
        assert_eq!(
            with(json!({"fps": 2}), json!({"num_frames": 8, "max_frames": 9})),
            sampling(None, Some(2.0), Some(9))
        );
        let off = json!({"num_frames": 8, "do_sample_frames": false});
        assert_eq!(with(json!({}), off.clone()), sampling(None, None, None));
        assert_eq!(
            with(json!({"num_frames": 4}), off),
            sampling(Some(4), None, None)
        );
    }

    #[test]
    fn what_can_not_be_followed_is_named() {
        for own in [
            json!({"num_frames": 0}),
            json!({"num_frames": 1_000_000}),
            json!({"max_frames": 0}),
            json!({"fps": 0}),
            json!({"fps": "many"}),
            json!([1]),
        ] {
            let value =
                json!({"image_processor_type": "CLIPImageProcessor", "video_processor": own});
            let error = parse(value).unwrap_err().to_string();
            assert!(error.starts_with(FILE), "{error}");
        }
    }
}
