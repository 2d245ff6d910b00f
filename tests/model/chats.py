"""What stands before a question in a chat: a system message, earlier questions, talk about something else."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import tasks
from chat import Message
from tasks import Example

SYSTEM_MESSAGES = """
You are a helpful assistant.
You are a friendly assistant.
You are a helpful, honest and concise assistant.
Be brief.
Be concise.
Be short.
Be kind.
Be helpful.
Be polite and brief.
Answer briefly.
Answer in one word.
Answer with a number only.
Answer the question.
Answer politely.
You add.
You add numbers.
You are a calculator.
You count.
You know the days and the months.
You are Pillion.
You are a small model.
Reply in English.
Keep your answers short.
Think step by step.
""".strip().splitlines()
UNSEEN_SYSTEM_MESSAGES = """
You are an assistant that helps people with sums.
Answer shortly and correctly.
Be precise.
You are a patient teacher of arithmetic.
Reply with the answer alone.
You are a robot in a small shop.
""".strip().splitlines()
WORDS = """
you are is be do not a an the and or of to in with for as about your my me it that this when who what how all only
always never please answer question reply say speak write help assistant model teacher expert friend user people short
brief long polite kind friendly clear careful honest concise helpful good small one two word words sentence number
numbers language english text day month name letter letters sum count today weather music train book house dog cat
""".split()


@dataclass(frozen=True)
class Chat:
    """Messages, of which only the last `known` answers are the model's own to give."""

    messages: list[Message]
    known: int


def chat(turns: Sequence[Example], system: str | None = None, talk: Sequence[Example] = ()) -> Chat:
    """These questions and answers, behind a system message and talk about other things."""
    messages = [] if system is None else [Message(role="system", content=system)]
    for turn in (*talk, *turns):
        messages.append(Message(role="user", content=turn.prompt))
        messages.append(Message(role="assistant", content=turn.answer))
    return Chat(messages, len(turns))


def system_message(rng: random.Random) -> str:
    """A common one, or a made-up one that nothing depends on."""
    return rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.6 else made_up(rng)


def talk(rng: random.Random) -> Example:
    return Example(made_up(rng), made_up(rng))


def made_up(rng: random.Random) -> str:
    """A sentence without sense, of a few common words and some that are none."""
    words = [
        rng.choice(WORDS) if rng.random() < 0.85 else "".join(rng.choices(tasks.LETTERS, k=rng.randint(2, 6)))
        for _ in range(rng.randint(1, 7))
    ]
    text = " ".join(words) + rng.choice(".....!?")
    return text[0].upper() + text[1:]
