"""Other models than the small one."""

from contextlib import ExitStack

from measure import Bench, check_answers, in_turns
from results import Figure, Section, ratio


def opt(bench: Bench) -> Section:
    """A model of OPT-125m's shape, int8, two threads, 40 users."""
    threads = 2
    about = f"wrk with 40 connections; {threads} engine threads."
    section = Section("opt", "OPT-125m shape, 40 users", about)
    with ExitStack() as up:
        pillion = up.enter_context(bench.start.pillion(bench.opt, threads))
        engine = up.enter_context(bench.engine(bench.opt, threads))
        rivals = []
        if not bench.plan.quick:
            rivals = [
                up.enter_context(bench.start.control(bench.opt, threads, 100)),
                up.enter_context(bench.start.control(bench.opt, threads, 10)),
                up.enter_context(bench.start.mosec(bench.opt, threads, 10)),
            ]
        section.notes.append(check_answers([pillion, *rivals]))
        turns = {(stack.name, "wrk, 40 connections"): bench.wrk(stack, 40) for stack in (pillion, *rivals)}
        turns["engine alone, tokens only", "batches of 40"] = lambda seconds: engine.run(40, seconds)
        section.rows = in_turns(bench.plan, turns, bench.plan.long, bench.plan.few, warm_up=4)
    ours = section.row(pillion.name).median("rate")
    for row in section.rows[1:]:
        bound = 0.95 if row.server.startswith("engine") else None
        what = f"OPT-125m shape, 40 users: requests/s, pillion over {row.server}"
        section.figures.append(Figure(what, ratio(ours, row.median("rate")), at_least=bound))
    return section


def builtin(bench: Bench) -> Section:
    """The model that comes with Pillion, one thread, 40 users."""
    threads = 1
    about = f"wrk with 40 connections; {threads} engine thread; the model of deploy/models/builtin."
    section = Section("builtin", "Built-in model, 40 users", about)
    with (
        bench.start.pillion(bench.builtin, threads) as pillion,
        bench.start.control(bench.builtin, threads, 100) as control,
    ):
        # This model ends some answers early, so it has no number of tokens to hold to.
        section.notes.append(check_answers([pillion, control], exactly=None))
        turns = {(stack.name, "wrk, 40 connections"): bench.wrk(stack, 40, tokens=None) for stack in (pillion, control)}
        section.rows = in_turns(bench.plan, turns, bench.plan.seconds, bench.plan.few)
    ours, theirs = (row.median("rate") for row in section.rows)
    what = "built-in model, 40 users: requests/s, pillion over control, 100 ms"
    section.figures.append(Figure(what, ratio(ours, theirs)))
    return section
