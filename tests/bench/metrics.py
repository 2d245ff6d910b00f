"""What Pillion counts itself: its Prometheus text as a dictionary, and what a run added to it."""

import urllib.request

Counts = dict[str, float]
"""A value for every series, by its name with its labels as they are printed."""

ANSWERED = 'pillion_requests_total{endpoint="/generate",code="200"}'
GENERATED = "pillion_generated_tokens_total"
QUEUED, RUNNING = "pillion_queue_depth", "pillion_running"
IDLE, BUSY = "pillion_engine_idle_seconds_sum", "pillion_engine_busy_seconds_sum"
BUCKET = 'pillion_batch_size_bucket{le="'


def read(url: str) -> Counts:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {series: float(value) for series, value in pairs}


def added(before: Counts, after: Counts) -> Counts:
    return {series: value - before.get(series, 0.0) for series, value in after.items()}


def mean_batch(run: Counts) -> float | None:
    batches = run.get("pillion_batch_size_count", 0.0)
    return run["pillion_batch_size_sum"] / batches if batches else None


def idle_share(run: Counts) -> float | None:
    """The share of the time in which the engine had nothing to do; none where the worker does not say."""
    idle, busy = total(run, IDLE), total(run, BUSY)
    return idle / (idle + busy) if idle + busy > 0 else None


def batch_sizes(run: Counts) -> dict[str, float]:
    """Batches by the upper bound of their size, each counted once: Prometheus' buckets hold those below too."""
    buckets = {name[len(BUCKET) : -2]: value for name, value in run.items() if name.startswith(BUCKET)}
    bounds = sorted(buckets, key=float)
    below = [0.0, *(buckets[bound] for bound in bounds)]
    return {bound: buckets[bound] - less for bound, less in zip(bounds, below, strict=False)}


def total(counts: Counts, name: str) -> float:
    """The sum over a metric's labels."""
    return sum(value for series, value in counts.items() if series.partition("{")[0] == name)
