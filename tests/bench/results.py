"""What the bench finds: runs, rows of runs, and the figures that are held against a target."""

import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    """One load on one server. Latencies in milliseconds; CPU in microseconds a request."""

    rate: float
    """Answers per second."""
    p50: float | None
    p99: float | None
    worst: float | None
    server_cpu: float | None = None
    """Of all the server's processes."""
    front_cpu: float | None = None
    """Of Pillion's proxy alone."""
    client_cpu: float | None = None
    """Cores that the load generator took; near 1 it is the limit itself."""
    batch: float | None = None
    """Mean batch size."""
    idle: float | None = None
    """Share of the time in which the engine had nothing to do."""
    failed: int = 0
    unfinished: int = 0
    kinds: dict[str, tuple[int, float | None]] = field(default_factory=dict)
    """Answers of each kind of requests, and half of them took no longer than so many milliseconds."""
    served_then: float | None = None
    """Of those who were refused and came back when told to, those who were served then."""
    first: float | None = None
    """Milliseconds to the first piece of a streamed answer, of half of them."""
    gap: float | None = None
    """From a piece to the next, of half of them."""
    batch_sizes: dict[str, float] = field(default_factory=dict)
    """Batches by the upper bound of their size."""


@dataclass
class Row:
    """The runs of one server under one load; `at` places it on a picture's axis."""

    server: str
    load: str
    at: float = 0.0
    runs: list[Run] = field(default_factory=list)

    def median(self, name: str) -> float | None:
        """Over the runs; none if a run has none."""
        values = self.every(name)
        return statistics.median(values) if values and len(values) == len(self.runs) else None

    def every(self, name: str) -> list[float]:
        return [value for run in self.runs if (value := getattr(run, name)) is not None]


@dataclass(frozen=True)
class Figure:
    """Something that was found out; with a bound it goes to the summary."""

    what: str
    seen: float | None
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    def bounded(self) -> bool:
        return self.at_least is not None or self.at_most is not None

    def ok(self) -> bool:
        if self.seen is None:
            return False
        if self.at_least is not None:
            return self.seen >= self.at_least
        return self.at_most is not None and self.seen <= self.at_most


@dataclass
class Section:
    """A scenario's part of the report. `leading` is the figure of which every run is shown."""

    name: str
    title: str
    about: str
    leading: str = "rate"
    rows: list[Row] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    took: float = 0.0
    """Seconds, with starting the servers."""

    def row(self, server: str, load: str | None = None) -> Row:
        """The first row of a server whose name begins so, under this load if one is named."""
        return next(row for row in self.rows if row.server.startswith(server) and (load is None or row.load == load))


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
