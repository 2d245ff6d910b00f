"""LiteLLM's proxy in front of the server, with OpenAI's package: chats, streams, a fallback where the prompt is too long."""

import json
import sys
import tempfile
from pathlib import Path

import openai
from expected import ANSWER, MESSAGES, MODEL, V1, until_up
from processes import free_port, running

port = free_port()
served = {"model": f"openai/{MODEL}", "api_base": V1, "api_key": "none"}
long = served | {"mock_response": "from the model with a longer context"}
settings = {
    "model_list": [
        {"model_name": "adder", "litellm_params": served},
        {"model_name": "longer", "litellm_params": long},
    ],
    "general_settings": {"master_key": "sk-a-key-of-the-tests-0123456789"},
    "litellm_settings": {"num_retries": 0, "context_window_fallbacks": [{"adder": ["longer"]}]},
}
with tempfile.TemporaryDirectory() as folder:
    # JSON is YAML.
    (Path(folder) / "config.yaml").write_text(json.dumps(settings))
    program = Path(sys.executable).with_name("litellm")
    log = Path(folder) / "log"
    command = [program, "--config", f"{folder}/config.yaml", "--port", str(port), "--host", "127.0.0.1"]
    with running(command, log):
        url = f"http://127.0.0.1:{port}"
        until_up(f"{url}/health/liveliness", log)
        client = openai.OpenAI(base_url=url, api_key=settings["general_settings"]["master_key"], max_retries=0)
        ask = client.chat.completions.create
        whole = ask(model="adder", messages=MESSAGES, temperature=0)
        assert whole.choices[0].message.content == ANSWER, whole
        pieces = list(ask(model="adder", messages=MESSAGES, temperature=0, stream=True))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == ANSWER, pieces
        too_long = ask(model="adder", messages=[{"role": "user", "content": "word " * 5000}])
        assert "longer context" in too_long.choices[0].message.content, too_long
print("chats, streams, fallback for a prompt that is too long")
