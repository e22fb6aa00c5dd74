#!/usr/bin/env python3
"""Checkpoints with random weights at real shapes, for `cargo xtask bench`: speed does not hang on the
weights' values. The same seed writes the same files.

    python xtask/python/bench_models.py --out target/bench/models [A C D]

A: LLaVA 1.5's layout. CLIP ViT-L/14 at 336 pixels (24 layers, width 1024), a Llama of 24 layers
   (width 1024, 16 query and 4 KV heads, inner width 4096, vocabulary 32064): 736 M parameters.
C: LLaVA-NeXT's layout on the same towers: 640x480 pixels are five tiles.
D: C with one grid of four tiles by three: the same picture is 13 tiles.

Each folder is written as Hugging Face's hub has them: bf16 safetensors under the hub's names, tokenizer,
processor; and `picture.png` of 640x480 beside them.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

VOCABULARY = 32_064
PINPOINTS = {
    "C": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "D": [[1008, 1344]],
}
CHAT_TEMPLATE = (
    "{% for message in messages %}USER: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def picture() -> Image.Image:
    rng = np.random.RandomState(7)
    y, x = np.mgrid[0:480, 0:640]
    planes = np.stack([x * 255 / 640, y * 255 / 480, (x + y) * 255 / 1120], -1)
    image = Image.fromarray(np.clip(planes + rng.randn(480, 640, 3) * 8, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.rectangle([80, 60, 260, 220], fill=(200, 30, 30))
    draw.ellipse([330, 180, 560, 420], fill=(30, 90, 220))
    return image


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over this repository's own text, filled up to the vocabulary."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    root = Path(__file__).resolve().parents[2]
    bpe.train([str(root / name) for name in ("README.md", "ARCHITECTURE.md", "LICENSE-APACHE")], trainer)
    bpe.add_tokens([f"<fill_{i}>" for i in range(VOCABULARY - 62 - bpe.get_vocab_size())])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )
    return fast


def shape_a(folder: Path) -> None:
    words = tokenizer()
    image_token = words.convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        vocab_size=VOCABULARY,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=576,
        tie_word_embeddings=False,
    )
    torch.manual_seed(1234)
    model = LlavaForConditionalGeneration(config).to(torch.bfloat16).eval()
    model.generation_config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder)
    square = {"height": 336, "width": 336}
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=square)
    finish(folder, words, pixels, LlavaProcessor)


def shape_c(folder: Path, a: Path, pinpoints: list[list[int]]) -> None:
    config = json.loads((a / "config.json").read_text())
    config |= {
        "model_type": "llava_next",
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_grid_pinpoints": pinpoints,
        "use_image_newline_parameter": True,
    }
    tensors = load_file(a / "model.safetensors")
    generator = torch.Generator().manual_seed(77)
    tensors["image_newline"] = (torch.randn(1024, generator=generator) * 0.02).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    shutil.copy(a / "generation_config.json", folder)
    square = {"height": 336, "width": 336}
    pixels = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size=square, image_grid_pinpoints=pinpoints
    )
    finish(folder, PreTrainedTokenizerFast.from_pretrained(a), pixels, LlavaNextProcessor, named=True)


def finish(folder: Path, words, pixels, processor, named: bool = False) -> None:
    """Processor and tokenizer, and what other engines want: the hub's names, older keys."""
    processor(
        image_processor=pixels,
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    words.save_pretrained(folder)
    pixels.save_pretrained(folder)
    if not named:
        file = folder / "model.safetensors"
        old = "vision_tower."
        tensors = {
            name.replace(old, "vision_tower.vision_model.", 1) if name.startswith(old) else name: tensor
            for name, tensor in load_file(file).items()
        }
        save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = "bfloat16"
    for part in ("text_config", "vision_config"):
        rope = config[part].get("rope_parameters") or {}
        if "rope_theta" in rope:
            config[part]["rope_theta"] = rope["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("shapes", nargs="*", default=["A", "C"], metavar="SHAPE")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    picture().save(args.out / "picture.png")
    for shape in args.shapes:
        folder = args.out / shape
        if (folder / "done").exists():
            continue
        folder.mkdir(exist_ok=True)
        if shape == "A":
            shape_a(folder)
        elif shape in PINPOINTS:
            if not (args.out / "A/done").exists():
                parser.error(f"{shape} takes A's weights: write A first")
            shape_c(folder, args.out / "A", PINPOINTS[shape])
        else:
            parser.error(f"no shape {shape}: A, C, D")
        (folder / "done").touch()
        print(f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
