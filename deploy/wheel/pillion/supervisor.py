"""Keeps a proxy and its workers running, passes signals on, and gives the workers another model when it is asked to.

The supervisor holds the listening socket, so that a proxy that dies is replaced without a refused connection. It is one
thread that waits for signals, for `pillion reload`, and for the next moment at which something is due.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from pillion import children, control
from pillion.convert import say
from pillion.failure import BAD_MODEL, UNAVAILABLE
from pillion.programs import Programs
from pillion.restarts import Restarts

# Seconds between two looks at workers that are still loading.
LOOK = 0.1


@dataclass(frozen=True)
class Plan:
    """What to run."""

    programs: Programs
    proxy: list[str]
    # Without --model, which differs after a reload.
    worker: list[str]
    model: str
    workers: int
    listener: socket.socket
    sockets: control.Sockets
    # Printed once it serves.
    hints: list[str]


@dataclass
class Child:
    """A place for a process: the proxy, or one of the workers."""

    name: str
    # None for the proxy.
    model: str | None
    restarts: Restarts = field(default_factory=Restarts)
    pid: int | None = None
    due: float | None = None


@dataclass
class Reload:
    """A reload under way: workers get successors one after the other."""

    asking: socket.socket
    model: str
    left: list[Child]
    successor: int | None = None
    old: int | None = None


class Supervisor:
    """A proxy and its workers."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.proxy = Child("the proxy", None)
        self.workers = [Child(f"worker {number + 1}", plan.model) for number in range(plan.workers)]
        self.reload: Reload | None = None
        self.served = False
        self.signals = 0
        self.exit_code: int | None = None
        # Processes that are no child's any more, but must end before this one does.
        self.leaving: set[int] = set()
        self.selector = selectors.DefaultSelector()
        self.wake, self.woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Serves until it is told to stop; the exit code."""
        signal.set_wakeup_fd(self.woken, warn_on_full_buffer=False)
        for number in (*children.stopping(), signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self.selector.register(self.wake, selectors.EVENT_READ)
        self.selector.register(self.plan.sockets.listener, selectors.EVENT_READ)
        for child in (self.proxy, *self.workers):
            if not self.stopping:
                self.start(child)
        while self.alive():
            self.turn()
        return self.exit_code or 0

    def alive(self) -> bool:
        """Whether there is a process to wait for, or one to be started."""
        running = any(child.pid is not None for child in (self.proxy, *self.workers))
        return running or bool(self.leaving) or not self.stopping

    @property
    def stopping(self) -> bool:
        """Whether it ends."""
        return self.signals > 0 or self.exit_code is not None

    def turn(self) -> None:
        """Waits for whatever comes next, and deals with it."""
        for key, _ in self.selector.select(self.pause()):
            if key.fileobj == self.wake:
                for number in os.read(self.wake, 256):
                    self.signalled(number)
            else:
                self.asked()
        self.reap()
        now = time.monotonic()
        for child in (self.proxy, *self.workers):
            if child.due is not None and child.due <= now and not self.stopping:
                self.start(child)
        for worker in self.workers:
            if worker.pid is not None and worker.restarts.ready_since is None and children.is_connected(worker.pid):
                self.ready(worker, now)
        self.go_on_with_reload()

    def pause(self) -> float | None:
        """How long nothing is due."""
        now = time.monotonic()
        due = [child.due - now for child in (self.proxy, *self.workers) if child.due is not None]
        loading = any(worker.pid is not None and worker.restarts.ready_since is None for worker in self.workers)
        if (loading or self.reload) and not self.stopping:
            due.append(LOOK)
        return max(0.0, min(due)) if due else None

    def start(self, child: Child) -> None:
        """Starts the process of a child."""
        child.due = None
        try:
            if child is self.proxy:
                child.pid = self.spawn(self.plan.programs.proxy, self.plan.proxy, self.plan.listener)
            else:
                child.pid = self.start_worker(str(child.model))
        except OSError as error:
            self.failed(child, f"cannot be started: {error.strerror}", UNAVAILABLE)
            return
        if child is self.proxy and self.served:
            # Workers that have outlived the one before say nothing anew.
            child.restarts.ready(time.monotonic())

    def start_worker(self, model: str) -> int:
        """A worker's process number."""
        return self.spawn(self.plan.programs.worker, ["--model", model, *self.plan.worker], None)

    def spawn(self, program: Path, arguments: list[str], listener: socket.socket | None) -> int:
        """A process's number."""
        return children.start(program, arguments, self.plan.programs.environment, listener)

    def ready(self, worker: Child, now: float) -> None:
        """A worker serves: so can the others, of which none is given up from now on."""
        worker.restarts.ready(now)
        self.proxy.restarts.ready(now)
        for other in self.workers:
            other.restarts.proved = True
        if not self.served:
            self.served = True
            for line in self.plan.hints:
                say(line)

    def signalled(self, number: int) -> None:
        """A signal has come."""
        if number == signal.SIGUSR1:
            for child in (self.proxy, *self.workers):
                self.kill(child.pid, signal.SIGUSR1)
        elif number in children.STOPPING:
            self.signals += 1
            self.stop()

    def stop(self) -> None:
        """The proxy answers what it has admitted, then the workers end. Told twice, all end at once."""
        for child in (self.proxy, *self.workers):
            child.due = None
        if self.plan.listener.fileno() >= 0:
            # From now on connections are the proxy's alone: none is kept waiting in a socket that nobody accepts from.
            self.selector.unregister(self.plan.sockets.listener)
            self.plan.sockets.leave()
            self.plan.listener.close()
        self.refuse_reload("pillion serve was told to stop meanwhile", UNAVAILABLE)
        self.kill(self.proxy.pid, signal.SIGTERM)
        if self.signals > 1 or self.proxy.pid is None:
            self.end_workers()

    def end_workers(self) -> None:
        """Without the proxy they have nothing to do."""
        for pid in [worker.pid for worker in self.workers] + list(self.leaving):
            self.kill(pid, signal.SIGTERM)

    def kill(self, pid: int | None, number: int) -> None:
        """Sends a signal; a process that is gone does not mind."""
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def reap(self) -> None:
        """Deals with processes that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.ended(pid, os.waitstatus_to_exitcode(status))

    def ended(self, pid: int, code: int) -> None:
        """A process has ended, by a signal if the code is negative."""
        self.leaving.discard(pid)
        if self.reload and pid == self.reload.successor:
            self.reload.successor = None
            self.refuse_reload(
                "the new worker ended before it was ready, and says why where pillion serve runs; the model before goes on",
                BAD_MODEL,
            )
        child = next((child for child in (self.proxy, *self.workers) if child.pid == pid), None)
        if child is None:
            return
        child.pid = None
        if self.stopping:
            # Who had no time yet to listen for the signal ended by it.
            self.exit_code = self.exit_code or (0 if code == -signal.SIGTERM else plain(code))
            if child is self.proxy:
                self.end_workers()
            return
        self.failed(child, told(code), plain(code) or 70)

    def failed(self, child: Child, how: str, code: int) -> None:
        """Starts a child's process again in a while, or ends all with this exit code if it has never been ready."""
        child.due = child.restarts.ended(time.monotonic())
        if child.due is None:
            say(f"{child.name} {how} before it was ready; its last lines are above")
            self.exit_code = code
            self.stop()
        else:
            say(f"{child.name} {how}; starting it again")

    def asked(self) -> None:
        """`pillion reload` wants something."""
        try:
            asking, _ = self.plan.sockets.listener.accept()
        except OSError:
            return
        asking.settimeout(1)
        try:
            question = json.loads(asking.makefile("rb").read(control.MOST))
            model = question["model"] or self.workers[0].model
        except (OSError, ValueError, KeyError, TypeError):
            asking.close()
            return
        if self.reload or self.stopping:
            reason = "is being reloaded already" if self.reload else "ends"
            answer(asking, f"pillion serve {reason}", UNAVAILABLE)
            return
        self.reload = Reload(asking, model, list(self.workers))

    def go_on_with_reload(self) -> None:
        """A successor is started, and takes the place of its worker once it is connected; the worker ends what it has begun."""
        reload = self.reload
        # One that is asked for while the first worker loads waits for it.
        if reload is None or self.stopping or not self.served:
            return
        if reload.old is not None:
            if reload.old in self.leaving:
                return
            reload.old = None
        if reload.successor is None:
            if reload.left:
                try:
                    reload.successor = self.start_worker(reload.model)
                except OSError as error:
                    self.refuse_reload(f"a new worker cannot be started: {error.strerror}", UNAVAILABLE)
                    return
                self.leaving.add(reload.successor)
            else:
                say(f"serving {reload.model} since now")
                answer(reload.asking, "", 0)
                self.reload = None
            return
        if children.is_connected(reload.successor):
            worker = reload.left.pop(0)
            if worker.pid is not None:
                self.leaving.add(worker.pid)
                self.kill(worker.pid, signal.SIGTERM)
                reload.old = worker.pid
            self.leaving.discard(reload.successor)
            worker.pid, worker.due, worker.model = reload.successor, None, reload.model
            worker.restarts = Restarts()
            worker.restarts.ready(time.monotonic())
            reload.successor = None

    def refuse_reload(self, reason: str, code: int) -> None:
        """Ends a reload without what it was for."""
        if self.reload:
            self.kill(self.reload.successor, signal.SIGTERM)
            done = len(self.workers) - len(self.reload.left)
            also = f" ({done} of {len(self.workers)} workers have the new one)" if done else ""
            answer(self.reload.asking, reason + also, code)
            self.reload = None


def answer(asking: socket.socket, said: str, code: int) -> None:
    """Tells `pillion reload` how it went."""
    with contextlib.suppress(OSError):
        asking.sendall(json.dumps({"said": said, "code": code}).encode())
    asking.close()


def told(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was ended by {name}"
    return f"ended with exit code {code}"


def plain(code: int) -> int:
    """A process's exit code, or what a shell says of a signal."""
    return 128 - code if code < 0 else code
