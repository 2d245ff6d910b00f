"""Judges every manifest: valid to the letter, confined, and its numbers fit. Then changes numbers, each of which must be seen."""

import copy
import warnings

import kubernetes_validate
from fit import unfit
from manifests import containers, deployment, everything

VERSION = "1.37"
# Kinds that no Kubernetes has by itself: nothing here can judge them.
FOREIGN = {"PodMonitor", "ScaledObject", "PrometheusRule"}

STRICT = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def valid(name: str, documents: list[dict]) -> None:
    """Stops where one of them is not."""
    for document in documents:
        if document["kind"] in FOREIGN:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kubernetes_validate.validate(document, VERSION, strict=True)
        labels = document["metadata"].get("labels", {})
        assert labels.get("app.kubernetes.io/name") == "pillion", f"{name}: {document['kind']} has no label"


def judges() -> None:
    """Stops where what is wrong is not found to be."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"prot": 80}]}}
    try:
        kubernetes_validate.validate(service, VERSION, strict=True)
    except kubernetes_validate.ValidationError:
        return
    raise SystemExit("a field that is none was let through")


def confined(name: str, pod: dict) -> None:
    """Stops where a container may more than it needs."""
    context = pod["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] == context["fsGroup"] == 65532, name
    assert context["seccompProfile"] == {"type": "RuntimeDefault"} and not pod["automountServiceAccountToken"], name
    for container in containers(pod):
        assert container["securityContext"] == STRICT, f"{name}: {container['name']}"
        assert "nvidia.com/gpu" not in container["resources"]["limits"] or container["name"] == "worker", name
        assert "memory" in container["resources"]["limits"], f"{name}: {container['name']}"


def changes(original: dict) -> list[tuple[str, dict]]:
    """The Deployment with one number or word changed, each with a part of the complaint that this must bring."""
    changed = []

    def change(complaint: str, do) -> None:
        other = copy.deepcopy(original)
        pod = other["spec"]["template"]["spec"]
        do(pod, {container["name"]: container for container in containers(pod)})
        changed.append((complaint, other))

    def variable(container: dict, name: str, value: str) -> None:
        next(known for known in container["env"] if known["name"] == name)["value"] = value

    is_sidecar = "initContainers" in original["spec"]["template"]["spec"]
    names = [container["name"] for container in containers(original["spec"]["template"]["spec"])]
    change("stopping may take", lambda pod, _: pod.update(terminationGracePeriodSeconds=139 if is_sidecar else 69))
    change("request may end", lambda _, c: variable(c["proxy"], "PILLION_REQUEST_TIMEOUT", "65s"))
    change("the Deployment waits", lambda _, c: c["proxy"]["startupProbe"].update(failureThreshold=301))
    change(
        "a proxy without a worker is alive", lambda _, c: c["proxy"].update(livenessProbe=c["proxy"]["readinessProbe"])
    )
    change("is not ready", lambda _, c: c["proxy"].update(readinessProbe=c["proxy"]["livenessProbe"]))
    change("proxy's readinessProbe waits", lambda _, c: c["proxy"]["readinessProbe"].update(timeoutSeconds=2))
    if is_sidecar:
        change("is waited for", lambda _, c: c["proxy"]["startupProbe"]["httpGet"].update(path="/readyz"))
    for name in names:
        change(f"{name} drains", lambda _, c, name=name: variable(c[name], "PILLION_DRAIN_TIMEOUT", "60s"))
        change("stopping may take", lambda _, c, name=name: variable(c[name], "PILLION_DRAIN_TIMEOUT", "3m"))
        change(f"{name}'s livenessProbe", lambda _, c, name=name: c[name]["livenessProbe"].update(timeoutSeconds=2))
        if name == "proxy":
            continue
        change(f"{name}'s startupProbe", lambda _, c, name=name: c[name]["startupProbe"].update(timeoutSeconds=1))
        change("s to load", lambda _, c, name=name: c[name]["startupProbe"].update(failureThreshold=59))
        change("the Deployment waits", lambda _, c, name=name: c[name]["startupProbe"].update(failureThreshold=450))
        if is_sidecar:
            sleep = lambda c, name=name: c[name]["lifecycle"]["preStop"]["sleep"]
            change("stopping may take", lambda _, c, sleep=sleep: sleep(c).update(seconds=90))
            change(f"{name} stops before", lambda _, c, sleep=sleep: sleep(c).update(seconds=4))
    return changed


def main() -> None:
    """All of it."""
    judges()
    seen = 0
    for name, documents in everything().items():
        valid(name, documents)
        found = deployment(documents)
        confined(name, found["spec"]["template"]["spec"])
        assert not unfit(found), f"{name}: {unfit(found)}"
        for complaint, changed in changes(found):
            seen_there = unfit(changed)
            assert any(complaint in told for told in seen_there), f"{name}: {complaint}: {seen_there}"
            seen += 1
        kinds = ", ".join(document["kind"] for document in documents)
        print(f"{name}: {kinds}: valid for {VERSION}, confined, and its numbers fit")
    print(f"{seen} changed numbers were seen")


if __name__ == "__main__":
    main()
