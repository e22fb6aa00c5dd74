#!/usr/bin/env python3
"""Kiln's reference: what transformers and Pillow compute, for the parity tests.

    python xtask/python/fixtures.py --out tests/fixtures
        rewrites every committed fixture: tiny random checkpoints, the tensors that transformers
        computes from them, Pillow's resize, the processors' pixels, LLaVA-NeXT's token table.

    python xtask/python/fixtures.py --random-checkpoint DIR --seed 7 --kind llava-next
        one random checkpoint that is not in the fixtures: DIR/checkpoint, DIR/image-I.png,
        DIR/prompt.txt, DIR/expected.safetensors.

    python xtask/python/fixtures.py --reference CHECKPOINT --name NAME --image FILE --prompt TEXT
        what transformers computes from a checkpoint that it knows, kept in CHECKPOINT/reference for
        the conformance kit to compare with. The test checkpoints of new crates come from here, too
        (`--out`, and each crate's tests/parity.py).

    python xtask/python/fixtures.py --compare TRACE --checkpoint DIR --image FILE --prompt TEXT
        computes the keys of a `kiln trace --raw-prompt --ignore-eos` file with transformers and
        prints the largest relative error of each; exit code 1 when one is out of tolerance.

Everything is seeded. The same pinned packages (requirements.txt) write the same pixels, weights and
greedy tokens everywhere; floats that torch computes differ in their last bits between processors.
"""

import argparse
import json
import math
import os
import random
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension, load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextModel,
    get_anyres_image_grid_shape,
    unpad_image,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

NEW_TOKENS = 32
# Greedy tokens can only be compared where the reference itself is not in doubt.
MIN_MARGIN = 5e-3
# A sequence that repeats one token would not notice a wrong position.
MIN_DISTINCT = 5
IMAGE_TOKEN = "<image>"
# Smaller than the tokenizer needs: ids above the tokenizer's own exist, as in real checkpoints.
MODEL_VOCAB = 320
TOKENIZER_VOCAB = 308
IMAGE_SIZE = 28
PATCH = 7
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84], [84, 56], [56, 84]]
NEXT_SIZES = [(171, 152), (184, 161), (198, 176), (333, 296), (369, 328), (488, 183), (2560, 1669)]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


# ---------------------------------------------------------------------------------- pictures


def pattern(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A picture by integer arithmetic alone, so that Rust makes the same: tests' `pattern`.

    Smooth ramps that tell up from down and left from right, with 5 bits of noise.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.uint64)
    seed = np.uint64(seed)
    mask = np.uint64(0xFFFFFFFF)
    ramps = [
        x * np.uint64(255) // np.uint64(max(width - 1, 1)) + (y >> np.uint64(2)) * np.uint64(5),
        y * np.uint64(255) // np.uint64(max(height - 1, 1)) + (x >> np.uint64(3)) * np.uint64(3),
        (x * x + y * y) >> np.uint64(6),
    ]
    planes = []
    for channel, ramp in enumerate(ramps):
        noise = (x * np.uint64(73856093)) & mask
        noise ^= (y * np.uint64(19349663)) & mask
        noise ^= np.uint64((channel * 83492791) & 0xFFFFFFFF)
        noise ^= (seed * np.uint64(2654435761)) & mask
        noise = ((noise * np.uint64(2246822519)) & mask) >> np.uint64(24)
        value = (ramp + seed * np.uint64(37 + 11 * channel)) & np.uint64(255)
        planes.append((value ^ (noise & np.uint64(31))).astype(np.uint8))
    return np.stack(planes, axis=-1)


def picture(spec: dict) -> Image.Image:
    return Image.fromarray(pattern(spec["width"], spec["height"], spec["seed"]))


# -------------------------------------------------------------------------------- checkpoints


def make_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 300 entries; `bos`: whether its template adds `<s>`."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>", IMAGE_TOKEN]
    corpus = [
        "USER: What is in the picture? ASSISTANT: The picture shows a red circle.",
        "How many shapes are there? What colour is the square? Compare the two pictures.",
        "Tell me what you see in the image, in one sentence. The quick brown fox jumps.",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_VOCAB,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights at which logits are not flat and norms and biases matter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape, std):
        return torch.randn(shape, generator=generator) * std

    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            shape = parameter.shape
            if parameter.ndim == 1:
                near_one = "norm" in name and name.endswith("weight")
                value = normal(shape, 0.15) + (1.0 if near_one else 0.0)
            elif "embed" in name and "patch" not in name and "position" not in name:
                value = normal(shape, 0.5)
            elif "position" in name:
                value = normal(shape, 0.3)
            elif "lm_head" in name:
                value = normal(shape, 0.35)
            else:
                value = normal(shape, 1.4 / math.sqrt(math.prod(shape[1:])))
            parameter.copy_(value.to(parameter.dtype))


def text_config(kind: str, **changes):
    """A tiny decoder: 4 query heads over 2 key-value heads unless told otherwise."""
    classes = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
    base = dict(
        vocab_size=MODEL_VOCAB,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    if kind == "mistral":
        base["sliding_window"] = None
    base.update(changes)
    return classes[kind](**base)


def rope(kind: str) -> dict:
    return {
        "default": {"rope_type": "default", "rope_theta": 10000.0},
        "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        "llama3": {
            "rope_type": "llama3",
            "rope_theta": 50000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "yarn": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    }[kind]


def vision_config(kind: str, **changes):
    base = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )
    if kind == "clip":
        base["projection_dim"] = 16
        base.update(changes)
        return CLIPVisionConfig(**base)
    base.update(changes)
    return SiglipVisionConfig(**base)


