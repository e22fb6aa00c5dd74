#!/usr/bin/env python3
"""One other engine on one of the shapes of bench_models.py: `cargo xtask bench` runs it in turn with
Kiln, with the Python of that engine's own environment, and reads the line of JSON that it ends with.

    python bench_rivals.py transformers --model A --picture picture.png [--concurrency 8]
    python bench_rivals.py openvino     --model A-openvino-fp16 ...   (an export of optimum-cli)
    python bench_rivals.py vllm         --model A ...
    python bench_rivals.py llama.cpp    --model a.gguf --mmproj mmproj.gguf --bin build/bin ...

Each request: one 640x480 picture that no request had before (its first pixels differ, so that no cache
of encoder or prefix answers), so many tokens of text, greedy, the end of sequence ignored. The time to
the first token begins with the picture's pixels in hand, and for llama.cpp with the PNG.
"""

import argparse
import io
import json
import os
import re
import socket
import statistics
import subprocess
import threading
import time
import urllib.request
from base64 import b64encode
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")

import numpy as np
from PIL import Image

TEXT = "Describe this picture in detail, every object that you see, its colour and where it is, and say why. "


class Pictures:
    """The picture, another one each time."""

    def __init__(self, path: str):
        self.pixels = np.asarray(Image.open(path).convert("RGB"))
        self.drawn = 0

    def next(self) -> Image.Image:
        self.drawn += 1
        pixels = self.pixels.copy()
        rng = np.random.RandomState(self.drawn)
        pixels[200:280, 280:360] = rng.randint(0, 255, (80, 80, 3))
        return Image.fromarray(pixels)


def peak_rss(pid: int | str = "self") -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) << 10


def summary(times: list[list[tuple[float, float, int]]], totals: list[float]) -> dict:
    """Runs of requests: each request's first and last token in seconds, and how many it made."""
    requests = [request for run in times for request in run]
    tokens = sum(count for _, _, count in times[-1])
    total = statistics.median_low(totals)
    return {
        "concurrency": len(times[-1]),
        "time_to_first_token": statistics.median_low([first for first, _, _ in requests]),
        "time_per_output_token": statistics.median_low(
            [(last - first) / max(count - 1, 1) for first, last, count in requests]
        ),
        "total": total,
        "output_tokens_per_second": tokens / total,
    }


def prompt(tokenizer, tokens: int) -> str:
    """Text of so many tokens."""
    ids = tokenizer(TEXT * (tokens // 8 + 1), add_special_tokens=False)["input_ids"][:tokens]
    return tokenizer.decode(ids)


class Transformers:
    def __init__(self, args):
        import torch
        import transformers
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.torch, self.args = torch, args
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]
        self.processor = AutoProcessor.from_pretrained(args.model, backend="pil")
        self.model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=dtype).eval()
        self.text = "<image>\n" + prompt(self.processor.tokenizer, args.prompt_tokens)

    def run(self, pictures):
        from transformers import StoppingCriteria, StoppingCriteriaList

        class Stamp(StoppingCriteria):
            def __init__(self):
                self.times = []

            def __call__(stamp, ids, scores, **kwargs):
                stamp.times.append(time.perf_counter())
                return self.torch.zeros(ids.shape[0], dtype=self.torch.bool)

        stamp, count = Stamp(), self.args.output_tokens
        began = time.perf_counter()
        inputs = self.processor(text=[self.text] * len(pictures), images=pictures, return_tensors="pt")
        inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        with self.torch.inference_mode():
            self.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=count,
                min_new_tokens=count,
                stopping_criteria=StoppingCriteriaList([stamp]),
            )
        first, last = stamp.times[0] - began, stamp.times[-1] - began
        return [(first, last, count)] * len(pictures)


class OpenVino:
    """Continuous batching over an export; one request is a batch of one."""

    def __init__(self, args):
        import openvino as ov
        import openvino_genai as genai

        self.ov, self.genai, self.args, self.drawn = ov, genai, args, 0
        self.version = f"OpenVINO GenAI {genai.__version__}"
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2
        scheduler.max_num_seqs = max(args.concurrency, 8)
        scheduler.max_num_batched_tokens = 2048
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = True
        options = {"INFERENCE_PRECISION_HINT": args.dtype}
        self.pipe = genai.ContinuousBatchingPipeline(args.model, scheduler, "CPU", options)
        self.text = prompt(self._tokenizer(args), args.prompt_tokens)

    @staticmethod
    def _tokenizer(args):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(args.model)

    def run(self, pictures):
        config = self.genai.GenerationConfig()
        config.do_sample, config.ignore_eos = False, True
        config.max_new_tokens = config.min_new_tokens = self.args.output_tokens
        began = time.perf_counter()
        handles = []
        for picture in pictures:
            self.drawn += 1
            tensor = self.ov.Tensor(np.asarray(picture)[None])
            handles.append(self.pipe.add_request(self.drawn, self.text, [tensor], config))
        first, last, counts = ([None] * len(handles) for _ in range(3))
        counts = [0] * len(handles)
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
            now = time.perf_counter() - began
            for index, handle in enumerate(handles):
                while handle.can_read():
                    counts[index] += sum(len(out.generated_ids) for out in handle.read().values())
                    first[index] = first[index] or now
                    last[index] = now
        return list(zip(first, last, counts))


