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


def changes(original: dict) -> dict[str, dict]:
    """The Deployment with one number or word changed, by what was changed."""
    changed = {}

    def change(told: str, do) -> None:
        other = copy.deepcopy(original)
        pod = other["spec"]["template"]["spec"]
        do(pod, {container["name"]: container for container in containers(pod)})
        changed[told] = other

    def variable(container: dict, name: str, value: str) -> None:
        next(known for known in container["env"] if known["name"] == name)["value"] = value

    sequential = "initContainers" in original["spec"]["template"]["spec"]
    grace = 139 if sequential else 74
    change("less grace", lambda pod, _: pod.update(terminationGracePeriodSeconds=grace))
    change("longer requests", lambda _, c: variable(c["proxy"], "PILLION_REQUEST_TIMEOUT", "66s"))
    change("a shorter drain of the proxy", lambda _, c: variable(c["proxy"], "PILLION_DRAIN_TIMEOUT", "59s"))
    change("a longer drain of the proxy", lambda _, c: variable(c["proxy"], "PILLION_DRAIN_TIMEOUT", "3m"))
    change("a shorter drain of the worker", lambda _, c: variable(c["worker"], "PILLION_DRAIN_TIMEOUT", "59s"))
    change("a longer drain of the worker", lambda _, c: variable(c["worker"], "PILLION_DRAIN_TIMEOUT", "3m"))
    change("a longer pause", lambda _, c: c["worker"]["lifecycle"]["preStop"]["sleep"].update(seconds=90))
    change("a shorter pause", lambda _, c: c["worker"]["lifecycle"]["preStop"]["sleep"].update(seconds=4))
    change("an impatient probe", lambda _, c: c["worker"]["livenessProbe"].update(timeoutSeconds=2))
    change("little time to load", lambda _, c: c["worker"]["startupProbe"].update(failureThreshold=59))
    change("too much time to load", lambda _, c: c["worker"]["startupProbe"].update(failureThreshold=300))
    change("a proxy that waits", lambda _, c: c["proxy"].update(livenessProbe=c["proxy"]["readinessProbe"]))
    change("no readiness", lambda _, c: c["proxy"].update(readinessProbe=c["proxy"]["livenessProbe"]))
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
        for told, changed in changes(found).items():
            assert unfit(changed), f"{name}: {told} is not seen"
            seen += 1
        kinds = ", ".join(document["kind"] for document in documents)
        print(f"{name}: {kinds}: valid for {VERSION}, confined, and its numbers fit")
    print(f"{seen} changed numbers were seen")


if __name__ == "__main__":
    main()
