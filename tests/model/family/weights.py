"""Random weights for any architecture, arranged so that the best token stands clear of the second.

As in `random_model.py`, but simpler, since these models are tiny. The last layer's attention picks earlier tokens
sharply by what the layer below made of the context, and what it picks outweighs the last token itself: answers depend
on the whole prompt, and seldom go round in circles. Logits are spread far, so that near-ties are rare. The rows of the
tokens that end answers are longer than others: they are drawn about once in `STEPS_TO_END` steps. The rows of tokens
that are no whole character are shorter: most answers are text, and some are not.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from ctranslate2.specs import TransformerDecoderModelSpec, attention_spec, common_spec, transformer_spec

from family.architectures import EMBEDDED, FFN, HEADS, POSITIONS, WIDTH, Architecture

SPREAD = 16.0
"""Standard deviation of the logits."""
SCORE_SPREAD = 8.0
"""Standard deviation of the last attention's scores: the first of a few dozen stands clear of the second."""
PICKED_GAIN, TIED_GAIN = 5.0, 30.0
"""What the last attention picks, in relation to the last token; that would follow itself where the output is tied."""
STEP = 0.3
"""What all others add."""
STEPS_TO_END = 30
FRAGMENT = 0.74


def row_scales(rows: int, ends: set[int], fragments: set[int], unused: set[int]) -> np.ndarray:
    """How long each token's row is. `fragments` are no whole character, `unused` are never said."""
    highest = NormalDist().inv_cdf(1 - 1 / rows)
    scales = np.ones(rows, np.float32)
    scales[list(fragments)] = FRAGMENT
    scales[list(unused)] = 0.05
    scales[list(ends)] = highest / NormalDist().inv_cdf(1 - 1 / (STEPS_TO_END * len(ends)))
    return scales


@dataclass(frozen=True)
class Weights:
    """Draws the weights of a model."""

    architecture: Architecture
    rng: np.random.Generator

    def fill(self, model: TransformerDecoderModelSpec, scales: np.ndarray) -> None:
        """Sets all of them. `scales` has the length of each token's row in the output."""
        decoder, width = model.decoder, WIDTH
        if hasattr(decoder, "project_in"):
            width = EMBEDDED
            self._linear(decoder.project_in, WIDTH, width)
            self._linear(decoder.project_out, width, WIDTH)
        output = self._normal(len(scales), width) * scales[:, None] * np.float32(SPREAD / math.sqrt(width))
        decoder.projection.weight = output
        decoder.embeddings.weight = output if self.architecture.tied else self._normal(len(scales), width)
        if "projection" in self.architecture.biases:
            decoder.projection.bias = self._normal(len(scales), scale=0.5)
        self._norm(decoder, "layer_norm")
        self._norm(decoder, "layernorm_embedding")
        if self.architecture.learned_positions:
            decoder.position_encodings.encodings = self._normal(POSITIONS, WIDTH, scale=self._token_scale / 2)
        for layer in decoder.layer[:-1]:
            self._layer(layer, picks=False)
        self._layer(decoder.layer[-1], picks=True)

    @property
    def _token_scale(self) -> float:
        """How large a token is where it enters the layers."""
        options = self.architecture.options
        if options.get("layernorm_embedding") or not self.architecture.tied or options.get("project_in_out"):
            return 1.0
        return SPREAD / math.sqrt(WIDTH) * (math.sqrt(WIDTH) if self.architecture.scaled else 1)

    def _layer(self, layer: transformer_spec.TransformerDecoderLayerSpec, *, picks: bool) -> None:
        """A layer. The one that `picks` decides what is said next."""
        step = self._token_scale * STEP
        added = self._token_scale * (TIED_GAIN if self.architecture.tied else PICKED_GAIN) if picks else step
        normed_after = hasattr(layer, "post_feedforward_layer_norm")
        self._norm(layer, "shared_layer_norm")
        self._norm(layer, "input_layer_norm")
        self._norm(layer, "pre_feedforward_layer_norm")
        self._norm(layer, "post_attention_layer_norm", added if normed_after else 1)
        self._norm(layer, "post_feedforward_layer_norm", step)
        self._norm(layer.self_attention, "layer_norm")
        self._norm(layer.ffn, "layer_norm")
        self._attention(layer.self_attention, picks, 1 if normed_after else added)
        names = ("linear_0", "linear_0_noact") if hasattr(layer.ffn, "linear_0_noact") else ("linear_0",)
        for name in names:
            self._linear(getattr(layer.ffn, name), FFN, WIDTH, bias="ffn")
        self._linear(layer.ffn.linear_1, WIDTH, FFN, 1 if normed_after else step, bias="ffn")

    def _attention(self, attention: attention_spec.MultiHeadAttentionSpec, picks: bool, added: float) -> None:
        head = int(getattr(attention, "head_dim", WIDTH // HEADS))
        keys = int(getattr(attention, "num_heads_kv", HEADS)) * head
        spread = SCORE_SPREAD if picks else 1.0
        if not isinstance(attention.queries_scale, str):
            spread /= math.sqrt(head)
        sharp = math.sqrt(spread)
        normed = hasattr(attention, "q_norm")
        for name in ("q_norm", "k_norm", "v_norm"):
            self._norm(attention, name, 1 if name == "v_norm" else sharp, head)
        self._linear(attention.linear[0], HEADS * head + 2 * keys, WIDTH, bias="qkv")
        if not normed:
            attention.linear[0].weight[: HEADS * head + keys] *= np.float32(sharp)
        self._linear(attention.linear[1], WIDTH, HEADS * head, added, bias="out")

    def _linear(
        self, spec: common_spec.LinearSpec, outputs: int, inputs: int, scale: float = 1, bias: str | None = None
    ) -> None:
        spec.weight = self._normal(outputs, inputs, scale=scale / math.sqrt(inputs))
        if bias in self.architecture.biases:
            spec.bias = self._normal(outputs, scale=0.1 * scale)

    def _norm(self, owner: object, name: str, scale: float = 1, width: int = WIDTH) -> None:
        """The norm of that name, where there is one."""
        norm = getattr(owner, name, None)
        if norm is None:
            return
        norm.gamma = (1 + self._normal(width, scale=0.1)) * np.float32(scale)
        if hasattr(norm, "beta"):
            norm.beta = self._normal(width, scale=0.1)
        elif self.architecture.residual_norm:
            norm.gamma -= 1
            norm.layer_norm_use_residual = True

    def _normal(self, *size: int, scale: float = 1.0) -> np.ndarray:
        return self.rng.standard_normal(size, dtype=np.float32) * np.float32(scale)
