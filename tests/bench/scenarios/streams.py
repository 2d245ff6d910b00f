"""Answers as they are made: what a stream costs, and what clients that do not read cost the others."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from measure import PROMPT, Bench, in_turns
from results import Figure, Run, Section
from stacks import Stack

THREADS = 1
TOKENS = 100
LAZY = 10
"""Clients that read a byte a second."""
BODY = json.dumps({"text": PROMPT, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS})


def lone_stream(bench: Bench) -> Section:
    """The small model, one user whose answer is streamed."""
    about = (
        f"One user, answers of {TOKENS} tokens, each sent as it is made; {THREADS} engine thread. The engine alone is Python's "
        "with a callback that takes the time."
    )
    section = Section("lone-stream", "A lone stream", about, leading="first")
    with bench.start.pillion(bench.small, THREADS) as pillion, bench.engine(bench.small, THREADS) as engine:
        turns = {
            (pillion.name, "load-driver, a lone stream"): bench.streams(pillion, 1, BODY),
            ("engine alone", "one prompt, token by token"): lambda seconds: engine.run_steps(TOKENS, seconds),
        }
        section.rows = in_turns(bench.plan, turns, bench.plan.brief, bench.plan.repeats)
    ours, theirs = section.rows
    for name, what, bound in (
        ("first", "a lone stream: p50 to the first token, beyond the engine alone", 1.0),
        ("gap", "a lone stream: p50 from a token to the next, beyond the engine alone", 0.2),
    ):
        pairs = zip(ours.every(name), theirs.every(name), strict=True)
        beyond = sorted(seen - alone for seen, alone in pairs)
        section.figures.append(Figure(what, beyond[len(beyond) // 2], "ms", at_most=bound))
        shown = {row.server: ", ".join(f"{value:.3f}" for value in row.every(name)) for row in section.rows}
        section.notes.append(f"{name}, ms: " + "; ".join(f"{server}: {values}" for server, values in shown.items()) + ".")
    return section


def lazy_readers(bench: Bench) -> Section:
    """The small model, 40 users beside ten clients that read a byte a second."""
    about = (
        f"load-driver, 40 users; beside them {LAZY} clients that have asked for a stream of 900 tokens each, have small "
        "buffers, and read a byte a second of it. In turns with and without them."
    )
    section = Section("lazy-readers", "Clients that read slowly", about, leading="p99")
    with bench.start.pillion(bench.small, THREADS) as pillion:
        load = bench.driver(pillion, "--users", "40")

        def beside(seconds: int) -> Run:
            with lazy(pillion):
                return load(seconds)

        turns = {(pillion.name, "40 users"): load, (pillion.name, f"40 users beside {LAZY} lazy ones"): beside}
        section.rows = in_turns(bench.plan, turns, bench.plan.seconds, bench.plan.repeats)
    without, with_them = (row.median("p99") for row in section.rows)
    what = "clients that read a byte a second: p99 of the others, over that without them"
    section.figures.append(Figure(what, with_them / without if with_them and without else None, at_most=1.1))
    return section


@contextmanager
def lazy(stack: Stack) -> Iterator[None]:
    """Clients that have asked, and whose answers have been made."""
    address = urlsplit(stack.url)
    body = json.dumps({"text": "a b", "max_new_tokens": 900, "min_new_tokens": 900}).encode()
    head = f"POST /generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    over = threading.Event()
    clients = []
    for _ in range(LAZY):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect((address.hostname, address.port))
        client.sendall(head + body)
        clients.append(client)

    def read() -> None:
        while not over.wait(1.0):
            for client in clients:
                client.recv(1)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    # Their answers take the engine's time too, which is not what is asked here.
    time.sleep(0.5)
    stack.settle()
    try:
        yield
    finally:
        over.set()
        reader.join()
        for client in clients:
            client.close()
