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
# Bytes of a Unix socket's path.
LONGEST_PATH = 107


def folder_of(address: Address) -> Path:
    """Where a `pillion serve` on this address keeps its sockets."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) / "pillion-serve" if runtime else Path(tempfile.gettempdir()) / f"pillion-serve-{os.geteuid()}"
    return base / str(address)


def own_folder(address: Address) -> Path:
    """Makes that folder anew. The caller has the address, so that nobody else uses the folder.

    Raises:
        Failure: it cannot be made, or is somebody else's.
    """
    folder = folder_of(address)
    try:
        for part in (folder.parent, folder):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
            known = part.lstat()
            if not stat.S_ISDIR(known.st_mode) or known.st_uid != os.geteuid() or known.st_mode & 0o022:
                raise Failure(f"{part} is somebody else's, or others may write to it: remove it", UNAVAILABLE)
        for left in folder.iterdir():
            left.unlink()
    except OSError as error:
        hint = "XDG_RUNTIME_DIR names another folder"
        raise Failure(f"{error.filename} cannot be used: {error.strerror}; {hint}", UNAVAILABLE) from None
    if len(os.fsencode(folder / "control.sock")) > LONGEST_PATH:
        raise Failure(f"{folder} is too long a path for a socket: XDG_RUNTIME_DIR names another folder", UNAVAILABLE)
    return folder


def listen(folder: Path) -> socket.socket:
    """The socket that `pillion reload` dials."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / "control.sock"))
    listener.listen(8)
    listener.setblocking(False)
    return listener


def remove(folder: Path) -> None:
    """Removes the folder and what is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def ask(address: Address, question: dict[str, str | None]) -> dict:
    """Sends a question to the `pillion serve` on this address and waits for the answer: an exit code, and what is `said` of it.

    Raises:
        Failure: none serves there, or it ended meanwhile.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        try:
            asking.connect(str(folder_of(address) / "control.sock"))
        except OSError:
            raise Failure(f"no pillion serve runs on {address}: --listen names its address", UNAVAILABLE) from None
        asking.sendall(json.dumps(question).encode())
        asking.shutdown(socket.SHUT_WR)
        answer = b""
        while part := asking.recv(MOST):
            answer += part
    if not answer:
        raise Failure("pillion serve has ended meanwhile", UNAVAILABLE)
    return json.loads(answer)
