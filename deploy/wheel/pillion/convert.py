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

from pillion.children import die_with_parent
from pillion.failure import BAD_FLAG, BAD_MODEL, INTERNAL, UNAVAILABLE, Failure
from pillion.models import Source
from pillion.programs import Programs

QUANTIZATIONS = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")
# Seconds between two lines of progress.
NEWS = 10.0


def say(message: str) -> None:
    """One line for whoever waits."""
    print(f"pillion: {message}", file=sys.stderr, flush=True)


def quantization(asked: str | None, device: str) -> str:
    """The quantization that was asked for, or what suits the device.

    Raises:
        Failure: there is no such quantization.
    """
    if asked is None:
        return "float16" if device == "cuda" or (device == "auto" and has_gpu()) else "int8"
    if asked not in QUANTIZATIONS:
        raise Failure(f"--quantization does not take {asked!r}, only one of {', '.join(QUANTIZATIONS)}", BAD_FLAG)
    return asked


def has_gpu() -> bool:
    """Whether the engine finds an NVIDIA GPU."""
    # Loading the engine to ask it takes time: not where there is no trace of a driver.
    if not any(os.path.exists(trace) for trace in ("/dev/nvidiactl", "/dev/dxg")):
        return False
    try:
        import ctranslate2

        return ctranslate2.get_cuda_device_count() > 0
    except (ImportError, RuntimeError):
        return False


def converted(source: Source, asked: str | None, device: str, programs: Programs) -> Path:
    """The directory of the converted model: the source itself, or what the cache has, or a new conversion with the
    quantization that was asked for, or that suits the device.

    Raises:
        Failure: it cannot be converted, or is not served.
    """
    if source.converted:
        return Path(source.place)
    kind = quantization(asked, device)
    target = source.cached(kind)
    if not target.exists():
        make_folder(target.parent)
        with locked(
            target.with_name(f".{target.name}.lock"), f"another process converts {source.name}; waiting for it"
        ):
            if not target.exists():
                convert(source, kind, target, programs)
    return target


def convert(source: Source, kind: str, target: Path, programs: Programs) -> None:
    """Converts into `target`, which must not exist.

    Raises:
        Failure: it cannot be converted, or is not served. Then nothing is left behind.
    """
    for needed in ("ctranslate2", "torch", "transformers"):
        if importlib.util.find_spec(needed) is None:
            remedy = "pip install 'pillion[convert]'"
            raise Failure(
                f"{source.place} is not converted yet, and converting it needs {needed}: {remedy}", UNAVAILABLE
            )
    make_folder(target.parent)
    for left in target.parent.glob(f".{target.name}.*.partial"):
        # Of a process that was killed. One that still runs holds a lock, or has another target.
        pid = left.name.split(".")[-2]
        if not os.path.exists(f"/proc/{pid}"):
            shutil.rmtree(left, ignore_errors=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    say(f"converting {source.name} to {kind}; this is done once, and kept in {target}")
    started = time.monotonic()
    try:
        run(source.place, kind, partial)
        check(partial, programs)
        try:
            partial.rename(target)
        except OSError as error:
            # Another process was faster; what it made is as good.
            if not (target / "model.bin").exists():
                raise Failure(f"{target}: {error.strerror}", UNAVAILABLE) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"converted {source.name} in {time.monotonic() - started:.0f} s")


def run(place: str, kind: str, partial: Path) -> None:
    """Runs the converter, with a line of progress now and then.

    Raises:
        Failure: it failed.
    """
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "pillion.conversion", place, str(partial), kind, str(writer)]
    # In a session of its own: Ctrl-C comes to this process, which ends it.
    process = subprocess.Popen(command, pass_fds=[writer], preexec_fn=die_with_parent(signal.SIGKILL))
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
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            break
        file.close()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
