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

    def run(self, batch: int, seconds: float, text: bool = False) -> Run:
        """Batches of this size, one after another; with `text`, tokenising and detokenising too."""
        cpu = cpu_seconds(self._process.pid)
        order = json.dumps({"batch": batch, "seconds": seconds, "text": text}) + "\n"
        try:
            self._orders.write(order.encode())
            self._orders.flush()
        except OSError as error:
            raise Unfit(f"the engine alone has ended:\n{tail(self._log)}") from error
        said = self.said(seconds + SPARE)
        cpu = cpu_seconds(self._process.pid) - cpu
        if not said["least_tokens"] == said["most_tokens"] == self._tokens:
            raise Unfit(f"the engine alone gave other than {self._tokens} tokens: {said}")
        return Run(
            rate=said["answered"] / said["seconds"],
            p50=said["p50"],
            p99=said["p99"],
            worst=said["max"],
            server_cpu=cpu / said["answered"] * 1e6,
        )

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
def engine_alone(model: Path, threads: int, prompt: str, tokens: int, logs: Path) -> Iterator[EngineAlone]:
    command: Command = [sys.executable, HERE / "engine.py", "--model", model, "--threads", str(threads)]
    log = logs / "engine-alone.log"
    with running([*command, "--prompt", prompt, "--tokens", str(tokens)], log, piped=True) as process:
        engine = EngineAlone(process, tokens, log)
        engine.said(START_LIMIT)
        yield engine
