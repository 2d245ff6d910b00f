"""Starts child processes with a log, stops them with all their children, and reads the kernel's figures of them."""

import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STOP_LIMIT = 1.0
"""Seconds that a process may take to end before it is killed. It may be short, since nobody waits for its answers."""
TICKS = os.sysconf("SC_CLK_TCK")

Process = subprocess.Popen[bytes]
Command = list[str | Path]


@contextmanager
def running(command: Command, log: Path, piped: bool = False) -> Iterator[Process]:
    """Runs a process in a session of its own, and stops it with all its children at the end of the `with` block.

    If `piped` is true, this program can write the process's standard input and read its standard output. Otherwise the
    standard input is empty, and the standard output goes to the log.
    """
    with log.open("ab") as output:
        pipe = subprocess.PIPE if piped else None
        process = subprocess.Popen(
            command, stdin=pipe or subprocess.DEVNULL, stdout=pipe or output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: Process) -> None:
    try:
        process.terminate()
        process.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def free_port() -> int:
    """A free port below the range from which the system takes the ports of connections.

    So no client's connection takes the port before it is used.
    """
    while True:
        port = random.randint(10_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def family(pid: int) -> list[int]:
    """The ids of the process and of all its present descendants."""
    parents = {child: fields[1] for child, fields in _every_stat()}
    found = [pid]
    for member in found:
        found.extend(child for child, parent in parents.items() if int(parent) == member)
    return found


def cpu_seconds(pid: int) -> float:
    """Seconds of user and system time that a process and its living descendants have used."""
    times = 0
    for member in family(pid):
        with suppress(OSError):
            fields = _stat(member)
            times += int(fields[11]) + int(fields[12])
    return times / TICKS


def resident_bytes(pid: int) -> int:
    """Bytes of memory that one process has at present."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def _every_stat() -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(folder.name), _stat(int(folder.name))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third one on, which is the state.

    The second field, the name, may hold spaces and parentheses. So the text is cut at the last parenthesis.
    """
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
