"""A model of OPT-125m's shape on a GPU, in float16: the reference workload, what it answers, and what goes wrong."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from engine_alone import engine_alone
from measure import BODY, PROMPT, TOKENS, Bench, Judge, best_of, in_turns
from mixes import WORDS
from model import Model
from processes import running
from results import Figure, Section, ratio
from stacks import Stack, Unfit, tail

USERS = 40
ENOUGH = 0.9
"""At least so much of what the engine alone serves."""
CUDA = ("--device", "cuda")
COMPARED = 120
"""Prompts whose answers are compared with the processor's."""


def reference(bench: Bench) -> Section:
    about = f"load-driver with {USERS} users, {TOKENS} new tokens each; float16; batches of at most 50."
    section = Section("gpu", f"OPT-125m shape, {USERS} users", about)
    with ExitStack() as up:
        one, two = (
            up.enter_context(
                bench.start.pillion(
                    bench.opt, 1, *CUDA, "--slots", str(slots), name=f"pillion, {slots} slot{'s' * (slots > 1)}"
                )
            )
            for slots in (1, 2)
        )
        program = bench.start.bin_dir / "engine-alone"
        logs = bench.start.logs
        alone = {
            slots: up.enter_context(
                engine_alone(bench.opt, 1, PROMPT, TOKENS, logs, [program, *CUDA, "--slots", str(slots)])
            )
            for slots in (1, 2)
        }
        section.notes.append(f"GPU memory in use with the four of them: {memory()}")
        rivals, said = controls(bench, up)
        section.notes += said
        counted([one, two, *rivals])
        load = f"{USERS} users"
        turns = {(stack.name, load): bench.driver(stack, "--users", str(USERS)) for stack in (one, two, *rivals)}
        turns["engine alone, 1 slot", "batches of 40"] = lambda seconds: alone[1].run(40, seconds)
        turns["engine alone, 1 slot", "batches of 20"] = lambda seconds: alone[1].run(20, seconds)
        turns["engine alone, 2 slots", "batches of 20"] = lambda seconds: alone[2].run(20, seconds)
        turns[one.name, "1 user"] = bench.driver(one, "--users", "1")
        turns["engine alone, 1 slot", "batches of 1"] = lambda seconds: alone[1].run(1, seconds)
        turns["engine alone, 1 slot", "batches of 1, each step told"] = lambda seconds: alone[1].run(
            1, seconds, watched=True
        )
        section.rows = in_turns(bench.plan, turns, bench.plan.seconds, bench.plan.repeats)
        more = {}
        for stack in (one, two):
            for users in (10, 100, 200):
                more[stack.name, f"{users} user{'s' * (users > 1)}"] = bench.driver(stack, "--users", str(users))
        more["engine alone, 1 slot", "batches of 10"] = lambda seconds: alone[1].run(10, seconds)
        more["engine alone, 1 slot", "batches of 50"] = lambda seconds: alone[1].run(50, seconds)
        more["engine alone, 2 slots", "batches of 50"] = lambda seconds: alone[2].run(50, seconds)
        section.rows += in_turns(bench.plan, more, bench.plan.seconds, bench.plan.few)

    def figure(ours: str, load: str, theirs: str, batches: str) -> Figure:
        what = f"OPT-125m shape on a GPU, {load}: requests/s, {ours} over {theirs}" + (
            f" in {batches}" if batches else ""
        )
        below = section.row(theirs, batches or load)
        bound = ENOUGH if batches else None
        return Figure(what, ratio(section.row(ours, load).median("rate"), below.median("rate")), at_least=bound)

    section.figures = [
        figure("pillion, 1 slot", load, "engine alone, 1 slot", "batches of 40"),
        figure("pillion, 2 slots", load, "engine alone, 2 slots", "batches of 20"),
        figure("pillion, 1 slot", "100 users", "engine alone, 1 slot", "batches of 50"),
        figure("pillion, 2 slots", "200 users", "engine alone, 2 slots", "batches of 50"),
    ]
    section.figures += [figure("pillion, 1 slot", load, rival.name, "") for rival in rivals]
    lone, call = (
        section.row(one.name, "1 user").median("p50"),
        section.row("engine alone, 1 slot", "batches of 1").median("p50"),
    )
    if lone and call:
        section.figures.append(Figure("one user on a GPU: p50 less one call of the engine alone", lone - call, "ms"))
    return section


def counted(stacks: list[Stack]) -> None:
    """Answers have all their tokens. They may differ: in float16 a rounding decides between two tokens now and then."""
    for stack in stacks:
        tokens = stack.generate(BODY)[1]
        if tokens != TOKENS:
            raise Unfit(f"{stack.name} answers with {tokens} tokens instead of {TOKENS}")


def controls(bench: Bench, up: ExitStack) -> tuple[list[Stack], list[str]]:
    """The home-made server with the timer of 100 ms and with its best one, where Python's CTranslate2 finds a cuBLAS."""
    try:
        slow = up.enter_context(bench.start.control(bench.opt, 1, 100, "cuda"))
        slow.generate(json.dumps({"text": PROMPT, "max_new_tokens": TOKENS}))
    except Unfit as error:
        return [], [f"No control: Python's ctranslate2 does not run on this GPU ({str(error).splitlines()[-1]})."]
    candidates = {timer: bench.start.control(bench.opt, 1, timer, "cuda") for timer in (1, 2, 5)}
    judge = Judge(
        "requests/s", lambda stack: bench.driver(stack, "--users", str(USERS))(bench.plan.brief).rate, most=True
    )
    best, said = up.enter_context(best_of("control", candidates, judge))
    return [slow, best], [said]


