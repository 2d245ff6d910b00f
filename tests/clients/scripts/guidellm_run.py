"""guidellm with its defaults and made-up prompts: by chats and by completions.

Its one name is both that of the model and that of the tokenizer, so it asks for a model of another name.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from expected import FOLDER, URL

said = []
for kind in ("/v1/chat/completions", "/v1/completions"):
    with tempfile.TemporaryDirectory() as folder:
        program = Path(sys.executable).with_name("guidellm")
        command = [program, "run", "--backend", f"kind=openai_http,target={URL},model={FOLDER},request_format={kind}"]
        command += ["--data", "kind=synthetic_text,prompt_tokens=30,output_tokens=20"]
        command += ["--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=40"]
        command += ["--output", f"kind=json,path={folder}/report.json", "--disable-console-interactive"]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HOME": folder}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        [report] = Path(folder).glob("*.json")
        [benchmark] = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["successful"] >= 36 and not totals["errored"], (totals, (done.stdout + done.stderr)[-3000:])
    said.append(f"{totals['successful']} requests, {totals['errored']} failed")
print(f"chats: {said[0]}; completions: {said[1]}")
