"""Trains Kiln's built-in model: a LLaVA-1.5-layout checkpoint that answers questions
about generated scenes.

The scenes come from `kiln-demo stream`, are shrunk to the model's size, and are kept in
the work folder, since both stages read them several times. Stage 1 teaches the CLIP tower
alone, with auxiliary heads (what is in each cell, which character in each place) that are
thrown away. Stage 2 teaches everything together on the language-model loss; the heads stay
as a help, and a second help ties what the projector says of an object to the embeddings of
the words for it. Both stages save their state every minute, and go on from it when they
are started again; the work folder belongs to one set of options.
"""

import argparse
import functools
import json
import multiprocessing
import os
import queue
import struct
import subprocess
import threading
import time

# Spinning threads hurt when the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

SIDE, IMAGE, PATCH = 224, 112, 14
GRID = IMAGE // PATCH
TOKENS = GRID * GRID
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
SHAPES = ["circle", "square", "triangle", "star"]
COLORS = ["red", "green", "blue", "yellow", "purple", "black"]
SIZES = ["small", "large"]
CHARS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# The patches (row-major) over the centres of the 3 x 3 cells, and under the characters.
CELL_PATCHES = [r * GRID + c for r in (1, 3, 5) for c in (1, 4, 6)]
CHAR_PATCHES = [7 * GRID + c for c in (2, 3, 4, 5)]
HEADS = [len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1, 5, len(CELL_PATCHES)]


