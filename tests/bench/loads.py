"""The load generators, and what they say of a run. A failed or wrong answer ends the bench."""

import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from processes import Command
from stacks import HERE, Stack, Unfit

SPARE = 90.0
"""Seconds that a load generator may take beyond its run: as long as the longest answer, and then some."""
RESPONSE_LIMIT = "30s"


@dataclass(frozen=True)
class Outcome:
    """What a load generator saw. Latencies in milliseconds, none where nothing was answered."""

    rate: float
    """Answers per second."""
    p50: float | None
    p99: float | None
    worst: float | None
    served: float
    """Answers with those of the generator's own warm-up."""
    failed: int = 0
    unfinished: int = 0
    client_cpu: float | None = None
    """Cores that the load generator took."""
    kinds: dict[str, tuple[int, float | None]] = field(default_factory=dict)
    """Answers of each kind of requests, and half of them took no longer than so many milliseconds."""
    asked_again: int = 0
    served_then: int = 0
    first: float | None = None
    """Of answers that were streamed, half had their first piece after so many milliseconds."""
    gap: float | None = None
    """And half of the pieces came so many milliseconds after the one before."""


def wrk(stack: Stack, body: str, users: int, seconds: int) -> Outcome:
    """A closed loop: every connection sends its next request as soon as it has its answer."""
    flags: Command = ["-t1", f"-c{users}", f"-d{seconds}s", "--timeout", RESPONSE_LIMIT, "-s", HERE / "generate.lua"]
    output, cores = finished(["wrk", *flags, f"{stack.url}/generate", "--", body], seconds, stack)
    line = re.search(r"^FIGURES ([\d ]+)$", output, re.MULTILINE)
    if line is None:
        raise Unfit(f"wrk said nothing of {stack.name}:\n{output}")
    requests, microseconds, *errors, p50, p99, worst = map(int, line[1].split())
    if any(errors) or not requests:
        kinds = ("connect", "read", "write", "status", "timeout")
        said = ", ".join(f"{count} {kind}" for kind, count in zip(kinds, errors, strict=True) if count)
        raise Unfit(f"{stack.name} under {users} connections of wrk: {requests} answers; errors: {said or 'none'}")
    took = microseconds / 1e6
    return Outcome(requests / took, p50 / 1000, p99 / 1000, worst / 1000, requests, client_cpu=cores)


def driver(
    bin_dir: Path,
    stack: Stack,
    requests: str | Path,
    pattern: Sequence[str],
    seconds: int,
    tokens: int | None,
    tolerant: bool = False,
    path: str = "/generate",
) -> Outcome:
    """`load-driver`, whose latencies count from when a request was due and not from when it could be sent.

    `requests`: one body, or a file with several kinds. `tolerant`: the server is loaded beyond what it can do, so that
    refusals are a finding and not an error.
    """
    warm_up = 1
    what = ["--mix", str(requests)] if isinstance(requests, Path) else ["--body", requests]
    flags = ["--url", f"{stack.url}{path}", *what, *pattern]
    flags += ["--duration", f"{seconds}s", "--warm-up", f"{warm_up}s", "--seed", "1"]
    if tokens is not None and not isinstance(requests, Path):
        flags += ["--expect-field", f"usage.completion_tokens={tokens}"]
    output, cores = finished([bin_dir / "load-driver", *flags], seconds + warm_up, stack)
    said = json.loads(output)
    bad = {name: said[name] for name in ("failed", "unfinished", "wrong") if said[name]}
    if said["wrong"] or not tolerant and (bad or not said["answered"]):
        raise Unfit(f"{stack.name} under load-driver {' '.join(pattern)}: {said['answered']} answers, {bad}")
    latency, took = said["latency_ms"], said["duration_s"]
    return Outcome(
        rate=said["rate"],
        p50=latency["p50"],
        p99=latency["p99"],
        worst=latency["max"],
        served=said["answered"] * (took + warm_up) / took,
        failed=said["failed"],
        unfinished=said["unfinished"],
        client_cpu=cores,
        kinds={name: (kind["answered"], kind["latency_ms"]["p50"]) for name, kind in said["kinds"].items()},
        asked_again=said["asked_again"],
        served_then=said["served_then"],
        first=said["first_ms"]["p50"],
        gap=said["gap_ms"]["p50"],
    )


def locust(stack: Stack, body: str, users: int, seconds: int) -> Outcome:
    """Users without think time, all there at once. Locust rounds latencies to milliseconds, long ones more."""
    flags: Command = ["-f", HERE / "locustfile.py", "--headless", "--json", "--reset-stats", "--only-summary"]
    flags += ["--host", stack.url, "-u", str(users), "-r", str(users), "-t", f"{seconds}s"]
    output, cores = finished([sys.executable, "-m", "locust", *flags, "--body", body], seconds, stack)
    [said] = json.loads(output[output.index("[") :])
    if said["num_failures"] or not said["num_requests"]:
        raise Unfit(f"{stack.name} under Locust: {said['num_requests']} answers, {said['num_failures']} failed")
    took = said["last_request_timestamp"] - said["start_time"]
    times = sorted((float(time), count) for time, count in said["response_times"].items())
    return Outcome(
        rate=said["num_requests"] / took,
        p50=percentile(times, 0.50),
        p99=percentile(times, 0.99),
        worst=said["max_response_time"],
        served=said["num_requests"],
        client_cpu=cores,
    )


def percentile(counted: list[tuple[float, int]], share: float) -> float:
    """Of values in order with how often each was seen."""
    left = share * sum(count for _, count in counted)
    for value, count in counted:
        left -= count
        if left <= 0:
            return value
    return counted[-1][0]


def finished(command: Command, seconds: float, stack: Stack) -> tuple[str, float]:
    """What a load generator printed, and how many cores it took."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + SPARE)
    except subprocess.TimeoutExpired as error:
        raise Unfit(f"{Path(command[0]).name} did not end its load on {stack.name}") from error
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise Unfit(f"{Path(command[0]).name} on {stack.name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / wall
