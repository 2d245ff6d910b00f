"""The same model behind mosec, a batching server with a Rust front; without a model, mosec's own limit.

mosec reads its own flags (`--port`, `--timeout` ...) off the same command line. It starts its workers as fresh
processes, which import this file again: so they learn of the model from the environment.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from mosec import Server, Worker

from model import Model

MODEL, THREADS = "PILLION_BENCH_MODEL", "PILLION_BENCH_THREADS"
NOTHING = {"text": "", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


class Compact(Worker):
    """mosec writes indented JSON unless told otherwise, which costs Python more."""

    def serialize(self, data: Any) -> bytes:
        return json.dumps(data).encode()


class Generate(Compact):
    def __init__(self) -> None:
        super().__init__()
        self._model = Model(Path(os.environ[MODEL]), int(os.environ[THREADS]))

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        texts = [request["text"] for request in data]
        limits = [request["max_new_tokens"] for request in data]
        return [answer.body() for answer in self._model.answers(texts, limits)]


class Idle(Compact):
    """Answers every request at once with nothing."""

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [NOTHING] * len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="model directory; none: a worker that does nothing")
    parser.add_argument("--threads", type=int, default=1, help="threads of one engine call")
    parser.add_argument("--batch", type=int, default=50, help="largest batch")
    parser.add_argument("--wait-ms", type=int, default=10, help="longest wait for companions, at least 1")
    arguments, _ = parser.parse_known_args()

    worker: type[Worker] = Idle
    if arguments.model is not None:
        os.environ[MODEL], os.environ[THREADS] = str(arguments.model), str(arguments.threads)
        worker = Generate
    server = Server()
    server.append_worker(
        worker, num=1, max_batch_size=arguments.batch, max_wait_time=arguments.wait_ms, route="/generate"
    )
    server.run()


if __name__ == "__main__":
    main()
