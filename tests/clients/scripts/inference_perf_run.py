"""inference-perf: streamed completions and chats with made-up prompts."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from expected import FOLDER, MODEL, URL

LENGTHS = {
    "input_distribution": {"min": 10, "max": 40, "mean": 30, "std_dev": 5, "total_count": 50},
    "output_distribution": {"min": 5, "max": 30, "mean": 20, "std_dev": 5, "total_count": 50},
}
said = []
for kind, data in (("completion", {"type": "random", **LENGTHS}), ("chat", {"type": "mock"})):
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "load": {"type": "constant", "stages": [{"rate": 8, "duration": 5}], "num_workers": 1},
            "api": {"type": kind, "streaming": True},
            "server": {"type": "vllm", "model_name": MODEL, "base_url": URL, "ignore_eos": True},
            "tokenizer": {"pretrained_model_name_or_path": FOLDER},
            "data": data,
            "report": {"request_lifecycle": {"summary": True}},
            "storage": {"local_storage": {"path": f"{folder}/reports"}},
        }
        # JSON is YAML.
        (Path(folder) / "config.yml").write_text(json.dumps(settings))
        program = Path(sys.executable).with_name("inference-perf")
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HOME": folder}
        command = [program, "--config_file", f"{folder}/config.yml"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        report = json.loads(next(Path(folder).rglob("summary_lifecycle_metrics.json")).read_text())
    answered, failed = report["successes"]["count"], report["failures"]["count"]
    assert answered >= 38 and not failed, f"{answered} answered, {failed} failed: {report['failures']}"
    said.append(f"{answered} requests, {failed} failed")
print(f"completions: {said[0]}; chats: {said[1]}")
