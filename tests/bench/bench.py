"""Measures Pillion beside its rivals. Started by `run`, which sets up what this needs."""

import argparse
import dataclasses
import json
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from measure import Bench, say
from plan import FULL, QUICK
from report import parted, report, settings, summary
from results import Section
from scenarios import SCENARIOS
from stacks import HERE, Starter, Unfit

ROOT = HERE.parent.parent
BINARIES = ("pillion-proxy", "pillion-worker", "simulated-worker", "bare-server", "load-driver")


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures Pillion beside its rivals.")
    parser.add_argument("--quick", action="store_true", help="about 5 minutes: fewer scenarios, shorter runs")
    parser.add_argument("--only", type=names, metavar="NAME[,NAME]", help="these scenarios alone")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md and pictures/ (a full run does anyway)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument("--list", action="store_true", help="name the scenarios, and end")
    parser.add_argument("--bin-dir", type=Path, default=ROOT / "target/release", help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def names(text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in SCENARIOS:
            raise argparse.ArgumentTypeError(f"no scenario {name!r}: there are {', '.join(SCENARIOS)}")
    return chosen


def main() -> None:
    arguments = parsed_arguments()
    if arguments.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:12} {scenario.about}{' (quick too)' if scenario.quick else ''}")
        return
    missing = [name for name in BINARIES if not (arguments.bin_dir / name).is_file()]
    if missing or arguments.models is None:
        sys.exit(f"error: missing {', '.join(missing) or 'models'}: start the bench by tests/bench/run")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("Stopped."))
    allow_many_connections()

    plan = QUICK if arguments.quick else FULL
    circumstances = settings(plan, arguments.bin_dir)
    chosen = arguments.only or [name for name, one in SCENARIOS.items() if one.quick or not arguments.quick]
    sections: dict[str, Section] = {}
    with tempfile.TemporaryDirectory(prefix="pillion-bench-logs-") as logs:
        start = Starter(arguments.bin_dir.resolve(), Path(logs))
        bench = Bench(plan, start, arguments.models.resolve(), ROOT / "deploy/models/builtin")
        try:
            for name in chosen:
                say(f"{name}: {SCENARIOS[name].about}")
                began = time.monotonic()
                sections[name] = SCENARIOS[name].run(bench)
                sections[name].took = time.monotonic() - began
        except Unfit as error:
            kept = Path(shutil.copytree(logs, tempfile.mkdtemp(prefix="pillion-bench-failed-"), dirs_exist_ok=True))
            sys.exit(f"error: {name}: {error}\nThe servers' logs are in {kept}. Nothing was written.")
        finally:
            if arguments.json is not None:
                every = {name: dataclasses.asdict(section) for name, section in sections.items()}
                arguments.json.write_text(json.dumps(every, indent=1) + "\n")

    found = list(sections.values())
    if arguments.write or not (arguments.quick or arguments.only):
        from pictures import draw

        text = report(found, circumstances, draw(sections, HERE / "pictures"))
        results = HERE / "RESULTS.md"
        _, gpus = parted(results)
        results.write_text(f"{text}\n{gpus}" if gpus else text)
    else:
        text = report(found, circumstances, [])
    print(text)
    print(summary(found))


def allow_many_connections() -> None:
    """As many open files as may be, for this program and all that it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main()
