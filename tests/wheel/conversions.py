"""Serves Hugging Face models with random weights, which `pillion serve` converts: their answers are Python's.

Run with the Python of tests/wheel/requirements.txt, in which the wheel is installed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import ctranslate2
from models import NEW_TOKENS, PROMPTS
from serving import PATIENCE, Serving, ended
from tokenizers import Tokenizer

PILLION = [str(Path(sys.executable).parent / "pillion")]
CONVERTING = "pillion: converting"


def answered(name: str, source: Path, cache: Path) -> None:
    """In float32 the answers are transformers' own, in int8 CTranslate2's; the second start converts nothing."""
    expected = json.loads((source / "answers.json").read_text())
    environment = {"XDG_CACHE_HOME": str(cache)}
    for kind, more in (("float32", ["--quantization", "float32"]), ("int8", ["--device", "cpu"])):
        for turn in ("first", "second"):
            with Serving([*PILLION], str(source), *more, environment=environment) as serving:
                got = {prompt: serving.answer(prompt, NEW_TOKENS) for prompt in PROMPTS}
                seconds = serving.seconds()
                body = {"model": name, "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
                status, chat = serving.post("/v1/chat/completions", body)
                assert status == 200, chat
                assert (CONVERTING in serving.said()) == (turn == "first"), serving.said()
            if kind == "int8" and turn == "first":
                [converted] = cache.glob(f"pillion/models/{source.name}-int8-*")
                expected = {prompt: python_says(converted, prompt) for prompt in PROMPTS}
            assert got == expected, f"{name}, {kind}:\n{got}\n{expected}"
            print(f"{name}, {kind}: {turn} start answered as Python does within {seconds:.1f} s", flush=True)


def python_says(model: Path, prompt: str) -> str:
    """What CTranslate2 says to a prompt, greedily."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    generator = ctranslate2.Generator(str(model), device="cpu", intra_threads=1)
    tokens = tokenizer.encode(prompt).tokens
    [said] = generator.generate_batch([tokens], max_length=NEW_TOKENS, sampling_topk=1, include_prompt_in_result=False)
    return tokenizer.decode(said.sequences_ids[0])


def from_the_hub(source: Path, folder: Path) -> None:
    """A model's name on the hub, which the hub's own cache has already; clients call it by that name."""
    name = "pillion-test/llama"
    hub = folder / "hub"
    snapshot = hub / "models--pillion-test--llama" / "snapshots" / "0123456789abcdef"
    shutil.copytree(source, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(snapshot.name)
    environment = {"XDG_CACHE_HOME": str(folder / "hub-cache"), "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    expected = json.loads((source / "answers.json").read_text())
    with Serving(PILLION, name, "--quantization", "float32", environment=environment) as serving:
        body = {"model": name, "prompt": PROMPTS[0], "max_tokens": NEW_TOKENS, "temperature": 0}
        status, answer = serving.post("/v1/completions", body)
        assert status == 200 and answer["choices"][0]["text"] == expected[PROMPTS[0]], answer
    code, said = ended([*PILLION, "serve", "pillion-test/nothing"], environment)
    assert code == 69 and "the hub cannot be reached" in said, said
    print("from the hub's cache: answered under its name", flush=True)


def interrupted(source: Path, cache: Path) -> None:
    """Whatever the moment, nothing half done is left, and no process."""
    for number, wait in ((signal.SIGINT, 0.5), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        command = [*PILLION, "serve", str(source), "--listen", "0"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        process.stderr.readline()
        converter = children(process.pid)
        time.sleep(wait)
        process.send_signal(number)
        code = process.wait(PATIENCE)
        assert code == (0 if number != signal.SIGKILL else -number), process.stderr.read()
        process.stderr.close()
        end = time.monotonic() + PATIENCE
        while any(Path(f"/proc/{child}").exists() for child in converter):
            assert time.monotonic() < end, "the converter goes on"
            time.sleep(0.05)
        left = [path.name for path in (cache / "pillion" / "models").iterdir()]
        assert number == signal.SIGKILL or not left, left
    # What a killed one left is removed by the next.
    with Serving(PILLION, str(source), environment={"XDG_CACHE_HOME": str(cache)}) as serving:
        serving.answer("a", 1)
        left = [path.name for path in (cache / "pillion" / "models").iterdir()]
        assert len(left) == 1 and left[0].startswith(source.name), left
    print("interrupted while converting: nothing was left", flush=True)


def children(pid: int) -> list[int]:
    """The numbers of a process's children."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def together(source: Path, cache: Path) -> None:
    """Two at once: one converts, both serve."""
    environment = {"XDG_CACHE_HOME": str(cache)}
    with (
        Serving(PILLION, str(source), environment=environment) as one,
        Serving(PILLION, str(source), environment=environment) as other,
    ):
        assert one.answer("a", 4) == other.answer("a", 4)
        assert sum(CONVERTING in serving.said() for serving in (one, other)) == 1, one.said() + other.said()
    print("two at once: one converted, both answered", flush=True)


def refused(source: Path, folder: Path) -> None:
    """What cannot be converted is told in a sentence, and nothing is left."""
    cache = folder / "refused-cache"
    broken, translator = folder / "broken", folder / "translator"
    shutil.copytree(source, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    translator.mkdir()
    (translator / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    for place, told in ((broken, "cannot be converted"), (translator, "is an encoder-decoder model (t5)")):
        code, said = ended([*PILLION, "serve", str(place)], {"XDG_CACHE_HOME": str(cache)})
        assert code == 66 and told in said.splitlines()[-1], said
        assert not list((cache / "pillion" / "models").iterdir())
    target = folder / "converted"
    code, said = ended([*PILLION, "convert", str(source), str(target), "--quantization", "int8"])
    assert code == 0 and (target / "chat_template.jinja").exists(), said
    code, said = ended([*PILLION, "inspect", str(target)])
    assert code == 0 and "Pillion serves it." in said and "chat_template.jinja" in said, said
    code, said = ended([*PILLION, "inspect", str(source)])
    assert code == 66 and "not converted yet: pillion convert" in said, said
    print("what cannot be converted: refused with 66", flush=True)


def main() -> None:
    """All of it."""
    # Run in the background, this process has been made to ignore it, and what it starts would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with TemporaryDirectory() as name:
        folder = Path(name)
        models = folder / "models"
        script = Path(__file__).parent / "models.py"
        made = subprocess.run([sys.executable, script, models], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        for source in sorted(models.iterdir()):
            answered(source.name, source, folder / "cache")
        from_the_hub(models / "llama", folder)
        interrupted(models / "gemma", folder / "interrupted")
        together(models / "qwen2", folder / "together")
        refused(models / "opt", folder)


if __name__ == "__main__":
    main()
