"""Writes RESULTS.md: a summary against the targets, the machine, and a table for every scenario."""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from measure import BODY
from plan import Plan
from results import Figure, Row, Section
from stacks import BATCH

ON_A_GPU = "# On a GPU"
"""In RESULTS.md all from here on is `gpu`'s: `run` keeps it."""
PACKAGES = ("ctranslate2", "tokenizers", "fastapi", "uvicorn", "mosec", "locust")


def report(sections: Sequence[Section], settings: Sequence[str], pictures: Sequence[Path]) -> str:
    parts = [
        "# Measurements",
        "Written by `tests/bench/run`; `tests/bench/README.md` says what each server and load is.",
        summary(sections),
        "## Machine and settings",
        "\n".join(f"- {setting}" for setting in settings),
    ]
    parts += [part for section in sections for part in described(section)]
    if pictures:
        parts.append("## Pictures")
        parts += [f"![{picture.stem}](pictures/{picture.name})" for picture in pictures]
    return "\n\n".join(parts) + "\n"


def report_gpu(sections: Sequence[Section], settings: Sequence[str]) -> str:
    parts = [ON_A_GPU, "Written by `tests/bench/gpu`.", summary(sections), "\n".join(f"- {one}" for one in settings)]
    parts += [part for section in sections for part in described(section)]
    return "\n\n".join(parts) + "\n"


def parted(results: Path) -> tuple[str, str]:
    """What RESULTS.md holds of `run`'s, and of `gpu`'s."""
    others, heading, gpus = (results.read_text() if results.exists() else "").partition(ON_A_GPU)
    return others, heading + gpus


def described(section: Section) -> list[str]:
    parts = [f"## {section.title} (`{section.name}`)", section.about]
    parts += [table(section)] if section.rows else []
    parts += ["\n".join(f"- {line(figure)}" for figure in section.figures)] if section.figures else []
    parts += ["\n".join(f"- {note}" for note in section.notes)] if section.notes else []
    return [*parts, f"Took {section.took:.0f} s."]


def summary(sections: Sequence[Section]) -> str:
    lines = ["| what | at least/at most | seen | ok |", "| --- | --- | --- | --- |"]
    for section in sections:
        for figure in section.figures:
            if figure.bounded():
                seen = shown(figure)
                lines.append(f"| {figure.what} | {bound(figure)} | {seen} | {'yes' if figure.ok() else '**no**'} |")
    return "\n".join(lines)


def bound(figure: Figure) -> str:
    unit = f" {figure.unit}" if figure.unit else ""
    if figure.at_least is not None:
        return f"at least {figure.at_least:g}{unit}"
    return f"at most {figure.at_most:g}{unit}"


def shown(figure: Figure) -> str:
    if figure.seen is None:
        return "–"
    return f"{figure.seen:.2f}" + (f" {figure.unit}" if figure.unit else "")


def line(figure: Figure) -> str:
    return f"{figure.what}: {shown(figure)}"


Column = tuple[str, Callable[[Row], str]]
"""Its head, and what it has of a row; a column that is empty throughout is left out."""


def table(section: Section) -> str:
    columns = [column for column in all_columns(section.leading) if any(map(column[1], section.rows))]
    lines = ["| " + " | ".join(head for head, _ in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row) for _, cell in columns) + " |" for row in section.rows]
    return "\n".join(lines)


def all_columns(leading: str) -> list[Column]:
    heads = {
        "rate": "requests/s",
        "p50": "p50, ms",
        "p99": "p99, ms",
        "first": "first token, p50, ms",
        "gap": "token to token, p50, ms",
    }
    digits = {"rate": 0, "p50": 2, "p99": 2, "first": 3, "gap": 3}
    # The leading figure comes first, so that its median stands beside its runs.
    ordered = sorted(heads, key=lambda name: name != leading)
    return [
        ("server", lambda row: row.server),
        ("load", lambda row: row.load),
        (f"{heads[leading]}, each run", lambda row: " ".join(f"{v:.{digits[leading]}f}" for v in row.every(leading))),
        *(median(f"{heads[name]}, median", name, digits[name]) for name in ordered),
        median("longest, ms", "worst", 1),
        median("server's CPU, µs/request", "server_cpu", 0),
        median("proxy's CPU, µs/request", "front_cpu", 0),
        median("load generator, cores", "client_cpu", 2),
        median("mean batch", "batch", 1),
        median("engine idle, %", "idle", 1, scale=100),
        ("p50 by kind, ms", kinds),
        ("failed", lambda row: total(row, "failed")),
        ("unfinished", lambda row: total(row, "unfinished")),
    ]


def median(head: str, name: str, digits: int, scale: float = 1) -> Column:
    def cell(row: Row) -> str:
        value = row.median(name)
        return "" if value is None else f"{value * scale:.{digits}f}"

    return head, cell


def kinds(row: Row) -> str:
    """Of the last run, where there are several."""
    found = row.runs[-1].kinds if row.runs else {}
    return ", ".join(f"{name}: {p50:.2f}" for name, (_, p50) in found.items() if p50) if len(found) > 1 else ""


def total(row: Row, name: str) -> str:
    """Empty for none, so that the column is there only where something failed."""
    count = sum(row.every(name))
    return f"{count:.0f}" if count else ""


def settings(plan: Plan, bin_dir: Path) -> list[str]:
    """What the figures depend on; asked before the bench itself loads the machine."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return [
        f"{datetime.date.today().isoformat()}; {model[1] if model else platform.machine()}, {os.cpu_count()} cores, "
        f"Linux {platform.release()}; load average before the bench {os.getloadavg()[0]:.1f}",
        f"{said(bin_dir / 'pillion-proxy', '--version')}{commit()}; {said('wrk', '-v').partition(' Copyright')[0]}; "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        f"Batches of at most {BATCH} everywhere; Pillion has its defaults and `--threads`, which all have alike. "
        "mosec runs one worker process and writes compact JSON.",
        f"Every request is `{BODY}` unless a scenario says otherwise.",
        f"Runs of {plan.seconds} s ({plan.long} s on the large model, {plan.brief} s to choose timers and for curves), "
        "after a warm-up, the servers in turns; figures are medians over the runs.",
        "The load generator runs on the same cores, and nothing is pinned to any. Where it takes nearly a whole core "
        "it is itself the limit.",
        "A failed or wrong answer ends the bench, except at 80 % of a server's capacity and above in the open loop, "
        "where failures are shown.",
    ]


def said(program: str | Path, flag: str) -> str:
    output = subprocess.run([program, flag], capture_output=True, text=True, timeout=10).stdout
    return output.splitlines()[0].strip() if output else ""


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=, changed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""
