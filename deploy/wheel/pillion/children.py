"""Starts the two programs, so that they end with this process, and asks a worker how it is."""

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

# What asks this process to stop.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
FIRST_INHERITED = 3
# Seconds that a worker may take to say how it is.
PATIENCE = 1.0


def stopping() -> list[signal.Signals]:
    """The signals that stop this process. `nohup` and shells that start it in the background have it ignore some: so it stays."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """What a child runs before it becomes its program: a session of its own, which the terminal's Ctrl-C does not reach, and a
    signal when its parent dies, however the parent dies."""
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        # The parent may have died before.
        if os.getppid() != parent:
            os._exit(1)

    return prepare


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Signals wait until the end: between fork and exec a child would take them by its parent's handlers, and lose them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*STOPPING, signal.SIGUSR1, signal.SIGCHLD])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(
    program: Path, arguments: list[str], environment: dict[str, str], listener: socket.socket | None = None
) -> int:
    """Starts a program; a listening socket goes with it by systemd's convention (sd_listen_fds(3)).

    Returns:
        Its process number.

    Raises:
        OSError: the system has no room for another process.
    """
    prepare = die_with_parent(signal.SIGTERM)
    with signals_held():
        pid = os.fork()
        if pid:
            return pid
        become(program, arguments, environment, listener, prepare)


def become(
    program: Path,
    arguments: list[str],
    environment: dict[str, str],
    listener: socket.socket | None,
    prepare: Callable[[], None],
) -> NoReturn:
    """What a child does until it is its program."""
    try:
        signal.set_wakeup_fd(-1)
        held = [*STOPPING, signal.SIGUSR1, signal.SIGCHLD]
        for number in held:
            signal.signal(number, signal.SIG_DFL)
        prepare()
        # What was sent meanwhile comes now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        if listener is not None:
            environment = {**environment, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
            if listener.fileno() == FIRST_INHERITED:
                os.set_inheritable(FIRST_INHERITED, True)
            else:
                os.dup2(listener.fileno(), FIRST_INHERITED, inheritable=True)
        os.execve(program, [program.name, *arguments], environment)
    except OSError as error:
        os.write(2, f"pillion: {program} cannot be started: {error.strerror}\n".encode())
    finally:
        os._exit(69)


def is_connected(pid: int) -> bool:
    """Whether a worker serves a proxy: it says so on a socket that `pillion-worker check` asks too."""
    namespace = "".join(filter(str.isdigit, os.readlink("/proc/self/ns/pid")))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(PATIENCE)
        try:
            asking.connect(f"\0pillion-worker-{namespace}-{pid}")
            return asking.recv(64) == b"connected to a proxy"
        except OSError:
            return False
