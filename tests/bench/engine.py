"""The engine alone, without a server: what no server in front of it can be faster than, by much.

Loads the model, says `{"ready": true}`, then runs once for every line of standard input,
`{"batch": 40, "seconds": 8, "text": false}`, and prints the run's figures as one line of JSON. With `text` false a
run is tokens in, tokens out; with `text` true it tokenises and detokenises too.

With `"steps": true` it serves one prompt after another, and says when half of the first tokens came after the call, and
half of the others after the one before, in milliseconds.

With `"mix"`, a file as `load-driver --mix` takes it, requests are drawn from it, `batch` at a time as they would come,
and each batch is served in `"calls"` calls: sorted by length and cut into equal parts. With 0 calls it is cut as
`offline.py` finds best.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from time import perf_counter

from model import Model
from offline import Cost, best_split

Call = Callable[[], list[int]]
"""One batch; says how many new tokens each member got."""


def tokens_only(model: Model, texts: list[str], tokens: int) -> Call:
    prompts = model.tokenised(texts)
    return lambda: [len(ids) for ids in model.generated(prompts, tokens)]


def with_text(model: Model, texts: list[str], tokens: int) -> Call:
    limits = [tokens] * len(texts)
    return lambda: [answer.completion_tokens for answer in model.answers(texts, limits)]


def drawn(model: Model, mix: Path, batch: int, calls: int) -> Call:
    """Batches at random from a mix, each served in so many calls of like lengths. Whoever asks for less than the others
    of his call is cut, as every server without a callback does it."""
    kinds = [json.loads(line) for line in mix.read_text().splitlines()]
    weights = [kind["weight"] for kind in kinds]
    tokens = model.tokenised([kind["body"]["text"] for kind in kinds])
    limits = [kind["body"]["max_new_tokens"] for kind in kinds]
    rng = random.Random(1)

    def call() -> list[int]:
        members = rng.choices(range(len(kinds)), weights, k=batch)
        if calls > 1:
            members.sort(key=lambda kind: (len(tokens[kind]), limits[kind]))
        given: list[int] = []
        for part in parts(members, calls, tokens):
            most = max(limits[kind] for kind in part)
            new = model.generated([tokens[kind] for kind in part], most)
            given += [min(len(ids), limits[kind]) - limits[kind] for ids, kind in zip(new, part, strict=True)]
        return given

    return call


def cut_offline(model: Model, mix: Path, batch: int) -> Call:
    """Batches from a mix whose answers are all of one length, drawn and cut before the clock runs."""
    kinds = [json.loads(line) for line in mix.read_text().splitlines()]
    weights = [kind["weight"] for kind in kinds]
    tokens = model.tokenised([kind["body"]["text"] for kind in kinds])
    [most] = {kind["body"]["max_new_tokens"] for kind in kinds}
    cost = Cost(model, {len(ids): ids for ids in tokens}, most)
    rng = random.Random(1)
    batches = []
    for _ in range(50):
        members = sorted((tokens[kind] for kind in rng.choices(range(len(kinds)), weights, k=batch)), key=len)
        ends = best_split([len(ids) for ids in members], cost)
        batches.append([members[a:b] for a, b in zip([0, *ends], ends, strict=False)])
    following = cycle(batches)

    def call() -> list[int]:
        return [len(ids) - most for part in next(following) for ids in model.generated(part, most)]

    return call


def parts(members: list[int], calls: int, tokens: list[list[str]]) -> list[list[int]]:
    """Two calls are cut where the length changes most; more into equal parts."""
    if calls == 2:
        jumps = [len(tokens[b]) - len(tokens[a]) for a, b in zip(members, members[1:], strict=False)]
        cut = jumps.index(max(jumps)) + 1
        return [members[:cut], members[cut:]]
    bounds = [len(members) * nth // calls for nth in range(calls + 1)]
    return [members[a:b] for a, b in zip(bounds, bounds[1:], strict=False) if b > a]


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


def run_steps(model: Model, text: str, tokens: int, seconds: float) -> dict[str, float]:
    """One prompt after another until the time is over, each token timed."""
    [prompt] = model.tokenised([text])
    firsts: list[float] = []
    gaps: list[float] = []
    started = perf_counter()
    while perf_counter() < started + seconds:
        times = model.steps(prompt, tokens)
        firsts.append(times[0] * 1000)
        gaps += [(b - a) * 1000 for a, b in zip(times, times[1:], strict=False)]
    rate = len(firsts) / (perf_counter() - started)
    return {"rate": rate, "first": sorted(firsts)[len(firsts) // 2], "gap": sorted(gaps)[len(gaps) // 2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="threads of one engine call")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, default=10, help="new tokens of every answer")
    arguments = parser.parse_args()

    model = Model(arguments.model, arguments.threads, arguments.device)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order.get("steps"):
            print(json.dumps(run_steps(model, arguments.prompt, order["tokens"], order["seconds"])), flush=True)
            continue
        if "mix" in order:
            mix = Path(order["mix"])
            if order["calls"]:
                call = drawn(model, mix, order["batch"], order["calls"])
            else:
                call = cut_offline(model, mix, order["batch"])
        else:
            kind = with_text if order["text"] else tokens_only
            call = kind(model, [arguments.prompt] * order["batch"], arguments.tokens)
        print(json.dumps(run(call, order["seconds"])), flush=True)


if __name__ == "__main__":
    main()
