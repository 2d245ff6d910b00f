"""Trains the built-in model from a seed and writes it as an int8 CTranslate2 directory.

The text comes from `tasks.py`, typed as `typed.py` says and put into chats by `chats.py`; the loss is on the answers
alone. Run `evaluate.py` on what comes out.
"""

import argparse
import functools
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer

import chats
import tasks
import typed
from byte_fallback import train_tokenizer, without_first_space
from chat import ASSISTANT, END, EOS, SPECIAL_TOKENS, written
from llama import Shape, write_model
from network import initial_parameters, logits, states
from opt import Tree
from tasks import Example

SHAPE = Shape(layers=3, width=128, heads=4, kv_heads=2, ffn=320, vocabulary=768, positions=1024)
ROWS, LENGTH = 40, 176
"""Of a training step: each row is filled with several texts."""
ANSWER_TOKENS = 2048
"""Of all rows together at most; there are seldom more than 1900."""
ANSWER_START = 3
"""Tokens from `ASSISTANT` on before an answer begins: itself, a space, which begins every text, and the line break."""

PLAIN, VARIED = 0.45, 0.5
"""Shares of texts that are no chats, and of prompts that are typed in another way than documented."""
TURNS = (1, 1, 1, 2, 2, 3)
TASKS = ("sum", "neighbour", "greeting", "count", "reversal")
WEIGHTS, EARLIER = (68, 8, 7, 5, 12), (1, 1, 1, 1, 1)
"""How often each task is drawn, and how often for the earlier questions of a chat, which should be of every length."""


@dataclass(frozen=True)
class Text:
    """Token ids, and where the loss counts: at each token of an answer and at its end."""

    ids: list[int]
    answer: list[bool]


@dataclass(frozen=True)
class Batch:
    """Rows of several texts each, [rows, length]: tokens, the number of each one's text, and where the loss counts."""

    tokens: np.ndarray
    texts: np.ndarray
    answer: np.ndarray


class Examples:
    """Draws what the model learns, without end."""

    def __init__(self, tokenizer: Tokenizer, rng: random.Random) -> None:
        self._tokenizer, self._continuing, self._rng = tokenizer, without_first_space(tokenizer), rng
        self._eos, self._assistant, self._end = map(tokenizer.token_to_id, (EOS, ASSISTANT, END))
        self._sums = tasks.sums(unseen=False)
        self._words = tasks.words(rng, unseen=False)
        self._neighbours, self._greetings, self._counts = tasks.neighbours(), tasks.greetings(), tasks.counts()

    def texts(self) -> Iterator[Text]:
        while True:
            text = self._plain() if self._rng.random() < PLAIN else self._chat()
            if len(text.ids) <= LENGTH:
                yield text

    def _plain(self) -> Text:
        example = self._example(in_chat=False)
        prompt = self._tokenizer.encode(example.prompt).ids
        answer = [*self._continuing.encode(example.answer).ids, self._eos]
        return Text(prompt + answer, [False] * len(prompt) + [True] * len(answer))

    def _chat(self) -> Text:
        rng = self._rng
        turns = [self._example(EARLIER, in_chat=True) for _ in range(rng.choice(TURNS) - 1)]
        turns.append(self._example(in_chat=True))
        system = chats.system_message(rng) if rng.random() < 0.5 else None
        talk = [chats.talk(rng)] if rng.random() < 0.1 else []
        chat = chats.chat(turns, system, talk)
        ids = self._tokenizer.encode(written(chat.messages, answer_follows=False), add_special_tokens=False).ids
        answer = [False] * len(ids)
        starts = [place + ANSWER_START for place, token in enumerate(ids) if token == self._assistant]
        for start in starts[-chat.known :]:
            stop = ids.index(self._end, start) + 1
            answer[start:stop] = [True] * (stop - start)
        return Text(ids[:stop], answer[:stop])

    def _example(self, weights: Sequence[int] = WEIGHTS, *, in_chat: bool) -> Example:
        example = self._task(weights)
        if self._rng.random() >= VARIED:
            return example
        return Example(typed.draw(self._rng, unseen=False).of(example.prompt, in_chat=in_chat), example.answer)

    def _task(self, weights: Sequence[int]) -> Example:
        rng = self._rng
        match rng.choices(TASKS, weights)[0]:
            case "sum":
                a, b = rng.choice(self._sums)
                return Example(rng.choice(tasks.SUM_PHRASINGS).format(a=a, b=b), str(a + b))
            case "neighbour":
                return rng.choice(self._neighbours)
            case "greeting":
                return rng.choice(self._greetings)
            case "count":
                return rng.choice(self._counts)
            case _:
                return tasks.reversal(next(self._words))