def image_processor(kind: str, size: int, pinpoints=None):
    square = {"height": size, "width": size}
    if pinpoints is not None:
        extra = {"image_grid_pinpoints": pinpoints}
        if kind == "siglip":
            extra |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return LlavaNextImageProcessorPil(size={"shortest_edge": size}, crop_size=square, **extra)
    if kind == "clip":
        return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square)
    return SiglipImageProcessorPil(size=square)


def build(spec: dict, seed: int):
    """Model and processor (or tokenizer) of a checkpoint's description."""
    text = text_config(spec["text"], **spec.get("text_changes", {}))
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(bos=spec["text"] != "qwen2")
    if spec["kind"] == "text":
        model = AutoModelForCausalLM.from_config(text, dtype=torch.float32)
        processor = tokenizer
    else:
        vision = vision_config(spec["vision"], **spec.get("vision_changes", {}))
        is_next = spec["kind"] == "llava-next"
        strategy = spec.get("strategy", "default")
        additional = 1 if spec["vision"] == "clip" else 0
        pinpoints = spec.get("pinpoints", PINPOINTS) if is_next else None
        pixels = image_processor(spec["vision"], vision.image_size, pinpoints)
        shared = dict(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            vision_feature_layer=spec.get("layer", -2),
            vision_feature_select_strategy=strategy,
            projector_hidden_act=spec.get("act", "gelu"),
            multimodal_projector_bias=spec.get("bias", True),
            tie_word_embeddings=text.tie_word_embeddings,
        )
        if is_next:
            config = LlavaNextConfig(image_grid_pinpoints=pinpoints, **shared)
            model = LlavaNextForConditionalGeneration(config)
            make_processor = LlavaNextProcessor
        else:
            config = LlavaConfig(image_seq_length=(vision.image_size // vision.patch_size) ** 2, **shared)
            model = LlavaForConditionalGeneration(config)
            make_processor = LlavaProcessor
        processor = make_processor(
            image_processor=pixels,
            tokenizer=tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=strategy,
            num_additional_image_tokens=additional,
            chat_template=CHAT_TEMPLATE,
        )
    randomize(model, seed)
    if spec.get("dtype") == "bf16":
        # Computed in f32 from the rounded weights: what a f32 load of bf16 files must give. Not
        # `model.to`, which would round the rotary frequencies, too: those are in no file.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(torch.bfloat16))
    return model.eval(), processor


def save(model, processor, folder: Path, dtype: str = "f32", **kwargs) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    if dtype == "bf16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder, **kwargs)
    processor.save_pretrained(folder)
    if dtype == "bf16":
        model.to(torch.float32)
    for file in folder.iterdir():
        file.chmod(0o644)


def to_module_layout(source: Path, target: Path) -> None:
    """The weight names of the modules themselves, which transformers 4.52 and later wrote."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    renamed = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        name = name.replace("language_model.lm_head.", "lm_head.").replace("language_model.model.", "language_model.")
        renamed[name if name.startswith("lm_head.") else f"model.{name}"] = tensor
    save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)


def to_hub_layout(source: Path, target: Path) -> None:
    """The same checkpoint as the hub's older files have it: weight names, rope keys, processor."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        # transformers writes the hub's names but for the tower, whose inner model it leaves out.
        renamed[name.replace("vision_tower.", "vision_tower.vision_model.", 1)] = tensor
    save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)
    config = json.loads((target / "config.json").read_text())
    text = config["text_config"]
    parameters = text.pop("rope_parameters", None)
    if parameters:
        text["rope_theta"] = parameters.pop("rope_theta")
        if parameters.get("rope_type") != "default":
            text["rope_scaling"] = parameters
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    merged = json.loads((target / "processor_config.json").read_text())
    pixels = merged.pop("image_processor")
    pixels["image_processor_type"] = pixels["image_processor_type"].removesuffix("Pil").removesuffix("Fast")
    (target / "preprocessor_config.json").write_text(json.dumps(pixels, indent=2) + "\n")
    (target / "processor_config.json").write_text(json.dumps(merged, indent=2) + "\n")


# ------------------------------------------------------------------------------------ expected


def reference(model, processor, prompt: str, images: list) -> tuple[dict, float]:
    """The keys of `kiln trace --raw-prompt --ignore-eos`, and the smallest greedy margin."""
    if images:
        inputs = processor(text=prompt, images=images, return_tensors="pt", add_special_tokens=False)
    else:
        tokenizer = getattr(processor, "tokenizer", processor)
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    inputs.pop("token_type_ids", None)
    out = {"input_ids": inputs["input_ids"][0].to(torch.int64)}
    with torch.no_grad():
        if images:
            captured = []
            hook = model.model.multi_modal_projector.register_forward_pre_hook(
                lambda _module, args: captured.append(args[0].detach().clone())
            )
            extra = {k: inputs[k] for k in ("pixel_values", "image_sizes") if k in inputs}
            features = model.model.get_image_features(**extra).pooler_output
            hook.remove()
            tower = captured[0]
            tiles = [1] * len(images)
            if "image_sizes" in inputs:
                edge = model.config.vision_config.image_size
                grids = [
                    get_anyres_image_grid_shape(s.tolist(), model.config.image_grid_pinpoints, edge)
                    for s in inputs["image_sizes"]
                ]
                tiles = [h * w + 1 for h, w in grids]
            rows = [len(f) for f in features]
            for item, (part, feature) in enumerate(zip(torch.split(tower, tiles), features)):
                out[f"tower.{item}"] = part
                out[f"image_features.{item}"] = feature
            for name, value in extra.items():
                out[name] = value
            ids = out["input_ids"].tolist()
            token = model.config.image_token_id
            first, placeholders = 0, []
            for item, length in enumerate(rows):
                offset = ids.index(token, first)
                placeholders.append([item, offset, length])
                first = offset + length
            assert ids.count(token) == sum(rows), "the processor and the model count alike"
            out["placeholders"] = torch.tensor(placeholders, dtype=torch.int64)
        out["logits"] = model(**inputs).logits[0]
        # ignore_eos: no stop id at all, so that the tokens after one are compared too.
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 2
        generated = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
    out["greedy"] = generated.sequences[0, len(out["input_ids"]) :].to(torch.int64)
    assert len(out["greedy"]) == NEW_TOKENS
    margins = []
    for scores in generated.logits:
        top = scores[0].float().topk(2).values
        margins.append((top[0] - top[1]).item())
    out = {k: (v.float() if v.is_floating_point() else v).contiguous().clone() for k, v in out.items()}
    return out, min(margins)


def thin(expected: dict, rows: int) -> dict:
    """Fewer rows of the logits: evenly spread ones and the last ones. `logits_rows` names them."""
    total = expected["logits"].shape[0]
    if total <= rows:
        keep = list(range(total))
    else:
        half = rows // 2
        spread = np.linspace(0, total - half - 1, rows - half).astype(int).tolist()
        keep = sorted(set(spread) | set(range(total - half, total)))
    expected["logits_rows"] = torch.tensor(keep, dtype=torch.int64)
    expected["logits"] = expected["logits"][keep].contiguous()
    return expected


LONG = (
    "USER: The quick brown fox jumps over the lazy dog. How many shapes are there? "
    "What colour is the square? Tell me what you see in the image, in one sentence. ASSISTANT:"
)
ASK = "USER: <image>\nWhat is in the picture? ASSISTANT:"
ASK_TWO = "<s>USER: <image>\nand <image>\nCompare the two pictures. ASSISTANT:"
ASK_THREE = "<image><image>USER: which? <image>ASSISTANT:"


def pat(width, height, seed):
    return {"width": width, "height": height, "seed": seed}


CHECKPOINTS = {
    "llava-clip-llama": dict(
        kind="llava", vision="clip", text="llama", layer=-2, strategy="default",
        text_changes=dict(rope_parameters=rope("llama3")),
        cases=[
            ("one", ASK, [pat(61, 40, 1)]),
            ("two", ASK_TWO, [pat(33, 77, 2), pat(28, 28, 3)]),
            ("three", ASK_THREE, [pat(40, 41, 4), pat(97, 13, 5), pat(40, 41, 6)]),
            ("none", LONG, []),
        ],
        copies=["hub", "module", "sharded"],
    ),
    "llava-clip-mistral": dict(
        kind="llava", vision="clip", text="mistral", layer=-1, strategy="full",
        text_changes=dict(sliding_window=12, head_dim=16, rope_parameters=rope("default")),
        cases=[("one", ASK, [pat(50, 31, 7)]), ("two", ASK_TWO, [pat(20, 21, 8), pat(64, 30, 9)])],
    ),
    "llava-clip-qwen2": dict(
        kind="llava", vision="clip", text="qwen2", layer=[-2, 1], strategy="default", act="relu",
        vision_changes=dict(hidden_act="gelu"),
        text_changes=dict(tie_word_embeddings=True, rope_parameters=rope("dynamic")),
        cases=[("one", ASK, [pat(30, 64, 10)])],
    ),
    "llava-siglip-llama": dict(
        kind="llava", vision="siglip", text="llama", layer=-1, strategy="full", bias=False,
        text_changes=dict(num_key_value_heads=4, rope_parameters=rope("linear")),
        cases=[("one", ASK, [pat(56, 56, 11)])],
    ),
    "llava-siglip-mistral": dict(
        kind="llava", vision="siglip", text="mistral", layer=2, strategy="default", dtype="bf16",
        vision_changes=dict(vision_use_head=False),
        text_changes=dict(rope_parameters=rope("yarn")),
        cases=[("one", ASK, [pat(45, 90, 12)])],
    ),
    "llava-siglip-qwen2": dict(
        kind="llava", vision="siglip", text="qwen2", layer=-2, strategy="full", act="quick_gelu", dtype="bf16",
        vision_changes=dict(vision_use_head=False, image_size=30),
        text_changes=dict(num_key_value_heads=1, tie_word_embeddings=True),
        cases=[("one", ASK, [pat(90, 44, 13)])],
    ),
    "llava-next-clip-mistral": dict(
        kind="llava-next", vision="clip", text="mistral", layer=-2, strategy="default",
        cases=[
            *[(f"{w}x{h}", ASK, [pat(w, h, 14)]) for a, b in NEXT_SIZES for w, h in [(a, b), (b, a)]],
            ("two", ASK_TWO, [pat(61, 30, 15), pat(100, 131, 16)]),
        ],
        rows=24,
    ),
    "llava-next-siglip-qwen2": dict(
        kind="llava-next", vision="siglip", text="qwen2", layer=[1, -1], strategy="full", dtype="bf16",
        vision_changes=dict(vision_use_head=False),
        cases=[("one", ASK, [pat(120, 47, 17)])],
        rows=24,
    ),
    "text-llama": dict(
        kind="text", text="llama", dtype="bf16",
        text_changes=dict(
            attention_bias=True, mlp_bias=True, head_dim=16, max_position_embeddings=64,
            rope_parameters=rope("dynamic"),
        ),
        cases=[("short", "USER: What is it? ASSISTANT:", []), ("long", LONG, [])],
    ),
    "text-mistral": dict(
        kind="text", text="mistral", dtype="bf16", text_changes=dict(sliding_window=9),
        cases=[("long", LONG, [])],
    ),
    "text-qwen2": dict(
        kind="text", text="qwen2", dtype="bf16",
        text_changes=dict(
            use_sliding_window=True, sliding_window=10, max_window_layers=1, num_hidden_layers=3,
            tie_word_embeddings=True,
        ),
        cases=[("long", LONG, [])],
    ),
}


def write_checkpoints(out: Path) -> None:
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    shutil.rmtree(out / "cases", ignore_errors=True)
    (out / "cases").mkdir(parents=True)
    index = []
    for number, (name, spec) in enumerate(CHECKPOINTS.items()):
        for attempt in range(60):
            seed = 1000 * (number + 1) + attempt
            model, processor = build(spec, seed)
            done = []
            for case, prompt, images in spec["cases"]:
                expected, margin = reference(model, processor, prompt, [picture(i) for i in images])
                varied = len(set(expected["greedy"].tolist())) >= MIN_DISTINCT
                if margin < MIN_MARGIN or not varied:
                    break
                done.append((case, prompt, images, expected, margin))
            if len(done) == len(spec["cases"]):
                break
        else:
            raise SystemExit(f"{name}: no seed gives clear greedy tokens")
        folder = out / "checkpoints" / name
        save(model, processor, folder, spec.get("dtype", "f32"))
        copies = spec.get("copies", [])
        if "hub" in copies:
            to_hub_layout(folder, out / "checkpoints" / f"{name}-hub")
        if "module" in copies:
            to_module_layout(folder, out / "checkpoints" / f"{name}-module")
        if "sharded" in copies:
            save(model, processor, out / "checkpoints" / f"{name}-sharded", max_shard_size="120KB")
        for case, prompt, images, expected, margin in done:
            file = f"cases/{name}.{case}.safetensors"
            expected = thin(expected, spec.get("rows", 10**9))
            save_file(expected, out / file)
            index.append(
                {
                    "name": f"{name}.{case}",
                    "checkpoint": name,
                    "copies": [f"{name}-{c}" for c in copies],
                    "prompt": prompt,
                    "images": images,
                    "expected": file,
                }
            )
            tokens = set(expected["greedy"].tolist())
            print(
                f"{name}.{case}: seed {seed}, {len(expected['input_ids'])} tokens, "
                f"margin {margin:.3f}, {len(tokens)} distinct greedy tokens, "
                f"max |logit| {expected['logits'].abs().max():.2f}"
            )
    (out / "cases.json").write_text(json.dumps(index, indent=1) + "\n")


# ---------------------------------------------------------------------------- pixels by Pillow


def write_pillow(out: Path) -> None:
    """Raw `Image.resize`, every filter, up, down, odd and degenerate sizes."""
    folder = out / "pillow"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    filters = {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }
    shapes = [
        ((37, 23), (16, 16)), ((37, 23), (64, 40)), ((37, 23), (37, 50)), ((37, 23), (7, 45)),
        ((37, 23), (1, 1)), ((1, 1), (5, 3)), ((1, 90), (4, 30)), ((200, 3), (31, 9)),
        ((128, 96), (32, 24)), ((97, 101), (28, 28)), ((28, 28), (28, 28)), ((512, 300), (19, 11)),
    ]
    tensors = {}
    for (w, h), (nw, nh) in shapes:
        source = Image.fromarray(pattern(w, h, 21))
        for name, resample in filters.items():
            resized = np.asarray(source.resize((nw, nh), resample))
            tensors[f"{name}.{w}x{h}.{nw}x{nh}"] = torch.from_numpy(resized.copy())
    # The seed of the pattern is 21; shapes are [height, width, 3].
    save_file(tensors, folder / "resize.safetensors")
    print(f"pillow: {len(tensors)} resized pictures")


def smooth(width: int, height: int) -> Image.Image:
    """Flat 8x8 blocks: what a JPEG keeps exactly, whatever the decoder's IDCT."""
    small = pattern((width + 7) // 8, (height + 7) // 8, 31)
    return Image.fromarray(np.kron(small, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width])


def write_inputs(folder: Path) -> list[str]:
    """One small file per format and colour mode."""
    base = Image.fromarray(pattern(45, 34, 22))
    alpha = Image.fromarray(pattern(45, 34, 23)[:, :, 0])
    grey = base.convert("L")
    rgba = base.copy()
    rgba.putalpha(alpha)
    la = grey.copy()
    la.putalpha(alpha)
    palette = base.quantize(32)
    wide = Image.fromarray(
        (np.asarray(grey).astype(np.uint16) * 193 + np.asarray(alpha).astype(np.uint16) * 61)
    )
    cmyk = Image.merge("CMYK", [*smooth(48, 32).split(), smooth(48, 32).convert("L").point(lambda v: v // 2)])
    files = {
        "rgb.png": (base, {}),
        "l.png": (grey, {}),
        "la.png": (la, {}),
        "p.png": (palette, {}),
        "p-transparency.png": (palette, {"transparency": 3}),
        "p-alpha.png": (palette, {"transparency": bytes(range(0, 256, 8))}),
        "rgb-trns.png": (base, {"transparency": base.getpixel((3, 3))}),
        "rgba.png": (rgba, {}),
        "1bit.png": (base.convert("1"), {}),
        "i16.png": (wide, {}),
        "rgb.bmp": (base, {}),
        "p.bmp": (palette, {}),
        "rgb.tiff": (base, {}),
        "rgb-lzw.tiff": (base, {"compression": "tiff_lzw"}),
        "l.tiff": (grey, {}),
        "p.gif": (palette, {}),
        "lossless.webp": (base, {"lossless": True}),
        "alpha.webp": (rgba, {"lossless": True, "exact": True}),
        "grey.jpg": (smooth(48, 32).convert("L"), {"quality": 100}),
        "rgb.jpg": (smooth(48, 32), {"quality": 100, "subsampling": 0}),
        "cmyk.jpg": (cmyk, {"quality": 100}),
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    names = list(files)
    frames = [Image.fromarray(pattern(45, 34, s)).quantize(24) for s in (24, 25, 26)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:], duration=50)
    frames[0].convert("RGB").save(
        folder / "animated.webp", save_all=True, append_images=[f.convert("RGB") for f in frames[1:]], lossless=True
    )
    names += ["animated.gif", "animated.webp"]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name, image, options in [
            (f"exif-{orientation}.jpg", smooth(48, 32).convert("L"), {"quality": 100}),
            (f"exif-{orientation}.png", Image.fromarray(pattern(21, 13, 27)), {}),
        ]:
            image.save(folder / name, exif=exif, **options)
            names.append(name)
    return names


def loaded(path) -> Image.Image:
    """The RGB pixels of transformers' `load_image`, which drops alpha.

    Its result still carries a palette's or RGB file's transparent colour in `info`, which a
    processor's own RGB conversion would then paint white; RGBA files it would not. Kiln decodes
    once, so the pixels alone are the reference.
    """
    return Image.fromarray(np.asarray(load_image(str(path))))


def grey_levels(processor, pixels: np.ndarray) -> torch.Tensor:
    """Normalised pixels back to the bytes they came from."""
    mean = np.asarray(processor.image_mean, dtype=np.float64)[:, None, None]
    std = np.asarray(processor.image_std, dtype=np.float64)[:, None, None]
    levels = (np.asarray(pixels, dtype=np.float64) * std + mean) * 255
    assert np.abs(levels - levels.round()).max() < 1e-2
    return torch.from_numpy(levels.round().astype(np.uint8))


def write_processors(out: Path) -> None:
    folder = out / "processors"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "inputs").mkdir(parents=True)
    names = write_inputs(folder / "inputs")
    variants = {
        "clip": CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        "clip-crop-larger": CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 31, "width": 26}),
        "clip-no-crop": CLIPImageProcessorPil(size={"shortest_edge": 24}, do_center_crop=False, resample=2),
        "clip-no-resize": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 18, "width": 40}),
        "clip-no-normalize": CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_normalize=False
        ),
        "siglip": SiglipImageProcessorPil(size={"height": 32, "width": 24}),
        "siglip-lanczos": SiglipImageProcessorPil(size={"height": 24, "width": 24}, resample=1),
        "siglip-nearest": SiglipImageProcessorPil(size={"height": 24, "width": 24}, resample=0),
        "llava-next": LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS
        ),
    }
    sizes = [(28, 28), (1, 1), (5, 60), (61, 7), (29, 27), (300, 200), (57, 111)]
    tensors, index = {}, []

    def add(variant, processor, source, image):
        try:
            pixels = np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0])
        except ValueError as error:
            print(f"processors: {variant} refuses {source}: {error}")
            return
        key = f"{variant}.{len(index)}"
        if processor.do_normalize:
            tensors[key] = grey_levels(processor, pixels)
        else:
            tensors[key] = torch.from_numpy((np.asarray(pixels) * 255).round().astype(np.uint8))
        index.append({"variant": variant, "source": source, "expected": key})

    for variant, processor in variants.items():
        config = json.loads(processor.to_json_string())
        (folder / f"{variant}.json").write_text(json.dumps(config, indent=1) + "\n")
        for size in sizes:
            spec = pat(*size, 28)
            add(variant, processor, {"pattern": spec}, picture(spec))
        if variant in ("clip", "siglip"):
            for name in names:
                add(variant, processor, {"file": f"inputs/{name}"}, loaded(folder / "inputs" / name))
    # The pixels of each file as decoded, before any resize.
    for name in names:
        decoded = np.asarray(loaded(folder / "inputs" / name))
        tensors[f"decoded.{name}"] = torch.from_numpy(decoded.copy())
    save_file(tensors, folder / "expected.safetensors")
    (folder / "index.json").write_text(json.dumps(index, indent=None, separators=(",", ":")).replace("},{\"v", "},\n{\"v") + "\n")
    print(f"processors: {len(index)} pictures through {len(variants)} processors")


