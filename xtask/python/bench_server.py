#!/usr/bin/env python3
"""`kiln serve` on one of the shapes of bench_models.py, seen by clients over HTTP: `cargo xtask bench
--server` runs it behind `kiln bench` and reads the line of JSON that it ends with.

    python bench_server.py --bin target/release/kiln --model A --picture picture.png

First with the caches off and the settings of `kiln bench`, so that what differs is HTTP, tokens made
text and text made JSON; then as users start it: a picture that is sent again, and streams that run
while prompts with new pictures arrive.
"""

import argparse
import http.client
import io
import json
import statistics
import subprocess
import threading
import time
from base64 import b64encode

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


class Server:
    def __init__(self, args, flags):
        command = [args.bin, "serve", args.model, "--port", "0", "--memory", "6GiB", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if "http://" in line:
                self.host = line.split("http://")[1].strip()
                break
        else:
            raise SystemExit("the server ended before it was ready")
        threading.Thread(target=lambda: [None for _ in self.process.stdout], daemon=True).start()

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
                "messages": [{"role": "user", "content": content}],
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
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
            made = usage["completion_tokens"] if usage else 0
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--picture", required=True)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=8)
    args = parser.parse_args()
    pictures = Pictures(args.picture)

    def picture():
        file = io.BytesIO()
        pictures.next().save(file, "PNG")
        return "data:image/png;base64," + b64encode(file.getvalue()).decode()

    question, out = TEXT[:150], {}
    with Server(args, BARE) as server:
        server.ask(question, picture(), args.output_tokens)
        ones = [server.ask(question, picture(), args.output_tokens)[0] for _ in range(3)]
        out["time_to_first_token"] = statistics.median(times[0] for times in ones)
        out["time_per_output_token"] = statistics.median(
            (times[-1] - times[0]) / (len(times) - 1) for times in ones
        )
        totals = []
        for _ in range(2):
            sent = [picture() for _ in range(args.concurrency)]
            run = lambda i: server.ask(question, sent[i], args.output_tokens)
            totals.append(at_once(args.concurrency, run)[1])
        out["concurrency"], out["total"] = args.concurrency, min(totals)
    with Server(args, []) as server:
        server.ask(question, picture(), 4)
        known = picture()
        first = server.ask(question, known, 4)[0][0]
        again, usage = server.ask(question, known, 4)
        other = server.ask("What else?", known, 4)[0][0]
        out["first"], out["same_again"], out["other_question"] = first, again[0], other
        out["cached_tokens"] = usage["prompt_tokens_details"]["cached_tokens"]

        def arrive():
            for _ in range(ARRIVALS):
                time.sleep(1.5)
                server.ask(question, picture(), 4)

        arrivals = threading.Thread(target=arrive)
        arrivals.start()
        streams, _ = at_once(STREAMS, lambda i: server.ask(f"Stream {i}. {question}", None, 250))
        arrivals.join()
        gaps = sorted(b - a for times, _ in streams for a, b in zip(times, times[1:]))
        at = lambda share: gaps[min(int(share * len(gaps)), len(gaps) - 1)]
        out["streams"], out["arrivals"] = STREAMS, ARRIVALS
        out["gap_median"], out["gap_p90"], out["gap_p99"] = at(0.5), at(0.9), at(0.99)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
