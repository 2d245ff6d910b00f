"""Renders real chat templates as transformers does, for other renderers to be compared with.

templates.py OUTPUT SOURCE... with the Python of tests/wheel/requirements.txt, and tests/model in PYTHONPATH.

A source is a folder or a .tar.gz, of which every *.jinja and every tokenizer_config.json with a template is taken, or
NAME==VERSION, whose sources are fetched from PyPI: llama-cpp-python has about 70 templates of published models. OUTPUT
gets a list of {"name", "template", "messages", "kwargs", and "rendered" or "error"}; "kwargs" are all that the template
is given beside the messages. A date in what is rendered is the day's.
"""

import json
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from family.prompts import conversations
from transformers.utils.chat_template_utils import render_jinja_template

INDEX = "https://pypi.org/simple/{}/"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
OPTIONS: list[dict[str, Any]] = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "enable_thinking": False},
    {"add_generation_prompt": True, "enable_thinking": True, "reasoning_effort": "low"},
]
MORE = [
    [
        {"role": "system", "content": "You are <b>brief</b> & 'kind'."},
        {"role": "user", "content": 'Say "yes".'},
        {"role": "assistant", "content": "<think>\nWhy?\n</think>\n\nYes."},
        {"role": "user", "content": "\n And? \n"},
    ],
    [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "Complete this:"}, {"role": "assistant", "content": "It begins with"}],
]
"""Beside the usual conversations: what templates treat in a way of their own, or refuse."""


def fetched(requirement: str, folder: Path) -> Path:
    """The source archive of a package, as the index names it."""
    name, version = requirement.split("==")
    wanted = f"{name.replace('-', '_')}-{version}.tar.gz"
    asking = urllib.request.Request(INDEX.format(name), headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(asking) as page:
        files = json.load(page)["files"]
    [address] = [file["url"] for file in files if file["filename"] == wanted]
    target = folder / wanted
    with urllib.request.urlopen(address) as archive:
        target.write_bytes(archive.read())
    return target


def texts(source: Path) -> Iterator[tuple[str, str]]:
    """The names and texts of the files that may hold templates."""
    wanted = (".jinja", "tokenizer_config.json")
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.name.endswith(wanted):
                yield str(path.relative_to(source)), path.read_text()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            if member.name.endswith(wanted) and (content := archive.extractfile(member)):
                yield member.name, content.read().decode()


def templates(source: Path) -> Iterator[tuple[str, str]]:
    """The names and texts of the templates."""
    for name, text in texts(source):
        if name.endswith(".jinja"):
            yield name, text
        elif isinstance(template := json.loads(text).get("chat_template"), str):
            yield name, template


def case(name: str, template: str, messages: list[dict[str, str]], options: dict[str, Any]) -> dict[str, Any]:
    """One rendering."""
    made = {"name": name, "template": template, "messages": messages, "kwargs": {**SPECIAL, **options}}
    try:
        rendered, _ = render_jinja_template(conversations=[messages], chat_template=template, **made["kwargs"])
    except Exception as error:  # noqa: BLE001
        return made | {"error": f"{type(error).__name__}: {error}"}
    return made | {"rendered": rendered[0]}


def main() -> None:
    output, sources = Path(sys.argv[1]), sys.argv[2:]
    cases = []
    with TemporaryDirectory() as folder:
        for source in sources:
            path = fetched(source, Path(folder)) if "==" in source else Path(source)
            for name, template in templates(path):
                cases += [
                    case(name, template, messages, more) for messages in (*conversations(), *MORE) for more in OPTIONS
                ]
    output.write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")
    refused = sum("error" in made for made in cases)
    print(f"{len({made['name'] for made in cases})} templates, {len(cases)} cases, {refused} of them refused")


if __name__ == "__main__":
    main()
