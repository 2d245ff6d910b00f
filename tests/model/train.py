"""Trains the built-in model from a seed and writes it as an int8 CTranslate2 directory.

The text comes from `tasks.py`; the loss is on the answers alone. Run `evaluate.py` on what comes out.
"""

import argparse
import functools
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer

import tasks
from bpe import EOS, PAD, train_tokenizer
from opt import Shape, Tree, write_model
from tasks import Example

SHAPE = Shape(layers=2, width=128, heads=4, ffn=512, vocabulary=544, positions=1024)
NORM_EPSILON = 1e-5
VARIED = 0.2
"""The share of training prompts that are typed in another way than the plain one."""


@dataclass(frozen=True)
class Stream:
    """One part of every training step: `rows` examples of at most `length` tokens."""

    rows: int
    length: int
    draw: Callable[[random.Random], Example]


@dataclass(frozen=True)
class Rows:
    """Token ids, and where the loss counts: at each token of an answer and at its end."""

    tokens: np.ndarray
    answer: np.ndarray


def streams(rng: random.Random) -> list[Stream]:
    pairs = tasks.sums(unseen=False)
    words = tasks.words(rng, unseen=False)
    neighbours, greetings, counts = tasks.neighbours(), tasks.greetings(), tasks.counts()

    def a_sum(rng: random.Random) -> Example:
        a, b = rng.choice(pairs)
        return Example(rng.choice(tasks.SUM_PHRASINGS).format(a=a, b=b), str(a + b))

    def a_short_one(rng: random.Random) -> Example:
        return rng.choice((rng.choice(neighbours), rng.choice(greetings), tasks.reversal(next(words))))

    return [
        Stream(192, 18, a_sum),
        Stream(32, 36, a_short_one),
        Stream(8, 72, lambda rng: rng.choice(counts)),
    ]


def corpus(rng: random.Random) -> list[str]:
    """What the tokenizer learns its merges from: every word the tasks know, and some of the letters."""
    examples = tasks.neighbours() + tasks.greetings() + tasks.counts()
    examples += tasks.sum_examples(rng.sample(tasks.sums(unseen=False), 200))
    examples += map(tasks.reversal, itertools.islice(tasks.words(rng, unseen=False), 1000))
    return [text for example in examples for text in (example.prompt, example.answer)]


def rows(stream: Stream, tokenizer: Tokenizer, rng: random.Random) -> Rows:
    examples = [stream.draw(rng) for _ in range(stream.rows)]
    typed = [
        rng.choice(tasks.variants(example.prompt)) if rng.random() < VARIED else example.prompt for example in examples
    ]
    prompts = tokenizer.encode_batch(typed)
    answers = tokenizer.encode_batch([example.answer for example in examples], add_special_tokens=False)
    tokens = np.full((stream.rows, stream.length), tokenizer.token_to_id(PAD), np.int32)
    answer = np.zeros((stream.rows, stream.length), np.float32)
    for row, (asked, said) in enumerate(zip(prompts, answers, strict=True)):
        ids = asked.ids + said.ids + [tokenizer.token_to_id(EOS)]
        tokens[row, : len(ids)] = ids
        answer[row, len(asked.ids) : len(ids)] = 1
    return Rows(tokens, answer)


def initial_parameters(shape: Shape, rng: np.random.Generator) -> Tree:
    def normal(*size: int, scale: float) -> np.ndarray:
        return rng.normal(0, scale, size).astype(np.float32)

    def linear(inputs: int, outputs: int, scale: float = 1.0) -> Tree:
        weight = normal(outputs, inputs, scale=scale / math.sqrt(inputs))
        return {"weight": weight, "bias": np.zeros(outputs, np.float32)}

    def norm() -> Tree:
        return {"gamma": np.ones(shape.width, np.float32), "beta": np.zeros(shape.width, np.float32)}

    residual = 1 / math.sqrt(2 * shape.layers)
    return {
        "embeddings": normal(shape.vocabulary, shape.width, scale=0.05),
        "positions": normal(shape.positions, shape.width, scale=0.05),
        "norm": norm(),
        "layers": [
            {
                "attention_norm": norm(),
                "qkv": linear(shape.width, 3 * shape.width),
                "attention_out": linear(shape.width, shape.width, residual),
                "ffn_norm": norm(),
                "ffn_in": linear(shape.width, shape.ffn),
                "ffn_out": linear(shape.ffn, shape.width, residual),
            }
            for _ in range(shape.layers)
        ],
    }


