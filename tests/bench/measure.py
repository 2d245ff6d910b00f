"""Runs loads on servers in turns, with what the kernel and Pillion itself count meanwhile."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import loads
import metrics
from engine_alone import EngineAlone, engine_alone
from loads import Outcome
from mixes import Kind, prompts, write
from plan import Plan
from results import Row, Run
from stacks import Stack, Starter, Unfit

PROMPT = "Hello World, what is your name dog?"
TOKENS = 10
BODY = json.dumps({"text": PROMPT, "max_new_tokens": TOKENS})
OTHER_PROMPTS = ("17+25=", "Good morning", "A", "one two three four five six seven eight nine ten eleven twelve")

Turn = Callable[[int], Run]
"""Loads one server for so many seconds."""


@dataclass(frozen=True)
class Bench:
    """What every scenario needs."""

    plan: Plan
    start: Starter
    models: Path
    builtin: Path

    @property
    def small(self) -> Path:
        return self.models / "small"

    @property
    def opt(self) -> Path:
        return self.models / "opt-125m"

    def engine(self, model: Path, threads: int) -> AbstractContextManager[EngineAlone]:
        return engine_alone(model, threads, PROMPT, TOKENS, self.start.logs)

    def wrk(self, stack: Stack, users: int, body: str = BODY, tokens: int | None = TOKENS) -> Turn:
        return lambda seconds: measured(stack, lambda: loads.wrk(stack, body, users, seconds), users, tokens)

    def locust(self, stack: Stack, users: int) -> Turn:
        return lambda seconds: measured(stack, lambda: loads.locust(stack, BODY, users, seconds), users, TOKENS)

    def driver(
        self, stack: Stack, *pattern: str, requests: str | Path = BODY, tolerant: bool = False, tokens: int | None = TOKENS
    ) -> Turn:
        """The driver waits for its last answers, so nothing is cut off unless the server is overloaded."""
        count = None if tolerant or isinstance(requests, Path) else tokens

        def load(seconds: int) -> Outcome:
            return loads.driver(self.start.bin_dir, stack, requests, pattern, seconds, tokens, tolerant)

        return lambda seconds: measured(stack, lambda: load(seconds), 0, count)

    def streams(self, stack: Stack, users: int, body: str) -> Turn:
        """Users whose answers come as they are made."""

        def load(seconds: int) -> Outcome:
            pattern = ("--users", str(users))
            return loads.driver(self.start.bin_dir, stack, body, pattern, seconds, None, path="/generate_stream")

        return lambda seconds: measured(stack, lambda: load(seconds), 0, None)

    def mix(self, model: Path, kinds: Sequence[Kind]) -> Path:
        """A file with these kinds of requests, for `driver` and for the engine alone."""
        path = self.start.logs / f"{model.name}-{abs(hash(tuple(kinds)))}.jsonl"
        if not path.exists():
            write(path, prompts(model, kinds))
        return path


def measured(stack: Stack, load: Callable[[], Outcome], cut: int, tokens: int | None) -> Run:
    """One load on one server. `cut` requests may be in flight when it ends; `tokens` is what each answer must have."""
    if stack.counted:
        # Else the time for which the engine stood idle while others were measured would count in this run.
        stack.generate(BODY)
    before, cpu, front = stack.counts(), stack.cpu_seconds(), stack.front_cpu_seconds()
    outcome = load()
    cpu, front = stack.cpu_seconds() - cpu, stack.front_cpu_seconds() - front
    counts = metrics.added(before, stack.counts())
    stack.settle()
    if stack.counted and tokens is not None:
        check_tokens(stack, metrics.added(before, stack.counts()), cut, tokens)
    return Run(
        rate=outcome.rate,
        p50=outcome.p50,
        p99=outcome.p99,
        worst=outcome.worst,
        server_cpu=cpu / outcome.served * 1e6 if outcome.served else None,
        front_cpu=front / outcome.served * 1e6 if outcome.served and stack.counted else None,
        client_cpu=outcome.client_cpu,
        batch=metrics.mean_batch(counts),
        idle=metrics.idle_share(counts),
        failed=outcome.failed,
        unfinished=outcome.unfinished,
        kinds=outcome.kinds,
        served_then=outcome.served_then / outcome.asked_again if outcome.asked_again else None,
        first=outcome.first,
        gap=outcome.gap,
        batch_sizes=metrics.batch_sizes(counts),
    )


def check_tokens(stack: Stack, counts: metrics.Counts, cut: int, tokens: int) -> None:
    """Every answer had all its tokens; those that were cut off may have had up to as many."""
    answered, generated = counts[metrics.ANSWERED], counts[metrics.GENERATED]
    if not 0 <= generated - tokens * answered <= tokens * cut:
        raise Unfit(f"{stack.name} counts {generated:.0f} tokens in {answered:.0f} answers of {tokens} each")


def check_answers(stacks: Sequence[Stack], exactly: int | None = TOKENS) -> str:
    """Speeds of servers that answer differently would say nothing. `exactly`: so many tokens in every answer."""
    for prompt in (PROMPT, *OTHER_PROMPTS):
        body = json.dumps({"text": prompt, "max_new_tokens": TOKENS})
        answers = {stack.name: stack.generate(body) for stack in stacks}
        if len(set(answers.values())) != 1:
            raise Unfit(f"The answers to {prompt!r} differ: {answers}")
        if exactly is not None and any(tokens != exactly for _, tokens in answers.values()):
            raise Unfit(f"The answers to {prompt!r} have not {exactly} tokens each: {answers}")
    names = ", ".join(stack.name for stack in stacks)
    count = f", {exactly} tokens each" if exactly is not None else ""
    return f"The answers to {1 + len(OTHER_PROMPTS)} prompts are equal ({names}){count}."


def in_turns(
    plan: Plan, turns: Mapping[tuple[str, str], Turn], seconds: int, repeats: int, warm_up: int | None = None
) -> list[Row]:
    """A row for every (server, load), each warmed up once and then run in turn with the others, repeatedly."""
    rows = {key: Row(*key) for key in turns}
    for turn in turns.values():
        turn(warm_up or plan.warm_up)
    for repeat in range(1, repeats + 1):
        for key, turn in turns.items():
            run = turn(seconds)
            rows[key].runs.append(run)
            latency = f", p50 {run.p50:.2f} ms, p99 {run.p99:.2f} ms" if run.p50 and run.p99 else ""
            say(f"  {repeat}/{repeats} {key[0]}, {key[1]}: {run.rate:.0f}/s{latency}")
    return list(rows.values())


@dataclass(frozen=True)
class Judge:
    """Says which of several servers is best: the one of which `see` gives most, or least."""

    unit: str
    see: Callable[[Stack], float]
    most: bool


@contextmanager
def best_of(
    kind: str, candidates: Mapping[int, AbstractContextManager[Stack]], judge: Judge
) -> Iterator[tuple[Stack, str]]:
    """The best of servers that differ in their timer, and what was seen of all; the others are stopped."""
    with ExitStack() as running:
        each = {timer: running.enter_context(ExitStack()) for timer in candidates}
        stacks = {timer: each[timer].enter_context(candidate) for timer, candidate in candidates.items()}
        seen = {timer: judge.see(stack) for timer, stack in stacks.items()}
        best = (max if judge.most else min)(seen, key=seen.__getitem__)
        figures = ", ".join(f"{timer} ms: {figure:.4g}" for timer, figure in seen.items())
        said = f"Best timer of {kind}: {best} ms ({judge.unit} at {figures})."
        say(f"  {said}")
        for timer, running_alone in each.items():
            if timer != best:
                running_alone.close()
        yield stacks[best], said


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
