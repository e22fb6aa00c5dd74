//! A video item: frames, and when each is shown.

use crate::{FrameSampling, MODALITY};
use kiln_registry::{Error, HostTensor, MediaItem, NamedTensors, Result};

/// The tensor of an item that says when frames are shown: i64 `[frames + 1]`, milliseconds from
/// the start; the last is the end of the last frame.
pub const FRAME_TIMES: &str = "frame_times";

/// What the reference assumes of a video that says nothing of time.
const DEFAULT_FPS: f64 = 24.0;

/// The frames of a decoded item.
#[derive(Debug, Clone, Copy)]
pub struct Clip<'a> {
    frames: usize,
    height: usize,
    width: usize,
    data: &'a [u8],
    times: Option<&'a [i64]>,
}

impl<'a> Clip<'a> {
    /// The frames of an item. An item without times is taken to have 24 frames a second.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when there is no frame or no pixel; [`Error::Internal`] when the
    /// content is no u8 `[frames, height, width, 3]`, or the times are not one more than the frames.
    pub fn from_item(item: &'a MediaItem) -> Result<Self> {
        let content = item.content()?;
        let (&[frames, height, width, 3], Some(data)) = (content.shape(), content.as_u8()) else {
            return Err(Error::internal(format!(
                "a video item holds {} {:?}, not u8 [frames, height, width, 3]",
                content.data().dtype(),
                content.shape()
            )));
        };
        if data.is_empty() {
            return Err(Error::invalid("the video has no frames"));
        }
        let times = match item.tensors().get(FRAME_TIMES) {
            None => None,
            Some(_) => match item.tensors().require_i64::<1>(FRAME_TIMES)? {
                ([len], times) if len == frames + 1 => Some(times),
                ([len], _) => {
                    return Err(Error::internal(format!(
                        "a video of {frames} frames holds {len} `{FRAME_TIMES}`"
                    )));
                }
            },
        };
        Ok(Self {
            frames,
            height,
            width,
            data,
            times,
        })
    }

    /// An item of frames that are there already.
    ///
    /// # Shapes
    /// `pixels`: u8 `[frames, height, width, 3]`; `times`: as [`FRAME_TIMES`].
    ///
    /// # Errors
    /// [`Error::Internal`] when the shape does not hold exactly the pixels.
    pub fn item(shape: [usize; 3], pixels: Vec<u8>, times: Vec<i64>) -> Result<MediaItem> {
        let [frames, height, width] = shape;
        let content = HostTensor::u8([frames, height, width, 3], pixels)?;
        let tensors = NamedTensors::new()
            .with(MediaItem::CONTENT, content)
            .with(FRAME_TIMES, HostTensor::i64([times.len()], times)?);
        Ok(MediaItem::raw_with(MODALITY, tensors))
    }

    /// A black video of which as many frames are taken as of any.
    ///
    /// # Errors
    /// None in practice: the shape is made of the sizes.
    pub fn longest(sampling: &FrameSampling, height: usize, width: usize) -> Result<MediaItem> {
        let frames = sampling.most();
        // A second more than `fps` needs, whatever its rounding.
        let seconds = sampling.fps.map_or(1.0, |fps| frames as f64 / fps + 1.0);
        let end = (seconds * 1000.0) as i64;
        let times = (0..=frames as i64)
            .map(|at| (i128::from(end) * i128::from(at) / frames as i128) as i64);
        let pixels = vec![0; frames * height * width * 3];
        Self::item([frames, height, width], pixels, times.collect())
    }

    /// How many frames.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Pixels from top to bottom.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Pixels from left to right.
    pub fn width(&self) -> usize {
        self.width
    }

    /// How long it lasts, in seconds.
    pub fn seconds(&self) -> f64 {
        match self.times {
            Some([first, .., last]) => last.saturating_sub(*first) as f64 / 1000.0,
            _ => self.frames as f64 / DEFAULT_FPS,
        }
    }

    /// The pixels of a frame, `[height, width, 3]`; empty behind the last.
    pub fn frame(&self, index: usize) -> &'a [u8] {
        let size = self.height * self.width * 3;
        let at = index.saturating_mul(size);
        self.data.get(at..at.saturating_add(size)).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_clip_is_an_error() {
        let item = |shape: &[usize]| {
            let len = shape.iter().product();
            MediaItem::raw(MODALITY, HostTensor::u8(shape, vec![0; len]).unwrap())
        };
        assert!(Clip::from_item(&item(&[2, 3, 4, 3])).is_ok());
        for shape in [&[0, 3, 4, 3][..], &[2, 0, 4, 3]] {
            let error = Clip::from_item(&item(shape)).unwrap_err();
            assert!(error.is_callers_fault(), "{error}");
        }
        assert!(Clip::from_item(&item(&[3, 4, 3])).is_err());
        assert!(Clip::from_item(&item(&[2, 3, 4, 4])).is_err());
        let short = Clip::item([2, 1, 1], vec![0; 6], vec![0, 40]).unwrap();
        assert!(Clip::from_item(&short).is_err());
    }

    #[test]
    fn times_are_part_of_the_identity() {
        let of = |times| Clip::item([2, 1, 1], vec![7; 6], times).unwrap().hash();
        assert_eq!(of(vec![0, 40, 80]), of(vec![0, 40, 80]));
        assert_ne!(of(vec![0, 40, 80]), of(vec![0, 40, 90]));
    }

    #[test]
    fn the_longest_reaches_the_most() {
        for (num_frames, fps, max_frames) in [
            (None, None, None),
            (Some(7), None, None),
            (None, Some(0.3), Some(9)),
            (None, Some(1e-6), None),
            (None, Some(240.0), Some(3)),
        ] {
            let sampling = FrameSampling {
                num_frames,
                fps,
                max_frames,
            };
            let item = Clip::longest(&sampling, 2, 3).unwrap();
            let clip = Clip::from_item(&item).unwrap();
            assert_eq!(
                sampling.count(clip.frames(), clip.seconds()),
                sampling.most()
            );
        }
    }

    #[test]
    fn frames_and_seconds() {
        let item = Clip::item([2, 1, 1], vec![1, 2, 3, 4, 5, 6], vec![0, 500, 1500]).unwrap();
        let clip = Clip::from_item(&item).unwrap();
        assert_eq!((clip.frame(1), clip.seconds()), (&[4, 5, 6][..], 1.5));
        assert_eq!(clip.frame(2), [0; 0]);
        let raw = HostTensor::u8([12, 1, 1, 3], vec![0; 36]).unwrap();
        let raw = MediaItem::raw(MODALITY, raw);
        assert_eq!(Clip::from_item(&raw).unwrap().seconds(), 0.5);
    }
}