# ------------------------------------------------------------------------ LLaVA-NeXT's rounding


def write_next_tokens(out: Path) -> None:
    """Grids, resized and unpadded shapes and token counts over many sizes, at real tile sizes."""
    sets = {
        "v1.6-336/14": (336, 14, [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]),
        "wide-336/14": (336, 14, [[336 * h, 336 * w] for h in range(1, 5) for w in range(1, 5)]),
        "siglip-384/14": (384, 14, [[384 * h, 384 * w] for h in range(1, 4) for w in range(1, 4)]),
        "tiny-28/7": (IMAGE_SIZE, PATCH, PINPOINTS),
    }
    rng = random.Random(20)
    sizes = [s for a, b in NEXT_SIZES for s in [(a, b), (b, a)]]
    for _ in range(150):
        sizes.append((rng.randint(30, 700), rng.randint(30, 700)))
    for _ in range(60):
        sizes.append((rng.randint(100, 2600), rng.randint(100, 2600)))
    for _ in range(20):
        sizes.append((rng.randint(1, 40), rng.randint(200, 1500)))
    for _ in range(20):
        sizes.append((rng.randint(200, 1500), rng.randint(1, 40)))
    lines = ["# set\twidth\theight\ttiles_h\ttiles_w\tresized_h\tresized_w\tunpadded_h\tunpadded_w\ttokens"]
    tokenizer = make_tokenizer(bos=True)
    refused = 0
    for name, (edge, patch, pinpoints) in sets.items():
        pixels = LlavaNextImageProcessorPil(
            size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}, image_grid_pinpoints=pinpoints
        )
        processor = LlavaNextProcessor(
            image_processor=pixels, tokenizer=tokenizer, patch_size=patch,
            vision_feature_select_strategy="full", num_additional_image_tokens=0,
        )
        for w, h in sizes:
            best = select_best_resolution((h, w), pinpoints)
            grid = get_anyres_image_grid_shape((h, w), pinpoints, edge)
            resized = get_patch_output_size(np.zeros((1, h, w), np.uint8), best, ChannelDimension.FIRST)
            side = edge // patch
            unpadded = unpad_image(torch.zeros(1, grid[0] * side, grid[1] * side), (h, w)).shape[1:]
            counted = processor._get_number_of_features(h, w, edge, edge)
            packed = side * side + unpadded[0] * (unpadded[1] + 1)
            if counted != packed or 0 in unpadded:
                # transformers itself refuses such a picture: its processor and model disagree.
                refused += 1
                counted = 0
            lines.append("\t".join(map(str, [name, w, h, *grid, *resized, *unpadded, counted])))
    (out / "next-tokens.tsv").write_text("\n".join(lines) + "\n")
    print(f"next-tokens.tsv: {len(lines) - 1} rows, {refused} that transformers refuses")


