"""aiperf's `profile`: streamed chats and whole completions."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from expected import FOLDER, MODEL, URL

said = []
for kind, *flags in [("chat", "--streaming"), ("completions",)]:
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("aiperf"), "profile", "--model", MODEL, "--url", URL]
        command += ["--endpoint-type", kind, "--tokenizer", FOLDER, "--concurrency", "4", "--request-count", "40"]
        command += ["--synthetic-input-tokens-mean", "30", "--output-tokens-mean", "20", "--ui", "none"]
        # Some prompts of random words have an empty answer, which aiperf counts as an error.
        command += ["--extra-inputs", "ignore_eos:true", "--artifact-dir", folder, *flags]
        environment = os.environ | {"HOME": folder}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        report = json.loads(next(Path(folder).rglob("profile_export_aiperf.json")).read_text())
    answered = report["request_count"]["avg"]
    failed = (report.get("error_request_count") or {"avg": 0})["avg"]
    assert answered == 40 and not failed, (answered, failed, report.get("error_summary"), done.stdout[-2000:])
    said.append(f"{answered:.0f} requests, {failed:.0f} failed")
print(f"streamed chats: {said[0]}; whole completions: {said[1]}")
