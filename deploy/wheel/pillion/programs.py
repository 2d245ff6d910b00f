"""The two programs, the engine's library, and the environment in which the worker finds it."""

import os
import sys
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from pillion import ENGINE_VERSION
from pillion.failure import UNAVAILABLE, Failure

PACKAGE = Path(__file__).resolve().parent
BUILTIN = PACKAGE / "models" / "builtin"


@dataclass(frozen=True)
class Programs:
    """Where the programs are, and the environment to start them in."""

    proxy: Path
    worker: Path
    environment: dict[str, str]


def find(folder: str | None = None) -> Programs:
    """The programs of the wheel, or of a folder that has been built.

    Raises:
        Failure: a program or the engine is missing, or the engine has another version.
    """
    environment = dict(os.environ)
    if folder is None:
        libraries = [engine_folder(), cublas_folder()]
        # If the engine's folder is beside the package, the worker finds it by itself.
        if libraries[0] == PACKAGE.parent / "ctranslate2.libs":
            libraries[0] = None
    else:
        libraries = [cublas_folder()]
    known = [str(library) for library in libraries if library]
    if known:
        environment["LD_LIBRARY_PATH"] = ":".join([*known, *filter(None, [environment.get("LD_LIBRARY_PATH")])])
    programs = Path(folder).resolve() if folder else PACKAGE / "bin"
    for name in ("pillion-proxy", "pillion-worker"):
        if not os.access(programs / name, os.X_OK):
            hint = "build it first" if folder else "install the wheel again: pip install --force-reinstall pillion"
            raise Failure(f"there is no {name} in {programs}: {hint}", UNAVAILABLE)
    return Programs(programs / "pillion-proxy", programs / "pillion-worker", environment)


def engine_folder() -> Path:
    """The folder of the engine's library, in whichever place ctranslate2 is installed.

    Raises:
        Failure: ctranslate2 is missing, or has another version.
    """
    remedy = f"pip install ctranslate2=={ENGINE_VERSION}"
    spec = util.find_spec("ctranslate2")
    if spec is None or spec.origin is None:
        raise Failure(f"the engine is missing: {remedy}", UNAVAILABLE)
    folder = Path(spec.origin).resolve().parent.parent / "ctranslate2.libs"
    if not list(folder.glob(f"libctranslate2-*.so.{ENGINE_VERSION}")):
        try:
            found = f"version {metadata.version('ctranslate2')}"
        except metadata.PackageNotFoundError:
            found = f"another build, at {folder.parent},"
        raise Failure(
            f"the engine must be ctranslate2 {ENGINE_VERSION}, but {found} is installed: {remedy}", UNAVAILABLE
        )
    return folder


def cublas_folder() -> Path | None:
    """The folder of CUDA 12's cuBLAS, if its package is installed."""
    try:
        spec = util.find_spec("nvidia.cublas")
    except ModuleNotFoundError:
        return None
    for place in spec.submodule_search_locations or [] if spec else []:
        if (Path(place) / "lib" / "libcublas.so.12").exists():
            return Path(place) / "lib"
    return None


def become(name: str) -> int:
    """Replaces this process by the program `name` (pillion-proxy or pillion-worker), with the same arguments."""
    try:
        programs = find()
        program = programs.proxy if name == "pillion-proxy" else programs.worker
        os.execve(program, [name, *sys.argv[1:]], programs.environment)
    except Failure as failure:
        print(f"{name}: {failure}", file=sys.stderr)
        return failure.code
    except OSError as error:
        print(f"{name}: cannot be started: {error.strerror}", file=sys.stderr)
        return UNAVAILABLE


def proxy() -> int:
    """The command pillion-proxy."""
    return become("pillion-proxy")


def worker() -> int:
    """The command pillion-worker."""
    return become("pillion-worker")
