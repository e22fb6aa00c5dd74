"""Writes the goldens of modalities/image: what Pillow and Hugging Face's Pillow processors make
of small pictures. Run from the repository root, in an environment with pillow, numpy, torch and
transformers:

    python xtask/python/pillow_goldens.py modalities/image/tests-data

Pictures to resize come from a formula that the Rust tests know, so only results are stored; long
results are stored as FNV-1a hashes.
"""

import io
import json
import math
import random
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil


def fnv(data: bytes) -> str:
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def picture(width: int, height: int) -> Image.Image:
    """Gradients, an edge and noise; `goldens::picture` in Rust."""
    state = (width * 31 + height) & 0xFFFFFFFF
    out = bytearray()
    for y in range(height):
        for x in range(width):
            state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
            noise = state >> 24
            out.append((x * 255 // max(width - 1, 1) + noise // 8) & 255)
            out.append(255 if (x + y) % 7 < 2 else noise // 4)
            out.append(noise if y % 3 == 0 else y * 255 // max(height - 1, 1))
    return Image.frombytes("RGB", (width, height), bytes(out))


def resize_cases() -> list:
    sizes = [
        ((1, 1), (1, 1)), ((1, 1), (7, 5)), ((7, 5), (1, 1)), ((2, 2), (3, 3)), ((3, 3), (2, 2)),
        ((5, 7), (10, 14)), ((10, 14), (5, 7)), ((13, 11), (29, 31)), ((31, 29), (11, 13)),
        ((64, 48), (33, 21)), ((64, 48), (64, 21)), ((64, 48), (33, 48)), ((64, 48), (127, 96)),
        ((100, 3), (3, 100)), ((3, 100), (100, 3)), ((200, 150), (224, 224)), ((97, 89), (24, 24)),
        ((255, 1), (17, 4)), ((1, 255), (4, 17)), ((300, 200), (7, 9)), ((17, 23), (17, 23)),
        ((640, 480), (224, 168)), ((41, 43), (336, 350)),
        # Either order of the passes, and the border between them.
        ((24, 24), (30, 12)), ((100, 100), (75, 50)), ((100, 100), (76, 50)), ((20, 100), (1, 50)),
        ((50, 90), (48, 85)), ((50, 90), (48, 86)),
    ]
    cases = []
    for source, target in sizes:
        for number in range(6):
            done = picture(*source).resize(target, resample=number)
            cases.append([*source, *target, number, fnv(done.tobytes())])
    return cases


def loaded(data: bytes) -> Image.Image:
    """`transformers.image_utils.load_image` on bytes."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width, height, bits, color, rows, extra=b"") -> bytes:
    """A PNG of modes that Pillow reads but can't write."""
    import zlib

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def mode_files() -> list:
    width, height = 7, 5
    base = picture(width, height)
    alpha = Image.frombytes("L", base.size, bytes((i * 37) & 255 for i in range(width * height)))
    rgba = base.copy()
    rgba.putalpha(alpha)
    palette = base.quantize(8)
    grey16 = Image.fromarray((np.arange(35, dtype=np.uint32) * 1871 % 65536).astype(np.uint16).reshape(5, 7))
    floats = Image.fromarray((np.arange(35, dtype=np.float32) * 9.7 - 20).reshape(5, 7))
    ints = Image.fromarray((np.arange(35, dtype=np.int32) * 19 - 50).reshape(5, 7))
    cmyk = Image.merge("CMYK", [*base.split(), alpha])
    random.seed(7)
    noise = lambda n: bytes(random.randrange(256) for _ in range(n))
    rows = lambda n: [noise(n) for _ in range(height)]

    def chunk(name, body):
        import zlib

        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    files = {
        "png-1": saved(base.convert("1"), "PNG"),
        "png-l": saved(base.convert("L"), "PNG"),
        "png-la": saved(rgba.convert("LA"), "PNG"),
        "png-rgb": saved(base, "PNG"),
        "png-rgba": saved(rgba, "PNG"),
        "png-p": saved(palette, "PNG"),
        "png-p-transparent": saved(palette, "PNG", transparency=bytes([0, 90, 255])),
        "png-rgb-transparent": saved(base, "PNG", transparency=base.getpixel((1, 1))),
        "png-l-transparent": saved(base.convert("L"), "PNG", transparency=3),
        "png-i16": saved(grey16, "PNG"),
        "png-i16-transparent": png(7, 5, 16, 0, rows(14), chunk(b"tRNS", b"\0\7")),
        "png-l2": png(7, 5, 2, 0, rows(2)),
        "png-l4": png(7, 5, 4, 0, rows(4)),
        "png-rgb16": png(7, 5, 16, 2, rows(42)),
        "png-la16": png(7, 5, 16, 4, rows(28)),
        "png-rgba16": png(7, 5, 16, 6, rows(56)),
        "gif-p": saved(palette, "GIF"),
        "gif-l": saved(base.convert("L"), "GIF"),
        "gif-transparent": saved(palette, "GIF", transparency=2),
        "gif-animated": saved(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        "bmp-1": saved(base.convert("1"), "BMP"),
        "bmp-l": saved(base.convert("L"), "BMP"),
        "bmp-p": saved(palette, "BMP"),
        "bmp-rgb": saved(base, "BMP"),
        "bmp-rgba": saved(rgba, "BMP"),
        "tiff-1": saved(base.convert("1"), "TIFF"),
        "tiff-l": saved(base.convert("L"), "TIFF"),
        "tiff-p": saved(palette, "TIFF"),
        "tiff-rgb": saved(base, "TIFF"),
        "tiff-rgb-lzw": saved(base, "TIFF", compression="tiff_lzw"),
        "tiff-rgb-deflate": saved(base, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-rgba": saved(rgba, "TIFF"),
        "tiff-i16": saved(grey16, "TIFF"),
        "tiff-f": saved(floats, "TIFF"),
        "tiff-i": saved(ints, "TIFF"),
        "tiff-cmyk": saved(cmyk, "TIFF"),
        "webp-rgb": saved(base, "WEBP", lossless=True),
        "webp-rgba": saved(rgba, "WEBP", lossless=True, exact=True),
        "webp-animated": saved(
            base, "WEBP", lossless=True, save_all=True, append_images=[base.rotate(180)]
        ),
    }
    # A first frame that covers a part of the screen only.
    partial = bytearray(saved(palette, "GIF"))
    at = partial.index(b"\x2c\0\0\0\0")
    partial[6:10] = struct.pack("<HH", 11, 8)
    partial[at + 1 : at + 5] = struct.pack("<HH", 2, 1)
    files["gif-partial"] = bytes(partial)
    partial[6:10] = struct.pack("<HH", 3, 2)
    files["gif-outgrown"] = bytes(partial)
    # Orientation, in every place that holds one.
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"png-exif-{orientation}"] = saved(base, "PNG", exif=exif)
        files[f"webp-exif-{orientation}"] = saved(base, "WEBP", lossless=True, exif=exif)
        files[f"tiff-exif-{orientation}"] = saved(base, "TIFF", tiffinfo={0x0112: orientation})
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    files["webp-xmp-6"] = saved(base, "WEBP", lossless=True, xmp=xmp)
    exact = [(name, data, 0) for name, data in files.items()]

    smooth = picture(12, 8).resize((24, 16), Image.Resampling.BICUBIC)
    cmyk = Image.merge("CMYK", [*smooth.split(), smooth.convert("L").point(lambda v: v // 2)])
    lossy = {
        "jpeg-l": saved(smooth.convert("L"), "JPEG", quality=90),
        "jpeg-444": saved(smooth, "JPEG", quality=90, subsampling=0),
        "jpeg-422": saved(smooth, "JPEG", quality=90, subsampling=1),
        "jpeg-420": saved(smooth, "JPEG", quality=90, subsampling=2),
        "jpeg-progressive": saved(smooth, "JPEG", quality=75, progressive=True),
        "jpeg-cmyk": saved(cmyk, "JPEG", quality=90),
        "jpeg-rgb": saved(smooth, "JPEG", quality=90, keep_rgb=True),
        "webp-lossy": saved(smooth, "WEBP", quality=80),
    }
    # YCCK: the same data with another Adobe transform is another picture, and a valid one.
    ycck = bytearray(lossy["jpeg-cmyk"])
    ycck[ycck.index(b"Adobe") + 11] = 2
    lossy["jpeg-ycck"] = bytes(ycck)
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        lossy[f"jpeg-exif-{orientation}"] = saved(smooth, "JPEG", quality=90, exif=exif)
    exact += [(name, data, 3) for name, data in lossy.items()]
    out = []
    for name, data, levels in exact:
        rgb = loaded(data)
        out.append([name, data.hex(), *rgb.size, levels, rgb.tobytes().hex()])
    return out


def processor_cases() -> list:
    clip_small = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    pins = [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]]
    kinds = [
        (CLIPImageProcessorPil, {}),
        (CLIPImageProcessorPil, clip_small),
        (CLIPImageProcessorPil, {"size": 20, "crop_size": 31, "resample": 2}),
        (CLIPImageProcessorPil, {"size": {"height": 12, "width": 30}, "do_center_crop": False}),
        (CLIPImageProcessorPil, {"size": {"shortest_edge": 16, "longest_edge": 40}, "crop_size": 16}),
        (CLIPImageProcessorPil, {"size": {"max_height": 30, "max_width": 40}, "do_center_crop": False,
                                 "do_pad": True, "pad_size": {"height": 33, "width": 41}}),
        (CLIPImageProcessorPil, {**clip_small, "do_resize": False, "do_normalize": False}),
        (CLIPImageProcessorPil, {**clip_small, "do_rescale": False, "resample": 0}),
        (SiglipImageProcessorPil, {}),
        (SiglipImageProcessorPil, {"size": {"height": 28, "width": 28}, "resample": 1}),
        (LlavaImageProcessorPil, {**clip_small, "do_pad": True}),
        (LlavaImageProcessorPil, {**clip_small, "do_pad": True, "resample": 5}),
        (LlavaImageProcessorPil, clip_small),
        (LlavaNextImageProcessorPil, {**clip_small, "image_grid_pinpoints": pins}),
        (LlavaNextImageProcessorPil, {"size": {"height": 24, "width": 24}, "crop_size": 20,
                                      "image_grid_pinpoints": pins}),
        (LlavaNextImageProcessorPil, {**clip_small, "image_grid_pinpoints": [[50, 30], [24, 100]]}),
    ]
    cases = []
    for kind, config in kinds:
        sizes = [(40, 30), (31, 57), (24, 24), (97, 13)] if config else [(40, 30)]
        for width, height in sizes:
            out = kind(**config)(picture(width, height), return_tensors="np")
            pixels = np.asarray(out["pixel_values"], dtype=np.float32)
            name = kind.__name__.removesuffix("Pil")
            written = {"image_processor_type": name, **config}
            first = [float(v) for v in pixels.reshape(-1)[:4]]
            row = [written, width, height, list(pixels.shape), fnv(pixels.astype("<f4").tobytes()), first]
            row.append(np.asarray(out["image_sizes"]).tolist() if "image_sizes" in out else None)
            cases.append(row)
    return cases


def anyres_cases() -> list:
    random.seed(11)
    pins = LlavaNextImageProcessorPil.image_grid_pinpoints
    sides = [1, 2, 3, 335, 336, 337, 671, 672, 673, 1007, 1008, 10000]
    sizes = [(w, h) for w in sides for h in sides]
    sizes += [(random.randrange(1, 3000), random.randrange(1, 3000)) for _ in range(300)]
    processor = LlavaNextImageProcessorPil()
    cases = []
    for width, height in sizes:
        best = select_best_resolution((height, width), pins)
        blank = np.broadcast_to(np.uint8(0), (3, height, width))
        fitted = get_patch_output_size(blank, best, "channels_first")
        (top, _), (left, _) = processor._get_padding_size(fitted, best)
        cases.append([width, height, best[1], best[0], fitted[1], fitted[0], left, top])
    return cases


def main() -> None:
    folder = Path(sys.argv[1])
    parts = {
        "resize": resize_cases, "modes": mode_files, "processors": processor_cases,
        "anyres": anyres_cases,
    }
    for name, make in parts.items():
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in make())
        (folder / f"{name}.json").write_text(f"[\n{rows}\n]\n")


if __name__ == "__main__":
    main()
