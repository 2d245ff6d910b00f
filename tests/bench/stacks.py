"""Starts what `compare` measures, each on a free port of its own, and stops it again."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BINARIES = PROXY, WORKER = "pillion-proxy", "pillion-worker"
START_LIMIT = 60.0
"""Seconds that a stack may take until it is ready."""
STOP_LIMIT = 10.0


@dataclass(frozen=True)
class Stack:
    """A server that is up. `front` is the process that speaks HTTP."""

    name: str
    url: str
    front: subprocess.Popen[bytes]

    def answer(self, body: bytes) -> str:
        request = urllib.request.Request(f"{self.url}/generate", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=START_LIMIT) as response:
            return json.load(response)["text"]

    def resident_mib(self) -> float:
        """Resident memory of the front process now."""
        status = Path(f"/proc/{self.front.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) / 1024


@contextmanager
def control(model: Path, batch: int) -> Iterator[Stack]:
    port = free_port()
    command = [prepared_python(), HERE / "control.py", "--model", model, "--port", str(port), "--threads", "1"]
    with running([*command, "--batch", str(batch)]) as server:
        yield ready(Stack("control", f"http://127.0.0.1:{port}", server))


@contextmanager
def pillion(model: Path, binaries: Path) -> Iterator[Stack]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        path = Path(folder) / "worker.sock"
        proxy_command = [binaries / PROXY, "--listen", f"127.0.0.1:{port}", "--socket", path]
        worker_command = [binaries / WORKER, "--model", model, "--socket", path]
        with running(proxy_command) as proxy, running(worker_command):
            yield ready(Stack("pillion", f"http://127.0.0.1:{port}", proxy))


@contextmanager
def running(command: list[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ready(stack: Stack) -> Stack:
    """The same stack once `/readyz` says 200."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if stack.front.poll() is not None:
            raise SystemExit(f"{stack.name} ended with status {stack.front.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"{stack.url}/readyz", timeout=1):
                return stack
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit(f"{stack.name} was not ready within {START_LIMIT:.0f} s")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def prepared_python() -> Path:
    """The interpreter of the control's environment, which is made anew when its requirements change."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment = cache / "pillion" / "bench-venv"
    requirements = HERE / "requirements.txt"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    made = environment / "requirements.sha256"
    python = environment / "bin" / "python"
    if not made.exists() or made.read_text() != wanted:
        print("Setting up the control's Python environment ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)
        made.write_text(wanted)
    return python
