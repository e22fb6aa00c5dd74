"""Writes the goldens of modalities/audio and of the audio tower in models/nn: small sound files and
what libsndfile reads from them, WhisperFeatureExtractor's features, and WhisperEncoder's output on
random weights. Run from the repository root, in an environment with the packages of
requirements.txt:

    python xtask/python/audio_goldens.py

Sounds to extract features from come from a formula that the Rust tests know.
"""

import io
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

AUDIO = Path("modalities/audio/tests-data")
TOWER = Path("models/nn/tests-data")


def sound(length: int, seed: int) -> np.ndarray:
    """A triangle that rises in pitch, noise, and silence between; `goldens::sound` in Rust."""
    state, phase, out = seed, 0, []
    for index in range(length):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        phase = (phase + 1000 + index // 4) & 0xFFFF
        triangle = phase if phase < 0x8000 else 0xFFFF - phase
        noise = (state >> 22) - 512
        quiet = index // 2000 % 4 == 3
        out.append(0 if quiet else (triangle - 0x4000) // 2 + noise)
    return (np.array(out, np.float64) / 32768).astype(np.float32)


def features() -> list:
    """Cases and, one behind the other, every `step`th frame of their features."""
    cases, data = [], b""
    for name, keys, length, step in [
        ("short", {"chunk_length": 1}, 11_700, 2),
        ("one-sample", {"chunk_length": 1}, 1, 4),
        ("cut", {"chunk_length": 1, "feature_size": 128}, 40_000, 4),
        ("full", {"chunk_length": 1}, 15_990, 4),
        ("other-sizes", {"chunk_length": 2, "n_fft": 512, "hop_length": 250, "sampling_rate": 22_050}, 30_000, 4),
        ("whisper", {}, 100_000, 60),
    ]:
        extractor = WhisperFeatureExtractor(**keys)
        out = extractor(sound(length, 7), sampling_rate=extractor.sampling_rate, return_attention_mask=True)
        padded = np.zeros(extractor.n_samples, np.float32)
        kept = sound(length, 7)[: extractor.n_samples]
        padded[: len(kept)] = kept
        wide = extractor._np_extract_fbank_features(padded[None], "cpu")[0]
        print(name, out["input_features"].shape, "torch against numpy:", np.abs(out["input_features"][0] - wide).max())
        data += wide[:, ::step].astype("<f4").tobytes()
        cases.append({"name": name, "config": keys, "length": length, "step": step, "frames": wide.shape[1],
                      "valid": int(out["attention_mask"][0].sum())})
    (AUDIO / "features.f32").write_bytes(data)
    return cases


def files() -> list:
    cases = []
    for name, kind, subtype, rate, channels in [
        ("mono.wav", "WAV", "PCM_16", 16_000, 1),
        ("stereo.wav", "WAV", "PCM_24", 44_100, 2),
        ("float.wav", "WAV", "FLOAT", 22_050, 1),
        ("mono.flac", "FLAC", "PCM_16", 16_000, 1),
        ("stereo.flac", "FLAC", "PCM_24", 48_000, 2),
        ("mono.ogg", "OGG", "VORBIS", 16_000, 1),
        ("stereo.ogg", "OGG", "VORBIS", 44_100, 2),
        ("mono.mp3", "MP3", "MPEG_LAYER_III", 16_000, 1),
        ("stereo.mp3", "MP3", "MPEG_LAYER_III", 44_100, 2),
    ]:
        length = rate // 24
        time = np.arange(length) / rate
        left = 0.4 * np.sin(2 * np.pi * (300 + 900 * time) * time)
        right = 0.2 * np.sin(2 * np.pi * 1000 * time)
        data = left if channels == 1 else np.stack([left, right], 1)
        file = io.BytesIO()
        soundfile.write(file, data, rate, format=kind, subtype=subtype)
        (AUDIO / name).write_bytes(file.getvalue())
        read, _ = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32", always_2d=True)
        (AUDIO / f"{name}.f32").write_bytes(read.mean(axis=1).astype("<f4").tobytes())
        cases.append({"name": name, "rate": rate, "samples": len(read)})
    return cases


def tower() -> None:
    torch.manual_seed(5)
    config = WhisperConfig(d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=48,
                           num_mel_bins=16, max_source_positions=20, activation_function="gelu",
                           attn_implementation="eager")
    encoder = WhisperEncoder(config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    mel = torch.randn(2, 16, 40)
    with torch.no_grad():
        out = encoder(mel).last_hidden_state
    tensors = {f"encoder.{name}": value.contiguous() for name, value in encoder.state_dict().items()}
    tensors |= {"input_features": mel, "last_hidden_state": out}
    TOWER.mkdir(exist_ok=True)
    save_file(tensors, TOWER / "audio_tower.safetensors")
    keys = ["d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins",
            "max_source_positions", "activation_function", "model_type"]
    (TOWER / "audio_tower.json").write_text(json.dumps({key: getattr(config, key) for key in keys}, indent=1) + "\n")


def main() -> None:
    AUDIO.mkdir(exist_ok=True)
    goldens = {"features": features(), "files": files()}
    (AUDIO / "audio.json").write_text(json.dumps(goldens, indent=1) + "\n")
    tower()


main()