def parity(bench: Bench) -> Section:
    about = (
        f"{COMPARED} prompts of 5 to 60 words, {TOKENS} new tokens. The processor's answers: Python's CTranslate2, float32, "
        "one prompt at a time. The GPU's: Pillion, all asked at once, and then one after another."
    )
    section = Section("gpu-parity", "Answers of the GPU and of the processor", about)
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for _ in range(COMPARED)]
    processor = Model(bench.opt, min(8, os.cpu_count() or 1), compute_type="float32")
    reference = [processor.answers([text], [TOKENS])[0].text for text in texts]
    for compute_type in ("float32", "float16", "bfloat16", "int8_float16"):
        try:
            with bench.start.pillion(
                bench.opt, 1, *CUDA, "--compute-type", compute_type, name=f"pillion-{compute_type}"
            ) as stack:

                def ask(text: str) -> str:
                    return stack.generate(json.dumps({"text": text, "max_new_tokens": TOKENS}))[0]

                with ThreadPoolExecutor(COMPARED) as pool:
                    together = list(pool.map(ask, texts))
                alone = [ask(text) for text in texts]
        except Unfit as error:
            section.notes.append(f"{compute_type}: not served: {' '.join(str(error).splitlines()[-2:])}")
            continue
        same = sum(a == b for a, b in zip(together, reference, strict=True))
        own = sum(a == b for a, b in zip(together, alone, strict=True))
        section.figures.append(Figure(f"{compute_type} on a GPU: answers equal to the processor's", same / COMPARED))
        section.figures.append(
            Figure(f"{compute_type} on a GPU: answers in company equal to those alone", own / COMPARED)
        )
    return section


def without(bench: Bench) -> Section:
    """What the worker says where something that it needs is not there."""
    section = Section(
        "gpu-without", "Where something is missing", "The exit code and the last line of `pillion-worker`."
    )
    worker = [bench.start.bin_dir / "pillion-worker", "--model", bench.opt, "--socket", bench.start.logs / "none.sock"]
    cases = {
        "no GPU to be seen, `--device cuda`": ([*CUDA], {"CUDA_VISIBLE_DEVICES": ""}),
        "a GPU that is not there, `--device-index 7`": ([*CUDA, "--device-index", "7"], {}),
    }
    for what, (flags, environment) in cases.items():
        try:
            done = subprocess.run(
                [*worker, *flags], env=os.environ | environment, capture_output=True, text=True, timeout=20
            )
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            section.notes.append(f"{what}: exit code {done.returncode}: {said}")
        except subprocess.TimeoutExpired as error:
            last = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
            section.notes.append(f"{what}: runs on after 20 s: {last}")
    return section


HOG = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    if code := getattr(cuda, name)(*arguments):
        sys.exit(f"{name}: {code}")
device, context = ctypes.c_int(), ctypes.c_void_p()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
call("cuCtxSetCurrent", context)
free, total, place = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(free.value - int(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""
"""Takes all of the GPU's memory that is free, but for so many bytes."""


def short_of_memory(bench: Bench) -> Section:
    left, prompts, words = 1 << 30, 60, 1500
    section = Section(
        "gpu-memory",
        "Short of memory",
        f"Another process takes all of the GPU's memory but {left >> 30} GiB; then {prompts} prompts of {words} words, "
        f"{TOKENS} new tokens, all at once, with `--max-batch-tokens 200000`.",
    )
    flags = [*CUDA, "--max-batch-tokens", "200000"]
    rng = random.Random(2)
    texts = [" ".join(rng.choices(WORDS, k=words)) for _ in range(prompts)]
    with bench.start.pillion(bench.opt, 1, *flags, name="pillion-short-of-memory") as stack:
        stack.generate(BODY)
        with running([sys.executable, "-c", HOG, str(left)], bench.start.logs / "hog.log", piped=True) as hog:
            assert hog.stdout is not None, "started with pipes"
            if hog.stdout.readline() != b"held\n":
                raise Unfit(f"the GPU's memory cannot be taken:\n{tail(bench.start.logs / 'hog.log')}")

            def ask(text: str) -> str:
                try:
                    return f"{stack.generate(json.dumps({'text': text, 'max_new_tokens': TOKENS}))[1]} tokens"
                except Unfit as error:
                    return str(error).rpartition(": ")[2]

            with ThreadPoolExecutor(prompts) as pool:
                said = Counter(pool.map(ask, texts))
        section.figures.append(Figure("GPU short of memory: answered", said[f"{TOKENS} tokens"] / prompts, at_least=1))
        section.notes.append(f"Answers: {dict(said)}")
        log = (bench.start.logs / "pillion-short-of-memory.log").read_text(errors="replace").splitlines()
        section.notes += [f"Log: {line}" for line in log if "memory" in line.lower() and "WARN" in line][:5]
    return section


def memory() -> str:
    query = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()
