"""Measures the built-in model through CTranslate2 and fails where it falls short.

Exits 1 if fewer than 99% of the sums that training never saw are right, or if any day, month or greeting is wrong.
"""

import argparse
import itertools
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ctranslate2
from tokenizers import Tokenizer

import tasks
from tasks import Example

REQUIRED_SUMS = 0.99
LONGEST_ANSWER = 64
BATCH = 64


@dataclass(frozen=True)
class Score:
    """How one set of prompts went."""

    name: str
    total: int
    wrong: list[tuple[Example, str]]

    @property
    def share(self) -> float:
        return 1 - len(self.wrong) / self.total


class Model:
    """A model directory that answers greedily."""

    def __init__(self, directory: Path) -> None:
        self._generator = ctranslate2.Generator(str(directory), intra_threads=1)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def answers(self, prompts: Sequence[str]) -> list[str]:
        results = self._generator.generate_batch(
            [encoding.tokens for encoding in self._tokenizer.encode_batch(list(prompts))],
            max_batch_size=BATCH,
            beam_size=1,
            sampling_topk=1,
            max_length=LONGEST_ANSWER,
            include_prompt_in_result=False,
        )
        return [self._tokenizer.decode(result.sequences_ids[0]) for result in results]

    def score(self, name: str, examples: Sequence[Example]) -> Score:
        said = self.answers([example.prompt for example in examples])
        pairs = zip(examples, said, strict=True)
        return Score(name, len(examples), [(example, text) for example, text in pairs if text != example.answer])


def typed_otherwise(examples: Sequence[Example]) -> list[Example]:
    return [Example(text, example.answer) for example in examples for text in tasks.variants(example.prompt)]


def unseen_reversals(count: int) -> list[Example]:
    words = itertools.islice(tasks.words(random.Random("evaluate"), unseen=True), count)
    return [tasks.reversal(word) for word in words]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--show-wrong", type=int, default=3, metavar="N", help="wrong answers to print of each task")
    arguments = parser.parse_args()
    model = Model(arguments.model)

    unseen_sums = model.score("sums, held out", tasks.sum_examples(tasks.sums(unseen=True)))
    flawless = [
        model.score("days and months", tasks.neighbours()),
        model.score("greetings", tasks.greetings()),
    ]
    others = [
        model.score("sums, trained on", tasks.sum_examples(tasks.sums(unseen=False))),
        model.score("counting", tasks.counts()),
        model.score("reversed letters, held out", unseen_reversals(1000)),
        model.score("typed otherwise: sums, held out", typed_otherwise(tasks.sum_examples(tasks.sums(unseen=True)))),
        model.score("typed otherwise: days and months", typed_otherwise(tasks.neighbours())),
        model.score("typed otherwise: greetings", typed_otherwise(tasks.greetings())),
    ]
    for score in (unseen_sums, *flawless, *others):
        print(f"{score.name:34} {score.total - len(score.wrong):6} of {score.total:6}  {score.share:8.3%}")
        for example, text in score.wrong[: arguments.show_wrong]:
            print(f"    {example.prompt!r} gave {text!r}, not {example.answer!r}")
    return int(unseen_sums.share < REQUIRED_SUMS or any(score.wrong for score in flawless))


if __name__ == "__main__":
    sys.exit(main())