# ----------------------------------------------------------------- checkpoints off the fixtures


def random_spec(kind: str, rng: random.Random) -> dict:
    text = rng.choice(["llama", "mistral", "qwen2"])
    kv = rng.choice([1, 2, 4])
    changes = dict(
        hidden_size=rng.choice([32, 48, 64]),
        intermediate_size=rng.choice([40, 64, 88]),
        num_hidden_layers=rng.choice([1, 2, 3]),
        num_key_value_heads=kv,
        max_position_embeddings=2048,
        tie_word_embeddings=rng.random() < 0.4,
        rope_parameters=rope(rng.choice(["default", "linear", "dynamic", "llama3", "yarn"])),
    )
    if text == "mistral":
        changes["sliding_window"] = rng.choice([None, 7, 40])
    spec = dict(kind=kind, text=text, text_changes=changes)
    if kind != "text":
        patch = rng.choice([4, 7, 14])
        spec |= dict(
            vision=rng.choice(["clip", "siglip"]),
            strategy=rng.choice(["default", "full"]),
            layer=rng.choice([-2, -1, 1, 3, [-1, 2], [0, 1, -2]]),
            act=rng.choice(["gelu", "relu", "quick_gelu", "gelu_pytorch_tanh", "silu"]),
            bias=rng.random() < 0.7,
            vision_changes=dict(
                patch_size=patch,
                image_size=patch * rng.choice([2, 3, 5]),
                hidden_size=rng.choice([32, 48]),
                num_hidden_layers=rng.choice([3, 4]),
                hidden_act=rng.choice(["quick_gelu", "gelu", "gelu_pytorch_tanh"]),
            ),
        )
        if kind == "llava-next":
            edge = spec["vision_changes"]["image_size"]
            grids = rng.sample([(h, w) for h in range(1, 5) for w in range(1, 5)], 6)
            spec["pinpoints"] = [[edge * h, edge * w] for h, w in grids]
            if spec["vision"] == "siglip":
                # "default" would cut a patch that LLaVA-NeXT's grid needs: transformers refuses.
                spec["strategy"] = "full"
            else:
                spec["strategy"] = "default"
    return spec


