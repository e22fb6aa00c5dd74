//! Bytes to samples: format by the bytes, limits by the header where it says how long it is, and
//! packet by packet in any case.
//!
//! Channels are averaged as packets come, so what is held grows with the seconds alone. Messages
//! are fixed texts, as those of pictures.

use crate::sniff::{self, Format, damaged, unsupported};
use crate::sound::{self, Sound};
use kiln_registry::{DecodeLimits, Error, MediaItem, Result};
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as Fault;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;
use symphonia::default::formats::{FlacReader, OggReader, WavReader};

/// Samples that one item may have, whatever its rate: as much memory as the largest picture takes.
/// 17 minutes at 48 kHz, 52 at 16 kHz.
const MOST_SAMPLES: u64 = 48 << 20;

/// Decodes a sound.
///
/// # Shapes
/// The item's content: f32 `[samples]`, the mean of all channels; beside it [`crate::SAMPLING_RATE`].
///
/// # Errors
/// [`Error::InvalidInput`] for bytes that are no audio of an accepted format, are damaged or cut
/// short, have no sample or one that is no number, or exceed the limits.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<MediaItem> {
    let format = sniff::sniff(bytes)?;
    // A fault of a decoder must not take the pool's thread along.
    let (samples, rate) = catch_unwind(AssertUnwindSafe(|| decode_as(format, bytes, limits)))
        .unwrap_or_else(|_| Err(damaged()))?;
    if samples.is_empty() {
        return Err(Error::invalid("the audio has no samples"));
    }
    sound::check_samples(&samples)?;
    Sound::item(samples, rate)
}

fn decode_as(format: Format, bytes: &[u8], limits: &DecodeLimits) -> Result<(Vec<f32>, u32)> {
    let mut reader = open(format, bytes)?;
    let track = reader
        .default_track(TrackType::Audio)
        .ok_or_else(unsupported)?;
    let id = track.id;
    let parameters = track.codec_params.as_ref().and_then(|p| p.audio());
    let parameters = parameters.ok_or_else(unsupported)?;
    let rate = sound::check_rate(parameters.sample_rate.ok_or_else(damaged)?)?;
    let most = (limits.max_seconds.max(0.0) * f64::from(rate)) as u64;
    let bound = Bound {
        seconds: limits.max_seconds,
        samples: most.min(MOST_SAMPLES),
    };
    let announced = track.num_frames;
    bound.check(announced.unwrap_or(0))?;
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(parameters, &AudioDecoderOptions::default())
        .map_err(failed)?;
    let samples = collect(reader.as_mut(), decoder.as_mut(), id, format, rate, &bound)?;
    // What the header promises must be there. MP3's promise counts what players cut off.
    if format != Format::Mp3 && announced.is_some_and(|n| (samples.len() as u64) < n) {
        return Err(damaged());
    }
    Ok((samples, rate))
}

fn open(format: Format, bytes: &[u8]) -> Result<Box<dyn FormatReader + '_>> {
    if format == Format::Wav && !wav_is_whole(bytes) {
        return Err(damaged());
    }
    let source = Box::new(Cursor::new(bytes));
    let stream = MediaSourceStream::new(source, MediaSourceStreamOptions::default());
    let options = FormatOptions::default();
    Ok(match format {
        Format::Wav => Box::new(WavReader::try_new(stream, options).map_err(failed)?),
        Format::Flac => Box::new(FlacReader::try_new(stream, options).map_err(failed)?),
        Format::Ogg => Box::new(OggReader::try_new(stream, options).map_err(failed)?),
        // Only the prober reads past a tag in front.
        Format::Mp3 => symphonia::default::get_probe()
            .probe(
                &Default::default(),
                stream,
                options,
                MetadataOptions::default(),
            )
            .map_err(failed)?,
    })
}

/// What may come, at most.
struct Bound {
    seconds: f64,
    samples: u64,
}

impl Bound {
    fn check(&self, samples: u64) -> Result<()> {
        if samples <= self.samples {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the audio lasts longer than {} seconds or has more than {MOST_SAMPLES} samples, the limits",
            self.seconds
        )))
    }
}

fn collect(
    reader: &mut dyn FormatReader,
    decoder: &mut dyn AudioDecoder,
    track: u32,
    format: Format,
    rate: u32,
    bound: &Bound,
) -> Result<Vec<f32>> {
    let (mut samples, mut packet_samples) = (Vec::new(), Vec::<f32>::new());
    loop {
        let packet = match reader.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(samples),
            Err(Fault::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return if format == Format::Mp3 {
                    Ok(samples)
                } else {
                    Err(damaged())
                };
            }
            Err(error) => return Err(failed(error)),
        };
        if packet.track_id != track {
            continue;
        }
        let decoded = match decoder.decode(&packet) {
            Ok(decoded) => decoded,
            // An MP3 that was cut out of a longer one begins with frames that lean on lost ones.
            Err(Fault::DecodeError(_)) if format == Format::Mp3 && samples.is_empty() => continue,
            Err(error) => return Err(failed(error)),
        };
        if decoded.spec().rate() != rate {
            return Err(unsupported());
        }
        let channels = decoded.spec().channels().count();
        bound.check(samples.len() as u64 + decoded.frames() as u64)?;
        packet_samples.clear();
        decoded.copy_to_vec_interleaved(&mut packet_samples);
        match channels {
            0 => return Err(damaged()),
            1 => samples.extend_from_slice(&packet_samples),
            n => {
                let frames = packet_samples.chunks_exact(n);
                samples.extend(frames.map(|frame| frame.iter().sum::<f32>() / n as f32));
            }
        }
    }
}

/// Whether the chunk of samples is as long as it says. A writer that could not know writes the
/// largest length there is.
fn wav_is_whole(bytes: &[u8]) -> bool {
    let mut at = 12usize;
    loop {
        let Some(&[a, b, c, d, l0, l1, l2, l3]) = bytes.get(at..at.saturating_add(8)) else {
            return false;
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let end = at.saturating_add(8).saturating_add(length as usize);
        if [a, b, c, d] == *b"data" {
            return length == u32::MAX || end <= bytes.len();
        }
        // Chunks begin at even places.
        at = end.saturating_add(end % 2);
    }
}

fn failed(error: Fault) -> Error {
    match error {
        Fault::Unsupported(_) => unsupported(),
        _ => damaged(),
    }
}
