"""How `pillion reload` reaches a running `pillion serve`: a Unix socket in a folder that is the user's own."""

import json
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from pillion.address import Address
from pillion.failure import UNAVAILABLE, Failure

MOST = 65536
# Bytes of a Unix socket's path, and of the longest name in the folder: the proxy binds one beside worker.sock and renames it.
LONGEST_PATH = 107
LONGEST_NAME = len("/worker.4194304.new")


def bases() -> list[Path]:
    """Where running servers keep their sockets: the user's runtime folder, if there is one, else the temporary folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = [Path(runtime) / "pillion-serve"] if runtime and os.access(runtime, os.W_OK | os.X_OK) else []
    return [*own, Path(tempfile.gettempdir()) / f"pillion-serve-{os.geteuid()}"]


class Sockets:
    """The folder for a server's own sockets, and the socket that `pillion reload` dials."""

    def __init__(self, address: Address) -> None:
        """Makes them. The caller has the address, so that no other server uses what bears its name.

        Raises:
            Failure: they cannot be made, or the place is somebody else's.
        """
        base = bases()[0]
        self.path = base / f"{address}.sock"
        self.folder = base / f"{address}-{os.getpid()}"
        try:
            base.mkdir(mode=0o700, exist_ok=True)
            known = base.lstat()
            if not stat.S_ISDIR(known.st_mode) or known.st_uid != os.geteuid() or known.st_mode & 0o022:
                raise Failure(f"{base} is somebody else's, or others may write to it: remove it", UNAVAILABLE)
            for left in base.iterdir():
                # Of a server that was killed; one that still drains has its folder.
                if left.name.startswith(f"{address}-") and not Path("/proc", left.name.rpartition("-")[2]).exists():
                    shutil.rmtree(left, ignore_errors=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(mode=0o700)
            self.path.unlink(missing_ok=True)
            if len(os.fsencode(self.folder)) + LONGEST_NAME > LONGEST_PATH:
                raise Failure(
                    f"{self.folder} is too long a path for sockets: XDG_RUNTIME_DIR names another", UNAVAILABLE
                )
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.listener.bind(str(self.path))
        except OSError as error:
            place = error.filename or self.path
            hint = "XDG_RUNTIME_DIR names another folder"
            raise Failure(f"{place} cannot be used: {error.strerror}; {hint}", UNAVAILABLE) from None
        self.listener.listen(8)
        self.listener.setblocking(False)

    def leave(self) -> None:
        """Gives up the name: the address may be another server's next. The folder stays as long as the programs."""
        if self.listener.fileno() >= 0:
            self.listener.close()
            self.path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all of it."""
        self.leave()
        shutil.rmtree(self.folder, ignore_errors=True)


def ask(address: Address, question: dict[str, str | None]) -> dict:
    """Sends a question to the `pillion serve` on this address and waits for the answer: an exit code, and what is `said` of it.

    Raises:
        Failure: none serves there, or it ended meanwhile.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        if not any(dialled(asking, base / f"{address}.sock") for base in bases()):
            raise Failure(f"no pillion serve runs on {address}: --listen names its address", UNAVAILABLE)
        asking.sendall(json.dumps(question).encode())
        asking.shutdown(socket.SHUT_WR)
        answer = b""
        while part := asking.recv(MOST):
            answer += part
    if not answer:
        raise Failure("pillion serve has ended meanwhile", UNAVAILABLE)
    return json.loads(answer)


def dialled(asking: socket.socket, path: Path) -> bool:
    """Whether somebody answers there."""
    try:
        asking.connect(str(path))
    except OSError:
        return False
    return True