def write_random(folder: Path, seed: int, kind: str, images: int) -> None:
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    spec = random_spec(kind, rng)
    count = 0 if kind == "text" else images
    specs = [pat(rng.randint(9, 400), rng.randint(9, 400), rng.randint(0, 99)) for _ in range(count)]
    prompt = "<s>USER: " + "".join(f"{IMAGE_TOKEN}\n" for _ in specs) + "Compare what you see. ASSISTANT:"
    for attempt in range(60):
        model, processor = build(spec, seed * 100 + attempt)
        expected, margin = reference(model, processor, prompt, [picture(s) for s in specs])
        if margin > MIN_MARGIN:
            break
    save(model, processor, folder / "checkpoint", rng.choice(["f32", "f32", "bf16"]))
    if json.loads((folder / "checkpoint/config.json").read_text()).get("dtype") == "bfloat16":
        model, processor = load(folder / "checkpoint")
        expected, margin = reference(model, processor, prompt, [picture(s) for s in specs])
    for index, image in enumerate(specs):
        picture(image).save(folder / f"image-{index}.png")
    (folder / "prompt.txt").write_text(prompt)
    save_file(expected, folder / "expected.safetensors")
    print(f"{folder}: {json.dumps(spec)}")
    print(f"{len(expected['input_ids'])} tokens, smallest greedy margin {margin:.4f}")


