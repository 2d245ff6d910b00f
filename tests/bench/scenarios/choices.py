"""Rivals at their own best timer: what each scenario starts them with, and how it chooses."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from measure import Bench, Judge, Turn, best_of
from results import Run
from stacks import Stack

CONTROL_TIMERS = (1, 2, 5, 10)
MOSEC_TIMERS = (0, 1, 2, 10)
"""mosec takes a wait of 0 only by its older flag `--wait`; it then batches what has come in meanwhile."""

Best = AbstractContextManager[tuple[Stack, str]]


def best_control(bench: Bench, model: Path, threads: int, judge: Judge) -> Best:
    candidates = {timer: bench.start.control(model, threads, timer) for timer in CONTROL_TIMERS}
    return best_of("control", candidates, judge)


def best_mosec(bench: Bench, model: Path, threads: int, judge: Judge) -> Best:
    candidates = {timer: bench.start.mosec(model, threads, timer) for timer in MOSEC_TIMERS}
    return best_of("mosec", candidates, judge)


def by_rate(bench: Bench, turn: Callable[[Stack], Turn]) -> Judge:
    """The most answers per second."""
    return Judge("requests/s", lambda stack: brief_run(bench, turn(stack)).rate, most=True)


def by_latency(bench: Bench, turn: Callable[[Stack], Turn], quantile: str) -> Judge:
    """The least p50 or p99."""
    return Judge(f"ms at {quantile}", lambda stack: getattr(brief_run(bench, turn(stack)), quantile), most=False)


def brief_run(bench: Bench, turn: Turn) -> Run:
    turn(1)
    return turn(bench.plan.brief)
