"""Numbers of a pod that have to fit each other. Each rule is an inequality; deploy/kubernetes/README.md says why."""

from manifests import containers, environment, seconds

# What is left of a pod's time to stop when all that is foreseen has happened.
MARGIN = 5
# Told to stop, a proxy takes what is on its way for so long.
LINGER = 1
# `check` gives up after two seconds.
PATIENCE = 2
# A large model, read from a disk and warmed up.
LOAD = 600
# Kubernetes's own, where a Deployment does not say.
PROGRESS_DEADLINE = 600


def unfit(deployment: dict) -> list[str]:
    """The rules that do not hold."""
    spec = deployment["spec"]
    pod = spec["template"]["spec"]
    proxy = next(container for container in containers(pod) if container["name"] == "proxy")
    workers = [container for container in containers(pod) if container["name"].startswith("worker")]
    request = seconds(environment(proxy, "PILLION_REQUEST_TIMEOUT"))
    found = []

    def rule(holds: bool, told: str) -> None:
        if not holds:
            found.append(told)

    for container in [proxy, *workers]:
        name = container["name"]
        drains = drain(container)
        last = LINGER + request
        rule(drains >= last, f"{name} drains for {drains} s, and the last request may end after {last}")
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.get(kind)
            if probe and kind != "startupProbe" or probe and "exec" in probe:
                patience = probe.get("timeoutSeconds", 1)
                rule(patience > PATIENCE, f"{name}'s {kind} waits {patience} s, and a check {PATIENCE}")

    slowest = max(pause(worker) + drain(worker) for worker in workers)
    is_sidecar = proxy in pod.get("initContainers", [])
    # A sidecar is told to stop when the others have stopped.
    needed = slowest + drain(proxy) if is_sidecar else max(slowest, pause(proxy) + drain(proxy))
    grace = pod["terminationGracePeriodSeconds"]
    rule(needed + MARGIN <= grace, f"stopping may take {needed} s, and {MARGIN} are to be left of {grace}")
    for worker in workers if is_sidecar else []:
        rule(pause(worker) >= 5, f"{worker['name']} stops before routers have heard of it")

    loads = [span(worker["startupProbe"]) for worker in workers]
    rule(min(loads) >= LOAD, f"a model has {min(loads)} s to load")
    deadline = spec.get("progressDeadlineSeconds", PROGRESS_DEADLINE)
    start = span(proxy["startupProbe"]) + max(loads)
    rule(start < deadline, f"starting may take {start} s, and the Deployment waits {deadline}")
    if is_sidecar:
        rule(asks(proxy["startupProbe"]) == "live", "a sidecar's start is waited for by the worker it would wait for")
    rule(asks(proxy["livenessProbe"]) == "live", "a proxy without a worker is alive")
    rule(asks(proxy["readinessProbe"]) == "ready", "a proxy without a worker is not ready")
    return found


def drain(container: dict) -> int:
    """How long its drain may take."""
    return seconds(environment(container, "PILLION_DRAIN_TIMEOUT"))


def pause(container: dict) -> int:
    """How long it goes on before it is told to stop."""
    return container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)


def span(probe: dict) -> int:
    """How long a startup probe lets it take."""
    return probe["periodSeconds"] * probe["failureThreshold"]


def asks(probe: dict) -> str:
    """Whether it asks for live or ready."""
    told = probe["exec"]["command"][-1] if "exec" in probe else probe["httpGet"]["path"]
    return {"/livez": "live", "/readyz": "ready"}.get(told, told)
