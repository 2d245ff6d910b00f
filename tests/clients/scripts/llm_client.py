"""Simon Willison's `llm`: a prompt, streamed and whole, with options and a conversation."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from expected import ANSWER, MODEL, QUESTION, V1

with tempfile.TemporaryDirectory() as folder:
    # JSON is YAML.
    models = [{"model_id": "adder", "model_name": MODEL, "api_base": V1}]
    (Path(folder) / "extra-openai-models.yaml").write_text(json.dumps(models))

    def llm(*arguments: str) -> str:
        command = [Path(sys.executable).with_name("llm"), *arguments]
        environment = os.environ | {"LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    greedy = ("-m", "adder", "-o", "temperature", "0")
    assert llm(*greedy, QUESTION) == ANSWER
    assert llm(*greedy, "--no-stream", "-o", "seed", "1", QUESTION) == ANSWER
    assert llm(*greedy, "-s", "You add.", "-o", "max_tokens", "5", QUESTION)
    assert llm(*greedy, "-c", QUESTION)
print("a prompt, whole and streamed, with a system prompt, a seed and a conversation that goes on")
