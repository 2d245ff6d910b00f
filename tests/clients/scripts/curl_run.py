"""curl: whole, streamed, a large body with `Expect`, gzip, HTTP/2, and what it shows of errors."""

import json
import subprocess
import tempfile

from expected import ANSWER, MODEL, QUESTION, URL


def curl(*arguments: str) -> str:
    """What it prints."""
    done = subprocess.run(["curl", "-sS", "-m", "30", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


status = ("-o", "/dev/null", "-w", "%{http_code}")
body = json.dumps({"model": MODEL, "prompt": QUESTION, "temperature": 0})
kind = ("-H", "content-type: application/json")
assert json.loads(curl(f"{URL}/generate", "-d", json.dumps({"text": QUESTION})))["text"] == ANSWER
assert json.loads(curl(f"{URL}/v1/completions", *kind, "-d", body))["choices"][0]["text"] == ANSWER
assert json.loads(curl("--http2-prior-knowledge", f"{URL}/v1/completions", *kind, "-d", body))["choices"]
events = curl("-N", f"{URL}/generate_stream", "-d", json.dumps({"text": QUESTION}))
assert events.startswith("data: ") and events.endswith("\n\n"), events
with tempfile.NamedTemporaryFile("w") as large:
    json.dump({"text": "a" * 1_500_000}, large)
    large.flush()
    answer = curl(f"{URL}/generate", *kind, "--data-binary", f"@{large.name}", "-H", "Expect: 100-continue")
    assert "error" in answer, answer
for path, expected in [("/health", "200"), ("/healthz", "200"), ("/v1/models", "200"), ("/v1/models/", "200"),
                       ("/version", "200"), ("/nothing", "404")]:  # fmt: skip
    assert curl(f"{URL}{path}", *status) == expected, path
for path in ("/v1/v1/chat/completions", "/chat/completions", "/v1/chat/completions/"):
    answer = json.loads(curl(f"{URL}{path}", *kind, "-d", "{}"))
    assert "/v1/chat/completions" in answer["error"]["message"], answer
zipped = subprocess.run(["gzip", "-c"], input=body.encode(), capture_output=True, check=True).stdout
with tempfile.NamedTemporaryFile() as file:
    file.write(zipped)
    file.flush()
    gzip = ("-H", "content-encoding: gzip", "--data-binary", f"@{file.name}")
    answer = json.loads(curl(f"{URL}/v1/completions", *kind, *gzip))
    assert "choices" in answer or "content-encoding" in answer["error"]["message"].lower(), answer
print("whole, streams, HTTP/2, a body of 1.5 MB, gzip, probes, hints for wrong paths")
