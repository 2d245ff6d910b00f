"""Installs a wheel in the layouts that users have, and serves the built-in model from each: layouts.py WHEEL."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from serving import Serving, ended

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
QUESTION, ANSWER = "What is 17 + 25?", "42"
LARGEST = 12_000_000


def pythons() -> dict[str, Path]:
    """The Pythons of this machine that the wheel is for, by version."""
    found = {}
    for version in VERSIONS:
        places = [
            shutil.which(f"python{version}"),
            *Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"),
        ]
        for place in filter(None, places):
            if ended([str(place), "-c", "import venv, ensurepip"])[0] == 0:
                found.setdefault(version, Path(place))
    return found or {"this": Path(sys.executable)}


def pip(python: Path, *arguments: str) -> None:
    """Installs."""
    quiet = ["-q", "--disable-pip-version-check", "--no-warn-script-location"]
    subprocess.run([python, "-m", "pip", "install", *quiet, *arguments], check=True)


def in_environment(version: str, python: Path, wheel: Path, folder: Path) -> None:
    """`pip install pillion`, `pillion serve`, in a virtual environment."""
    place = folder / f"venv-{version}"
    subprocess.run([python, "-m", "venv", place], check=True)
    started = time.monotonic()
    pip(place / "bin/python", str(wheel))
    installed = time.monotonic() - started
    command = [str(place / "bin/pillion")]
    with Serving(command) as serving:
        assert serving.answer(QUESTION, 10) == ANSWER
        print(
            f"Python {version}: installed in {installed:.1f} s, answered {serving.seconds():.1f} s after the start",
            flush=True,
        )
        code, said = ended([*command, "reload", "--listen", str(serving.port)], serving.environment)
        assert code == 0, said
        assert serving.answer(QUESTION, 10) == ANSWER
    for program in ("pillion", "pillion-proxy", "pillion-worker"):
        code, said = ended([str(place / "bin" / program), "--version"])
        assert code == 0 and said.startswith(program), said
    # Whatever of the engine is wrong is said in a sentence, and by an exit code.
    pip(place / "bin/python", "--no-deps", "--force-reinstall", "ctranslate2==4.8.5")
    code, said = ended([*command, "serve"])
    assert code == 69 and "must be ctranslate2 4.8.4, but version 4.8.5 is installed: pip install" in said, said
    subprocess.run([place / "bin/python", "-m", "pip", "uninstall", "-q", "-y", "ctranslate2"], check=True)
    code, said = ended([str(place / "bin/pillion-worker"), "--version"])
    assert code == 69 and "the engine is missing: pip install ctranslate2==4.8.4" in said, said


def in_folders(python: Path, wheel: Path, folder: Path) -> None:
    """`pip install --target`: both in one folder, and the engine in another."""
    both, engine, alone = folder / "both", folder / "engine", folder / "alone"
    pip(python, "--target", str(both), str(wheel))
    pip(python, "--target", str(engine), "ctranslate2==4.8.4")
    pip(python, "--target", str(alone), "--no-deps", str(wheel))
    for name, folders in [("--target", [both]), ("--target, the engine in another folder", [alone, engine])]:
        environment = {"PYTHONPATH": os.pathsep.join(map(str, folders))}
        for command in ([str(folders[0] / "bin/pillion")], [str(python), "-m", "pillion"]):
            with Serving(command, environment=environment) as serving:
                assert serving.answer(QUESTION, 10) == ANSWER
        print(f"{name}: answered", flush=True)


def main() -> None:
    """All of them."""
    wheel = Path(sys.argv[1])
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.1f} MB of at most {LARGEST / 1e6:.0f}", flush=True)
    assert size <= LARGEST
    with TemporaryDirectory() as folder:
        for version, python in pythons().items():
            in_environment(version, python, wheel, Path(folder))
        in_folders(Path(sys.executable), wheel, Path(folder))


if __name__ == "__main__":
    main()
