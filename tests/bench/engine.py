"""The engine alone, without a server: what no server in front of it can be faster than, by much.

Loads the model, says `{"ready": true}`, then runs once for every line of standard input,
`{"batch": 40, "seconds": 8, "text": false}`, and prints the run's figures as one line of JSON. With `text` false a
run is tokens in, tokens out; with `text` true it tokenises and detokenises too.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from model import Model

Call = Callable[[], list[int]]
"""One batch; says how many new tokens each member got."""


def tokens_only(model: Model, texts: list[str], tokens: int) -> Call:
    prompts = model.tokenised(texts)
    return lambda: [len(ids) for ids in model.generated(prompts, tokens)]


def with_text(model: Model, texts: list[str], tokens: int) -> Call:
    limits = [tokens] * len(texts)
    return lambda: [answer.completion_tokens for answer in model.answers(texts, limits)]


def run(call: Call, seconds: float) -> dict[str, float]:
    """Calls until the time is over."""
    milliseconds: list[float] = []
    lengths: set[int] = set()
    answered = 0
    started = now = perf_counter()
    while now < started + seconds:
        called = now
        tokens = call()
        now = perf_counter()
        milliseconds.append((now - called) * 1000)
        answered += len(tokens)
        lengths.update(tokens)
    milliseconds.sort()
    return {
        "answered": answered,
        "seconds": now - started,
        "p50": milliseconds[len(milliseconds) // 2],
        "p99": milliseconds[len(milliseconds) * 99 // 100],
        "max": milliseconds[-1],
        "least_tokens": min(lengths),
        "most_tokens": max(lengths),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="threads of one engine call")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, default=10, help="new tokens of every answer")
    arguments = parser.parse_args()

    model = Model(arguments.model, arguments.threads)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        kind = with_text if order["text"] else tokens_only
        call = kind(model, [arguments.prompt] * order["batch"], arguments.tokens)
        print(json.dumps(run(call, order["seconds"])), flush=True)


if __name__ == "__main__":
    main()
