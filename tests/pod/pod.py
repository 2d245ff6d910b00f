"""Plays the plain pod and looks at it from outside: sizes, confinement, answers, deaths, stops. Started by tests/pod/run."""

import json
import os
import signal
import socket
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from threading import Event

import yaml
from manifests import KUBERNETES, deployment, render

WORK = Path(os.environ["PILLION_POD_WORK"])
MODEL = KUBERNETES.parent / "models" / "builtin"
PATIENCE = 60
# The most that an image may have, in millions of bytes.
SIZES = {"proxy": 15, "worker": 150}
QUESTIONS = {f"What is {a} + {b}?": str(a + b) for a, b in [(17, 25), (40, 2), (2, 3), (60, 39), (8, 8)]}


def podman(*arguments: str, code: int = 0) -> str:
    """What podman says, if it ends with this code."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, f"podman {' '.join(arguments)}: {done.returncode}: {done.stderr}"
    return done.stdout


def eventually(what: str, holds) -> None:
    """Waits until it holds, but not for ever."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} s\n{logs()}"
        time.sleep(0.1)


def logs() -> str:
    """The last lines of both."""
    return "\n".join(f"-- {name}\n{log(name)[-2000:]}" for name in ("proxy", "worker"))


def log(name: str) -> str:
    """All that a container has written."""
    done = subprocess.run(["podman", "logs", f"pillion-{name}"], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def state(name: str) -> dict:
    """What podman knows of a container."""
    return json.loads(podman("inspect", f"pillion-{name}", "--format", "{{json .State}}"))


def is_well(name: str, probe: str) -> bool:
    """Whether the program in a container says so, asked there as a probe is."""
    program = f"/usr/bin/pillion-{name}"
    ask = ["podman", "exec", f"pillion-{name}", program, "check", probe]
    return subprocess.run(ask, capture_output=True, check=False).returncode == 0


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def play(port: int) -> None:
    """The overlay as it is, but for what is the cluster's: images' names, the model's volume, a port of the machine."""
    template = deployment(render(KUBERNETES / "overlays" / "plain"))["spec"]["template"]
    spec = template["spec"]
    for container in spec["containers"]:
        container["image"] = f"localhost/{container['image']}"
        for known in container.get("ports", []):
            if known["name"] == "http":
                known["hostPort"] = port
        # Run by systemd, which a container has not: what they run is asked below.
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            container.pop(kind, None)
    [model] = [volume for volume in spec["volumes"] if volume["name"] == "model"]
    del model["persistentVolumeClaim"]
    model["hostPath"] = {"path": str(MODEL), "type": "Directory"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pillion", **template["metadata"]}, "spec": spec}
    manifest = WORK / "pod.yaml"
    manifest.write_text(yaml.safe_dump(pod))
    podman("kube", "play", str(manifest))


def ask(port: int, question: str, tokens: int = 10, at_least: int = 0) -> dict:
    """One request over a connection of its own."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        return ask_over(connection, question, tokens, at_least)
    finally:
        connection.close()


def ask_over(connection: HTTPConnection, question: str, tokens: int = 10, at_least: int = 0) -> dict:
    """One request over this connection."""
    body = {"text": question, "max_new_tokens": tokens, "min_new_tokens": at_least}
    connection.request("POST", "/generate", json.dumps(body))
    answer = connection.getresponse()
    told = answer.getheader("connection")
    return {"status": answer.status, "connection": told, **json.loads(answer.read())}


def ask_until_told(port: int) -> int:
    """One request after the other over one connection until an answer says that it is the last; how many there were."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    for turn in count(1):
        for question, expected in QUESTIONS.items():
            answer = ask_over(connection, question)
            assert (answer["status"], answer["text"]) == (200, expected), answer
            if answer["connection"] == "close":
                connection.close()
                return turn


class Load:
    """Clients that ask one question after the other; what went wrong is counted."""

    def __init__(self, port: int, clients: int) -> None:
        self.port, self.over = port, Event()
        self.right, self.wrong, self.refused, self.broken, self.closed = 0, [], [], 0, 0
        self.pool = ThreadPoolExecutor(clients)
        self.clients = [self.pool.submit(self.run, number) for number in range(clients)]

    def run(self, number: int) -> None:
        questions = list(QUESTIONS.items())
        while not self.over.is_set():
            number += 1
            question, expected = questions[number % len(questions)]
            try:
                answer = ask(self.port, question)
            except ConnectionRefusedError:
                # Nobody listens: it was never taken.
                self.closed += 1
                time.sleep(0.05)
                continue
            except (OSError, HTTPException):
                self.broken += 1
                time.sleep(0.05)
                continue
            if answer["status"] != 200:
                self.refused.append(answer)
            elif answer["text"] != expected:
                self.wrong.append(answer)
            else:
                self.right += 1

    def stop(self) -> None:
        self.over.set()
        for client in self.clients:
            client.result(PATIENCE)
        self.pool.shutdown()


def small() -> None:
    """The images have the size that was promised."""
    for name, most in SIZES.items():
        size = int(podman("image", "inspect", f"localhost/pillion-{name}", "--format", "{{.Size}}")) / 1e6
        print(f"image of the {name}: {size:.1f} MB of at most {most}")
        assert size <= most


def confined() -> None:
    """What the kernel says of both processes."""
    for name in ("proxy", "worker"):
        process = Path("/proc") / str(state(name)["Pid"])
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        assert status["Uid"].split() == ["65532"] * 4 and status["Gid"].split() == ["65532"] * 4, name
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, f"{name} has capabilities"
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2", name
        root = next(line.split() for line in (process / "mountinfo").read_text().splitlines() if line.split()[4] == "/")
        assert "ro" in root[5].split(","), f"{name}: {root}"
        there = (process / "root/run/pillion/worker.sock").lstat()
        assert stat.S_ISSOCK(there.st_mode) and stat.S_IMODE(there.st_mode) == 0o660 and there.st_uid == 65532
    print("both run as 65532 without capabilities on a read-only root; the socket is theirs, 0660")


def serves(port: int) -> None:
    """It answers from outside."""
    for question, expected in QUESTIONS.items():
        answer = ask(port, question)
        assert (answer["status"], answer["text"]) == (200, expected), answer


def kill(name: str) -> None:
    """Kills a container's process, and waits until it has been started again."""
    pid = state(name)["Pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(f"another {name} runs", lambda: state(name)["Pid"] not in (0, pid))
    eventually("it is ready", lambda: is_well(name, "ready"))


def killed_worker(port: int) -> None:
    """Dead workers are started again, and nobody notices."""
    load = Load(port, 20)
    for _ in range(3):
        time.sleep(1)
        kill("worker")
    time.sleep(1)
    load.stop()
    print(
        f"worker killed 3 times: {load.right} right, {load.broken + len(load.refused)} failed, {len(load.wrong)} wrong"
    )
    assert load.right and not load.broken and not load.refused and not load.wrong, load.refused[:3] + load.wrong[:3]


def killed_proxy(port: int) -> None:
    """A dead proxy takes with it what it was at; the worker keeps its model and comes back."""
    load = Load(port, 20)
    worker = state("worker")["Pid"]
    loaded = log("worker").count('"loaded"')
    for _ in range(3):
        time.sleep(1)
        kill("proxy")
        right = load.right
        eventually("clients are answered", lambda right=right: load.right > right)
    load.stop()
    told = (
        f"{load.right} right, {load.broken} broken, {load.closed} came while nobody listened, {len(load.wrong)} wrong"
    )
    print(f"proxy killed 3 times: {told}")
    assert load.right and not load.refused and not load.wrong, load.refused[:3] + load.wrong[:3]
    assert state("worker")["Pid"] == worker and log("worker").count('"loaded"') == loaded, "it loaded again"


def left(port: int) -> None:
    """In a native sidecar's order, the worker first and the proxy when it has stopped: clients go elsewhere in between."""
    clients = 20
    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask_until_told, port) for _ in range(clients)]
        time.sleep(1)
        assert not any(future.done() for future in asked), "one was told too early, or failed"
        podman("stop", "-t", "70", "pillion-worker")
        turns = [future.result(PATIENCE) for future in asked]
    podman("stop", "-t", "70", "pillion-proxy")
    codes = {name: state(name)["ExitCode"] for name in ("worker", "proxy")}
    print(
        f"stopped in a sidecar's order: {clients} clients went elsewhere after {sum(turns)} turns; exit codes {codes}"
    )
    assert codes == {"worker": 0, "proxy": 0}, logs()
    podman("start", "pillion-proxy", "pillion-worker")
    eventually("the worker is ready again", lambda: is_well("worker", "ready"))
    serves(port)


def stopped(port: int) -> None:
    """Told to stop, both end well when all that was admitted has been answered."""
    many = 200

    def timed() -> tuple[int, float]:
        answer = ask(port, "go on", 900, 900)
        return answer["status"], time.time()

    with ThreadPoolExecutor(many) as pool:
        asked = [pool.submit(timed) for _ in range(many)]
        metrics = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

        def admitted() -> int:
            metrics.request("GET", "/metrics")
            lines = metrics.getresponse().read().decode().splitlines()
            known = [line for line in lines if line.startswith(("pillion_running ", "pillion_queue_depth "))]
            return sum(int(float(line.split()[-1])) for line in known) + sum(future.done() for future in asked)

        eventually("all are admitted", lambda: admitted() >= many)
        metrics.close()
        told = time.time()
        # As Kubernetes does, both at once, and the network after them.
        podman("stop", "-t", "70", "pillion-proxy", "pillion-worker")
        answers = [future.result(PATIENCE) for future in asked]
    right = [at for status, at in answers if status == 200]
    late = sum(at > told + 1 for at in right)
    codes = {name: state(name)["ExitCode"] for name in ("proxy", "worker")}
    print(f"stopped: of {many} admitted {len(right)} answered, {late} a second or more later; exit codes {codes}")
    assert len(right) == many and late and codes == {"proxy": 0, "worker": 0}, logs()


def main() -> None:
    """All of it, in order."""
    small()
    port = free_port()
    play(port)
    eventually("the worker is ready", lambda: is_well("worker", "ready"))
    eventually("the proxy is ready", lambda: is_well("proxy", "ready"))
    assert is_well("proxy", "live") and is_well("worker", "loaded") and is_well("worker", "live")
    confined()
    serves(port)
    killed_worker(port)
    killed_proxy(port)
    left(port)
    stopped(port)


if __name__ == "__main__":
    main()
