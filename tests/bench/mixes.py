"""Requests that differ: written for `load-driver --mix`, and drawn from for the engine alone."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

WORDS = "the of and to in is you that it he was for on are as with his they at be this have from or one had by".split()
VARIANTS = 16
"""Different prompts of each length."""


@dataclass(frozen=True)
class Kind:
    """Requests with a prompt and an answer of these lengths, in tokens. `weight`: how many of all, beside the others."""

    name: str
    prompt: int
    answer: int
    weight: float = 1.0
    abandon_ms: int | None = None
    """After so many milliseconds the client goes away."""


HALVES = (Kind("short", 10, 10), Kind("long", 200, 10))
SPREAD = tuple(Kind("5 to 60", length, 10) for length in range(5, 61))
FEW_LONG_ANSWERS = (Kind("short", 10, 10, 9.0), Kind("long", 10, 200, 1.0))
ONLY_SHORT = (Kind("short", 10, 10),)
HALF_ABANDONED = (Kind("short", 10, 10), Kind("abandoned", 10, 200, abandon_ms=20))
HALF_LONG = (Kind("short", 10, 10), Kind("long", 10, 200))


def prompts(model: Path, kinds: Iterable[Kind]) -> dict[Kind, list[str]]:
    """Texts of exactly as many tokens as each kind says, several for each."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    rng = random.Random(1)
    return {kind: [text_of(tokenizer, kind.prompt, rng) for _ in range(VARIANTS)] for kind in kinds}


def text_of(tokenizer: Tokenizer, tokens: int, rng: random.Random) -> str:
    """Words are taken at random until the count is right; a word that would be too much is left out again."""
    text = ""
    for _ in range(100 * tokens):
        longer = f"{text} {rng.choice(WORDS)}".strip()
        count = len(tokenizer.encode(longer).ids)
        if count <= tokens:
            text = longer
        if count == tokens:
            return text
    raise ValueError(f"no text of {tokens} tokens was found")


def write(path: Path, texts: dict[Kind, list[str]]) -> None:
    """For `load-driver --mix`; every answer must have the asked length."""
    lines = (
        {
            "name": kind.name,
            "weight": kind.weight / len(variants),
            "body": {"text": text, "max_new_tokens": kind.answer},
            "expect": f"usage.completion_tokens={kind.answer}",
            "abandon_ms": kind.abandon_ms,
        }
        for kind, variants in texts.items()
        for text in variants
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def mean_tokens(kinds: Sequence[Kind]) -> float:
    """New tokens of a request, on average."""
    return sum(kind.weight * kind.answer for kind in kinds) / sum(kind.weight for kind in kinds)
