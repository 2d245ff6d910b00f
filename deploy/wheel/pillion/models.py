"""What MODEL names: a directory that CTranslate2 converted, a Hugging Face directory, or a model's name on the hub."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pillion import ENGINE_VERSION
from pillion.failure import BAD_MODEL, Failure

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
GGUF = "which CTranslate2 does not read: name the Hugging Face model that it was made from"
# Counted up when a conversion takes along other files than before.
CONVERSION = 1


@dataclass(frozen=True)
class Source:
    """A model as a user names it."""

    # A path, or a name on the hub.
    place: str
    # What clients call it.
    name: str
    # Whether CTranslate2 can load it as it is.
    converted: bool

    def cached(self, quantization: str) -> Path:
        """Where its conversion is kept: another place for each state of its files, quantization and engine."""
        state = [self.place, quantization, ENGINE_VERSION, CONVERSION]
        if os.path.isdir(self.place):
            files = [(entry.name, entry.stat()) for entry in os.scandir(self.place) if entry.is_file()]
            state += sorted((name, known.st_size, known.st_mtime_ns) for name, known in files)
        digest = hashlib.sha256(repr(state).encode()).hexdigest()[:12]
        short = re.sub(r"[^\w.-]", "-", self.name)[:80]
        return cache_folder() / f"{short}-{quantization}-{digest}"


def cache_folder() -> Path:
    """Where conversions are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pillion" / "models"


def find(text: str) -> Source:
    """What `text` names.

    Raises:
        Failure: nothing that could be a model.
    """
    if not text:
        raise Failure("the model's name is empty", BAD_MODEL)
    path = Path(text)
    if path.is_dir():
        name = path.resolve().name or "model"
        if (path / "model.bin").exists():
            return Source(str(path.absolute()), name, converted=True)
        if (path / "config.json").exists():
            return Source(str(path.resolve()), name, converted=False)
        if any(path.glob("*.gguf")):
            raise Failure(f"{text}: holds GGUF files, {GGUF}", BAD_MODEL)
        raise Failure(
            f"{text}: holds neither model.bin, which CTranslate2 writes, nor config.json of a Hugging Face model",
            BAD_MODEL,
        )
    if path.exists():
        if path.suffix == ".gguf":
            what = f"is a GGUF file, {GGUF}"
        else:
            what = "is a file: name the model's directory"
        raise Failure(f"{text}: {what}", BAD_MODEL)
    if HUB_NAME.fullmatch(text):
        return Source(text, text, converted=False)
    raise Failure(f"{text}: does not exist", BAD_MODEL)
