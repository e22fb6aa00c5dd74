"""Writes the goldens of modalities/video: animations and what Pillow shows of them, and the frames
that transformers' video processors choose. Run from the repository root, in an environment with
pillow, numpy, torch and transformers:

    python xtask/python/video_goldens.py modalities/video/tests-data
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

FRAMES, WIDTH, HEIGHT = 5, 12, 8


def frames() -> list:
    """A square that wanders over a gradient: later frames change a part of the canvas only."""
    out = []
    for index in range(FRAMES):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        pixels[..., 0] = np.arange(WIDTH) * 20
        pixels[..., 1] = (np.arange(HEIGHT) * 30)[:, None]
        pixels[2:5, index * 2:index * 2 + 3] = (255, 40 * index, 0)
        out.append(Image.fromarray(pixels))
    return out


def animation(name: str, save: dict, picture=lambda p: p) -> dict:
    first, *rest = [picture(frame) for frame in frames()]
    file = io.BytesIO()
    first.save(file, save_all=True, append_images=rest, duration=[40, 50, 100, 200, 70], loop=0, **save)
    shown, times = [], [0]
    with Image.open(io.BytesIO(file.getvalue())) as opened:
        for frame in ImageSequence.Iterator(opened):
            shown.append(frame.convert("RGB").tobytes().hex())
            times.append(times[-1] + int(frame.info["duration"]))
    return {"name": name, "file": file.getvalue().hex(), "frames": shown, "times": times,
            "height": HEIGHT, "width": WIDTH}


def sampling() -> list:
    cases = []
    for total, fps, num_frames, wanted in [
        (10, 10.0, 4, None), (30, 10.0, None, 2.0), (30, 29.97, None, 2.0), (7, 24.0, 7, None),
        (97, 24.0, None, 1.0), (97, 25.0, None, 3.3), (5, 60.0, None, 1.0), (31, 30.0, 16, None),
    ]:
        metadata = VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps)
        indices = default_sample_indices_fn(metadata, num_frames=num_frames, fps=wanted)
        cases.append({"total": total, "seconds": total / fps, "num_frames": num_frames, "fps": wanted,
                      "indices": [int(i) for i in indices]})
    return cases


def still(save: dict) -> str:
    file = io.BytesIO()
    frames()[0].save(file, **save)
    return file.getvalue().hex()


def main() -> None:
    palette = frames()[0].quantize(64)
    goldens = {
        "animations": [
            animation("gif", {"format": "GIF"}, lambda p: p.quantize(64, dither=Image.Dither.NONE)),
            animation("gif-dispose", {"format": "GIF", "disposal": 1},
                      lambda p: p.quantize(palette=palette, dither=Image.Dither.NONE)),
            animation("webp", {"format": "WEBP", "lossless": True}),
            animation("apng", {"format": "PNG"}),
            animation("apng-palette", {"format": "PNG"}, lambda p: p.quantize(64)),
        ],
        "sampling": sampling(),
        "stills": {"gif": still({"format": "GIF"}), "png": still({"format": "PNG"}),
                   "webp": still({"format": "WEBP", "lossless": True})},
    }
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "modalities/video/tests-data")
    (out / "video.json").write_text(json.dumps(goldens, indent=1) + "\n")


main()
