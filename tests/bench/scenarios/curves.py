"""What depends on the load: latency over an open loop's rate, throughput over the number of users."""

from contextlib import ExitStack

from measure import Bench, in_turns
from results import Figure, Row, Section, ratio
from scenarios.choices import best_control, best_mosec, by_rate
from stacks import Stack

THREADS = 1
SHARES = (50, 70, 90)
"""Per cent of a capacity."""
JUDGED = 70
NEAR = 0.8
"""From this share of its capacity on a server may refuse some of what comes."""
USERS = (1, 2, 5, 10, 20, 40, 80, 160)
FEW_USERS = (1, 10, 40, 160)


def open_loop(bench: Bench) -> Section:
    """The small model, requests that come at random at a given rate."""
    about = (
        "load-driver, Poisson arrivals; latency counts from when a request was due. A server's capacity is its own "
        "throughput with 40 connections of wrk in the same scenario."
    )
    section = Section("open", "Small model, open loop", about, leading="p99")
    with ExitStack() as up:
        pillion = up.enter_context(bench.start.pillion(bench.small, THREADS))
        mosec, said = up.enter_context(
            best_mosec(bench, bench.small, THREADS, by_rate(bench, lambda stack: bench.wrk(stack, 40)))
        )
        section.notes.append(said)
        stacks = {"pillion": pillion, "mosec": mosec}
        closed = {(stack.name, "wrk, 40 connections"): bench.wrk(stack, 40) for stack in stacks.values()}
        capacity = {
            name: row.median("rate") or 0.0
            for name, row in zip(stacks, in_turns(bench.plan, closed, bench.plan.brief, bench.plan.few), strict=True)
        }
        section.notes += [f"Capacity of {name}: {rate:.0f} requests/s." for name, rate in capacity.items()]
        for owner in capacity:
            for share in (JUDGED,) if bench.plan.quick else SHARES:
                rate = capacity[owner] * share / 100
                section.rows += at_rate(bench, stacks, capacity, rate, f"{share} % of {owner}'s capacity")
    for owner in capacity:
        load = f"{JUDGED} % of {owner}'s capacity"
        ours, theirs = (section.row(name, load).median("p99") for name in stacks)
        what = f"open loop, {load}: p99, pillion over {mosec.name}"
        section.figures.append(Figure(what, ratio(ours, theirs), at_most=0.8))
    return section


def at_rate(bench: Bench, stacks: dict[str, Stack], capacity: dict[str, float], rate: float, load: str) -> list[Row]:
    """The servers that bear the rate in turns, and one run of those that do not.

    Near its capacity and beyond it a server may refuse requests: that is a finding then, and shown.
    """
    pattern = ("--rate", f"{rate:.1f}", "--arrivals", "poisson")
    rows = []
    for bearable, repeats in ((True, bench.plan.few), (False, 1)):
        turns = {
            (stack.name, load): bench.driver(stack, *pattern, tolerant=rate > NEAR * capacity[name])
            for name, stack in stacks.items()
            if (rate <= capacity[name]) == bearable
        }
        rows += in_turns(bench.plan, turns, bench.plan.seconds, repeats)
    for row in rows:
        row.at = rate
    return rows


def sweep(bench: Bench) -> Section:
    """The small model, from one user to 160."""
    section = Section("sweep", "Small model, throughput over users", "wrk with as many connections as users.")
    choose = by_rate(bench, lambda stack: bench.wrk(stack, 40))
    with ExitStack() as up:
        pillion = up.enter_context(bench.start.pillion(bench.small, THREADS))
        mosec, mosec_said = up.enter_context(best_mosec(bench, bench.small, THREADS, choose))
        control, control_said = up.enter_context(best_control(bench, bench.small, THREADS, choose))
        section.notes += [mosec_said, control_said]
        for users in FEW_USERS if bench.plan.quick else USERS:
            load = f"{users} users" if users > 1 else "1 user"
            turns = {(stack.name, load): bench.wrk(stack, users) for stack in (pillion, mosec, control)}
            rows = in_turns(bench.plan, turns, bench.plan.brief, bench.plan.few)
            for row in rows:
                row.at = users
            section.rows += rows
    return section
