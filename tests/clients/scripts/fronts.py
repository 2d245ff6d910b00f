"""What is asked of a server through nginx or HAProxy in front of it."""

import http.client
import json
from pathlib import Path

from expected import MODEL, QUESTION

KEY = Path(__file__).with_name("key").read_text().strip()
"""The key that the server asks for."""
LARGE = b'{"text": "' + b"a" * 5_000_000 + b'"}'


def request(port: int, path: str, body: bytes, key: str = KEY) -> tuple[int, bytes]:
    """The status and the body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    return answer.status, said


def check(port: int) -> None:
    """Answers, streams, and refusals whose bodies are still coming, all whole."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    status, said = request(port, "/v1/chat/completions", json.dumps(asked).encode())
    assert status == 200 and json.loads(said)["choices"], said
    for _ in range(20):
        status, said = request(port, "/v1/chat/completions", json.dumps(asked | {"stream": True}).encode())
        assert status == 200 and said.endswith(b"data: [DONE]\n\n"), said
    # Several times: whether the answer overtakes the body depends on the moment.
    for _ in range(20):
        status, said = request(port, "/generate", LARGE)
        assert status == 413 and b"error" in said, (status, said)
        status, said = request(port, "/v1/completions", LARGE, "wrong")
        assert status == 401 and b"error" in said, (status, said)
    status, said = request(port, "/nothing", LARGE)
    assert status == 404 and b"error" in said, (status, said)
