//! Which frames a model sees.

/// The most frames of a video where the configuration sets no bound.
pub const DEFAULT_MAX_FRAMES: usize = 32;

/// How frames are chosen from a video.
///
/// The reference's `default_sample_indices_fn`: `num_frames` spread evenly, or as many as `fps` asks
/// for, or all. Two things are this crate's, since the reference fails or has no bound there: a video
/// of fewer frames than asked for gives all it has, and there are never more than
/// [`most`](Self::most), because a model declares the most tokens that an item can take.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FrameSampling {
    /// How many frames; comes before `fps`.
    pub num_frames: Option<usize>,
    /// How many frames of each second.
    pub fps: Option<f64>,
    /// The most, whatever the others say.
    pub max_frames: Option<usize>,
}

impl FrameSampling {
    /// The most frames that are taken of any video.
    pub fn most(&self) -> usize {
        match (self.num_frames, self.max_frames) {
            (Some(n), Some(most)) => n.min(most),
            (Some(n), None) => n,
            (None, most) => most.unwrap_or(DEFAULT_MAX_FRAMES),
        }
        .max(1)
    }

    /// How many frames are taken of a video of `total` frames that lasts `seconds`.
    pub fn count(&self, total: usize, seconds: f64) -> usize {
        let wanted = match (self.num_frames, self.fps) {
            (Some(n), _) => n,
            // The reference's order of operations; a cast saturates, and takes NaN to 0.
            (None, Some(fps)) => (total as f64 / (total as f64 / seconds) * fps) as usize,
            (None, None) => total,
        };
        wanted.max(1).min(total).min(self.most())
    }

    /// The frames that are taken, in order: `i * total / count` for each `i`.
    pub fn indices(&self, total: usize, seconds: f64) -> Vec<usize> {
        let count = self.count(total, seconds);
        (0..count)
            .map(|i| (i as u128 * total as u128 / count as u128) as usize)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_are_spread_as_in_the_reference() {
        let n = |n| FrameSampling {
            num_frames: Some(n),
            ..FrameSampling::default()
        };
        assert_eq!(n(4).indices(10, 1.0), [0, 2, 5, 7]);
        assert_eq!(n(3).indices(3, 1.0), [0, 1, 2]);
        assert_eq!(n(8).indices(3, 1.0), [0, 1, 2], "no more than there are");
        let fps = |fps| FrameSampling {
            fps: Some(fps),
            ..FrameSampling::default()
        };
        assert_eq!(fps(2.0).indices(30, 3.0), [0, 5, 10, 15, 20, 25]);
        assert_eq!(fps(0.1).indices(30, 3.0), [0], "at least one");
        assert_eq!(fps(2.0).count(1, 0.0), 1, "no duration is no fault");
        let all = FrameSampling::default();
        assert_eq!(all.indices(3, 1.0), [0, 1, 2]);
        assert_eq!(all.count(1000, 1.0), DEFAULT_MAX_FRAMES);
        assert_eq!(all.indices(0, 0.0), [0; 0]);
    }

    proptest! {
        #[test]
        fn indices_are_in_order_inside_and_no_more_than_the_most(
            total in 1usize..5000,
            num_frames in prop::option::of(0usize..100),
            fps in prop::option::of(prop::num::f64::ANY),
            max_frames in prop::option::of(0usize..100),
            seconds in prop::num::f64::ANY,
        ) {
            let sampling = FrameSampling { num_frames, fps, max_frames };
            let indices = sampling.indices(total, seconds);
            prop_assert!((1..=sampling.most()).contains(&indices.len()));
            prop_assert!(indices.windows(2).all(|w| w[0] < w[1]));
            prop_assert!(indices.iter().all(|i| *i < total));
        }
    }
}
