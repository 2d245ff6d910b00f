"""Takes the engine alone in turns with the servers: a child process that runs when it is told to."""

import json
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import Command, Process, cpu_seconds, running
from results import Run
from stacks import HERE, START_LIMIT, Unfit, tail

SPARE = 30.0
"""Seconds that a run may take beyond its time: longer than any batch."""


class EngineAlone:
    def __init__(self, process: Process, tokens: int, log: Path) -> None:
        assert process.stdin is not None and process.stdout is not None, "started with pipes"
        self._process = process
        self._orders, self._answers = process.stdin, process.stdout
        self._tokens = tokens
        self._log = log

    def run(self, batch: int, seconds: float, text: bool = False, watched: bool = False) -> Run:
        """Batches of this size, one after another; with `text`, tokenising and detokenising too; `watched` as another
        program than `engine.py` may take it."""
        return self._run({"batch": batch, "seconds": seconds, "text": text, "watched": watched}, self._tokens)

    def run_mix(self, mix: Path, batch: int, calls: int, seconds: float) -> Run:
        """Batches of this size as requests of a mix would come, each in so many calls of like lengths."""
        order = {"mix": str(mix), "batch": batch, "calls": calls, "seconds": seconds, "text": False}
        # Each answer's tokens are counted against what it asked for.
        return self._run(order, 0)

    def run_steps(self, tokens: int, seconds: float) -> Run:
        """One prompt after another, each token timed."""
        said = self._asked({"steps": True, "tokens": tokens, "seconds": seconds})
        return Run(rate=said["rate"], p50=None, p99=None, worst=None, first=said["first"], gap=said["gap"])

    def _run(self, order: dict[str, Any], tokens: int) -> Run:
        cpu = cpu_seconds(self._process.pid)
        said = self._asked(order)
        cpu = cpu_seconds(self._process.pid) - cpu
        if not said["least_tokens"] == said["most_tokens"] == tokens:
            raise Unfit(f"the engine alone gave other than the tokens that were asked for: {said}")
        return Run(
            rate=said["answered"] / said["seconds"],
            p50=said["p50"],
            p99=said["p99"],
            worst=said["max"],
            server_cpu=cpu / said["answered"] * 1e6,
        )

    def _asked(self, order: dict[str, Any]) -> dict[str, Any]:
        try:
            self._orders.write((json.dumps(order) + "\n").encode())
            self._orders.flush()
        except OSError as error:
            raise Unfit(f"the engine alone has ended:\n{tail(self._log)}") from error
        return self.said(order["seconds"] + SPARE)

    def said(self, limit: float) -> dict[str, Any]:
        """The next line that the process prints."""
        if not select.select([self._answers], [], [], limit)[0]:
            raise Unfit(f"the engine alone said nothing for {limit:.0f} s:\n{tail(self._log)}")
        line = self._answers.readline()
        if not line:
            raise Unfit(f"the engine alone has ended:\n{tail(self._log)}")
        said: dict[str, Any] = json.loads(line)
        return said


@contextmanager
def engine_alone(
    model: Path, threads: int, prompt: str, tokens: int, logs: Path, program: Command | None = None
) -> Iterator[EngineAlone]:
    """`program`: another than `engine.py` that takes the same flags and orders."""
    command: Command = [*(program or [sys.executable, HERE / "engine.py"]), "--model", model, "--threads", str(threads)]
    log = logs / "engine-alone.log"
    with running([*command, "--prompt", prompt, "--tokens", str(tokens)], log, piped=True) as process:
        engine = EngineAlone(process, tokens, log)
        engine.said(START_LIMIT)
        yield engine
