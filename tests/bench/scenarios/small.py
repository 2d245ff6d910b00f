"""The small model on one thread: throughput, a lone user, bursts, and Locust's view."""

from contextlib import ExitStack

from measure import Bench, check_answers, in_turns
from results import Figure, Section, ratio
from scenarios.choices import MOSEC_TIMERS, best_control, best_mosec, by_latency, by_rate

THREADS = 1


def forty_users(bench: Bench) -> Section:
    """The small model, 40 users who ask again at once."""
    section = Section("small", "Small model, 40 users", f"wrk with 40 connections; {THREADS} engine thread.")
    with ExitStack() as up:
        pillion = up.enter_context(bench.start.pillion(bench.small, THREADS))
        slow = up.enter_context(bench.start.control(bench.small, THREADS, 100))
        best, said = up.enter_context(
            best_control(bench, bench.small, THREADS, by_rate(bench, lambda stack: bench.wrk(stack, 40)))
        )
        mosecs = [up.enter_context(bench.start.mosec(bench.small, THREADS, wait)) for wait in MOSEC_TIMERS]
        engine = up.enter_context(bench.engine(bench.small, THREADS))
        stacks = [pillion, slow, best, *mosecs]
        section.notes += [said, check_answers(stacks)]
        turns = {(stack.name, "wrk, 40 connections"): bench.wrk(stack, 40) for stack in stacks}
        turns["engine alone, tokens only", "batches of 40"] = lambda seconds: engine.run(40, seconds)
        turns["engine alone, with text", "batches of 40"] = lambda seconds: engine.run(40, seconds, text=True)
        section.rows = in_turns(bench.plan, turns, bench.plan.seconds, bench.plan.repeats)

    rates = {row.server: row.median("rate") for row in section.rows}
    ours = rates[pillion.name]
    bounds = {slow.name: 16.0, best.name: 3.0, "engine alone, tokens only": 0.90}
    best_mosec_name = max((stack.name for stack in mosecs), key=lambda name: rates[name] or 0.0)
    bounds[best_mosec_name] = 1.5
    for name, rate in rates.items():
        if name != pillion.name:
            what = f"small model, 40 users: requests/s, pillion over {name}"
            section.figures.append(Figure(what, ratio(ours, rate), at_least=bounds.get(name)))
    section.notes.append(f"Best of mosec's timers: {best_mosec_name}.")
    return section


def eighty_users(bench: Bench) -> Section:
    """The small model, 80 users: more than fit one batch."""
    section = Section("small-80", "Small model, 80 users", f"wrk with 80 connections; {THREADS} engine thread.")
    with bench.start.pillion(bench.small, THREADS) as pillion, bench.engine(bench.small, THREADS) as engine:
        turns = {
            (pillion.name, "wrk, 80 connections"): bench.wrk(pillion, 80),
            ("engine alone, tokens only", "batches of 50"): lambda seconds: engine.run(50, seconds),
        }
        section.rows = in_turns(bench.plan, turns, bench.plan.seconds, bench.plan.repeats)
    ours, alone = (row.median("rate") for row in section.rows)
    what = "small model, 80 users: requests/s, pillion over engine alone in batches of 50"
    section.figures.append(Figure(what, ratio(ours, alone), at_least=1.0))
    return section


def lone_user(bench: Bench) -> Section:
    """The small model, one user: what batching costs where there is nobody to ride with."""
    section = Section("lone", "Small model, one user", "One connection, one request at a time.", leading="p50")
    with ExitStack() as up:
        pillion = up.enter_context(bench.start.pillion(bench.small, THREADS))
        control, said = up.enter_context(
            best_control(bench, bench.small, THREADS, by_latency(bench, lambda stack: bench.wrk(stack, 1), "p50"))
        )
        mosec = up.enter_context(bench.start.mosec(bench.small, THREADS, 1))
        engine = up.enter_context(bench.engine(bench.small, THREADS))
        section.notes.append(said)
        turns = {}
        for stack in (pillion, control, mosec):
            turns[stack.name, "wrk"] = bench.wrk(stack, 1)
            turns[stack.name, "load-driver"] = bench.driver(stack, "--users", "1")
        turns["engine alone, tokens only", "batches of 1"] = lambda seconds: engine.run(1, seconds)
        section.rows = in_turns(bench.plan, turns, bench.plan.seconds, bench.plan.few)
    alone = section.row("engine alone").median("p50")
    for tool in ("wrk", "load-driver"):
        ours = section.row("pillion", tool).median("p50")
        added = ours - alone if ours is not None and alone is not None else None
        what = f"one user: p50 of pillion ({tool}) less one call of the engine alone"
        section.figures.append(Figure(what, added, "ms", at_most=0.3))
    return section


def bursts(bench: Bench) -> Section:
    """The small model, 40 requests at once, every 250 ms."""
    pattern = ("--burst", "40", "--every", "250ms")
    about = "load-driver sends 40 requests at once every 250 ms; latency counts from that instant."
    section = Section("bursts", "Small model, bursts of 40", about, leading="p99")
    choose = by_latency(bench, lambda stack: bench.driver(stack, *pattern), "p99")
    with ExitStack() as up:
        pillion = up.enter_context(bench.start.pillion(bench.small, THREADS))
        mosec, mosec_said = up.enter_context(best_mosec(bench, bench.small, THREADS, choose))
        control, control_said = up.enter_context(best_control(bench, bench.small, THREADS, choose))
        section.notes += [mosec_said, control_said]
        turns = {(stack.name, "bursts"): bench.driver(stack, *pattern) for stack in (pillion, mosec, control)}
        section.rows = in_turns(bench.plan, turns, bench.plan.seconds, bench.plan.few)
    ours = section.row("pillion").median("p99")
    for stack in (mosec, control):
        theirs = section.row(stack.name).median("p99")
        section.figures.append(Figure(f"bursts: p99, pillion over {stack.name}", ratio(ours, theirs)))
    return section


def locust(bench: Bench) -> Section:
    """The small model, 40 users of Locust without think time."""
    about = "Locust's FastHttpUser, one process, 40 users without think time."
    section = Section("locust", "Small model, 40 users of Locust", about)
    with (
        bench.start.pillion(bench.small, THREADS) as pillion,
        bench.start.control(bench.small, THREADS, 100) as control,
    ):
        turns = {(stack.name, "Locust, 40 users"): bench.locust(stack, 40) for stack in (pillion, control)}
        section.rows = in_turns(bench.plan, turns, bench.plan.seconds, bench.plan.few)
    for row in section.rows:
        if (cores := row.median("client_cpu")) is not None and cores > 0.85:
            section.notes.append(
                f"On {row.server} Locust itself is the limit: its one process takes {cores:.2f} of a core."
            )
    ours, theirs = (row.median("rate") for row in section.rows)
    section.figures.append(Figure("Locust, 40 users: requests/s, pillion over control", ratio(ours, theirs)))
    return section
