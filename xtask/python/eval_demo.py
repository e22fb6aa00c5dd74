"""Measures the built-in model with transformers: greedy generation on fresh evaluation
scenes, exact match by kind. The counterpart of `cargo xtask demo-eval`, which asks the
engine; both draw the same scenes and should agree.
"""

import argparse
import json
import os
import struct
import subprocess

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

SIDE = 224


def scenes(generator, seed, count):
    """Yields (image, questions) of evaluation scenes."""
    command = [generator, "stream", "eval", str(seed), "0", str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        for _ in range(count):
            (length,) = struct.unpack("<I", process.stdout.read(4))
            record = json.loads(process.stdout.read(length))
            rgb = np.frombuffer(process.stdout.read(SIDE * SIDE * 3), np.uint8)
            yield Image.fromarray(rgb.reshape(SIDE, SIDE, 3)), record["questions"]


def load(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    with open(os.path.join(folder, "chat_template.jinja")) as f:
        template = f.read()
    with open(os.path.join(folder, "processor_config.json")) as f:
        config = json.load(f)
    processor = LlavaProcessor(
        CLIPImageProcessorPil.from_pretrained(folder), tokenizer, chat_template=template,
        **{k: config[k] for k in
           ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")},
    )
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return processor, model.eval()


@torch.no_grad()
def ask(processor, model, image, texts):
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
            add_generation_prompt=True, tokenize=False,
        )
        for text in texts
    ]
    inputs = processor(
        images=[image] * len(prompts), text=prompts, padding=True, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=80, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    return [s.strip() for s in processor.batch_decode(new, skip_special_tokens=True)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="assets/kiln-demo")
    parser.add_argument("--generator", default="target/release/kiln-demo")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="scenes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    processor, model = load(args.model)
    right, asked = {}, {}
    for image, questions in scenes(args.generator, args.seed, args.count):
        answers = ask(processor, model, image, [q["text"] for q in questions])
        for q, answer in zip(questions, answers):
            asked[q["kind"]] = asked.get(q["kind"], 0) + 1
            right[q["kind"]] = right.get(q["kind"], 0) + (answer == q["answer"])
            if answer != q["answer"] and args.show > 0:
                args.show -= 1
                print(f"{q['text']!r}: {answer!r}, not {q['answer']!r}")
    for kind in sorted(asked):
        print(f"{kind:10} {right[kind]:5} / {asked[kind]:5}  {right[kind] / asked[kind]:.1%}")
    print(f"overall {100 * sum(right.values()) / sum(asked.values()):.1f}%")


if __name__ == "__main__":
    main()
