//! Files that lie, are cut short, or hold what is no sound: each an answer of a fixed text.

use crate::decode;
use crate::goldens::FILES;
use crate::sound::Sound;
use kiln_registry::{DecodeLimits, Error};

fn refusal(bytes: &[u8], limits: &DecodeLimits) -> String {
    let error = decode(bytes, limits).unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    error.to_string()
}

/// A WAV of 32-bit floats.
fn wav(rate: u32, channels: u16, samples: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
    let block = 4 * channels;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + data.len() as u32).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x03\0");
    file.extend(channels.to_le_bytes());
    file.extend(rate.to_le_bytes());
    file.extend((rate.wrapping_mul(u32::from(block))).to_le_bytes());
    file.extend(block.to_le_bytes());
    file.extend(32u16.to_le_bytes());
    file.extend(b"data");
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file
}

#[test]
fn a_cut_file_is_refused_or_shorter() {
    for (name, file, _) in FILES {
        let whole = decode(file, &DecodeLimits::default()).unwrap();
        let whole = Sound::from_item(&whole).unwrap().samples().len();
        for end in (0..file.len()).step_by(3) {
            match decode(&file[..end], &DecodeLimits::default()) {
                Err(error) => assert!(error.is_callers_fault(), "{name}: {error}"),
                // A stream that does not say how long it is ends where it ends.
                Ok(item) => {
                    let samples = Sound::from_item(&item).unwrap().samples().len();
                    let stream = name.ends_with("mp3") || name.ends_with("ogg");
                    assert!(
                        stream && samples <= whole,
                        "{name} cut at {end} of {}",
                        file.len()
                    );
                }
            }
        }
    }
}

#[test]
fn a_flipped_byte_is_an_answer() {
    for (name, file, _) in FILES {
        // Headers byte by byte, the rest here and there.
        let places = (0..file.len()).filter(|at| *at < 200 || at % 17 == 0);
        for at in places {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = file.to_vec();
                bad[at] ^= flip;
                if let Err(error) = decode(&bad, &DecodeLimits::default()) {
                    assert!(error.is_callers_fault(), "{name} at {at}: {error}");
                }
            }
        }
    }
}

#[test]
fn limits_hold() {
    for (name, file, _) in FILES {
        let limits = DecodeLimits {
            max_seconds: 0.02,
            ..DecodeLimits::default()
        };
        let error = refusal(file, &limits);
        assert!(
            error.contains("longer than 0.02 seconds"),
            "{name}: {error}"
        );
        for none in [0.0, -1.0, f64::NAN] {
            refusal(
                file,
                &DecodeLimits {
                    max_seconds: none,
                    ..DecodeLimits::default()
                },
            );
        }
    }
}

#[test]
fn samples_that_are_no_numbers_are_refused() {
    let limits = DecodeLimits::default();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
        let error = refusal(&wav(16_000, 1, &[0.0, bad]), &limits);
        assert!(error.contains("no numbers"), "{error}");
    }
    let cancelled = wav(
        16_000,
        2,
        &[f32::MAX, -f32::MAX, f32::INFINITY, f32::NEG_INFINITY],
    );
    refusal(&cancelled, &limits);
    assert!(decode(&wav(16_000, 1, &[0.0, 1.5]), &limits).is_ok());
}

#[test]
fn headers_that_lie_cost_nothing() {
    let limits = DecodeLimits::default();
    assert!(refusal(&wav(16_000, 1, &[]), &limits).contains("no samples"));
    for rate in [0, 1, 999, 400_000, u32::MAX] {
        refusal(&wav(rate, 1, &[0.0; 8]), &limits);
    }
    for channels in [0, 65_535] {
        refusal(&wav(16_000, channels, &[0.0; 8]), &limits);
    }
    // A chunk of samples longer than the file.
    let mut long = wav(16_000, 1, &[0.0; 8]);
    long[40..44].copy_from_slice(&0x7fff_fff0u32.to_le_bytes());
    assert!(refusal(&long, &limits).contains("cut short"));
    // FLAC's own count of samples: 36 bits behind the rate, so a day and more.
    let flac = FILES
        .iter()
        .find(|(name, ..)| *name == "mono.flac")
        .unwrap()
        .1;
    let mut day = flac.to_vec();
    day[21] |= 0x0f;
    assert!(refusal(&day, &limits).contains("longer than 1800 seconds"));
    for text in [
        &b"ID3\x04\0\0\x7f\x7f\x7f\x7f"[..],
        b"OggS\0\x02",
        b"fLaC\0\0\0\x22",
        b"RIFF\0\0\0\0WAVE",
    ] {
        refusal(text, &limits);
    }
}
