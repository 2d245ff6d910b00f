"""Measures the built-in model through CTranslate2 and fails where it falls short.

Exits 1 if a score is below what it must be: of the sums that training never saw, nearly all are right, plain and in
chats; of the days, months and greetings, all; of what is typed in a way that training never saw, most.
"""

import argparse
import itertools
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ctranslate2
from tokenizers import Tokenizer

import chats
import tasks
import typed
from chat import END, EOS, written
from tasks import Example

SUMS, FLAWLESS, TYPED, ANY = 0.99, 1.0, 0.97, 0.0
"""The shares that must be right."""
LONGEST_ANSWER = 72
BATCH = 64


@dataclass(frozen=True)
class Question:
    """A text as the model gets it, and the right answer. A chat's text has all its special tokens already."""

    text: str
    answer: str
    chat: bool


class Model:
    """A model directory that answers greedily."""

    def __init__(self, directory: Path) -> None:
        self._generator = ctranslate2.Generator(str(directory), intra_threads=1)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def answers(self, questions: Iterable[Question]) -> list[str]:
        prompts = [
            self._tokenizer.encode(question.text, add_special_tokens=not question.chat) for question in questions
        ]
        results = self._generator.generate_batch(
            [prompt.tokens for prompt in prompts],
            max_batch_size=BATCH,
            beam_size=1,
            sampling_topk=1,
            max_length=LONGEST_ANSWER,
            end_token=[EOS, END],
            include_prompt_in_result=False,
        )
        return [
            self._behind(prompt.ids, result.sequences_ids[0]) for prompt, result in zip(prompts, results, strict=True)
        ]

    def _behind(self, prompt: list[int], answer: list[int]) -> str:
        """The answer's text where it stands: at the beginning of a text, the decoder takes a first space away."""
        return self._tokenizer.decode(prompt + answer).removeprefix(self._tokenizer.decode(prompt))


class Asker:
    """Makes questions of examples."""

    def __init__(self) -> None:
        self._rng = random.Random("evaluate")
        self._words = tasks.words(self._rng, unseen=True)
        self._earlier = [*tasks.neighbours(), *tasks.greetings(), *tasks.counts()]
        self._earlier += self._rng.sample(tasks.sum_examples(tasks.sums(unseen=False)), len(self._earlier))

    def reversals(self, count: int) -> list[Example]:
        return list(map(tasks.reversal, itertools.islice(self._words, count)))

    def plain(self, examples: Iterable[Example]) -> list[Question]:
        return [Question(example.prompt, example.answer, chat=False) for example in examples]

    def alone(self, examples: Iterable[Example]) -> list[Question]:
        """Each as the only message of a chat."""
        return [_in_chat([example], None) for example in examples]

    def behind(self, examples: Iterable[Example]) -> list[Question]:
        """Each behind a system message, one or two other questions, or both."""
        rng = self._rng
        systems = (*chats.SYSTEM_MESSAGES, *chats.UNSEEN_SYSTEM_MESSAGES * 4)
        questions = []
        for example in examples:
            earlier, system = rng.choice(((0, True), (1, False), (1, True), (2, False), (2, True)))
            turns = [*rng.sample(self._earlier, earlier), example]
            questions.append(_in_chat(turns, rng.choice(systems) if system else None))
        return questions

    def typed_otherwise(self, examples: Iterable[Example], ways: int, *, in_chat: bool = False) -> list[Example]:
        """Each in so many ways that training never saw."""
        return [
            Example(typed.draw(self._rng, unseen=True).of(example.prompt, in_chat=in_chat), example.answer)
            for example in examples
            for _ in range(ways)
        ]


def _in_chat(turns: Sequence[Example], system: str | None) -> Question:
    messages = chats.chat(turns, system).messages[:-1]
    return Question(written(messages, answer_follows=True), turns[-1].answer, chat=True)


def measures() -> list[tuple[str, float, list[Question]]]:
    """What is measured: its name, the share that must be right, and the questions."""
    asker = Asker()
    sums, seen = (tasks.sum_examples(tasks.sums(unseen=unseen)) for unseen in (True, False))
    names, greetings, counts, reversals = tasks.neighbours(), tasks.greetings(), tasks.counts(), asker.reversals(1000)
    all_tasks = (("sums, held out", sums, 2), ("days and months", names, 10), ("greetings", greetings, 10))
    all_tasks += (("counting", counts, 3), ("letters, held out", reversals, 2))
    required = {"sums, held out": SUMS, "days and months": FLAWLESS, "greetings": FLAWLESS}
    table = [("sums, trained on", ANY, asker.plain(seen))]
    for name, examples, ways in all_tasks:
        least = required.get(name, ANY)
        table.append((name, least, asker.plain(examples)))
        table.append((f"{name}: chat", least, asker.alone(examples)))
        table.append((f"{name}: chat, behind others", least, asker.behind(examples)))
        least = TYPED if name in required else ANY
        table.append((f"{name}: typed otherwise", least, asker.plain(asker.typed_otherwise(examples, ways))))
        otherwise = asker.typed_otherwise(examples, ways, in_chat=True)
        table.append((f"{name}: chat, typed otherwise", least, asker.behind(otherwise)))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--show-wrong", type=int, default=3, metavar="N", help="wrong answers to print of each task")
    arguments = parser.parse_args()
    model = Model(arguments.model)

    short = False
    for name, least, questions in measures():
        pairs = zip(questions, model.answers(questions), strict=True)
        wrong = [(question, said) for question, said in pairs if said != question.answer]
        share = 1 - len(wrong) / len(questions)
        short |= share < least
        verdict = f"  less than {least:.0%}" if share < least else ""
        print(f"{name:40} {len(questions) - len(wrong):6} of {len(questions):6}  {share:8.3%}{verdict}", flush=True)
        for question, said in wrong[: arguments.show_wrong]:
            print(f"    {question.text!r} gave {said!r}, not {question.answer!r}")
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
