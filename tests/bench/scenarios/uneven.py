"""Requests of unlike lengths, and more of them than can be served."""

from contextlib import ExitStack
from pathlib import Path

import metrics
from measure import Bench, in_turns, say
from mixes import FEW_LONG_ANSWERS, HALF_ABANDONED, HALF_LONG, HALVES, ONLY_SHORT, SPREAD, Kind
from results import Figure, Row, Run, Section, ratio
from stacks import Stack

SMALL_THREADS, OPT_THREADS = 1, 2
SPLITS = (2, 3, 4, 5, 7)
"""Into so many calls the engine alone splits a batch when it looks for the best."""
USERS = ("--users", "40", "--grace", "60s")
QUEUE = "500"
BATCH_COST = "50ms"


def halves_small(bench: Bench) -> Section:
    """The small model, half of the prompts of 10 tokens and half of 200."""
    return halves(bench, "halves", "Small model", bench.small, SMALL_THREADS, bench.plan.seconds, 2.0)


def halves_opt(bench: Bench) -> Section:
    """OPT-125m's shape, half of the prompts of 10 tokens and half of 200."""
    return halves(bench, "halves-opt", "OPT-125m shape", bench.opt, OPT_THREADS, bench.plan.long, 3.0)


def halves(bench: Bench, name: str, title: str, model: Path, threads: int, seconds: int, bound: float) -> Section:
    about = f"Half of the prompts have 10 tokens and half 200, all answers 10; 40 users; {threads} engine threads."
    section = Section(name, f"{title}, half of the prompts long", about)
    mix = bench.mix(model, HALVES)
    with bench.start.pillion(model, threads) as pillion, bench.engine(model, threads) as engine:
        turns = {
            (pillion.name, "load-driver, 40 users"): bench.driver(pillion, *USERS, requests=mix),
            ("engine alone", "batches of 40 as they come"): lambda seconds: engine.run_mix(mix, 40, 1, seconds),
            ("engine alone", "each in two calls"): lambda seconds: engine.run_mix(mix, 40, 2, seconds),
        }
        section.rows = in_turns(bench.plan, turns, seconds, bench.plan.few, warm_up=max(2, seconds // 2))
    ours, come, parted = (row.median("rate") for row in section.rows)
    what = f"{title}, prompts of 10 and 200 tokens: requests/s, pillion over engine alone"
    section.figures = [
        Figure(f"{what}, batches of 40 as they come", ratio(ours, come), at_least=bound),
        Figure(f"{what}, each batch in two calls of equal length", ratio(ours, parted), at_least=0.85),
    ]
    return section


def spread(bench: Bench) -> Section:
    """The small model, prompts of 5 to 60 tokens, 80 users."""
    about = (
        f"Prompts of 5 to 60 tokens, answers of 10; 80 users; {SMALL_THREADS} engine thread. The engine alone gets 80 at "
        "a time, sorted and split: into equal parts, into how many it has tried first; and as is best of all ways to cut, "
        "found offline by a cost model that was fitted to this engine (its processor time includes the fitting)."
    )
    section = Section("spread", "Small model, prompts of 5 to 60 tokens", about)
    mix = bench.mix(bench.small, SPREAD)
    with (
        bench.start.pillion(bench.small, SMALL_THREADS) as pillion,
        bench.engine(bench.small, SMALL_THREADS) as engine,
    ):
        seen = {calls: engine.run_mix(mix, 80, calls, bench.plan.brief).rate for calls in SPLITS}
        best = max(seen, key=seen.__getitem__)
        section.notes.append(f"Best split: {best} calls ({', '.join(f'{n}: {rate:.0f}' for n, rate in seen.items())}).")
        turns = {
            (pillion.name, "load-driver, 80 users"): bench.driver(pillion, "--users", "80", requests=mix),
            ("engine alone", f"80 in {best} calls"): lambda seconds: engine.run_mix(mix, 80, best, seconds),
            ("engine alone", "80, cut offline"): lambda seconds: engine.run_mix(mix, 80, 0, seconds),
        }
        section.rows = in_turns(bench.plan, turns, bench.plan.seconds, bench.plan.few)
    ours, equal, offline = (row.median("rate") for row in section.rows)
    what = "small model, prompts of 5 to 60 tokens, 80 users: requests/s, pillion over the engine alone's best split"
    section.figures.append(Figure(what, ratio(ours, equal), at_least=0.90))
    section.figures.append(Figure(f"{what} of all, found offline", ratio(ours, offline), at_least=0.90))
    return section


def long_answers_small(bench: Bench) -> Section:
    """The small model, one answer in ten of 200 tokens."""
    title = "Small model"
    return long_answers(bench, "long-answers", title, bench.small, SMALL_THREADS, bench.plan.seconds, bench.plan.repeats)


def long_answers_opt(bench: Bench) -> Section:
    """OPT-125m's shape, one answer in ten of 200 tokens."""
    return long_answers(bench, "long-answers-opt", "OPT-125m shape", bench.opt, OPT_THREADS, 3 * bench.plan.long, 1)


def long_answers(
    bench: Bench, name: str, title: str, model: Path, threads: int, seconds: int, repeats: int
) -> Section:
    about = (
        f"Nine answers in ten have 10 tokens, one has 200; 40 users; {threads} engine threads. Then only short ones, at "
        "random, as many tokens a second."
    )
    section = Section(name, f"{title}, one answer in ten long", about)
    kinds = FEW_LONG_ANSWERS
    mix, short = bench.mix(model, kinds), bench.mix(model, ONLY_SHORT)
    mixed = Row("pillion", "40 users, one answer in ten of 200 tokens")
    alone = Row("pillion", "only short ones, as many tokens a second")
    with bench.start.pillion(model, threads) as pillion:
        bench.driver(pillion, *USERS, requests=mix)(max(2, seconds // 6))
        for repeat in range(1, repeats + 1):
            run = bench.driver(pillion, *USERS, requests=mix)(seconds)
            mixed.runs.append(run)
            rate = tokens(run, kinds) / seconds / ONLY_SHORT[0].answer
            alone.runs.append(bench.driver(pillion, "--rate", f"{rate:.1f}", requests=short)(min(seconds, bench.plan.long)))
            say(f"  {repeat}/{repeats} short ones: {p50(run):.2f} ms, alone at {rate:.0f}/s: {p50(alone.runs[-1]):.2f} ms")
    section.rows = [mixed, alone]
    pairs = sorted(p50(a) / p50(b) for a, b in zip(mixed.runs, alone.runs, strict=True))
    what = f"{title}, one answer in ten of 200 tokens: p50 of the short ones over that of only short ones"
    section.figures.append(Figure(what, pairs[len(pairs) // 2], at_most=2.0))
    rates = ", ".join(f"{tokens(run, kinds) / seconds:.0f}" for run in mixed.runs)
    shorts = ", ".join(f"{p50(run):.2f}" for run in mixed.runs)
    section.notes.append(f"Tokens a second: {rates}. p50 of the short ones, ms: {shorts}.")
    return section


def p50(run: Run) -> float:
    """Of the short ones."""
    found = run.kinds["short"][1]
    assert found is not None, "some were answered"
    return found


def tokens(run: Run, kinds: tuple[Kind, ...]) -> float:
    return float(sum(run.kinds[kind.name][0] * kind.answer for kind in kinds))


def cancellations(bench: Bench) -> Section:
    """The small model, half of the clients go away while their long answers are produced."""
    about = (
        f"load-driver, 40 users; half of the requests are for 200 tokens, and their clients go away after 20 ms; "
        f"{SMALL_THREADS} engine thread. For comparison they wait, or are not there at all."
    )
    section = Section("cancellations", "Small model, clients that go away", about)
    loads = {"half go away": HALF_ABANDONED, "they wait": HALF_LONG, "only short ones": ONLY_SHORT}
    with bench.start.pillion(bench.small, SMALL_THREADS) as pillion:
        turns = {
            (pillion.name, load): bench.driver(pillion, "--users", "40", requests=bench.mix(bench.small, kinds))
            for load, kinds in loads.items()
        }
        section.rows = in_turns(bench.plan, turns, bench.plan.seconds, bench.plan.few)
        left = pillion.counts()
    stayed = sum(left[name] for name in (metrics.QUEUED, metrics.RUNNING))
    section.figures.append(Figure("clients that go away: texts left behind, queued or running", stayed, at_most=0.0))
    served = {row.load: [run.kinds["short"][0] for run in row.runs] for row in section.rows}
    more = ratio(float(sum(served["half go away"])), float(sum(served["they wait"])))
    section.figures.append(Figure("clients that go away: short ones served, over those served while the long ones wait", more))
    return section


def overload(bench: Bench) -> Section:
    """More requests than can be served, twice and ten times as many."""
    about = (
        f"A simulated worker takes {BATCH_COST} for a batch of at most 50, without using the processor; {QUEUE} texts may "
        "wait. load-driver, Poisson arrivals. Served: answers with status 200. In the last rows who is refused comes back "
        "once, when Retry-After says, over the same connection."
    )
    section = Section("overload", "Overload", about)
    body = '{"text": "a b c"}'
    with ExitStack() as up:
        proxy = up.enter_context(bench.start.simulated("--batch-cost", BATCH_COST, proxy_flags=("--max-queue", QUEUE)))

        def row(load: str, *pattern: str, tolerant: bool = True) -> Row:
            return Row(proxy.name, load, runs=[overloaded(bench, proxy, body, *pattern, tolerant=tolerant)])

        most = row("200 users: capacity", "--users", "200", tolerant=False)
        capacity = most.median("rate") or 0.0
        section.rows.append(most)
        for times in (2, 10):
            pattern = ("--rate", f"{times * capacity:.0f}", "--max-connections", "4000")
            section.rows.append(row(f"{times} x capacity", *pattern))
            served = ratio(section.rows[-1].median("rate"), capacity)
            section.figures.append(Figure(f"overload, {times} x capacity: served, of capacity", served, at_least=0.95))
    with bench.start.simulated("--batch-cost", BATCH_COST, proxy_flags=("--max-queue", QUEUE)) as proxy:
        # So that it knows how fast the worker is.
        overloaded(bench, proxy, body, "--users", "200", tolerant=False)
        pattern = ("--rate", f"{2 * capacity:.0f}", "--obey-retry-after", "--grace", "60s", "--max-connections", "4000")
        run = overloaded(bench, proxy, body, *pattern, tolerant=True)
        section.rows.append(Row(proxy.name, "2 x capacity, Retry-After obeyed", runs=[run]))
        what = "overload, 2 x capacity: of those refused who come back when told, served then"
        # Without a bound: the proxy keeps no place for a refused client.
        section.figures.append(Figure(what, run.served_then))
    return section


def overloaded(bench: Bench, proxy: Stack, body: str, *pattern: str, tolerant: bool) -> Run:
    return bench.driver(proxy, *pattern, requests=body, tolerant=tolerant, tokens=None)(bench.plan.seconds)
