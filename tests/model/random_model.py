"""Writes an OPT-shaped model of any size that nobody trained, with a tokenizer that fits.

For tests and measurements that need a size, not sense. Plainly random weights would make every step a near-tie of
thousands of tokens, which a rounding then decides. So the weights are random but arranged: the last attention picks
one earlier token, sharply, by what the layers below made of the context, and the output names that token's successor
in a fixed random order. Answers so depend on the whole prompt, the best token leads the second by several units of
logit (at a width of 128 or more), and special tokens, the end among them, score next to nothing.
"""

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpe import SPECIAL_TOKENS, train_tokenizer
from opt import Shape, Tree, write_model

PRESETS = {
    "small": Shape(layers=2, width=128, heads=4, ffn=512, vocabulary=2048, positions=1024),
    "opt-125m": Shape(layers=12, width=768, heads=12, ffn=3072, vocabulary=50272, positions=2048),
}
LARGEST_TRAINED_VOCABULARY = 4096
"""Merges beyond this would cost time and change nothing; the rest of the vocabulary is filler."""

POSITION_SCALE = 0.5
LAYER_SCALE = 0.1
"""How far all layers but the last attention move the residual stream, whose tokens enter with scale 1."""
SCORE_SCALE = 8.0
"""Standard deviation of the last attention's scores: the first of a few dozen stands clear of the second."""
COPY_GAIN = 3.0
TOP_LOGIT = 8.0


@dataclass(frozen=True)
class Weights:
    """Draws the arranged random weights of one shape."""

    shape: Shape
    rng: np.random.Generator

    def all(self) -> Tree:
        embeddings = self._normal(self.shape.vocabulary, self.shape.width)
        layers = [self._layer() for _ in range(self.shape.layers)]
        layers[-1] |= self._choosing_attention()
        return {
            "embeddings": embeddings,
            "positions": self._normal(self.shape.positions, self.shape.width, scale=POSITION_SCALE),
            "norm": self._norm(),
            "layers": layers,
            "projection": self._successors(embeddings),
        }

    def _layer(self) -> Tree:
        width, ffn = self.shape.width, self.shape.ffn
        step = LAYER_SCALE / math.sqrt(2 * self.shape.layers)
        return {
            "attention_norm": self._norm(),
            "qkv": self._linear(width, 3 * width),
            "attention_out": self._linear(width, width, step),
            "ffn_norm": self._norm(),
            "ffn_in": self._linear(width, ffn),
            "ffn_out": self._linear(ffn, width, step),
        }

    def _choosing_attention(self) -> Tree:
        """Heads that all look at the same place and copy what they find there."""
        width, heads = self.shape.width, self.shape.heads
        scale = math.sqrt(SCORE_SCALE / width)
        query, key = (np.tile(self._normal(width // heads, width, scale=scale), (heads, 1)) for _ in range(2))
        copy = np.eye(width, dtype=np.float32)
        bias = np.zeros(3 * width, np.float32)
        return {
            "qkv": {"weight": np.concatenate([query, key, copy]), "bias": bias},
            "attention_out": {"weight": COPY_GAIN * copy, "bias": bias[:width]},
        }

    def _successors(self, embeddings: np.ndarray) -> np.ndarray:
        rows = self.rng.permutation(embeddings) * np.float32(TOP_LOGIT / self.shape.width)
        rows[: len(SPECIAL_TOKENS)] = 0
        return rows

    def _normal(self, *size: int, scale: float = 1.0) -> np.ndarray:
        return self.rng.standard_normal(size, dtype=np.float32) * np.float32(scale)

    def _linear(self, inputs: int, outputs: int, scale: float = 1.0) -> Tree:
        weight = self._normal(outputs, inputs, scale=scale / math.sqrt(inputs))
        return {"weight": weight, "bias": np.zeros(outputs, np.float32)}

    def _norm(self) -> Tree:
        return {"gamma": np.ones(self.shape.width, np.float32), "beta": np.zeros(self.shape.width, np.float32)}


COMMON_WORDS = """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not what
all were we when your can said there use an each which she do how their if will up other about out many then them these
so some her would make like him into time has look two more write go see number no way could people my than first water
been call who its now find long down day did get come made may part over new sound take only little work know place year
live me back give most very after thing our just name good sentence man think say great where help through much before
line right too mean old any same tell boy follow came want show also around form three small set put end does another
well large must big even such because turn here why ask went men read need land different home us move try kind hand
picture again change off play spell air away animal house point page letter mother answer found study still learn should
America World Hello hello world dog cat
""".split()


def made_up_text(rng: random.Random, lines: int) -> list[str]:
    """Common English words among pronounceable nonsense: an English prompt has as many tokens as with a real model."""
    syllables = ["".join(map(rng.choice, ("bcdfghklmnprstvw", "aeiou", ("", "n", "r", "s", "t")))) for _ in range(300)]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(3000)]
    sentences = [rng.choices(words, k=6) + rng.choices(COMMON_WORDS, k=6) for _ in range(lines)]
    for sentence in sentences:
        rng.shuffle(sentence)
    return [" ".join(sentence) + "." for sentence in sentences] + COMMON_WORDS


def chosen_shape(arguments: argparse.Namespace) -> Shape:
    """The preset, with what the flags say instead of it."""
    sizes = vars(PRESETS[arguments.preset]) | {
        name: value for name, value in vars(arguments).items() if name in Shape.__annotations__ and value is not None
    }
    return Shape(**sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    for name in Shape.__annotations__:
        parser.add_argument(f"--{name}", type=int, metavar="N", help="instead of the preset's")
    parser.add_argument("--compute-type", choices=("int8", "float16", "float32"), default="int8", help="on disk")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-bos", action="store_true", help="put no start token before prompts")
    arguments = parser.parse_args()

    shape = chosen_shape(arguments)
    text = made_up_text(random.Random(arguments.seed), lines=5000)
    tokenizer = train_tokenizer(
        text, shape.vocabulary, trained=LARGEST_TRAINED_VOCABULARY, start_token=not arguments.no_bos
    )
    parameters = Weights(shape, np.random.default_rng(arguments.seed)).all()
    write_model(arguments.output, shape, parameters, tokenizer, arguments.compute_type)


if __name__ == "__main__":
    main()
