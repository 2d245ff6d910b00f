"""Writes a Llama-shaped decoder, given as NumPy arrays, as a CTranslate2 model directory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctranslate2.specs import TransformerDecoderModelSpec, common_spec
from tokenizers import Tokenizer

import chat
from opt import Tree, array, save

NORM_EPSILON = 1e-5
ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class Shape:
    """The size of a model. `kv_heads` divides `heads`, which divides `width`; `vocabulary` is a multiple of 8."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    positions: int

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def write_model(directory: Path, shape: Shape, parameters: Tree, tokenizer: Tokenizer, compute_type: str) -> None:
    """Writes what a converted model has: CTranslate2's files, the tokenizer's two, and generation_config.json.

    `parameters` has "embeddings" [vocabulary, width], which are the output's weights too, "norm", and "layers": for
    each "attention_norm", "qkv", "attention_out", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down". A linear layer is
    [out, in]. `compute_type` is how weights are stored: int8, float16 or float32.
    """
    spec = TransformerDecoderModelSpec.from_config(
        shape.layers,
        shape.heads,
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_base=ROTARY_BASE,
        num_heads_kv=shape.kv_heads,
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = array(parameters["embeddings"])
    decoder.projection.weight = array(parameters["embeddings"])
    decoder.layer_norm.gamma = array(parameters["norm"])
    for layer, values in zip(decoder.layer, parameters["layers"], strict=True):
        layer.self_attention.layer_norm.gamma = array(values["attention_norm"])
        layer.self_attention.linear[0].weight = array(values["qkv"])
        layer.self_attention.linear[1].weight = array(values["attention_out"])
        layer.ffn.layer_norm.gamma = array(values["ffn_norm"])
        layer.ffn.linear_0.weight = array(values["ffn_gate"])
        layer.ffn.linear_0_noact.weight = array(values["ffn_up"])
        layer.ffn.linear_1.weight = array(values["ffn_down"])

    spec.config.bos_token = chat.BOS
    spec.config.eos_token = chat.EOS
    spec.config.unk_token = chat.UNK
    spec.config.layer_norm_epsilon = NORM_EPSILON
    save(directory, spec, tokenizer, compute_type)
    ends = [tokenizer.token_to_id(token) for token in (chat.EOS, chat.END)]
    generation = {"bos_token_id": tokenizer.token_to_id(chat.BOS), "eos_token_id": ends}
    _write_json(directory / "generation_config.json", generation)
    _write_json(
        directory / "tokenizer_config.json",
        {
            "bos_token": chat.BOS,
            "chat_template": chat.TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": chat.EOS,
            "model_max_length": shape.positions,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": chat.UNK,
        },
    )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