def corpus(rng: random.Random) -> Iterator[str]:
    """What the tokenizer learns from: every word that the tasks know, typed in every case, and what else chats have."""
    examples = tasks.neighbours() + tasks.greetings() + tasks.counts()
    examples += tasks.sum_examples(rng.sample(tasks.sums(unseen=False), 100))
    examples += map(tasks.reversal, itertools.islice(tasks.words(rng, unseen=False), 300))
    for example in examples:
        yield from (example.answer, example.prompt)
        yield from (f" {case(example.prompt)}" for case in typed.CASES.values())
    for message in chats.SYSTEM_MESSAGES:
        yield from [message] * 4
    for _ in range(500):
        yield chats.made_up(rng)


def batches(texts: Iterator[Text]) -> Iterator[Batch]:
    """Each text goes where there is room first; a batch is full when the next one fits nowhere."""
    text = next(texts)
    while True:
        batch = Batch(*(np.zeros((ROWS, LENGTH), kind) for kind in (np.int32, np.int32, np.float32)))
        used = [0] * ROWS
        for number in itertools.count(1):
            row = next((row for row in range(ROWS) if used[row] + len(text.ids) <= LENGTH), None)
            if row is None:
                break
            place = np.s_[row, used[row] : used[row] + len(text.ids)]
            batch.tokens[place], batch.texts[place], batch.answer[place] = text.ids, number, text.answer
            used[row] += len(text.ids)
            text = next(texts)
        yield batch


def loss(parameters: Tree, tokens: jax.Array, texts: jax.Array, answer: jax.Array) -> jax.Array:
    """The mean over all tokens of answers. Scores are computed for those alone, which saves a sixth of the time."""
    [places] = jnp.nonzero(answer[:, 1:].ravel(), size=ANSWER_TOKENS, fill_value=-1)
    before = states(parameters, tokens[:, :-1], texts[:, :-1], SHAPE).reshape(-1, SHAPE.width)[places]
    each = optax.softmax_cross_entropy_with_integer_labels(logits(parameters, before), tokens[:, 1:].ravel()[places])
    return each.mean(where=places >= 0)


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
    def step(parameters: Tree, state: optax.OptState, *batch: np.ndarray) -> tuple[Tree, optax.OptState, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(parameters, *batch)
        updates, state = rule.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    started = time.monotonic()
    drawn = batches(Examples(tokenizer, rng).texts())
    for number, batch in enumerate(itertools.islice(drawn, steps), start=1):
        parameters, state, value = step(parameters, state, batch.tokens, batch.texts, batch.answer)
        if number % 100 == 0 or number == steps:
            print(f"step {number}/{steps}  loss {float(value):.4f}  {time.monotonic() - started:.0f} s", flush=True)
    return jax.device_get(parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    arguments = parser.parse_args()

    rng = random.Random(arguments.seed)
    tokenizer = train_tokenizer(corpus(rng), SHAPE.vocabulary, SPECIAL_TOKENS)
    parameters = train(tokenizer, rng, arguments.seed, arguments.steps, arguments.rate)
    write_model(arguments.output, SHAPE, parameters, tokenizer, "int8")


if __name__ == "__main__":
    main()