def logits(parameters: Tree, tokens: jax.Array, heads: int) -> jax.Array:
    """The model as CTranslate2 runs it: [rows, length] token ids to [rows, length, vocabulary] scores."""

    def linear(x: jax.Array, values: Tree) -> jax.Array:
        return x @ values["weight"].T + values["bias"]

    def norm(x: jax.Array, values: Tree) -> jax.Array:
        centred = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + NORM_EPSILON)
        return centred * scale * values["gamma"] + values["beta"]

    def attention(x: jax.Array, layer: Tree) -> jax.Array:
        count, length, width = x.shape
        packed = linear(x, layer["qkv"]).reshape(count, length, 3, heads, width // heads)
        query, key, value = packed[:, :, 0], packed[:, :, 1], packed[:, :, 2]
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(width // heads)
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
        return linear(mixed.reshape(count, length, width), layer["attention_out"])

    x = parameters["embeddings"][tokens] + parameters["positions"][: tokens.shape[1]]
    for layer in parameters["layers"]:
        x = x + attention(norm(x, layer["attention_norm"]), layer)
        x = x + linear(jax.nn.relu(linear(norm(x, layer["ffn_norm"]), layer["ffn_in"])), layer["ffn_out"])
    return norm(x, parameters["norm"]) @ parameters["embeddings"].T


def loss(parameters: Tree, batch: list[tuple[np.ndarray, np.ndarray]], heads: int) -> tuple[jax.Array, list[jax.Array]]:
    """The sum of the streams' mean losses, and each of them."""
    parts = []
    for tokens, answer in batch:
        scores = logits(parameters, tokens[:, :-1], heads)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:])
        parts.append((each * answer[:, 1:]).sum() / answer[:, 1:].sum())
    return sum(parts), parts


def optimizer(steps: int, rate: float) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0, rate, min(200, steps // 10), steps)
    matrices = functools.partial(jax.tree.map, lambda values: values.ndim > 1)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=0.1, mask=matrices),
    )


def train(tokenizer: Tokenizer, rng: random.Random, seed: int, steps: int, rate: float) -> Tree:
    rule = optimizer(steps, rate)
    parameters = initial_parameters(SHAPE, np.random.default_rng(seed))
    state = rule.init(parameters)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters: Tree, state: optax.OptState, batch: list) -> tuple[Tree, optax.OptState, list[jax.Array]]:
        gradient, parts = jax.grad(loss, has_aux=True)(parameters, batch, SHAPE.heads)
        updates, state = rule.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state, parts

    started = time.monotonic()
    for number, batch in enumerate(batches(tokenizer, rng, steps), start=1):
        parameters, state, parts = step(parameters, state, batch)
        if number % 200 == 0 or number == steps:
            figures = " ".join(f"{float(part):.4f}" for part in parts)
            print(f"step {number}/{steps}  loss {figures}  {time.monotonic() - started:.0f} s", flush=True)
    return jax.device_get(parameters)


def batches(tokenizer: Tokenizer, rng: random.Random, steps: int) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    parts = streams(rng)
    for _ in range(steps):
        drawn = [rows(stream, tokenizer, rng) for stream in parts]
        yield [(part.tokens, part.answer) for part in drawn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    arguments = parser.parse_args()

    rng = random.Random(arguments.seed)
    tokenizer = train_tokenizer(corpus(rng), SHAPE.vocabulary)
    parameters = train(tokenizer, rng, arguments.seed, arguments.steps, arguments.rate)
    write_model(arguments.output, SHAPE, parameters | {"projection": parameters["embeddings"]}, tokenizer, "int8")


if __name__ == "__main__":
    main()
