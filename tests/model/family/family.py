"""A family's description, and the model directory that is written of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from family.architectures import Architecture
from family.weights import Weights, row_scales

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Family:
    """What tells a family from the others."""

    name: str
    architecture: Architecture
    tokenizer: Callable[[], Tokenizer]
    eos: str
    bos: str | None = None
    unk: str | None = None
    pad: str | None = None
    eos_in_config: str | None = None
    """The engine's end token, where the converter does not write the tokenizer's."""
    unk_in_config: str | None = None
    """The same of the unknown token."""
    more_ends: tuple[str, ...] = ()
    """What ends answers beside `eos`; `generation_config.json` then has a list."""
    padding: int = 0
    """How many rows the embeddings have beyond the tokenizer; if negative, how many of its tokens have no row."""
    padding_name: str = "<extra_id_{}>"
    """What the converter calls the entries for them."""
    template: str | None = None
    """A file of `templates/`, without its ending."""
    template_in_file: bool = False
    """The template lies in `chat_template.jinja`, as newer repositories have it."""
    chat_options: tuple[dict[str, Any], ...] = ()
    """For each, the conversations are rendered once more with it."""
    token_objects: bool = False
    """`tokenizer_config.json` has objects where it has names of tokens, as older repositories do."""
    vocabulary_text: bool = False
    """The vocabulary is a text of a token a line, as the converter wrote it before CTranslate2 3.12."""
    refused: tuple[str, ...] = ()
    """Texts with tokens that have no row."""

    @property
    def ends(self) -> tuple[str, ...]:
        """All tokens that end an answer."""
        return (self.eos, *self.more_ends)

    @property
    def special(self) -> dict[str, str]:
        """The tokens that a template may name."""
        named = {"bos_token": self.bos, "eos_token": self.eos, "unk_token": self.unk, "pad_token": self.pad}
        return {name: token for name, token in named.items() if token is not None}

    def template_text(self) -> str | None:
        """The chat template."""
        return (TEMPLATES / f"{self.template}.jinja").read_text().removesuffix("\n") if self.template else None

    def vocabulary(self, tokenizer: Tokenizer) -> list[str]:
        """The model's, a token a row."""
        size = tokenizer.get_vocab_size()
        known = [tokenizer.id_to_token(token) for token in range(min(size, size + self.padding))]
        return known + [self.padding_name.format(number) for number in range(self.padding)]

    def write_model(self, folder: Path, tokenizer: Tokenizer, seed: int) -> None:
        """Writes `model.bin`, `config.json` and the vocabulary."""
        vocabulary = self.vocabulary(tokenizer)
        ends = {tokenizer.token_to_id(token) for token in self.ends}
        known = range(min(len(vocabulary), tokenizer.get_vocab_size()))
        fragments = {token for token in known if "\ufffd" in tokenizer.decode([token])} - ends
        scales = row_scales(len(vocabulary), ends, fragments, set(range(len(known), len(vocabulary))))
        model = self.architecture.empty()
        Weights(self.architecture, np.random.default_rng(seed)).fill(model, scales)
        model.register_vocabulary(vocabulary)
        model.config.bos_token = self.bos or self.pad or self.eos
        model.config.eos_token = self.eos_in_config or self.eos
        model.config.unk_token = self.unk_in_config if self.unk_in_config is not None else self.unk
        model.validate()
        model.optimize(quantization="float32")
        model.save(str(folder))
        if self.vocabulary_text:
            (folder / "vocabulary.json").unlink()
            (folder / "vocabulary.txt").write_text("".join(f"{token}\n" for token in vocabulary))

    def write_others(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Writes what belongs to the tokenizer."""
        tokenizer.save(str(folder / "tokenizer.json"))
        tokens = {
            name: {"__type": "AddedToken", "content": token, "special": True} if self.token_objects else token
            for name, token in self.special.items()
        }
        if self.bos is None:
            tokens["bos_token"] = None
        config = tokens | {"clean_up_tokenization_spaces": False, "model_max_length": 512}
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        template = self.template_text()
        if template and self.template_in_file:
            (folder / "chat_template.jinja").write_text(template)
        elif template:
            config["chat_template"] = template
        _write_json(folder / "tokenizer_config.json", config)
        generation: dict[str, Any] = {"eos_token_id": _one_or_all(tokenizer, self.ends)}
        for name, token in (("bos_token_id", self.bos), ("pad_token_id", self.pad)):
            if token is not None:
                generation[name] = tokenizer.token_to_id(token)
        _write_json(folder / "generation_config.json", generation)


def _one_or_all(tokenizer: Tokenizer, tokens: Sequence[str]) -> int | list[int]:
    ids = [tokenizer.token_to_id(token) for token in tokens]
    return ids if ids[1:] else ids[0]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
