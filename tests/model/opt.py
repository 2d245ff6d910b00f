"""Writes an OPT-shaped decoder, given as NumPy arrays, as a CTranslate2 model directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ctranslate2.specs import TransformerDecoderModelSpec, common_spec
from tokenizers import Tokenizer

from bpe import EOS, UNK, vocabulary_of

Tree = dict[str, Any]
"""Parameters by name. A linear layer is {"weight": [out, in], "bias": [out]}; a norm is {"gamma", "beta"}."""


@dataclass(frozen=True)
class Shape:
    """The size of a model. `heads` divides `width`; `vocabulary` is a multiple of 8."""

    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int
    positions: int

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.vocabulary % 8:
            raise ValueError(f"vocabulary {self.vocabulary} is not a multiple of 8")


def write_model(directory: Path, shape: Shape, parameters: Tree, tokenizer: Tokenizer, compute_type: str) -> None:
    """Writes model.bin, config.json, vocabulary.json and tokenizer.json.

    `parameters` has "embeddings" and "projection" [vocabulary, width] (the same array where they are tied),
    "positions" [positions, width], "norm", and "layers": for each "attention_norm", "qkv", "attention_out",
    "ffn_norm", "ffn_in", "ffn_out". `compute_type` is how weights are stored: int8, float16 or float32.
    """
    spec = TransformerDecoderModelSpec.from_config(
        shape.layers, shape.heads, pre_norm=True, activation=common_spec.Activation.RELU
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = array(parameters["embeddings"])
    decoder.position_encodings.encodings = array(parameters["positions"])
    decoder.projection.weight = array(parameters["projection"])
    _set_norm(decoder.layer_norm, parameters["norm"])
    for layer, values in zip(decoder.layer, parameters["layers"], strict=True):
        _set_norm(layer.self_attention.layer_norm, values["attention_norm"])
        _set_linear(layer.self_attention.linear[0], values["qkv"])
        _set_linear(layer.self_attention.linear[1], values["attention_out"])
        _set_norm(layer.ffn.layer_norm, values["ffn_norm"])
        _set_linear(layer.ffn.linear_0, values["ffn_in"])
        _set_linear(layer.ffn.linear_1, values["ffn_out"])

    spec.config.bos_token = EOS
    spec.config.eos_token = EOS
    spec.config.unk_token = UNK
    save(directory, spec, tokenizer, compute_type)


def save(directory: Path, spec: TransformerDecoderModelSpec, tokenizer: Tokenizer, compute_type: str) -> None:
    """Writes a filled-in model with its tokenizer's vocabulary, and the tokenizer beside it."""
    spec.register_vocabulary(vocabulary_of(tokenizer))
    spec.validate()
    spec.optimize(quantization=compute_type)
    directory.mkdir(parents=True, exist_ok=True)
    spec.save(str(directory))
    tokenizer.save(str(directory / "tokenizer.json"))


def array(values: npt.ArrayLike) -> np.ndarray:
    """A copy: quantisation writes into what it is given."""
    return np.array(values, dtype=np.float32)


def _set_linear(spec: common_spec.LinearSpec, values: Tree) -> None:
    spec.weight = array(values["weight"])
    spec.bias = array(values["bias"])


def _set_norm(spec: common_spec.LayerNormSpec, values: Tree) -> None:
    spec.gamma = array(values["gamma"])
    spec.beta = array(values["beta"])
