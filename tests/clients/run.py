"""Runs the clients of clients.toml, each against a proxy and a worker of its own. Started by tests/clients/run."""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("bench", "wheel")]
from layouts import pythons  # noqa: E402
from processes import Command  # noqa: E402
from stacks import Starter, Unfit  # noqa: E402

ROOT = HERE.parents[1]
MODEL = ROOT / "deploy" / "models" / "builtin"
CLIENT_LIMIT = 900
"""Seconds that a client may take."""
TABLE = re.compile(r"(?<=<!-- table -->\n).*(?=<!-- end -->)", re.DOTALL)


@dataclass
class Client:
    """An entry of clients.toml."""

    name: str
    script: str
    packages: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    npm: dict[str, str] = field(default_factory=dict)
    debian: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    python: str = "3.11"
    light: bool = False


class Skipped(Exception):
    """What the client needs is not here."""


@dataclass
class Installer:
    """Installs what a client needs into the cache folder, each in a folder of its own."""

    uv: Path
    cache: Path

    def command(self, client: Client) -> tuple[list[str], dict[str, str], str]:
        """How to start the client's script, with which variables, and the version of what it runs."""
        script = str(HERE / "scripts" / client.script)
        if client.npm:
            folder = self.npm(client)
            found = json.loads((folder / "node_modules" / next(iter(client.npm)) / "package.json").read_text())
            program = "node" if script.endswith(".mjs") else sys.executable
            return [program, script], {"PILLION_TEST_NODE": str(folder)}, found["version"]
        if client.packages:
            python = self.python(client)
            name = re.split(r"[\[=<]", client.packages[0])[0]
            wanted = ["import importlib.metadata as m, sys; print(m.version(sys.argv[1]))", name]
            return [str(python), script], {}, output(python, "-c", *wanted)
        [(program, package)] = client.debian.items()
        # Without RUNLEVEL=1, Debian's packages would start their programs as services.
        install = 'source deploy/functions && RUNLEVEL=1 install_missing "$1"'
        subprocess.run(["bash", "-euc", install, "bash", f"{program}:{package}"], cwd=ROOT, check=True)
        return [sys.executable, script], {}, output("dpkg-query", "-W", "-f", "${Version}", package)

    def python(self, client: Client) -> Path:
        """A virtual environment with the client's packages."""
        folder = self.folder("py", f"{client.python} {client.packages} {client.needs}")
        python = folder / "bin" / "python"
        if not (folder / "complete").exists():
            base = find_python(client.python)
            subprocess.run([self.uv, "venv", "-q", "--clear", "--python", base, folder], check=True)
            install = [self.uv, "pip", "install", "-q", "--python", python]
            if client.needs:
                subprocess.run([*install, *client.needs], check=True)
            subprocess.run([*install, *(["--no-deps"] if client.needs else []), *client.packages], check=True)
            (folder / "complete").touch()
        return python

    def npm(self, client: Client) -> Path:
        """A folder with the client's npm packages."""
        folder = self.folder("npm", json.dumps(client.npm))
        if not (folder / "complete").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": client.npm}))
            flags = ["--no-package-lock", "--no-audit", "--no-fund", "--silent"]
            subprocess.run(["npm", "install", *flags], cwd=folder, check=True)
            (folder / "complete").touch()
        return folder

    def folder(self, kind: str, wanted: str) -> Path:
        return self.cache / f"client-{kind}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"


def find_python(version: str) -> Path:
    """A Python of this version or a later one."""
    wanted = tuple(map(int, version.split(".")))
    for found, path in pythons().items():
        if found != "this" and tuple(map(int, found.split("."))) >= wanted:
            return path
    raise Skipped(f"it needs Python {version}")


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def ask(client: Client, installer: Installer, programs: Path) -> tuple[str, str, str]:
    """Runs a client against a stack of its own: its version, the outcome, and what it said last."""
    version = ""
    try:
        command, variables, version = installer.command(client)
        with tempfile.TemporaryDirectory() as folder:
            said = serve(client, command, variables, programs, Path(folder))
        return version, "works", said
    except Skipped as error:
        return version, "SKIPPED", str(error)
    except (subprocess.SubprocessError, AssertionError, Unfit) as error:
        return version, "FAILS", reason(str(error))


def serve(client: Client, command: list[str], variables: dict[str, str], programs: Path, folder: Path) -> str:
    """Runs the client against a proxy and a worker, and returns its last line."""
    proxy_flags: Command = [HERE / flag if flag.startswith("scripts/") else flag for flag in client.flags]
    worker_flags = ["--model-name", "builtin", "--device", "cpu"]
    with Starter(programs, folder).pillion(MODEL, 1, *worker_flags, proxy_flags=proxy_flags) as stack:
        environment = os.environ | variables | {"PILLION_MODEL": str(MODEL), "NO_COLOR": "1"}
        asked = [*command, stack.url, "builtin"]
        done = subprocess.run(asked, env=environment, cwd=folder, capture_output=True, text=True, timeout=CLIENT_LIMIT)
        if done.returncode:
            sys.stderr.write(done.stdout[-3000:] + done.stderr[-5000:])
            raise AssertionError(done.stderr or done.stdout)
        return last_line(done.stdout)


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:300]


def reason(text: str) -> str:
    """The last line that names an error, with the names of files instead of their paths."""
    named = [line for line in text.splitlines() if re.search(r"(?i)^(?!\s*\[Symbol).*(error|exception)\b.*: [^{]", line)]
    line = named[-1].strip() if named else last_line(text)
    return re.sub(r"(?<![\w/:])(/[\w.-]+){3,}/(?=[\w.-])", "", line)[:300]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--uv", type=Path, required=True)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    clients = [Client(**client) for client in tomllib.loads((HERE / "clients.toml").read_text())["client"]]
    unknown = set(given.names) - {client.name for client in clients}
    if unknown:
        sys.exit(f"clients.toml has no {', '.join(sorted(unknown))}")
    chosen = [client for client in clients if client.name in given.names or (not given.names and (given.all or client.light))]
    installer = Installer(given.uv, given.cache)
    rows, failed = [], 0
    for client in chosen:
        started = time.monotonic()
        version, outcome, said = ask(client, installer, given.programs)
        failed += outcome == "FAILS"
        print(f"{time.monotonic() - started:6.0f} s  {outcome:8}{client.name} {version}: {said}", flush=True)
        rows.append(f"| {client.name} | {version} | {outcome} | {said.replace('|', chr(92) + '|')} |")
    if given.write:
        page = HERE / "README.md"
        head = f"\nRun on {datetime.now(UTC).date()}.\n\n| client | version | outcome | what was run, or the reason |\n| --- | --- | --- | --- |\n"
        page.write_text(TABLE.sub(lambda _: head + "\n".join(rows) + "\n\n", page.read_text()))
    print(f"{len(chosen) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
