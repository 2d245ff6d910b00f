"""Draws what is hard to see in a table: curves over the load, and the distribution of batch sizes."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from results import Section
from stacks import BATCH

COLOURS = {"pillion": "#c1440e", "mosec": "#2f6f9f", "control": "#7a7a7a"}
SIZE = (7.0, 4.2)


def draw(sections: Mapping[str, Section], folder: Path) -> list[Path]:
    """Draws each picture whose sections have been measured. Returns the paths of the drawn pictures."""
    folder.mkdir(exist_ok=True)
    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})
    drawn: list[Path] = []

    def picture(name: str, paint: Callable[[], None]) -> None:
        paint()
        drawn.append(folder / f"{name}.png")
        pyplot.tight_layout()
        pyplot.savefig(drawn[-1], dpi=120)
        pyplot.close()

    if "sweep" in sections:
        picture("throughput", lambda: throughput(sections["sweep"]))
    if "open" in sections:
        picture("latency", lambda: latency(sections["open"]))
    sizes = [sections[name] for name in ("small", "small-80") if name in sections]
    if sizes:
        picture("batch-sizes", lambda: batch_sizes(sizes))
    return drawn


def throughput(section: Section) -> None:
    _, axes = pyplot.subplots(figsize=SIZE)
    for server, points in points_of(section, "rate").items():
        axes.plot(*zip(*points, strict=True), marker="o", label=server, color=colour(server))
    axes.set(
        xscale="log", ylim=(0, None), xlabel="users, each with one request at a time", ylabel="requests per second"
    )
    users = sorted({row.at for row in section.rows})
    axes.set_xticks(users, [f"{count:.0f}" for count in users])
    axes.minorticks_off()
    axes.set_title("Small model: throughput over users")
    axes.legend(frameon=False)


def latency(section: Section) -> None:
    _, axes = pyplot.subplots(figsize=SIZE)
    for quantile, style in (("p50", "--"), ("p99", "-")):
        for server, points in points_of(section, quantile).items():
            label = f"{server}: {quantile}"
            axes.plot(*zip(*points, strict=True), style, marker="o", label=label, color=colour(server))
    axes.set(yscale="log", xlim=(0, None), xlabel="requests per second, Poisson arrivals", ylabel="latency, ms")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_title("Small model: latency over an open loop's load")
    axes.legend(frameon=False)


def batch_sizes(sections: list[Section]) -> None:
    _, every = pyplot.subplots(1, len(sections), figsize=SIZE, sharey=True, squeeze=False)
    for axes, section in zip(every[0], sections, strict=True):
        bars(axes, section)
    every[0][0].set_ylabel("requests, % of all")


def bars(axes: Axes, section: Section) -> None:
    """Draws for each batch size how many of the requests were in a batch of that size.

    A batch of 10 requests therefore counts ten times as much as a batch of one.
    """
    batches: dict[str, float] = defaultdict(float)
    for run in section.row("pillion").runs:
        for bound, count in run.batch_sizes.items():
            batches[bound] += count
    bounds = [bound for bound in batches if bound != "+Inf" and float(bound) <= 64]
    largest = [min(int(float(bound)), int(BATCH)) for bound in bounds]
    least = [1, *(size + 1 for size in largest)][: len(largest)]
    riders = [batches[bound] * (low + high) / 2 for bound, low, high in zip(bounds, least, largest, strict=True)]
    whole = sum(riders) or 1.0
    axes.bar(range(len(bounds)), [100 * count / whole for count in riders], color=COLOURS["pillion"], width=0.85)
    names = [f"{low}–{high}" if low < high else f"{low}" for low, high in zip(least, largest, strict=True)]
    axes.set_xticks(range(len(bounds)), names, rotation=60)
    axes.grid(axis="x", visible=False)
    axes.set(title=section.title, xlabel="batch size")


def points_of(section: Section, figure: str) -> dict[str, list[tuple[float, float]]]:
    """For every server, the points of a curve in the order of the loads: a load, and the figure's median at that load."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in section.rows:
        if (value := row.median(figure)) is not None:
            points[row.server].append((row.at, value))
    return {server: sorted(pairs) for server, pairs in points.items()}


def colour(server: str) -> str:
    return next((shade for name, shade in COLOURS.items() if server.startswith(name)), "black")
