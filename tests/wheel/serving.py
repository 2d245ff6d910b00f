"""Starts `pillion serve` as a user does, and asks it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

PATIENCE = 120


class Serving:
    """A running `pillion serve`: a context that ends it by SIGTERM, and wants it to end well."""

    def __init__(self, command: list[str], *arguments: str, environment: dict[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = TemporaryDirectory()
        self.log = Path(self.folder.name) / "log"
        self.command = [*command, "serve", *arguments, "--listen", f"localhost:{self.port}"]
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": self.folder.name, **(environment or {})}
        self.started = time.monotonic()

    def __enter__(self) -> "Serving":
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        said = self.said()
        self.folder.cleanup()
        if kind is not None:
            print(said, file=sys.stderr)
        else:
            assert code == 0, f"exit code {code}:\n{said}"

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def post(self, path: str, body: dict) -> tuple[int, dict]:
        """One request; waits until somebody listens."""
        end = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.said()}"
            assert time.monotonic() < end, f"not within {PATIENCE} s:\n{self.said()}"
            connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            try:
                connection.request("POST", path, json.dumps(body))
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read())
            except ConnectionRefusedError:
                time.sleep(0.02)
            finally:
                connection.close()

    def answer(self, text: str, tokens: int) -> str:
        """What it makes of a text."""
        status, answer = self.post("/generate", {"text": text, "max_new_tokens": tokens})
        assert status == 200, answer
        return answer["text"]

    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started


def ended(command: list[str], environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs a command to its end: its exit code, and what it printed."""
    done = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
