"""The built-in model's network in JAX: what CTranslate2 runs of a Llama, for training."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from llama import NORM_EPSILON, ROTARY_BASE, Shape
from opt import Tree


def initial_parameters(shape: Shape, rng: np.random.Generator) -> Tree:
    def normal(*size: int, scale: float) -> np.ndarray:
        return rng.normal(0, scale, size).astype(np.float32)

    def linear(inputs: int, outputs: int, scale: float = 1.0) -> np.ndarray:
        return normal(outputs, inputs, scale=scale / math.sqrt(inputs))

    def norm() -> np.ndarray:
        return np.ones(shape.width, np.float32)

    residual = 1 / math.sqrt(2 * shape.layers)
    return {
        "embeddings": normal(shape.vocabulary, shape.width, scale=0.05),
        "norm": norm(),
        "layers": [
            {
                "attention_norm": norm(),
                "qkv": linear(shape.width, shape.width + 2 * shape.kv_heads * shape.head_width),
                "attention_out": linear(shape.width, shape.width, residual),
                "ffn_norm": norm(),
                "ffn_gate": linear(shape.width, shape.ffn),
                "ffn_up": linear(shape.width, shape.ffn),
                "ffn_down": linear(shape.ffn, shape.width, residual),
            }
            for _ in range(shape.layers)
        ],
    }


def states(parameters: Tree, tokens: jax.Array, texts: jax.Array, shape: Shape) -> jax.Array:
    """[rows, length] token ids to what the last layer makes of them, [rows, length, width].

    A row may hold several texts one behind the other: a token sees those before it that have its number in `texts`.
    Positions are rotary, so only distances count, and a text may begin anywhere in a row.
    """
    length = tokens.shape[1]
    seen = jnp.tril(jnp.ones((length, length), bool)) & (texts[:, :, None] == texts[:, None, :])
    turns = rotation(length, shape.head_width)
    x = parameters["embeddings"][tokens]
    for layer in parameters["layers"]:
        x = x + attention(norm(x, layer["attention_norm"]), layer, seen, turns, shape)
        y = norm(x, layer["ffn_norm"])
        x = x + (jax.nn.silu(y @ layer["ffn_gate"].T) * (y @ layer["ffn_up"].T)) @ layer["ffn_down"].T
    return norm(x, parameters["norm"])


def logits(parameters: Tree, states: jax.Array) -> jax.Array:
    """The scores of all tokens to come next, [..., vocabulary]."""
    return states @ parameters["embeddings"].T


def norm(x: jax.Array, gamma: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + NORM_EPSILON) * gamma


def attention(
    x: jax.Array, layer: Tree, seen: jax.Array, turns: tuple[np.ndarray, np.ndarray], shape: Shape
) -> jax.Array:
    count, length, width = x.shape
    heads = (x @ layer["qkv"].T).reshape(count, length, -1, shape.head_width)
    query, key, value = jnp.split(heads, [shape.heads, shape.heads + shape.kv_heads], axis=2)
    # Neighbouring queries share a key and a value.
    query = rotated(query, turns).reshape(count, length, shape.kv_heads, -1, shape.head_width)
    scores = jnp.einsum("bqgnd,bkgd->bgnqk", query, rotated(key, turns)) / math.sqrt(shape.head_width)
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -1e9))
    mixed = jnp.einsum("bgnqk,bkgd->bqgnd", weights, value)
    return mixed.reshape(count, length, width) @ layer["attention_out"].T


def rotation(length: int, head_width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, [length, head_width / 2], by which a head is turned at each position."""
    speeds = ROTARY_BASE ** -(np.arange(0, head_width, 2) / head_width)
    angles = np.arange(length)[:, None] * speeds
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotated(heads: jax.Array, turns: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    """Turns each pair of a value in the first half of a head and its partner in the second half."""
    cosines, sines = (values[:, None, :] for values in turns)
    first, second = jnp.split(heads, 2, axis=-1)
    return jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
