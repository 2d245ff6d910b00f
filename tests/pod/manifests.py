"""What deploy/kubernetes says: rendered, and read back."""

import subprocess
from pathlib import Path

import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"


def render(folder: Path) -> list[dict]:
    """The documents of a kustomization."""
    rendered = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if rendered.returncode:
        raise SystemExit(f"{folder}: {rendered.stderr}")
    return [document for document in yaml.safe_load_all(rendered.stdout) if document]


def everything() -> dict[str, list[dict]]:
    """Every kustomization by its path, and every component with the base."""
    folders = [KUBERNETES / "base", *sorted((KUBERNETES / "overlays").iterdir())]
    found = {str(folder.relative_to(KUBERNETES)): render(folder) for folder in folders}
    for component in sorted((KUBERNETES / "components").iterdir()):
        # kustomize takes no path from outside, so a folder beside the others it is.
        together = KUBERNETES / f".together-{component.name}"
        together.mkdir(exist_ok=True)
        try:
            kustomization = {"resources": ["../base"], "components": [f"../components/{component.name}"]}
            (together / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
            found[str(component.relative_to(KUBERNETES))] = render(together)
        finally:
            (together / "kustomization.yaml").unlink(missing_ok=True)
            together.rmdir()
    return found


def deployment(documents: list[dict]) -> dict:
    """The one Deployment among them."""
    [found] = [document for document in documents if document["kind"] == "Deployment"]
    return found


def seconds(text: str) -> int:
    """Seconds of a duration as the programs' flags have it here."""
    unit = {"s": 1, "m": 60}[text[-1]]
    return int(text[:-1]) * unit


def environment(container: dict, name: str) -> str | None:
    """A variable of a container."""
    return next((variable["value"] for variable in container.get("env", []) if variable["name"] == name), None)


def containers(pod: dict) -> list[dict]:
    """Those that stay, sidecars first."""
    return [*pod.get("initContainers", []), *pod["containers"]]
