"""The servers that are measured, each started on a free port of its own and stopped again."""

import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import metrics
from processes import Command, Process, cpu_seconds, free_port, resident_bytes, running

HERE = Path(__file__).resolve().parent
BATCH = "50"
"""The largest batch of every server; Pillion's default."""
START_LIMIT = 60.0
"""Seconds that a server may take until it is ready."""
SETTLE_LIMIT = 30.0
REST = 0.2
"""Seconds in which a server must take next to no CPU to count as idle."""


class Unfit(Exception):
    """Something failed, or answered wrongly: there is nothing to report then."""


@dataclass(frozen=True)
class Stack:
    """A server that is up. `processes[0]` is the one that speaks HTTP."""

    name: str
    url: str
    processes: tuple[Process, ...]
    counted: bool = False
    """Whether it is a Pillion, with its `/metrics`."""

    def generate(self, body: str) -> tuple[str, int]:
        """The answer's text, and how many tokens it says it has."""
        try:
            answer = json.loads(posted(self.url, body))
        except OSError as error:
            raise Unfit(f"{self.name} does not answer {body}: {error}") from error
        return answer["text"], answer["usage"]["completion_tokens"]

    def cpu_seconds(self) -> float:
        return sum(cpu_seconds(process.pid) for process in self.processes)

    def front_cpu_seconds(self) -> float:
        return cpu_seconds(self.processes[0].pid)

    def front_resident_bytes(self) -> int:
        return resident_bytes(self.processes[0].pid)

    def counts(self) -> metrics.Counts:
        return metrics.read(self.url) if self.counted else {}

    def settle(self) -> None:
        """Returns once nothing of a load is left, of which the last clients may be gone."""
        deadline = time.monotonic() + SETTLE_LIMIT
        while time.monotonic() < deadline:
            busy, counts = self.cpu_seconds(), self.counts()
            time.sleep(REST)
            waiting = counts.get(metrics.QUEUED, 0) + counts.get(metrics.RUNNING, 0)
            if not waiting and self.cpu_seconds() - busy < 0.1 * REST:
                return
        raise Unfit(f"{self.name} still had work {SETTLE_LIMIT:.0f} s after its load ended")


@dataclass(frozen=True)
class Starter:
    """Starts servers: Pillion's programs come from `bin_dir`, every log goes to `logs`."""

    bin_dir: Path
    logs: Path

    def pillion(
        self, model: Path, threads: int, *flags: str, name: str = "pillion", proxy_flags: Command = ()
    ) -> AbstractContextManager[Stack]:
        """With more of the worker's flags where there are any."""
        worker: Command = [self.bin_dir / "pillion-worker", "--model", model, "--threads", str(threads)]
        return self._pillion(name, [*worker, *flags], proxy_flags)

    def simulated(self, *flags: str | Path, proxy_flags: Command = ()) -> AbstractContextManager[Stack]:
        """Pillion's proxy with a worker that costs next to nothing."""
        return self._pillion("pillion-proxy", [self.bin_dir / "simulated-worker", *flags], proxy_flags)

    def control(self, model: Path, threads: int, timeout_ms: int, device: str = "cpu") -> AbstractContextManager[Stack]:
        command: Command = [sys.executable, HERE / "control.py", "--model", model, "--threads", str(threads)]
        flags = ["--batch", BATCH, "--timeout-ms", str(timeout_ms), "--device", device]
        return self._server(f"control, {timeout_ms} ms", [*command, *flags], answers_readyz)

    def mosec(self, model: Path, threads: int, wait_ms: int) -> AbstractContextManager[Stack]:
        return self._mosec(f"mosec, {wait_ms} ms", wait_ms, "--model", model, "--threads", str(threads))

    def idle_mosec(self, wait_ms: int) -> AbstractContextManager[Stack]:
        """mosec with a worker that does nothing."""
        return self._mosec(f"mosec that does nothing, {wait_ms} ms", wait_ms)

    def bare(self) -> AbstractContextManager[Stack]:
        port = free_port()
        command: Command = [self.bin_dir / "bare-server", "--listen", f"127.0.0.1:{port}"]
        return self._server("bare hyper server", command, answers_generate, port)

    @contextmanager
    def _mosec(self, name: str, wait_ms: int, *flags: str | Path) -> Iterator[Stack]:
        # A wait of 0 is what mosec takes only by its older flag. The timeout is as long as Pillion's.
        service = ["--address", "127.0.0.1", "--timeout", "60000", "--log-level", "error", "--wait", str(wait_ms)]
        command: Command = [sys.executable, HERE / "mosec_server.py", "--batch", BATCH, "--wait-ms", str(wait_ms)]
        # It leaves its sockets behind, and does not start where there are any.
        with tempfile.TemporaryDirectory(prefix="pillion-bench-") as sockets:
            with self._server(name, [*command, *service, "--path", sockets, *flags], answers_generate) as stack:
                yield stack

    @contextmanager
    def _server(
        self, name: str, command: Command, ready: Callable[[str], bool], port: int | None = None
    ) -> Iterator[Stack]:
        if port is None:
            port = free_port()
            command = [*command, "--port", str(port)]
        log = self._log(name)
        with running(command, log) as process:
            stack = Stack(name, f"http://127.0.0.1:{port}", (process,))
            await_ready(stack, ready, log)
            yield stack

    @contextmanager
    def _pillion(self, name: str, worker: Command, proxy_flags: Command = ()) -> Iterator[Stack]:
        url = f"127.0.0.1:{free_port()}"
        log = self._log(name)
        with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
            path = Path(folder) / "worker.sock"
            proxy: Command = [self.bin_dir / "pillion-proxy", "--listen", url, "--socket", path, *proxy_flags]
            with running(proxy, log) as front, running([*worker, "--socket", path], log) as back:
                stack = Stack(name, f"http://{url}", (front, back), counted=True)
                await_ready(stack, answers_readyz, log)
                yield stack

    def _log(self, name: str) -> Path:
        return self.logs / (name.replace(",", "").replace(" ", "-") + ".log")


def await_ready(stack: Stack, ready: Callable[[str], bool], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        for process in stack.processes:
            if process.poll() is not None:
                raise Unfit(f"{stack.name} ended with status {process.returncode} before it was ready:\n{tail(log)}")
        if ready(stack.url):
            return
        time.sleep(0.05)
    raise Unfit(f"{stack.name} was not ready within {START_LIMIT:.0f} s:\n{tail(log)}")


def answers_readyz(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False


def answers_generate(url: str) -> bool:
    try:
        posted(url, json.dumps({"text": "Hello", "max_new_tokens": 1}))
        return True
    except (urllib.error.URLError, OSError):
        return False


def posted(url: str, body: str) -> bytes:
    request = urllib.request.Request(f"{url}/generate", body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=START_LIMIT) as response:
        answer: bytes = response.read()
        return answer


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])
