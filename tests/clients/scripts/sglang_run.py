"""sglang's `bench_serving` in its two OpenAI modes, completions and chats, both streamed."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from expected import FOLDER, MODEL, URL

said = []
for mode in ("vllm", "vllm-chat"):
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.jsonl"
        command = [sys.executable, "-m", "sglang.bench_serving", "--backend", mode, "--base-url", URL]
        command += ["--model", MODEL, "--tokenizer", FOLDER]
        command += ["--dataset-name", "random-ids", "--random-input-len", "30", "--random-output-len", "20"]
        command += ["--num-prompts", "40", "--max-concurrency", "4", "--output-file", str(result)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HOME": folder}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        report = json.loads(result.read_text().splitlines()[-1])
    assert report["completed"] == 40, (report, done.stdout[-2000:])
    said.append(f"{report['completed']} requests, {40 - report['completed']} failed")
print(f"completions: {said[0]}; chats: {said[1]}")
