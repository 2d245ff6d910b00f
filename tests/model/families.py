"""Writes a tiny model of every decoder family that CTranslate2's converter makes, and what it must answer.

Each folder is as a converted model's, with a tokenizer of the family's kind that knows a few hundred tokens, and
weights that nobody trained. Beside them `expected.json` has what CTranslate2's own Python package answers, one request
at a time: "completions" (texts), "chats" (conversations and what the template makes of them, or "error" where it
refuses), "windowed" (texts longer than the window, in models that have one) and "refused" (texts with tokens that the
model has no row for). "ids" leave out the "end" token, null where the limit came first. "answer" is the text behind the
prompt, null where it holds a part of a character; "margin" is the smallest difference of log-probability between the
best token and the next.

The weights come from the first seed with which every token that ends answers ends one, some answers reach their limit,
some are whole texts, few go round in circles, and no margin is below LEAST_MARGIN.
"""

import argparse
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from family import newer, older
from family.expected import Asked, Engine, Expected, Renderer, Said, python_engine
from family.family import Family
from family.prompts import NEW_TOKENS, requests, windowed
from family.rendering import render

LISTS = ("completions", "chats", "windowed")
LEAST_MARGIN = 0.03
SEEDS = 1000
"""How many are tried."""
WHOLE, CUT = 4, 3
"""How many answers are whole texts, and how many reach their limit, at least."""
VARIED = 0.5
"""How many of an answer's tokens are different from all before, on the average of the long ones, at least."""


class Unfit(Exception):
    """A seed whose answers show too little."""


@dataclass(frozen=True)
class Written:
    """What was written for a family."""

    family: Family
    tokens: int
    seed: int
    answers: list[Expected]


def write(family: Family, folder: Path) -> Written:
    """Writes a family's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = family.tokenizer()
    vocabulary = family.vocabulary(tokenizer)
    if len(set(vocabulary)) != len(vocabulary):
        raise ValueError(f"{family.name}: two ids have the same token")
    ends = [tokenizer.token_to_id(token) for token in family.ends]
    family.write_others(folder, tokenizer)
    for seed in range(1, SEEDS):
        family.write_model(folder, tokenizer, seed)
        asked = Asked(tokenizer, len(vocabulary), clear(python_engine(folder, vocabulary, ends)))
        with suppress(Unfit):
            expected = {"family": family.name, "end_tokens": ends, **answered(family, asked, renderer(family))}
            answers = [answer for name in LISTS for answer in expected.get(name, ()) if "ids" in answer]
            judge(answers, ends)
            (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
            return Written(family, len(vocabulary), seed, answers)
    raise SystemExit(f"{family.name}: none of {SEEDS} seeds shows what it should")


def renderer(family: Family) -> Renderer | None:
    """Fills in the family's chat template, if it has one."""
    template = family.template_text()
    return template and (lambda messages, more: render(template, messages, family.special, more))


def answered(family: Family, asked: Asked, render_chat: Renderer | None) -> Expected:
    """All that the family's model is asked, with its answers."""
    lists = {"completions": asked.completions(requests(family.ends[0])), "chats": []}
    if render_chat:
        lists["chats"] = asked.chats(render_chat, family.chat_options)
    window = family.architecture.window
    if window:
        if any(len(each["prompt_ids"]) >= window for each in lists["completions"]):
            raise ValueError(f"{family.name}: a text is longer than the window")
        lists["windowed"] = asked.completions(windowed())
        if any(len(each["prompt_ids"]) <= window for each in lists["windowed"]):
            raise ValueError(f"{family.name}: a text is no longer than the window")
    if family.refused:
        lists["refused"] = asked.refused(family.refused)
    return lists


def clear(engine: Engine) -> Engine:
    """The engine, as long as its answers leave no doubt."""

    def answer(prompt: list[int], limit: int) -> Said:
        said = engine(prompt, limit)
        if said.margin < LEAST_MARGIN:
            raise Unfit
        return said

    return answer


def judge(answers: list[Expected], ends: list[int]) -> None:
    """Refuses them unless each token that ends answers ended one, some were cut, some are whole, and most varied."""
    cut = sum(answer["end"] is None and len(answer["ids"]) > 1 for answer in answers)
    whole = sum(bool(answer["answer"]) for answer in answers)
    long = [len(set(answer["ids"])) / len(answer["ids"]) for answer in answers if len(answer["ids"]) > NEW_TOKENS / 2]
    if {answer["end"] for answer in answers} < {None, *ends} or cut < CUT or whole < WHOLE or mean(long) < VARIED:
        raise Unfit


def report(written: Written) -> str:
    """A line of the table."""
    ends = Counter(answer["end"] for answer in written.answers)
    tokenizer = written.family.tokenizer()
    seen = ", ".join(f"{token} {ends[tokenizer.token_to_id(token)]}" for token in written.family.ends)
    least = min(answer["margin"] for answer in written.answers)
    null = sum(answer["answer"] is None for answer in written.answers)
    cells = (
        written.family.name,
        written.tokens,
        len(written.answers),
        f"{seen}; cut {ends[None]}",
        f"{least:.3f}",
        null,
    )
    return f"| {' | '.join(map(str, cells))} | {written.seed} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {family.name: family for family in (*older.families(), *newer.families())}
    parser.add_argument("--output", type=Path, required=True, help="where the folders go")
    parser.add_argument(
        "--only", nargs="+", choices=known, metavar="NAME", help="these families, of " + ", ".join(known)
    )
    parser.add_argument("--report", action="store_true", help="print a table of what was written")
    arguments = parser.parse_args()

    if arguments.report:
        print("| family | tokens | answers | ended by | least margin | null | seed |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.only or known:
        written = write(known[name], arguments.output / name)
        if arguments.report:
            print(report(written), flush=True)


if __name__ == "__main__":
    main()
