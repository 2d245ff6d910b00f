"""What the scripts of this folder share: the question, its answer, where the server is, and how to wait for another one."""

import os
import sys
import time
import urllib.request
from pathlib import Path

# Behind everything else, since a module there may have a package's name: `processes` is wanted.
sys.path.append(str(Path(__file__).parents[2] / "bench"))

QUESTION = "What is 17 + 25?"
ANSWER = "42"
MESSAGES = [{"role": "user", "content": QUESTION}]

URL, MODEL = sys.argv[1:3]
"""The server's address without a path, and the model's name."""
V1 = f"{URL}/v1"
FOLDER = os.environ["PILLION_MODEL"]
"""The model's folder, for tools that read a tokenizer."""


def until_up(url: str, log: Path, limit: float = 120) -> None:
    """Waits until a program, whose log this is, answers at `url`."""
    deadline = time.monotonic() + limit
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"{url}: {error}\n{log.read_text()[-2000:]}") from None
            time.sleep(0.1)
