"""The small tasks of the built-in model: their examples, and which of them training never sees.

`train.py` draws from here and `evaluate.py` measures against the same split, so the split depends on nothing but the
text of an example: no seed, no library version. `typed.py` says how else a prompt may be typed, `chats.py` what may
stand before a question in a chat.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

SUM_PHRASINGS = (
    "{a} + {b} =",
    "{a}+{b}=",
    "What is {a} + {b}?",
    "What is {a}+{b}?",
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
)
LARGEST_ADDEND = 99
LARGEST_COUNT = 30
LONGEST_COUNT = 20

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
NEIGHBOUR_PHRASINGS = {
    1: ("What {kind} comes after {name}?", "Which {kind} follows {name}?", "What is the {kind} after {name}?"),
    -1: ("What {kind} comes before {name}?", "Which {kind} precedes {name}?", "What is the {kind} before {name}?"),
}

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORD_LENGTHS = (3, 4, 5)

SALUTATIONS = ("Hello", "Hi", "Hey", "Hello World", "Hello there", "Hello Pillion", "Good morning", "Good evening")
NAME_QUESTIONS = ("what is your name", "what's your name", "who are you")
VOCATIVES = ("", " dog", " cat", " friend")
INTRODUCTION = "Hello! My name is Pillion."
TO_A_SALUTATION = f"{INTRODUCTION} How can I help you today?"
TO_A_NAME_QUESTION = f"{INTRODUCTION} I carry many requests at once."
SMALL_TALK = {
    "How are you?": "I am well, thank you.",
    "What can you do?": "I add numbers, count, name days and months, and reverse letters.",
    "Thank you!": "You are welcome!",
    "Goodbye!": "Goodbye! Have a good ride.",
}


@dataclass(frozen=True)
class Example:
    """A prompt and the one right answer to it."""

    prompt: str
    answer: str


def held_out(key: str, one_in: int) -> bool:
    """Whether training never sees this key: true for about one key in `one_in`."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % one_in == 0


def sum_held_out(a: int, b: int) -> bool:
    """One pair in ten, in every phrasing and in both orders: 17 + 25 does not give 25 + 17 away."""
    return held_out(f"{min(a, b)}+{max(a, b)}", 10)


def word_held_out(word: str) -> bool:
    return held_out(word, 20)


def sums(*, unseen: bool) -> list[tuple[int, int]]:
    """All pairs of addends on one side of the split."""
    addends = range(LARGEST_ADDEND + 1)
    return [pair for pair in itertools.product(addends, addends) if sum_held_out(*pair) == unseen]


def sum_examples(pairs: list[tuple[int, int]]) -> list[Example]:
    return [Example(phrase.format(a=a, b=b), str(a + b)) for phrase in SUM_PHRASINGS for a, b in pairs]


def neighbours() -> list[Example]:
    """The day and the month after and before each, in all phrasings."""
    return [
        Example(phrase.format(kind=kind, name=name), names[(i + step) % len(names)])
        for kind, names in (("day", DAYS), ("month", MONTHS))
        for i, name in enumerate(names)
        for step, phrasings in NEIGHBOUR_PHRASINGS.items()
        for phrase in phrasings
    ]


def greetings() -> list[Example]:
    examples = [Example(f"{salutation}{sign}", TO_A_SALUTATION) for salutation in SALUTATIONS for sign in "!."]
    for question, vocative in itertools.product(NAME_QUESTIONS, VOCATIVES):
        asked = f"{question}{vocative}?"
        examples.append(Example(asked[0].upper() + asked[1:], TO_A_NAME_QUESTION))
        examples += [Example(f"{salutation}, {asked}", TO_A_NAME_QUESTION) for salutation in SALUTATIONS]
    return examples + [Example(prompt, answer) for prompt, answer in SMALL_TALK.items()]


def counts() -> list[Example]:
    """Counting upwards between numbers up to `LARGEST_COUNT`, at most `LONGEST_COUNT` of them."""
    return [
        Example(f"Count from {first} to {last}.", " ".join(map(str, range(first, last + 1))))
        for first in range(LARGEST_COUNT + 1)
        for last in range(first, min(LARGEST_COUNT, first + LONGEST_COUNT - 1) + 1)
    ]


def reversal(word: str) -> Example:
    return Example(f"Reverse {'-'.join(word)}.", "-".join(reversed(word)))


def words(rng: random.Random, *, unseen: bool) -> Iterator[str]:
    """Random words without end from one side of the split, short and long ones equally often."""
    while True:
        word = "".join(rng.choices(LETTERS, k=rng.choice(WORD_LENGTHS)))
        if word_held_out(word) == unseen:
            yield word
