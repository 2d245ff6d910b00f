"""lm-eval's `generate_until` on a task of its own, by completions and by chats; loglikelihood is refused by name."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from expected import FOLDER, MODEL, V1

TASK = """
task: adding
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""
GENERATE = """generation_kwargs: {until: ["</s>"], max_gen_toks: 10}
metric_list: [{metric: exact_match}]"""
CHOOSE = """doc_to_choice: ["42", "5"]
metric_list: [{metric: acc}]"""
SUMS = [(17, 25), (2, 3), (30, 4), (11, 8)]

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder)
    questions = [json.dumps({"question": f"What is {a} + {b}?", "answer": str(a + b)}) for a, b in SUMS]
    (path / "questions.jsonl").write_text("\n".join(questions))

    def evaluate(kind: str, more: str, model: str, place: str, *flags: str) -> tuple[int, str]:
        """The exit code and what was said of a run, whose results are in the folder of this name."""
        tasks = path / kind
        tasks.mkdir(exist_ok=True)
        (tasks / "adding.yaml").write_text(TASK.format(folder=folder, kind=kind, more=more))
        target = f"base_url={V1}/{place},model={MODEL},tokenizer={FOLDER},num_concurrent=4,max_retries=1,add_bos_token=True"
        command = [sys.executable, "-m", "lm_eval", "--model", model, "--model_args", target, "--tasks", "adding"]
        command += ["--include_path", str(tasks), "--output_path", str(path / model), *flags]
        environment = os.environ | {"OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", "HF_HOME": str(path / "home")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        return done.returncode, done.stdout + done.stderr

    for model, place, *flags in [
        ("local-completions", "completions"),
        ("local-chat-completions", "chat/completions", "--apply_chat_template"),
    ]:
        code, said = evaluate("generate_until", GENERATE, model, place, *flags)
        assert code == 0, said[-3000:]
        [results] = (path / model).rglob("results*.json")
        score = json.loads(results.read_text())["results"]["adding"]["exact_match,none"]
        assert score == 1, (score, said[-3000:])
    code, said = evaluate("multiple_choice", CHOOSE, "local-completions", "completions")
    assert code != 0 and "logprobs" in said, said[-3000:]
print(f"{len(SUMS)} of {len(SUMS)} exact in both model types; loglikelihood is refused: logprobs")
