"""What a family's layers are made of, as the converter's loaders set it, and the empty CTranslate2 model of that."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ctranslate2.specs import TransformerDecoderModelSpec, attention_spec, common_spec
from ctranslate2.specs.common_spec import Activation

LAYERS, HEADS, HEAD, WIDTH, FFN = 2, 4, 16, 64, 128
EMBEDDED = 32
"""The width of embeddings in models that project them to the layers' width."""
POSITIONS = 512
"""How many positions are learned, in models that learn them."""
WINDOW = 160

EVERYWHERE = frozenset({"qkv", "out", "ffn"})
"""Where linear layers have biases; "projection" is the output's."""


@dataclass(frozen=True)
class Architecture:
    """The traits of a family."""

    options: dict[str, Any]
    """What the loader says to `from_config`, beside numbers of layers and heads."""
    biases: frozenset[str] = EVERYWHERE
    tied: bool = True
    """The output's weights are the embeddings."""
    scaled: bool = False
    """Embeddings are multiplied by the root of the width."""
    residual_norm: bool = False
    """What norms multiply by is stored less one, as Gemma's."""
    learned_positions: bool = False
    epsilon: float | None = None
    """Of the norms, where the converter writes it."""
    change: Callable[[TransformerDecoderModelSpec], None] = field(default=lambda _: None)
    """What the loader changes afterwards, layer by layer."""

    def empty(self) -> TransformerDecoderModelSpec:
        """The model without weights."""
        made = TransformerDecoderModelSpec.from_config(LAYERS, HEADS, pre_norm=self.pre_norm, **self._others())
        made.decoder.scale_embeddings = self.scaled
        made.config.layer_norm_epsilon = self.epsilon
        self.change(made)
        return made

    @property
    def pre_norm(self) -> bool:
        """Norms come before what they norm."""
        return self.options.get("pre_norm", True)

    @property
    def window(self) -> int:
        """How many tokens back the layers with the shortest sight see; 0 for all."""
        return self.options.get("sliding_window", 0)

    def _others(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name != "pre_norm"}


def gpt(activation: Activation = Activation.GELUTanh, **options: Any) -> Architecture:
    """GPT-2 and its like: learned positions."""
    return Architecture({"activation": activation, **options}, learned_positions=True)


def gptj(rotary: int, biases: frozenset[str]) -> Architecture:
    """Attention and feed-forward side by side behind one norm, some dimensions rotated."""
    options = {
        "activation": Activation.GELUTanh,
        "rotary_dim": rotary,
        "rotary_interleave": False,
        "parallel_residual": True,
        "shared_layer_norm": True,
    }
    return Architecture(options, biases=biases, tied=False)


def neox() -> Architecture:
    """Attention and feed-forward side by side, each behind a norm of its own; a quarter of the dimensions rotated."""
    options = {
        "activation": Activation.GELU,
        "rotary_dim": HEAD // 4,
        "rotary_interleave": False,
        "parallel_residual": True,
        "shared_layer_norm": False,
    }
    return Architecture(options, tied=False)


def falcon(*, heads_kv: int | None, rotary: bool = True) -> Architecture:
    """One key for all heads or several, rotated side by side; or older: ALiBi, one after the other."""
    options = {
        "activation": Activation.GELU,
        "alibi": not rotary,
        "alibi_use_positive_positions": True,
        "scale_alibi": True,
        "rotary_dim": 0 if rotary else None,
        "rotary_interleave": False,
        "parallel_residual": rotary,
        "shared_layer_norm": heads_kv == 1,
        "num_heads_kv": heads_kv,
    }
    return Architecture(options, biases=frozenset() if rotary else EVERYWHERE)


def llama(
    *,
    biases: frozenset[str] = frozenset(),
    tied: bool = False,
    epsilon: float | None = 1e-5,
    change: Callable[[TransformerDecoderModelSpec], None] = lambda _: None,
    **options: Any,
) -> Architecture:
    """Root-mean-square norms, gated feed-forward, all dimensions rotated in halves."""
    options = {
        "activation": Activation.SWISH,
        "ffn_glu": True,
        "rms_norm": True,
        "rotary_dim": 0,
        "rotary_interleave": False,
        "rotary_base": 10_000,
        "quant_type": common_spec.Quantization.CT2,
        **options,
    }
    return Architecture(options, biases=biases, tied=tied, epsilon=epsilon, change=change)


def gemma(
    *,
    residual_norm: bool = True,
    epsilon: float | None = 1e-6,
    change: Callable[[TransformerDecoderModelSpec], None] = lambda _: None,
    **options: Any,
) -> Architecture:
    """As Llama, with scaled embeddings that are the output's too, and norms that add one to what they multiply by."""
    options = {
        "activation": Activation.GELUTanh,
        "ffn_glu": True,
        "rms_norm": True,
        "rotary_dim": 0,
        "rotary_interleave": False,
        "rotary_base": 10_000,
        **options,
    }
    return Architecture(
        options, biases=frozenset(), scaled=True, residual_norm=residual_norm, epsilon=epsilon, change=change
    )


def rope_of_llama3(model: TransformerDecoderModelSpec) -> None:
    """Llama 3.1's: slow dimensions turn slower still."""
    for layer in model.decoder.layer:
        layer.self_attention.rotary_low_freq_factor = 1.0
        layer.self_attention.rotary_high_freq_factor = 4.0


def rope_of_phi3(model: TransformerDecoderModelSpec) -> None:
    """Factors for each dimension, others in long contexts than in short ones."""
    for layer in model.decoder.layer:
        layer.self_attention.rotary_scaling_long_factor = np.linspace(1, 8, HEAD // 2, dtype=np.float32)
        layer.self_attention.rotary_scaling_short_factor = np.linspace(1, 1.5, HEAD // 2, dtype=np.float32)


def embeddings_of_gemma(model: TransformerDecoderModelSpec) -> None:
    """What the first two Gemmas say of the scale of their embeddings."""
    model.decoder.embeddings.multiply_by_sqrt_depth = np.float32(WIDTH**0.5)


def layers_of_gemma3(model: TransformerDecoderModelSpec) -> None:
    """The first layer sees a window, the last everything."""
    _sees_everything(model.decoder.layer[-1].self_attention, rotary_base=1_000_000)


def layers_of_gemma4(model: TransformerDecoderModelSpec) -> None:
    """As Gemma 3's; the last has larger heads, of which it rotates a part, and one key for all."""
    decoder = model.decoder
    decoder.sliding_window = np.int32(0)
    decoder.final_logit_softcapping = np.float32(60)
    last = decoder.layer[-1].self_attention
    _sees_everything(last, rotary_base=1_000)
    last.head_dim, last.rotary_dim, last.num_heads_kv = np.int32(2 * HEAD), np.int32(HEAD), np.int32(1)
    for layer in decoder.layer:
        layer.self_attention.queries_scale = np.float32(1)
        layer.layer_scalar = np.float32(0.9)


def _sees_everything(attention: attention_spec.MultiHeadAttentionSpec, rotary_base: float) -> None:
    attention.sliding_window = np.int32(0)
    attention.rotary_base = np.float32(rotary_base)
