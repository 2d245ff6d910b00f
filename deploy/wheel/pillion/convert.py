"""Converts a model by a process of its own, into a folder that is renamed into place once it is complete."""

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pillion.children import die_with_parent, signals_held
from pillion.failure import BAD_FLAG, BAD_MODEL, INTERNAL, UNAVAILABLE, Failure
from pillion.models import Source
from pillion.programs import Programs

QUANTIZATIONS = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")
# Python would import from the folder that the user is in.
SAFE_PATH = "import sys; sys.path[:] = filter(None, sys.path); "
# Seconds between two lines of progress.
NEWS = 10.0


def say(message: str) -> None:
    """One line for whoever waits."""
    print(f"pillion: {message}", file=sys.stderr, flush=True)


def quantization(asked: str | None, device: str, programs: Programs) -> str:
    """The quantization that was asked for, or what suits the device.

    Raises:
        Failure: there is no such quantization.
    """
    if asked is None:
        return "float16" if device == "cuda" or (device == "auto" and has_gpu(programs)) else "int8"
    if asked not in QUANTIZATIONS:
        raise Failure(f"--quantization does not take {asked!r}, only one of {', '.join(QUANTIZATIONS)}", BAD_FLAG)
    return asked


def has_gpu(programs: Programs) -> bool:
    """Whether the worker can compute on an NVIDIA GPU: the engine finds one, and cuBLAS is there."""
    # Asking the engine takes a while: not where there is no trace of a driver.
    if not any(os.path.exists(trace) for trace in ("/dev/nvidiactl", "/dev/dxg")):
        return False
    asking = "import ctypes; ctypes.CDLL('libcublas.so.12'); import ctranslate2, sys; "
    asking += "sys.exit(ctranslate2.get_cuda_device_count() == 0)"
    command = [sys.executable, "-c", SAFE_PATH + asking]
    return subprocess.run(command, env=programs.environment, capture_output=True, check=False).returncode == 0


def converted(source: Source, asked: str | None, device: str, programs: Programs) -> Path:
    """The directory of the converted model: the source itself, or what the cache has, or a new conversion with the
    quantization that was asked for, or that suits the device.

    Raises:
        Failure: it cannot be converted, or is not served.
    """
    if source.converted:
        return Path(source.place)
    kind = quantization(asked, device, programs)
    target = source.cached(kind)
    if not target.exists():
        convert(source, kind, target, programs)
    return target


def convert(source: Source, kind: str, target: Path, programs: Programs) -> None:
    """Converts into `target`, unless another process has done so meanwhile.

    Raises:
        Failure: it cannot be converted, or is not served. Then nothing is left behind.
    """
    for needed in ("ctranslate2", "torch", "transformers"):
        if importlib.util.find_spec(needed) is None:
            what = f"{source.place} is not converted yet"
            if not os.path.isdir(source.place):
                what = f"there is no directory {source.place}, and a model of that name on the hub is not converted yet"
            raise Failure(f"{what}; converting needs {needed}: pip install 'pillion[convert]'", UNAVAILABLE)
    make_folder(target.parent)
    partial = target.with_name(f".{target.name}.partial")
    with locked(target.with_name(f".{target.name}.lock"), f"another process converts {source.name}; waiting for it"):
        if (target / "model.bin").exists():
            return
        say(f"converting {source.name} to {kind}; this is done once, and kept in {target}")
        started = time.monotonic()
        try:
            # Of a process that was killed.
            shutil.rmtree(partial, ignore_errors=True)
            run(source.place, kind, partial)
            check(partial, programs)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        say(f"converted {source.name} in {time.monotonic() - started:.0f} s")


def run(place: str, kind: str, partial: Path) -> None:
    """Runs the converter, with a line of progress now and then.

    Raises:
        Failure: it failed.
    """
    reader, writer = os.pipe()
    asking = SAFE_PATH + "from pillion.conversion import main; main()"
    command = [sys.executable, "-c", asking, place, str(partial), kind, str(writer)]
    # In a session of its own: Ctrl-C comes to this process, which ends it.
    prepare = die_with_parent(signal.SIGKILL)
    with signals_held():
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[writer], preexec_fn=prepare)
    os.close(writer)
    try:
        started = time.monotonic()
        while True:
            try:
                code = process.wait(NEWS)
                break
            except subprocess.TimeoutExpired:
                written = sum(file.stat().st_size for file in partial.glob("*")) if partial.exists() else 0
                say(f"still converting: {time.monotonic() - started:.0f} s, {written / 1e6:.0f} MB written")
        with open(reader, encoding="utf-8", closefd=False) as report:
            told = report.read()
    finally:
        process.kill()
        process.wait()
        os.close(reader)
    if code == 0:
        return
    if told:
        failure = json.loads(told)
        raise Failure(failure["message"], failure["code"])
    if code < 0:
        killed = signal.Signals(-code).name
        raise Failure(
            f"the converter was ended by {killed}: has this machine too little memory for {place}?", UNAVAILABLE
        )
    raise Failure(f"the converter failed; what it said is above (exit code {code})", INTERNAL)


def check(folder: Path, programs: Programs) -> None:
    """Asks the worker whether it would serve the model.

    Raises:
        Failure: it would not.
    """
    command = [programs.worker, "inspect", str(folder)]
    asked = subprocess.run(command, env=programs.environment, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        reason = asked.stderr.strip().removeprefix("pillion-worker: ").replace(f"{folder}/", "")
        raise Failure(f"the model was converted, but cannot be served: {reason}", asked.returncode or BAD_MODEL)


def make_folder(folder: Path) -> None:
    """Makes a folder for models.

    Raises:
        Failure: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        hint = "XDG_CACHE_HOME names another folder for the cache"
        raise Failure(f"{folder} cannot be written: {error.strerror}; {hint}", UNAVAILABLE) from None


@contextlib.contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Holds a lock that no two processes have at once. Its file is gone afterwards."""
    while True:
        file = open(path, "w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        # The one before has removed the file, and a third may have made it anew.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
