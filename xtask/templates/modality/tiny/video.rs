//! The model about videos.

use super::media::check;
use kiln_registry::{HostTensor, MediaItem};

/// A video that is another one for each size and seed.
fn video(frames: usize, width: usize, height: usize, seed: usize) -> MediaItem {
    let bytes = frames * width * height * 3;
    let pixels = (0..bytes).map(|at| (at * 31 + at / 7 * seed + seed * 53) as u8);
    let tensor = HostTensor::u8([frames, height, width, 3], pixels.collect()).unwrap();
    MediaItem::raw("video", tensor)
}

#[test]
fn it_answers_about_a_video() {
    let videos = [
        video(3, 40, 30, 1),
        video(3, 40, 30, 2),
        video(1, 1, 1, 3),
        video(2, 90, 1, 4),
        video(50, 28, 28, 5),
    ];
    check("video", "<video>", &videos);
}
