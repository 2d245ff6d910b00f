"""The reference workload on a GPU: OPT-125m's shape, float16, 40 users, batches of at most 50, 10 new tokens.

Started by `gpu`, which builds what this needs; also by itself, on a machine where nothing can be built, with
`--bin-dir`. Needs `pillion-proxy`, a `pillion-worker` for CUDA, its example `engine-alone` and `load-driver` there, and
Python with ctranslate2, fastapi, uvicorn, numpy and tokenizers. `LD_LIBRARY_PATH` must lead to libcublas.so.13, and for
the control to the one that Python's ctranslate2 was built for, else there is no control.
"""

import argparse
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Bench, say
from plan import Plan
from report import parted, report_gpu
from scenarios import gpu
from stacks import HERE, Starter, Unfit, tail

PLAN = Plan(quick=False, seconds=3, long=3, brief=3, warm_up=1, repeats=4, few=1)
SCENARIOS = {run.__name__: run for run in (gpu.reference, gpu.parity, gpu.short_of_memory, gpu.without)}


def settings(bin_dir: Path) -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    card = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    worker = subprocess.run([bin_dir / "pillion-worker", "--version"], capture_output=True, text=True).stdout.strip()
    return [
        f"{datetime.date.today().isoformat()}; {card} (the driver); {os.cpu_count()} cores; {worker}",
        f"Runs of {PLAN.seconds} s, in turns, medians over {PLAN.repeats}; once for other numbers of users.",
        "Engine alone: `worker/examples/engine-alone.rs`, the worker's own build of CTranslate2 in a loop, tokens in and "
        "tokens out.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True, help="with opt-125m in it, float16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument("--write", action="store_true", help="write it into RESULTS.md")
    parser.add_argument("--only", choices=tuple(SCENARIOS), help="this scenario alone, which is printed only")
    arguments = parser.parse_args()
    chosen = [SCENARIOS[arguments.only]] if arguments.only else list(SCENARIOS.values())
    bin_dir = arguments.bin_dir.resolve()
    sections = []
    with tempfile.TemporaryDirectory(prefix="pillion-bench-logs-") as logs:
        start = Starter(bin_dir, Path(logs))
        bench = Bench(PLAN, start, arguments.models.resolve(), HERE.parent.parent / "deploy/models/builtin")
        for scenario in chosen:
            began = time.monotonic()
            say(scenario.__name__)
            try:
                section = scenario(bench)
            except (Unfit, OSError) as error:
                print(f"error: {scenario.__name__}: {error}", file=sys.stderr)
                for log in sorted(Path(logs).glob("*.log")):
                    print(f"--- {log.name}\n{tail(log)}", file=sys.stderr)
                continue
            section.took = time.monotonic() - began
            sections.append(section)
            print(report_gpu([section], []), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([dataclasses.asdict(section) for section in sections], indent=1) + "\n")
    if len(sections) < len(chosen):
        sys.exit("error: not everything was measured; nothing was written")
    text = report_gpu(sections, settings(bin_dir))
    if arguments.write and not arguments.only:
        results = HERE / "RESULTS.md"
        results.write_text(f"{parted(results)[0].rstrip()}\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
