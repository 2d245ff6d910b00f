"""The proxy's own limits, with a worker that costs next to nothing: requests per second, and memory."""

import asyncio
import json
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import metrics
from crowd import crowd
from measure import Bench, in_turns, say
from results import Figure, Section, ratio
from stacks import Stack, Unfit, posted

BODY_BYTES = 1024
CONNECTIONS = (40, 256)
IDLE_MOSEC_TIMERS = (0, 1)
QUEUED = 1000
MB = 1e6


def body() -> str:
    """1 KiB of JSON: a long word and a short one, so that the worker answers with the short one, a single token."""
    plain = json.dumps({"text": " a", "max_new_tokens": 1})
    return json.dumps({"text": "x" * (BODY_BYTES - len(plain)) + " a", "max_new_tokens": 1})


def limit(bench: Bench) -> Section:
    """What the proxy can pass on, beside a server that only answers and mosec that does nothing."""
    about = (
        f"wrk posts {BODY_BYTES} bytes. pillion-proxy passes them to a simulated worker over the socket and back; its "
        "CPU holds that worker's too, and the HTTP process's is the proxy's alone."
    )
    section = Section("proxy-limit", "The proxy's own limit", about)
    with ExitStack() as up:
        bare = up.enter_context(bench.start.bare())
        proxy = up.enter_context(bench.start.simulated())
        mosecs = [up.enter_context(bench.start.idle_mosec(wait)) for wait in IDLE_MOSEC_TIMERS]
        turns = {
            (stack.name, f"wrk, {users} connections"): bench.wrk(stack, users, body(), tokens=None)
            for users in CONNECTIONS
            for stack in (bare, proxy, *mosecs)
        }
        section.rows = in_turns(bench.plan, turns, bench.plan.seconds, bench.plan.few)
    for users in CONNECTIONS:
        load = f"wrk, {users} connections"
        rates = {row.server: row.median("rate") or 0.0 for row in section.rows if row.load == load}
        best = max((stack.name for stack in mosecs), key=rates.__getitem__)
        of_bare, of_mosec = (ratio(rates[proxy.name], rates[name]) for name in (bare.name, best))
        what = f"proxy alone, {users} connections: requests/s over"
        section.figures += [
            Figure(f"{what} {bare.name}", of_bare, at_least=0.5 if users == 256 else None),
            Figure(f"{what} {best}", of_mosec, at_least=3.0 if users == 40 else None),
        ]
    return section


def memory(bench: Bench) -> Section:
    """The proxy's resident memory with 1,000 requests queued."""
    about = (
        f"{QUEUED} connections, each with a request of {BODY_BYTES} bytes, while the worker's engine is held; then it "
        "is let go and every request must be answered."
    )
    section = Section("memory", "The proxy's memory", about)
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        gate = Path(folder) / "gate"
        gate.touch()
        with bench.start.simulated("--gate", gate) as proxy:
            resident = {"idle": proxy.front_resident_bytes()}
            # The worker has room for one batch: a request of its own takes it, and all that follow are queued.
            first = threading.Thread(target=posted, args=(proxy.url, body()), daemon=True)
            first.start()
            await_counts(proxy, running=1, queued=0)

            async def queued() -> None:
                await asyncio.to_thread(await_counts, proxy, running=1, queued=QUEUED)
                resident["queued"] = proxy.front_resident_bytes()
                gate.unlink()

            asyncio.run(crowd(proxy.url, QUEUED, body().encode(), queued))
            first.join()
            proxy.settle()
            resident["answered"] = proxy.front_resident_bytes()
    what = "resident memory of pillion-proxy"
    section.figures = [
        Figure(f"{what}, {QUEUED} requests queued", resident["queued"] / MB, "MB", at_most=40.0),
        Figure(f"{what}, at start", resident["idle"] / MB, "MB"),
        Figure(f"{what}, all of them answered", resident["answered"] / MB, "MB"),
    ]
    say(", ".join(f"{when}: {size / MB:.1f} MB" for when, size in resident.items()))
    return section


def await_counts(proxy: Stack, running: int, queued: int, limit: float = 20.0) -> None:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        counts = proxy.counts()
        if (counts[metrics.RUNNING], counts[metrics.QUEUED]) == (running, queued):
            return
        time.sleep(0.05)
    raise Unfit(
        f"{proxy.name} has {counts[metrics.RUNNING]:.0f} requests running and {counts[metrics.QUEUED]:.0f} queued"
    )