# ------------------------------------------------------------------------------------- compare


def load(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    multimodal = "vision_config" in config
    auto = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    if not multimodal:
        return model, AutoTokenizer.from_pretrained(folder)
    # transformers 5 has a torchvision and a Pillow processor per model: Pillow is the reference.
    return model, AutoProcessor.from_pretrained(folder, backend="pil")


def keep_reference(folder: Path, name: str, prompt: str, images: list[Image.Image], expected: dict) -> None:
    """A case of the conformance kit: `NAME.json`, its pictures, and the tensors that must come out."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"{name}.{index}.png" for index in range(len(images))]
    for image, file in zip(images, files):
        image.save(folder / file)
    case = {"prompt": prompt, "media": [{"modality": "image", "file": file} for file in files]}
    (folder / f"{name}.json").write_text(json.dumps(case, indent=2) + "\n")
    save_file(expected, folder / f"{name}.safetensors")
    (folder / f"{name}.safetensors").chmod(0o644)


def write_reference(checkpoint: Path, name: str, prompt: str, images: list[str]) -> None:
    model, processor = load(checkpoint)
    pictures = [loaded(i) for i in images]
    expected, margin = reference(model, processor, prompt, pictures)
    if margin < MIN_MARGIN:
        print(f"warning: the smallest greedy margin is {margin:.1e}: tokens may differ by rounding", file=sys.stderr)
    keep_reference(checkpoint / "reference", name, prompt, pictures, expected)
    print(f"{checkpoint / 'reference'}: {name}, {len(expected['input_ids'])} tokens")


# --------------------------------------------------------------- the test checkpoints of new crates


def tiny(file: Path, model_type: str, seed: int):
    """Model and processor of a scaffold's `config.json`, read as transformers' `model_type`."""
    raw = json.loads(file.read_text())
    raw = {key: value for key, value in raw.items() if key not in ("architectures", "model_type")}
    config = AutoConfig.for_model(model_type, **raw)
    torch.manual_seed(seed)
    text = getattr(config, "text_config", config)
    tokenizer = make_tokenizer(bos=text.model_type != "qwen2")
    if text is config:
        model, processor = AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer
    else:
        config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        vision = config.vision_config
        clip = vision.model_type == "clip_vision_model"
        pinpoints = getattr(config, "image_grid_pinpoints", None)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        processor = (LlavaProcessor if pinpoints is None else LlavaNextProcessor)(
            image_processor=image_processor("clip" if clip else "siglip", vision.image_size, pinpoints),
            tokenizer=tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            num_additional_image_tokens=int(clip),
            chat_template=CHAT_TEMPLATE,
        )
    randomize(model, seed)
    return model.eval(), processor


def write_parity(folder: Path, build, config: Path, images: bool) -> None:
    """A tiny checkpoint and its references. `build(seed)`: model and processor; `config`: what the
    checkpoint calls itself. The first seed whose greedy tokens are clear is taken."""
    cases = [("short", "<s>USER: Tell me. ASSISTANT:", []), ("long", LONG, [])]
    if images:
        cases = [("one", ASK, [pat(61, 40, 1)]), ("two", ASK_TWO, [pat(33, 77, 2), pat(28, 28, 3)])]
    for seed in range(1, 200):
        model, processor = build(seed)
        done = []
        for name, prompt, specs in cases:
            pictures = [picture(spec) for spec in specs]
            expected, margin = reference(model, processor, prompt, pictures)
            if margin >= MIN_MARGIN and len(set(expected["greedy"].tolist())) >= MIN_DISTINCT:
                done.append((name, prompt, pictures, expected))
        if len(done) == len(cases):
            break
    else:
        raise SystemExit(f"{folder}: no seed gives clear greedy tokens")
    save(model, processor, folder)
    for name, prompt, pictures, expected in done:
        keep_reference(folder / "reference", name, prompt, pictures, thin(expected, 24))
    # transformers wrote its own names.
    saved = json.loads((folder / "config.json").read_text())
    own = json.loads(config.read_text())
    saved |= {key: own[key] for key in ("architectures", "model_type")}
    (folder / "config.json").write_text(json.dumps(saved, indent=2) + "\n")
    print(f"{folder}: seed {seed}")


TEMPLATES = Path(__file__).parent.parent / "templates"


def write_scaffolds(_out: Path) -> None:
    """What `cargo xtask new-model` starts a crate's tests/parity with."""
    for kind, model_type in {"llava": "llava", "llava-next": "llava_next", "text": "llama"}.items():
        config = TEMPLATES / "tiny" / f"{kind}.json"
        write_parity(
            TEMPLATES / "parity" / kind,
            lambda seed, config=config, model_type=model_type: tiny(config, model_type, seed),
            config,
            images=kind != "text",
        )


def compare(trace: Path, checkpoint: Path, images: list[str], prompt: str, tolerance: float) -> int:
    model, processor = load(checkpoint)
    expected, margin = reference(model, processor, prompt, [loaded(i) for i in images])
    actual = load_file(trace)
    failed = False

    def report(key, ok, words):
        nonlocal failed
        failed |= not ok
        print(f"{'ok  ' if ok else 'FAIL'} {key}: {words}")

    for key, want in expected.items():
        if key not in actual:
            report(key, False, "missing in the trace")
            continue
        got = actual[key]
        if key == "greedy":
            got = got[: len(want)]
        if key in ("pixel_values", "image_sizes"):
            # Kiln's tensors have one leading axis per item; transformers pads tiles to one count.
            got = got.reshape(-1, *got.shape[-3:]) if key == "pixel_values" else got.reshape(-1, 2)
            if key == "pixel_values":
                if want.ndim == 5:
                    counts = [expected[f"tower.{i}"].shape[0] for i in range(want.shape[0])]
                    want = torch.cat([w[:n] for w, n in zip(want, counts)])
                if got.shape[0] > want.shape[0]:
                    got = got[got.abs().amax(dim=(1, 2, 3)) > 0]
        if tuple(got.shape) != tuple(want.shape):
            report(key, False, f"shape {tuple(got.shape)}, the reference has {tuple(want.shape)}")
        elif want.is_floating_point():
            error = (got.double() - want.double()).abs().max().item()
            relative = error / max(want.double().abs().max().item(), 1e-30)
            if key == "pixel_values":
                std = getattr(getattr(processor, "image_processor", None), "image_std", [1.0])
                levels = (got.double() - want.double()).abs() * 255 * min(std)
                off = (levels > 0.5).double().mean().item()
                ok = levels.max().item() <= 1.0 / min(std) * max(std) + 0.01 and off <= 1e-3
                report(key, ok, f"{off:.2e} of the values differ, by at most {levels.max():.3f} levels")
            else:
                report(key, relative <= tolerance, f"max relative error {relative:.2e}")
        else:
            same = torch.equal(got.to(torch.int64), want.to(torch.int64))
            if key == "greedy" and not same and margin < MIN_MARGIN:
                report(key, True, f"differs, but the reference's own margin is {margin:.1e}")
            else:
                report(key, same, "equal" if same else f"{got.tolist()} is not {want.tolist()}")
    return 1 if failed else 0


# ---------------------------------------------------------------------------------------- main


def check_versions() -> None:
    wanted = {}
    for line in (Path(__file__).parent / "requirements.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        wanted[name.strip()] = version.strip()
    found = {"transformers": transformers.__version__, "torch": torch.__version__, "pillow": PIL.__version__}
    for name, version in found.items():
        if name in wanted and version.split("+")[0] != wanted[name]:
            print(f"warning: {name} {version}, pinned is {wanted[name]}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="rewrite the committed fixtures under this folder")
    parser.add_argument("--only", choices=["checkpoints", "pillow", "processors", "next-tokens", "scaffolds"], action="append")
    parser.add_argument("--random-checkpoint", type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=["llava", "llava-next", "text"], default="llava")
    parser.add_argument("--images", type=int, default=1, help="pictures in the random checkpoint's prompt")
    parser.add_argument("--reference", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--name", default="one", help="of the reference's files")
    parser.add_argument("--compare", type=Path, metavar="TRACE")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--image", action="append", default=[])
    parser.add_argument("--prompt")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    check_versions()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if args.compare:
        if args.checkpoint is None or args.prompt is None:
            parser.error("--compare needs --checkpoint and --prompt")
        return compare(args.compare, args.checkpoint, args.image, args.prompt, args.tolerance)
    if args.reference:
        if args.prompt is None:
            parser.error("--reference needs --prompt")
        write_reference(args.reference, args.name, args.prompt, args.image)
        return 0
    if args.random_checkpoint:
        write_random(args.random_checkpoint, args.seed, args.kind, args.images)
        return 0
    if args.out is None:
        parser.error("one of --out, --random-checkpoint, --reference, --compare")
    parts = {
        "checkpoints": write_checkpoints,
        "pillow": write_pillow,
        "processors": write_processors,
        "next-tokens": write_next_tokens,
        "scaffolds": write_scaffolds,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for name, write in parts.items():
        if not args.only or name in args.only:
            write(args.out)
    files = [f for f in args.out.rglob("*") if f.is_file()]
    print(f"{len(files)} files, {sum(f.stat().st_size for f in files) / 1e6:.2f} MB under {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
