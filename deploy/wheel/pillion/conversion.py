"""The converter's process, with the arguments SOURCE FOLDER QUANTIZATION REPORT. What fails is written to the descriptor REPORT
as JSON."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

from pillion.failure import BAD_MODEL, UNAVAILABLE, Failure

# What serving needs beside the weights, where the source has it.
TAKEN_ALONG = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def main() -> None:
    """Converts; the exit code is 0 if all of it is there."""
    place, folder, quantization, report = sys.argv[1:]
    try:
        convert(place, Path(folder), quantization)
    except Failure as failure:
        tell(int(report), str(failure), failure.code)
    except Exception as error:
        tell(int(report), *explained(place, error))


def tell(report: int, message: str, code: int) -> None:
    """Ends the process with the reason."""
    os.write(report, json.dumps({"message": message, "code": code}).encode())
    # Without the threads and clean-ups of what was imported.
    os._exit(1)


def convert(place: str, folder: Path, quantization: str) -> None:
    """Writes a directory that the worker can serve."""
    from ctranslate2.converters import TransformersConverter
    from ctranslate2.converters.transformers import _MODEL_LOADERS
    from transformers import AutoConfig, AutoTokenizer

    # Code that comes with a model is not run.
    config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    if config.is_encoder_decoder:
        raise Failure(
            f"{place} is an encoder-decoder model ({config.model_type}); Pillion serves decoders alone", BAD_MODEL
        )
    if type(config).__name__ not in _MODEL_LOADERS:
        raise Failure(f"{place} is of a kind that CTranslate2 does not convert: {config.model_type}", BAD_MODEL)
    TransformersConverter(place, low_cpu_mem_usage=True).convert(str(folder), quantization=quantization, force=True)

    for name in TAKEN_ALONG:
        found = file_of(place, name)
        if found:
            shutil.copyfile(found, folder / name)
    if not (folder / "tokenizer.json").exists():
        saved = folder / "tokenizer"
        AutoTokenizer.from_pretrained(place, trust_remote_code=False).save_pretrained(saved)
        for name in TAKEN_ALONG:
            if (saved / name).exists():
                shutil.copyfile(saved / name, folder / name)
        shutil.rmtree(saved)
    if not (folder / "tokenizer.json").exists():
        raise Failure(f"{place} has a tokenizer that cannot be written as tokenizer.json", BAD_MODEL)


def file_of(place: str, name: str) -> str | None:
    """The path of one of the source's files, if it has such a file."""
    from transformers.utils import cached_file

    return cached_file(
        place, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )


def explained(place: str, error: Exception) -> tuple[str, int]:
    """One sentence and an exit code for what went wrong in a library."""
    chain: list[BaseException] = []
    known: BaseException | None = error
    while known is not None and known not in chain:
        chain.append(known)
        known = known.__cause__ or known.__context__
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    full = any(isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT) for link in chain)
    if full or any("No space left" in str(link) for link in chain):
        return f"the disk is full: {place} needs more room for its files and its conversion", UNAVAILABLE
    if "GatedRepoError" in names:
        return (
            f"{place} is gated on the hub: accept its licence there, then log in with the command hf auth login",
            UNAVAILABLE,
        )
    if "RepositoryNotFoundError" in names:
        return f"{place}: there is no such directory, and no model of that name on the hub", BAD_MODEL
    if names & {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "TransportError"}:
        return (
            f"{place}: there is no such directory, and the hub cannot be reached for a model of that name",
            UNAVAILABLE,
        )
    if isinstance(error, MemoryError):
        return f"there is too little memory to convert {place}", UNAVAILABLE
    said = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, ImportError):
        return f"{place} cannot be converted without another package: {said}", UNAVAILABLE
    return f"{place} cannot be converted: {said}", BAD_MODEL