def shrink(rgb):
    """The processor's first step: Pillow's bicubic to 112."""
    image = Image.fromarray(rgb).resize((IMAGE, IMAGE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def normalise(pixels):
    """Its second: bytes [batch, 112, 112, 3] -> [batch, 3, 112, 112] by CLIP's mean and
    deviation."""
    x = (pixels.float() / 255.0 - torch.from_numpy(MEAN)) / torch.from_numpy(STD)
    return x.permute(0, 3, 1, 2).contiguous()


def labels(scene):
    """Targets of the auxiliary heads: [9, 5] for the cells, [4] for the characters."""
    cells = np.zeros((9, 5), np.int64)
    # Told apart by place alone, but "where" needs the place in a form that can be read.
    cells[:, 4] = range(9)
    for rank, o in enumerate(scene["objects"]):
        cells[o["cell"], :4] = (
            1 + SHAPES.index(o["shape"]),
            1 + COLORS.index(o["color"]),
            1 + SIZES.index(o["size"]),
            1 + rank,
        )
    chars = np.zeros(4, np.int64)
    for i, c in enumerate(scene["text"]):
        chars[i] = 1 + CHARS.index(c)
    return cells, chars


def records(generator, split, seed, start, count):
    """Yields (shrunk picture, record as JSON) of the scenes start..start + count."""
    command = [generator, "stream", split, str(seed), str(start), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=1 << 20) as process:
        for _ in range(count):
            head = process.stdout.read(4)
            if len(head) < 4:
                raise RuntimeError("the generator stopped early")
            record = process.stdout.read(struct.unpack("<I", head)[0]).decode()
            rgb = np.frombuffer(process.stdout.read(SIDE * SIDE * 3), np.uint8)
            yield shrink(rgb.reshape(SIDE, SIDE, 3)), record


CHUNK = 1000


def prepare_chunk(generator, seed, pixels, start):
    """Fills one chunk of the pictures' file, returns the chunk's records."""
    out = np.load(pixels, mmap_mode="r+")
    lines = []
    for i, (picture, record) in enumerate(records(generator, "train", seed, start, CHUNK)):
        out[start + i] = picture
        lines.append(record)
    return lines


class Scenes:
    """The training scenes: pictures in a mapped file, records in memory."""

    def __init__(self, args):
        pixels, lines = (os.path.join(args.work, f"scenes.{end}") for end in ("npy", "jsonl"))
        if not os.path.exists(lines):
            shape = (args.scenes, IMAGE, IMAGE, 3)
            np.lib.format.open_memmap(pixels, "w+", np.uint8, shape)
            work = functools.partial(prepare_chunk, args.generator, args.seed, pixels)
            with multiprocessing.get_context("spawn").Pool(args.threads) as pool:
                with open(lines + ".part", "w") as f:
                    for chunk in pool.imap(work, range(0, args.scenes, CHUNK)):
                        f.writelines(line + "\n" for line in chunk)
            os.replace(lines + ".part", lines)
        with open(lines) as f:
            self.lines = f.read().splitlines()
        self.pixels = np.load(pixels, mmap_mode="r")
        self.seed = args.seed

    def batches(self, stage, step, size, collate):
        """Endless batches from `step` on, made ahead by a thread; each epoch is in an order
        of its own."""
        ready = queue.Queue(4)
        each = len(self.lines) // size

        def work():
            try:
                epoch = None
                for number in range(step, 1 << 62):
                    if number // each != epoch:
                        epoch = number // each
                        rng = np.random.default_rng([self.seed, stage, epoch])
                        order = rng.permutation(len(self.lines))
                    at = number % each * size
                    ready.put(collate([
                        (self.pixels[i], json.loads(self.lines[i]))
                        for i in order[at : at + size]]))
            except Exception as error:  # hand it to the consumer, who can raise it
                ready.put(error)

        threading.Thread(target=work, daemon=True).start()
        while True:
            batch = ready.get()
            if isinstance(batch, Exception):
                raise batch
            yield batch


def collate_labels(items):
    cells, chars = zip(*(labels(record["scene"]) for _, record in items))
    return (
        torch.from_numpy(np.stack([pixels for pixels, _ in items])),
        torch.from_numpy(np.stack(cells)),
        torch.from_numpy(np.stack(chars)),
    )


class Auxiliary(torch.nn.Module):
    """Heads on the tower's patch features; not part of the checkpoint."""

    def __init__(self, width):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.cells = torch.nn.Linear(width, sum(HEADS))
        self.chars = torch.nn.Linear(width, len(CHARS) + 1)

    def forward(self, features, cells, chars):
        """Features [batch, 64, width] -> (loss, share of right cells, of right characters)."""
        x = self.norm(features)
        cell_parts = self.cells(x[:, CELL_PATCHES]).float().split(HEADS, -1)
        char_logits = self.chars(x[:, CHAR_PATCHES]).float()
        loss = F.cross_entropy(char_logits.flatten(0, 1), chars.flatten())
        right = torch.ones_like(cells[..., 0], dtype=torch.bool)
        for i, part in enumerate(cell_parts):
            loss = loss + 2 * F.cross_entropy(part.flatten(0, 1), cells[..., i].flatten())
            right &= part.argmax(-1) == cells[..., i]
        char_right = char_logits.argmax(-1) == chars
        return loss, right.all(1).float().mean(), char_right.all(1).float().mean()


def vision_config(args):
    return CLIPVisionConfig(
        hidden_size=args.tower_width,
        intermediate_size=4 * args.tower_width,
        num_hidden_layers=args.tower_layers,
        num_attention_heads=args.tower_width // 32,
        image_size=IMAGE,
        patch_size=PATCH,
        hidden_act="quick_gelu",
        projection_dim=args.tower_width,
    )


def features_of(tower, pixels):
    """The last layer's patch features, as LLaVA's `default` strategy selects them."""
    out = tower(pixel_values=pixels, output_hidden_states=True)
    return out.hidden_states[-1][:, 1:]


def rate(step, steps, decay, warm=100):
    """Warm-up, a plateau, and a straight line to zero over the last `decay` steps. (A plateau
    says nothing of where it will end: a run can be prolonged, or brought down early.)"""
    return max(0.0, min(1.0, (step + 1) / warm, (steps - step) / decay))


class Optimizers:
    """Muon for the matrices, AdamW for embeddings, heads and vectors."""

    def __init__(self, muon, adam):
        """Each a list of (parameters, peak rate). Only matrices decay."""
        def groups(specs, decay):
            return [{"params": p, "lr": lr, "base": lr, "weight_decay": decay}
                    for p, lr in specs]
        self.all = [
            torch.optim.AdamW(groups(adam, 0.0), betas=(0.9, 0.98)),
            torch.optim.Muon(groups(muon, 0.05), adjust_lr_fn="match_rms_adamw"),
        ]

    def step(self, factor):
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self):
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states):
        for optimizer, state in zip(self.all, states):
            base = [group["base"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state)
            # The rates of this run hold, not those of the run that saved.
            for group, lr in zip(optimizer.param_groups, base):
                group["base"] = lr


def split(*modules):
    """Parameters of the modules' matrices, and the rest: embeddings and vectors."""
    inner, rest = [], []
    for module in modules:
        for name, p in module.named_parameters():
            (inner if p.ndim == 2 and "embed" not in name else rest).append(p)
    return inner, rest


def save(path, state):
    """Atomic: a kill in the middle leaves the state before."""
    torch.save(state, path + ".part")
    os.replace(path + ".part", path)


def log(args, text):
    line = f"{time.strftime('%H:%M:%S')} {text}"
    print(line, flush=True)
    with open(os.path.join(args.work, "log.txt"), "a") as f:
        f.write(line + "\n")


def autocast(args):
    return torch.autocast("cpu", torch.bfloat16, enabled=args.bf16)


def compiled(args, function):
    return torch.compile(function, dynamic=False) if args.compile else function


def stage1(args, scenes):
    torch.manual_seed(args.seed)
    tower = CLIPVisionModel(vision_config(args))
    tower.set_attn_implementation("eager")
    aux = Auxiliary(args.tower_width)
    both = torch.nn.ModuleDict({"tower": tower, "aux": aux})
    inner, rest = split(tower)
    rest += aux.parameters()
    optimizer = Optimizers([(inner, args.lr1)], [(rest, args.lr1)])
    path = os.path.join(args.work, "stage1.pt")
    step = 0
    if os.path.exists(path):
        state = torch.load(path, weights_only=True)
        both.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        log(args, f"stage 1 goes on from step {step}")
    see = compiled(args, lambda pixels: features_of(tower, pixels))
    feed = scenes.batches(1, step, args.batch1, collate_labels)
    saved, began, first = time.time(), time.time(), step
    mean = None
    while step < args.steps1:
        pixels, cells, chars = next(feed)
        with autocast(args):
            loss, cell_right, char_right = aux(see(normalise(pixels)), cells, chars)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step(rate(step, args.steps1, args.steps1 // 3))
        step += 1
        now = torch.tensor([loss.item(), cell_right.item(), char_right.item()])
        mean = now if mean is None else 0.95 * mean + 0.05 * now
        if step % args.report == 0:
            speed = (step - first) * args.batch1 / (time.time() - began)
            log(args, f"stage 1 step {step} loss {mean[0]:.3f} scenes with all cells right "
                f"{mean[1]:.1%}, all characters {mean[2]:.1%}, {speed:.0f} scenes/s")
        if time.time() - saved > args.save_every or step == args.steps1:
            save(path, {"model": both.state_dict(), "optimizer": optimizer.state_dict(),
                        "step": step})
            saved = time.time()


SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
# Tokens of a training sequence; turns that do not fit are left out.
WIDTH = 160
# Tokens of a measured sequence: all fit.
FULL = 256
# The one long answer has most of the tokens. In the first steps, when attention has yet to
# learn to match words with what they mean, it would only be in the way: it is asked of one
# picture in so many, and its tokens weigh little. Later more.
EARLY, DESCRIBE_EARLY, DESCRIBE = 1500, (3, 0.2), (2, 0.5)
UNK, BOS, EOS, PAD, IMAGE_TOKEN = range(5)


def make_tokenizer(lines):
    """Byte-level BPE on the questions and answers, but for what is printed on the pictures:
    its characters stay single tokens. The roles of the chat format are tokens that swallow
    the blanks around them."""
    corpus = []
    for line in lines:
        for q in json.loads(line)["questions"]:
            corpus.append(q["text"])
            if q["kind"] != "written":
                corpus.append(q["answer"])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=1024, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    ))
    tokenizer.add_tokens([
        AddedToken("USER:", rstrip=True, normalized=False),
        AddedToken("ASSISTANT:", lstrip=True, rstrip=True, normalized=False),
    ])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


class Collate:
    """Packs the turns of each picture into one sequence.

    Mostly each turn sees the picture and itself alone, at the positions it would have as
    the first turn: dense supervision without the shortcut of copying from another answer.
    One batch in `chat_every` is an ordinary conversation instead.
    """

    def __init__(self, tokenizer, width, chat_every=0, everything=False):
        self.ids = functools.lru_cache(1 << 16)(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
        self.width = width
        self.everything = everything
        head = self.ids("USER: <image>\n")
        at = head.index(IMAGE_TOKEN)
        self.before = [BOS] + head[:at]
        self.head = self.before + [IMAGE_TOKEN] * TOKENS + head[at + 1 :]
        self.image_at = len(self.before)
        self.chat_every = chat_every
        self.made = 0

    def __call__(self, items):
        self.made += 1
        chat = self.chat_every and self.made % self.chat_every == 0
        every, describe_weight = DESCRIBE_EARLY if self.made <= EARLY else DESCRIBE
        rows = []
        for _, record in items:
            ids, turn, pos = list(self.head), [0] * len(self.head), list(range(len(self.head)))
            target, weight, kind = [-1] * len(ids), [0.0] * len(ids), [0] * len(ids)
            for number, q in enumerate(record["questions"], 1):
                describe = q["kind"] == "describe"
                if describe and not self.everything and record["scene"]["index"] % every:
                    continue
                user = "USER: " if chat and number > 1 else ""
                asked = self.ids(f"{user}{q['text']} ASSISTANT:")
                answer = self.ids(q["answer"]) + [EOS]
                new = asked + answer
                if len(ids) + len(new) > self.width:
                    continue
                start = len(ids) if chat else len(self.head)
                ids += new
                turn += [0 if chat else number] * len(new)
                pos += range(start, start + len(new))
                # The token at a place predicts the next one.
                lead = len(asked) - 1
                target += [-1] * lead + answer + [-1]
                w = describe_weight if describe else 1.0
                weight += [0.0] * lead + [w] * len(answer) + [0.0]
                kind += [number] * len(new)
            rows.append((ids, turn, pos, target, weight, kind))
        fills = [PAD, -1, 0, -1, 0.0, 0]

        def column(i, dtype):
            rest = [[fills[i]] * (self.width - len(r[i])) for r in rows]
            return torch.tensor([r[i] + more for r, more in zip(rows, rest)], dtype=dtype)

        turn = column(1, torch.long)
        mask = (turn[:, :, None] == turn[:, None, :]) | (turn[:, None, :] == 0)
        mask &= torch.ones(self.width, self.width, dtype=torch.bool).tril()
        return {
            "labels": collate_labels(items),
            "ids": column(0, torch.long),
            "mask": mask[:, None],
            "pos": column(2, torch.long),
            "target": column(3, torch.long),
            "weight": column(4, torch.float32),
            "kind": column(5, torch.long),
            "records": [record for _, record in items],
        }


def make_model(args, vocabulary):
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=args.text_width,
        intermediate_size=args.text_mlp,
        num_hidden_layers=args.text_layers,
        num_attention_heads=args.text_width // 32,
        num_key_value_heads=args.text_width // 96,
        head_dim=32,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlavaForConditionalGeneration(LlavaConfig(
        vision_config=vision_config(args),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=TOKENS,
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    ))


class Words:
    """A loss that ties the projector to the language model's vocabulary: what it says of
    the middle of an object's cell must be like the embeddings of the words for the object
    (and unlike the others, and what it says elsewhere unlike all). Questions that name an
    object by its looks can then be matched with it from the first steps; without this,
    attention finds the match only late. Pictures are also held to the words' scale: louder
    ones drown the words, and the questions go unread."""

    def __init__(self, tokenizer):
        rows = ["top", "middle", "bottom"]
        columns = ["left", "center", "right"]
        # The words, and which of a cell's labels chooses among them.
        groups = [(SHAPES, 0), ([s + "s" for s in SHAPES], 0), (COLORS, 1), (SIZES, 2),
                  (rows, -1), (columns, -2)]
        self.groups = []
        for words, label in groups:
            ids = [tokenizer.encode(f" {w}", add_special_tokens=False).ids for w in words]
            if any(len(i) != 1 for i in ids):
                raise ValueError(f"not single tokens: {words}")
            self.groups.append((torch.tensor(ids)[:, 0], label))

    def __call__(self, table, seen, cells):
        """Embedding table, projector's output [batch, 64, width], labels [batch, 9, 5]."""
        power = seen.float().square().mean(-1, keepdim=True)
        seen = seen.float() * power.rsqrt()
        there = cells[..., 0] > 0
        place = torch.arange(9)
        targets = {label: cells[..., label] for label in (0, 1, 2)}
        targets[-1] = there * (1 + place // 3)
        targets[-2] = there * (1 + place % 3)
        loss = 0.0
        for ids, label in self.groups:
            target = torch.zeros(seen.shape[:2], dtype=torch.long)
            target[:, CELL_PATCHES] = targets[label]
            logits = seen @ table[ids].T / seen.shape[-1] ** 0.5
            logits = F.pad(logits, (1, 0))  # "nothing" has logit 0
            # Most patches are not the middle of an object.
            weight = torch.tensor([0.05] + [1.0] * len(ids))
            loss = loss + F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight)
        return loss / len(self.groups) + 0.1 * power.log().square().mean()


class Forward:
    """The parts of the model as the trainer calls them."""

    def __init__(self, args, model, image_at):
        model.set_attn_implementation("eager")  # the fastest here, forth and back
        self.model, self.image_at = model, image_at
        self.see = compiled(args, lambda pixels: features_of(model.model.vision_tower, pixels))
        self.read = compiled(args, self.language)

    def language(self, embeds, mask, pos):
        mask = torch.where(mask, 0.0, -1e9).to(torch.bfloat16)
        return self.model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=pos, use_cache=False,
        ).last_hidden_state

    def __call__(self, batch):
        """Logits at the supervised places, in row-major order, the tower's features, and
        the projector's output."""
        features = self.see(normalise(batch["labels"][0]))
        seen = self.model.model.multi_modal_projector(features)
        embeds = self.model.model.language_model.embed_tokens(batch["ids"])
        at = self.image_at
        embeds = torch.cat([embeds[:, :at], seen.to(embeds.dtype), embeds[:, at + TOKENS :]], 1)
        hidden = self.read(embeds, batch["mask"], batch["pos"])
        return self.model.lm_head(hidden[batch["target"] >= 0]).float(), features, seen


@torch.no_grad()
def accuracy(args, forward, batches):
    """Share of answers with all tokens right, by kind, on evaluation scenes. (When every
    token is right given the right ones before it, greedy generation is right too.)"""
    right, asked = {}, {}
    for batch in batches:
        with autocast(args):
            logits = forward(batch)[0]
        places = (batch["target"] >= 0).nonzero()
        good = (logits.argmax(-1) == batch["target"][batch["target"] >= 0]).tolist()
        fine = {}
        for (row, column), ok in zip(places.tolist(), good):
            key = (row, batch["kind"][row, column].item())
            fine[key] = fine.get(key, True) and ok
        for (row, number), ok in fine.items():
            kind = batch["records"][row]["questions"][number - 1]["kind"]
            right[kind] = right.get(kind, 0) + ok
            asked[kind] = asked.get(kind, 0) + 1
    table = {k: right[k] / asked[k] for k in sorted(asked)}
    return sum(right.values()) / sum(asked.values()), table


def stage2(args, scenes):
    torch.manual_seed(args.seed + 1)
    file = os.path.join(args.work, "tokenizer.json")
    if not os.path.exists(file):
        make_tokenizer(scenes.lines[:1500]).save(file)
    tokenizer = Tokenizer.from_file(file)
    model = make_model(args, tokenizer.get_vocab_size())
    # Words of the residual stream's scale, so that what the layers add does not bury them.
    embedding = model.model.language_model.embed_tokens.weight
    torch.nn.init.normal_(embedding)
    aux = Auxiliary(args.tower_width)
    first = torch.load(os.path.join(args.work, "stage1.pt"), weights_only=True)["model"]
    model.model.vision_tower.load_state_dict(
        {k[6:]: v for k, v in first.items() if k.startswith("tower.")})
    aux.load_state_dict({k[4:]: v for k, v in first.items() if k.startswith("aux.")})
    both = torch.nn.ModuleDict({"model": model, "aux": aux})
    seeing, seeing_rest = split(model.model.vision_tower)
    telling, telling_rest = split(model.model.multi_modal_projector, model.model.language_model)
    telling_rest = [p for p in telling_rest if p is not embedding]
    telling_rest += model.lm_head.parameters()
    seeing_rest += aux.parameters()
    optimizer = Optimizers(
        [(seeing, args.lr2_tower), (telling, args.lr2_muon)],
        [(seeing_rest, args.lr2_tower), (telling_rest, args.lr2), ([embedding], args.lr2_words)])
    path = os.path.join(args.work, "stage2.pt")
    step = 0
    if os.path.exists(path):
        state = torch.load(path, weights_only=True)
        both.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        log(args, f"stage 2 goes on from step {step}")
    else:
        count = sum(p.numel() for p in model.parameters())
        log(args, f"stage 2: {count} parameters, vocabulary {tokenizer.get_vocab_size()}")
    collate = Collate(tokenizer, WIDTH, chat_every=8)
    collate.made = step
    held = [(picture, json.loads(record)) for picture, record in
            records(args.generator, "eval", args.seed, 0, 256)]
    whole = Collate(tokenizer, FULL, everything=True)
    measured = [whole(held[i : i + 32]) for i in range(0, len(held), 32)]
    words = Words(tokenizer)
    forward = Forward(args, model, collate.image_at)
    plain = Forward(argparse.Namespace(compile=False), model, collate.image_at)
    feed = scenes.batches(2, step, args.batch2, collate)
    saved, began, first_step = time.time(), time.time(), step
    mean = None
    while step < args.steps2:
        batch = next(feed)
        with autocast(args):
            logits, features, seen = forward(batch)
            extra, cell_right, _ = aux(features, *batch["labels"][1:])
        named = words(embedding, seen, batch["labels"][1])
        at = batch["target"] >= 0
        losses = F.cross_entropy(logits, batch["target"][at], reduction="none")
        weight = batch["weight"][at]
        loss = (losses * weight).sum() / weight.sum()
        (loss + args.aux * extra + args.words * named).backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step(rate(step, args.steps2, args.decay2))
        step += 1
        now = torch.tensor([loss.item(), named.item(), cell_right.item()])
        mean = now if mean is None else 0.95 * mean + 0.05 * now
        if step % args.report == 0:
            speed = (step - first_step) * args.batch2 / (time.time() - began)
            log(args, f"stage 2 step {step} loss {mean[0]:.4f} words {mean[1]:.4f} "
                f"cells {mean[2]:.1%} {speed:.0f} scenes/s")
        last = step == args.steps2
        if step % args.measure == 0 or last:
            overall, table = accuracy(args, plain, measured)
            log(args, f"stage 2 step {step} accuracy {overall:.1%} "
                + " ".join(f"{k} {v:.1%}" for k, v in table.items()))
        if time.time() - saved > args.save_every or last:
            save(path, {"model": both.state_dict(), "optimizer": optimizer.state_dict(),
                        "step": step})
            saved = time.time()


CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ 'USER: ' }}\
{%- elif message['role'] == 'assistant' -%}{{ 'ASSISTANT: ' }}{%- endif -%}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ '</s>' }}{%- else -%}{{ ' ' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def export(args):
    """Writes the checkpoint folder, weights rounded to bf16, from the state of stage 2."""
    folder = args.out
    os.makedirs(folder, exist_ok=True)
    inner = Tokenizer.from_file(os.path.join(args.work, "tokenizer.json"))
    model = make_model(args, inner.get_vocab_size())
    state = torch.load(os.path.join(args.work, "stage2.pt"), weights_only=True)
    model.load_state_dict(
        {k[6:]: v for k, v in state["model"].items() if k.startswith("model.")})
    model.generation_config.bos_token_id = BOS
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = PAD
    model.generation_config.do_sample = False
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<pad>", model_max_length=1024, clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>"},
    )
    tokenizer.save_pretrained(folder)
    write_json(folder, "special_tokens_map.json", {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
        "image_token": "<image>"})
    write_json(folder, "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True, "size": {"shortest_edge": IMAGE}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": IMAGE, "width": IMAGE},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    })
    write_json(folder, "processor_config.json", {
        "processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": PATCH,
        "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"})
    with open(os.path.join(folder, "chat_template.jinja"), "w") as f:
        f.write(CHAT_TEMPLATE)
    log(args, f"exported step {state['step']} to {folder}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--work", default="target/demo-train", help="folder for states and the log")
    add("--out", default="assets/kiln-demo", help="the checkpoint folder to write")
    add("--generator", default="target/release/kiln-demo", help="the scene generator's binary")
    add("--seed", type=int, default=20, help="of scenes, initial weights and order")
    add("--threads", type=int, default=2, help="torch threads")
    add("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bf16 autocast")
    add("--stage", choices=["1", "2", "export", "all"], default="all")
    add("--compile", action=argparse.BooleanOptionalAction, default=True,
        help="compile the models (needs a C++ compiler)")
    add("--scenes", type=int, default=100_000, help=f"training scenes, a multiple of {CHUNK}")
    add("--tower-width", type=int, default=128)
    add("--tower-layers", type=int, default=4)
    add("--steps1", type=int, default=1800, help="optimizer steps of stage 1")
    add("--batch1", type=int, default=32, help="scenes a step in stage 1")
    add("--lr1", type=float, default=1e-3)
    add("--text-width", type=int, default=192, help="a multiple of 96")
    add("--text-mlp", type=int, default=512)
    add("--text-layers", type=int, default=5)
    add("--steps2", type=int, default=8000, help="optimizer steps of stage 2")
    add("--decay2", type=int, default=5000, help="of them, the last ones with a falling rate")
    add("--batch2", type=int, default=16, help="scenes a step in stage 2")
    add("--lr2", type=float, default=1.5e-3, help="of the norms and the output layer")
    add("--lr2-words", type=float, default=5e-3, help="of the embeddings")
    add("--lr2-muon", type=float, default=3e-3,
        help="of the matrices of the language model and projector")
    add("--lr2-tower", type=float, default=3e-4)
    add("--aux", type=float, default=0.1, help="weight of the auxiliary loss in stage 2")
    add("--words", type=float, default=0.3, help="weight of the words' loss in stage 2")
    add("--measure", type=int, default=300, help="steps between accuracy measurements")
    add("--report", type=int, default=50, help="steps between log lines")
    add("--save-every", type=float, default=60, help="seconds between saved states")
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    torch.set_num_threads(args.threads)
    if args.stage != "export":
        scenes = Scenes(args)
    if args.stage in ("1", "all"):
        stage1(args, scenes)
    if args.stage in ("2", "all"):
        stage2(args, scenes)
    if args.stage in ("export", "all"):
        export(args)


if __name__ == "__main__":
    main()