class Vllm:
    def __init__(self, args):
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{os.cpu_count() - 1}")
        import vllm
        from vllm import LLM, SamplingParams

        self.args = args
        self.version = f"vLLM {vllm.__version__} (CPU)"
        dtype = {"bf16": "bfloat16", "f32": "float32"}[args.dtype]
        self.model = LLM(
            args.model,
            dtype=dtype,
            max_model_len=9216,
            max_num_seqs=8,
            enforce_eager=True,
            limit_mm_per_prompt={"image": 1},
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            disable_log_stats=False,
        )
        self.sampling = lambda n: SamplingParams(temperature=0, max_tokens=n, ignore_eos=True)
        self.text = "<image>\n" + prompt(self.model.get_tokenizer(), args.prompt_tokens)

    def run(self, pictures):
        # Offline, tokens come all at the end: the first one is timed by a run of one token.
        def generate(count):
            requests = [{"prompt": self.text, "multi_modal_data": {"image": p}} for p in pictures]
            began = time.perf_counter()
            self.model.generate(requests, self.sampling(count), use_tqdm=False)
            return time.perf_counter() - began

        count = self.args.output_tokens
        last = generate(count)
        return [(generate(1), last, count)] * len(pictures)


class LlamaCpp:
    def __init__(self, args):
        self.args = args
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        server = Path(args.bin) / "llama-server"
        version = subprocess.run([server, "--version"], capture_output=True, text=True)
        self.version = "llama.cpp " + (re.search(r"version: (.*)", version.stderr + version.stdout) or [0, "?"])[1]
        threads = str(os.cpu_count())
        command = [server, "-m", args.model, "--mmproj", args.mmproj, "-t", threads, "-tb", threads]
        command += ["-c", str(2048 * args.concurrency), "-np", str(args.concurrency), "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--no-webui", "--no-jinja", "--chat-template", "vicuna"]
        # Weights of eight and four bits in blocks made for the matrix unit crash some of its builds.
        if not self._start(command):
            if not self._start(command + ["--no-repack"]):
                raise SystemExit("llama-server ended before it was ready")
            self.version += " with --no-repack"
        self.marker = json.loads(self._get("/props"))["media_marker"]
        words = TEXT.split() * (args.prompt_tokens // 8 + 1)
        ids = json.loads(self._post("/tokenize", {"content": " ".join(words)}).read())["tokens"]
        text = json.loads(self._post("/detokenize", {"tokens": ids[: args.prompt_tokens]}).read())
        self.text = text["content"]

    def _start(self, command):
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self.server.poll() is None:
            try:
                if self._get("/health"):
                    return True
            except OSError:
                time.sleep(0.02)
        return False

    def _get(self, path):
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5).read()

    def _post(self, path, body):
        headers = {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        return urllib.request.urlopen(request, timeout=900)

    def run(self, pictures):
        files = []
        for picture in pictures:
            png = io.BytesIO()
            picture.save(png, "png")
            files.append(b64encode(png.getvalue()).decode())
        results, began = [None] * len(files), time.perf_counter()

        def follow(index):
            body = {
                "prompt": {"prompt_string": f"{self.marker}\n{self.text}", "multimodal_data": [files[index]]},
                "n_predict": self.args.output_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
                "stream": True,
            }
            first = last = None
            count = 0
            for line in self._post("/completion", body):
                if line.startswith(b"data:"):
                    last = time.perf_counter() - began
                    first = first or last
                    count = json.loads(line[5:]).get("tokens_predicted") or count
            results[index] = (first, last, count or self.args.output_tokens)

        threads = [threading.Thread(target=follow, args=(index,)) for index in range(len(files))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def close(self):
        peak = peak_rss(self.server.pid)
        self.server.terminate()
        self.server.wait()
        return peak


ENGINES = {"transformers": Transformers, "openvino": OpenVino, "vllm": Vllm, "llama.cpp": LlamaCpp}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--model", required=True)
    parser.add_argument("--picture", required=True)
    parser.add_argument("--mmproj")
    parser.add_argument("--bin")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "f32"])
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    began = time.perf_counter()
    engine = ENGINES[args.engine](args)
    load = time.perf_counter() - began
    pictures = Pictures(args.picture)
    # Warms up.
    engine.run([pictures.next()])
    times, totals = [], []
    for _ in range(args.repeat):
        drawn = [pictures.next() for _ in range(args.concurrency)]
        began = time.perf_counter()
        times.append(engine.run(drawn))
        totals.append(max(last for _, last, _ in times[-1]))
    peak = engine.close() if hasattr(engine, "close") else peak_rss()
    result = {
        "engine": args.engine,
        "version": engine.version,
        "load": load,
        "peak_rss_bytes": peak,
        "run": summary(times, totals),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
