"""A real Prometheus on a proxy with two workers under load. Started by tests/monitoring/run."""

import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from math import isfinite
from pathlib import Path
from threading import Lock
from urllib.parse import urlencode

DEPLOY = Path(__file__).parents[2] / "deploy"
# Seconds of load, and between two looks of Prometheus.
LOAD, INTERVAL = 40, 1
# What Grafana makes of $__rate_interval there: four looks at least.
RATE = "10s"
PATIENCE = 60
CLIENTS = 24
SEED = 8


class Stack:
    """The processes, in a folder of their own."""

    def __init__(self, programs: Path, folder: Path, stack: contextlib.ExitStack) -> None:
        self.programs, self.folder, self.stack = programs, folder, stack
        self.proxy, self.prometheus = free_port(), free_port()
        socket_path = str(folder / "worker.sock")
        # Few may wait, so that some are refused.
        queue = ["--max-queue", "40", "--max-batch-size", "8"]
        self.start(programs / "pillion-proxy", "--listen", f"127.0.0.1:{self.proxy}", "--socket", socket_path, *queue)
        worker = programs / "simulated-worker", "--socket", socket_path, "--batch-cost", "20ms", "--step-cost", "2ms"
        self.workers = [self.start(*worker) for _ in range(2)]
        self.worker, self.killed = worker, 0
        scrape = [{"job_name": "pillion", "static_configs": [{"targets": [f"127.0.0.1:{self.proxy}"]}]}]
        timing = {"scrape_interval": f"{INTERVAL}s", "evaluation_interval": f"{INTERVAL}s"}
        rules = [str(DEPLOY / "prometheus" / "rules.yaml")]
        # JSON is YAML.
        settings = {"global": timing, "rule_files": rules, "scrape_configs": scrape}
        (folder / "prometheus.yml").write_text(json.dumps(settings))
        self.start(
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self.prometheus}",
        )

    def start(self, program: Path | str, *arguments: str) -> subprocess.Popen:
        """A process that ends with the test."""
        log = (self.folder / f"{Path(program).name}.log").open("ab")
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
        self.stack.callback(process.kill)
        return process

    def query(self, expression: str) -> dict[frozenset, float]:
        """What Prometheus says now, by labels."""
        answer = self.get(f"/api/v1/query?{urlencode({'query': expression})}")
        return {frozenset(found["metric"].items()): float(found["value"][1]) for found in answer["result"]}

    def value(self, expression: str) -> float:
        """The one value of an expression."""
        [value] = self.query(expression).values()
        return value

    def range(self, expression: str, begin: float, end: float) -> dict[str, list[tuple[float, float]]]:
        """What it says of a time, by labels."""
        asked = urlencode({"query": expression, "start": begin, "end": end, "step": INTERVAL})
        answer = self.get(f"/api/v1/query_range?{asked}")
        return {
            json.dumps(found["metric"]): [(at, float(value)) for at, value in found["values"]]
            for found in answer["result"]
        }

    def get(self, path: str) -> dict:
        """An answer's data."""
        status, said = request(self.prometheus, "GET", path)
        said = json.loads(said)
        assert status == 200 and said["status"] == "success", said
        return said["data"]


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def request(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    """One request over a connection of its own."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def eventually(what: str, holds) -> None:
    """Waits until it holds, but not for ever."""
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError, ValueError, AssertionError):
            if holds():
                return
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} s"
        time.sleep(0.2)


class Counted:
    """What clients saw."""

    def __init__(self) -> None:
        self.lock, self.answers, self.tokens = Lock(), Counter(), Counter()

    def add(self, endpoint: str, status: int, usage: dict) -> None:
        """One answer."""
        with self.lock:
            self.answers[endpoint, status] += 1
            self.tokens.update(usage)


def client(port: int, number: int, until: float, counted: Counted) -> None:
    """Asks one thing after the other: whole answers, streams, and what is refused."""
    chance = random.Random(SEED * 1000 + number)
    while time.monotonic() < until:
        words = " ".join("word" for _ in range(chance.randint(1, 30)))
        body = {"text": words, "max_new_tokens": chance.randint(1, 20)}
        endpoint = chance.choice(["/generate", "/generate", "/generate_stream"])
        kind = chance.random()
        if kind < 0.05:
            body["max_new_tokens"] = 0
        elif kind < 0.15:
            # A list takes many of the few places.
            body["text"] = [words] * 16
        status, said = request(port, "POST", endpoint, json.dumps(body))
        usages = [{}]
        if status == 200 and endpoint == "/generate":
            usages = [json.loads(said)["usage"]]
        elif status == 200:
            events = [json.loads(line[6:]) for line in said.decode().splitlines() if line.startswith("data: ")]
            usages = [event["usage"] for event in events if "usage" in event]
        total = Counter()
        for usage in usages:
            total.update(usage)
        counted.add(endpoint, status, total)
        time.sleep(chance.uniform(0, 0.05))


def resumed(stack: Stack) -> int:
    """Texts that went on elsewhere, as the proxy says now."""
    said = request(stack.proxy, "GET", "/metrics")[1].decode()
    return int(re.search(r'^pillion_resumed_total{reason="worker_lost"} (\d+)', said, re.MULTILINE)[1])


def load(stack: Stack) -> Counted:
    """All clients, and two workers that die and come back meanwhile."""
    counted = Counted()
    until = time.monotonic() + LOAD
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, stack.proxy, number, until, counted) for number in range(CLIENTS)]
        # Twice, and again where neither was in the middle of something.
        while stack.killed < 2 or not resumed(stack):
            time.sleep(LOAD / 3 if stack.killed < 2 else 1)
            assert time.monotonic() < until, "no dead worker was in the middle of something"
            stack.workers.pop(0).send_signal(signal.SIGKILL)
            stack.workers.append(stack.start(*stack.worker))
            stack.killed += 1
            time.sleep(1)
        for done in clients:
            done.result(LOAD + PATIENCE)
    return counted


def counts_agree(stack: Stack, counted: Counted) -> None:
    """What Prometheus has counted is what the clients have."""
    for (endpoint, status), count in sorted(counted.answers.items()):
        said = stack.value(f'sum(pillion_requests_total{{endpoint="{endpoint}",code="{status}"}})')
        print(f"{endpoint} {status}: clients counted {count}, Prometheus says {said:.0f}")
        assert said == count
    for name, usage in [("prompt", "prompt_tokens"), ("generated", "completion_tokens")]:
        said = stack.value(f"sum(pillion_{name}_tokens_total)")
        print(f"{usage}: clients counted {counted.tokens[usage]}, Prometheus says {said:.0f}")
        assert said == counted.tokens[usage]
    assert {status for _, status in counted.answers} == {200, 422, 429}, counted.answers
    refused = sum(count for (_, status), count in counted.answers.items() if status == 429)
    assert stack.value('sum(pillion_rejected_total{reason="queue_full"})') == refused
    assert stack.value('pillion_workers_lost_total{reason="closed"}') == stack.killed
    assert stack.value("sum(pillion_queue_depth) + sum(pillion_running)") == 0
    every = sum(counted.answers.values())
    assert stack.value("sum(pillion_request_duration_seconds_count)") == every, "each has one duration"


def dashboard(stack: Stack, begin: float, end: float) -> list[tuple[dict, dict]]:
    """Every panel with what its queries say; each says something, and something that can be."""
    shown = []
    for panel in json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]:
        series = {}
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", RATE)
            expression = expression.replace("$job", ".*").replace("$instance", ".*")
            assert "$" not in expression, expression
            found = stack.range(expression, begin, end)
            values = [value for points in found.values() for _, value in points if isfinite(value)]
            assert values, f"{panel['title']}: nothing for {expression}"
            assert all(0 <= value < 1e6 for value in values), f"{panel['title']}: {expression}: {values}"
            for labels, points in found.items():
                named = re.sub(r"{{(\w+)}}", lambda word: json.loads(labels)[word[1]], target["legendFormat"])  # noqa: B023
                series[named] = points
        assert any(value > 0 for points in series.values() for _, value in points), f"{panel['title']}: nothing but 0"
        shown.append((panel, series))
    return shown


def panels_are_right(shown: list[tuple[dict, dict]], counted: Counted, begin: float, end: float) -> None:
    """Panels whose sum over the time is known say it."""
    by_title = {panel["title"]: series for panel, series in shown}

    def total(title: str, name: str) -> float:
        # A rate at each second, summed over the seconds.
        return sum(value for at, value in by_title[title].get(name, []) if begin <= at <= end) * INTERVAL

    for status in (200, 422, 429):
        count = sum(number for (_, code), number in counted.answers.items() if code == status)
        said = total("Requests", str(status))
        print(f"panel Requests, {status}: {said:.0f} in all, {count} counted")
        assert abs(said - count) <= 0.1 * count + 2
    said = total("Tokens", "generated")
    print(f"panel Tokens, generated: {said:.0f} in all, {counted.tokens['completion_tokens']} counted")
    assert abs(said - counted.tokens["completion_tokens"]) <= 0.1 * said + 2
    sizes = [value for _, value in by_title["Batch size"]["mean"] if isfinite(value)]
    assert all(1 <= size <= 8 for size in sizes), sizes
    assert max(value for _, value in by_title["Texts waiting and with workers"]["with workers"]) <= 16 + 16
    assert all(value <= 1 for _, value in by_title["Idle share of the engines"]["idle"] if isfinite(value))


def draw(shown: list[tuple[dict, dict]], begin: float, path: str) -> None:
    """The dashboard's panels, from its own queries."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(4, 3, figsize=(15, 13), layout="constrained")
    units = {"reqps": "requests/s", "s": "seconds", "ops": "1/s", "percentunit": "share", "short": ""}
    for place, (panel, series) in zip(places.flat, shown, strict=True):
        place.set_title(panel["title"], loc="left", fontsize=11)
        place.set_ylabel(units[panel["fieldConfig"]["defaults"]["unit"]], fontsize=8)
        for name, points in sorted(series.items()):
            if any(value > 0 for _, value in points):
                place.plot([at - begin for at, _ in points], [value for _, value in points], label=name)
        place.margins(y=0.35)
        place.set_ylim(bottom=0)
        place.grid(alpha=0.3)
        place.tick_params(labelsize=8)
        place.legend(fontsize=8, loc="upper left", framealpha=0.6)
    for place in places[-1]:
        place.set_xlabel("seconds", fontsize=8)
    figure.savefig(path, dpi=70)


def main() -> None:
    """All of it."""
    programs, picture = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    print(f"seed {SEED}")
    with contextlib.ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        stack = Stack(programs, folder, ends)
        eventually("the proxy is ready", lambda: request(stack.proxy, "GET", "/readyz")[0] == 200)
        eventually("Prometheus has looked", lambda: stack.value("sum(pillion_workers_connected)") == 2)
        begin = time.time()
        counted = load(stack)
        done = time.time()
        answered = sum(counted.answers.values())
        seen = "sum(pillion_request_duration_seconds_count)"
        eventually("Prometheus has seen all", lambda: stack.value(seen) == answered)
        # Until the last rates have come to rest.
        time.sleep(12 * INTERVAL)
        counts_agree(stack, counted)
        end = time.time()
        panels_are_right(dashboard(stack, begin, end), counted, begin, end)
        print("every query of the dashboard has an answer")
        if picture:
            draw(dashboard(stack, begin, done), begin, picture)


if __name__ == "__main__":
    main()
