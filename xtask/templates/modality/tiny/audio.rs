//! The model about sounds.

use super::media::check;
use kiln_registry::{HostTensor, MediaItem};

/// A sound that is another one for each length and seed.
fn sound(samples: usize, seed: usize) -> MediaItem {
    let wave = (0..samples).map(|at| (at * (seed + 3) % 101) as f32 / 101.0 - 0.5);
    let tensor = HostTensor::f32([samples], wave.collect()).unwrap();
    MediaItem::raw("audio", tensor)
}

#[test]
fn it_answers_about_a_sound() {
    let sounds = [
        sound(9000, 1),
        sound(9000, 2),
        sound(1, 3),
        sound(161, 4),
        sound(50_000, 5),
    ];
    check("audio", "<audio>", &sounds);
}
