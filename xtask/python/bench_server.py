#!/usr/bin/env python3
"""A server on one of the shapes of bench_models.py, seen by clients over HTTP: `cargo xtask bench --server`
runs it behind the engines, for Kiln and each rival, and reads the line of JSON that it ends with.

    python bench_server.py kiln      --bin target/release/kiln --model A --picture picture.png
    python bench_server.py vllm      --bin python --model A ...
    python bench_server.py llama.cpp --bin build/bin --model a.gguf --mmproj mmproj.gguf ...

As users start it: requests by one, several at once, a picture that is sent again, and streams that run
while prompts with new pictures arrive. Kiln before that with the caches off and the settings of
`kiln bench`, so that what differs is HTTP, tokens made text and text made JSON.
"""

import argparse
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import threading
import time
from base64 import b64encode
from pathlib import Path

from bench_rivals import TEXT, Pictures

BARE = [
    "--max-batched-tokens=2048",
    "--long-prefill-token-threshold=2048",
    "--max-itl-ratio=0",
    "--no-prefix-cache",
    "--encoder-cache-bytes=1",
    "--processor-cache-bytes=1",
]
STREAMS = 4
ARRIVALS = 6


def command(args, port, flags):
    """The command line and the environment of a server."""
    threads, bin = str(os.cpu_count()), args.bin
    if args.engine == "kiln":
        return [bin, "serve", args.model, "--port", str(port), "--memory", "6GiB", "--served-model-name", "model", *flags], {}
    if args.engine == "vllm":
        line = [bin, "-m", "vllm.entrypoints.openai.api_server", "--model", args.model, "--port", str(port)]
        line += ["--dtype", args.dtype, "--max-model-len", "4096", "--max-num-seqs", "8", "--enforce-eager"]
        line += ["--limit-mm-per-prompt", '{"image": 1}', "--served-model-name", "model"]
        cores = f"0-{os.cpu_count() - 1}"
        space = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
        return line, {**space, "VLLM_CPU_OMP_THREADS_BIND": cores, "HF_HUB_OFFLINE": "1"}
    line = [Path(bin) / "llama-server", "-m", args.model, "--mmproj", args.mmproj, "-t", threads, "-tb", threads]
    line += ["-c", str(2048 * args.concurrency), "-np", str(args.concurrency), "--port", str(port)]
    return line + ["--no-webui", "--no-jinja", "--chat-template", "vicuna"], {}


class Server:
    def __init__(self, args, flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.host = f"127.0.0.1:{port}"
        line, environment = command(args, port, flags)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(line, env={**os.environ, **environment}, **quiet)
        while not self.is_ready():
            if self.process.poll() is not None:
                raise SystemExit(f"the server of {args.engine} ended before it was ready")
            time.sleep(0.05)

    def is_ready(self):
        try:
            connection = http.client.HTTPConnection(self.host, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def ask(self, text, picture, tokens):
        """Streams an answer; when each of its tokens came, in seconds since it was sent, and usage."""
        content = [{"type": "text", "text": text}]
        if picture is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": picture}})
        body = json.dumps(
            {
                "model": "model",
                "messages": [{"role": "user", "content": content}],
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
                "timings_per_token": True,
            }
        )
        connection = http.client.HTTPConnection(self.host, timeout=600)
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"{response.status}: {response.read()[:300]}")
        times, usage, seen = [], None, 0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise SystemExit(f"a stream ended with {chunk}")
            usage = chunk.get("usage") or usage
            # llama.cpp counts in a field of its own.
            timings = chunk.get("timings") or {}
            made = timings.get("predicted_n") or (usage or {}).get("completion_tokens", 0)
            if made > seen:
                times.append(time.perf_counter() - began)
                seen = made
        connection.close()
        return times, usage


def at_once(count, run):
    """Runs so many at a time; their results, and the seconds of all."""
    results = [None] * count

    def one(i):
        results[i] = run(i)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, time.perf_counter() - began


def alone(server, args, question, picture):
    """The middle ones of three requests: time to first token, time per output token."""
    server.ask(question, picture(), args.output_tokens)
    ones = [server.ask(question, picture(), args.output_tokens)[0] for _ in range(3)]
    first = statistics.median(times[0] for times in ones)
    rest = statistics.median((times[-1] - times[0]) / (len(times) - 1) for times in ones)
    return {"time_to_first_token": first, "time_per_output_token": rest}


def together(server, args, question, picture):
    """Seconds of several requests that come at once."""
    sent = [picture() for _ in range(args.concurrency)]
    return at_once(args.concurrency, lambda i: server.ask(question, sent[i], args.output_tokens))[1]


def again(server, question, picture):
    """The time to first token of a picture, of the same again, and of another question about it."""
    server.ask(question, picture(), 4)
    known = picture()
    first = server.ask(question, known, 4)[0][0]
    same, usage = server.ask(question, known, 4)
    other = server.ask("What else?", known, 4)[0][0]
    details = (usage or {}).get("prompt_tokens_details") or {}
    found = {"first": first, "same_again": same[0], "other_question": other}
    return {**found, "cached_tokens": details.get("cached_tokens")}


def gaps(server, question, picture):
    """What lies between two tokens of streams while prompts with new pictures arrive."""
    firsts = []

    def arrive():
        for _ in range(ARRIVALS):
            time.sleep(1.5)
            firsts.append(server.ask(question, picture(), 4)[0][0])

    arrivals = threading.Thread(target=arrive)
    arrivals.start()
    streams, _ = at_once(STREAMS, lambda i: server.ask(f"Stream {i}. {question}", None, 250))
    arrivals.join()
    gaps = sorted(b - a for times, _ in streams for a, b in zip(times, times[1:]))
    at = lambda share: gaps[min(int(share * len(gaps)), len(gaps) - 1)]
    found = {"gap_median": at(0.5), "gap_p90": at(0.9), "gap_p99": at(0.99)}
    return {**found, "streams": STREAMS, "arrivals": ARRIVALS, "arrival_first": statistics.median(firsts)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["kiln", "vllm", "llama.cpp"])
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--mmproj")
    parser.add_argument("--picture", required=True)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of vLLM")
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=8)
    args = parser.parse_args()
    pictures = Pictures(args.picture)

    def picture():
        file = io.BytesIO()
        pictures.next().save(file, "PNG")
        return "data:image/png;base64," + b64encode(file.getvalue()).decode()

    question, out = TEXT[:150], {"concurrency": args.concurrency}
    if args.engine == "kiln":
        with Server(args, BARE) as server:
            out["bare"] = alone(server, args, question, picture)
            out["bare"]["total"] = min(together(server, args, question, picture) for _ in range(2))
    with Server(args, []) as server:
        out |= alone(server, args, question, picture)
        out |= again(server, question, picture)
        out |= gaps(server, question, picture)
        out["total"] = together(server, args, question, picture)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
