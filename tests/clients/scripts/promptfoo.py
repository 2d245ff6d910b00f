"""promptfoo's `eval`: two prompts to chats and completions, each with an assertion."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from expected import ANSWER, MODEL, V1

common = {"apiBaseUrl": V1, "apiKey": "none", "temperature": 0, "max_tokens": 10}
settings = {
    "prompts": ["What is {{a}} + {{b}}?"],
    "providers": [{"id": f"openai:{kind}:{MODEL}", "config": common} for kind in ("chat", "completion")],
    "tests": [
        {"vars": {"a": 17, "b": 25}, "assert": [{"type": "equals", "value": ANSWER}]},
        {"vars": {"a": 2, "b": 3}, "assert": [{"type": "equals", "value": "5"}]},
    ],
}
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder)
    (path / "promptfooconfig.json").write_text(json.dumps(settings))
    quiet = {"PROMPTFOO_DISABLE_TELEMETRY": "1", "PROMPTFOO_DISABLE_UPDATE": "1", "PROMPTFOO_CONFIG_DIR": folder}
    program = Path(os.environ["PILLION_TEST_NODE"]) / "node_modules" / ".bin" / "promptfoo"
    arguments = ["eval", "-c", path / "promptfooconfig.json", "-o", path / "results.json", "--no-cache", "--no-share"]
    done = subprocess.run([program, *arguments], env=os.environ | quiet, capture_output=True, text=True, timeout=240)
    assert (path / "results.json").exists(), done.stdout[-1000:] + done.stderr[-1000:]
    results = json.loads((path / "results.json").read_text())["results"]
wrong = [result.get("error") for result in results["results"] if not result["success"]]
assert results["stats"]["successes"] == 4 and not wrong, wrong
print("4 of 4 assertions: chats and completions")
