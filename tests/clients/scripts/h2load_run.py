"""h2load over HTTP/2 without TLS, and over HTTP/1.1: 40 clients."""

import json
import re
import subprocess
import tempfile

from expected import QUESTION, URL

said = []
with tempfile.NamedTemporaryFile("w", suffix=".json") as body:
    json.dump({"text": QUESTION, "max_new_tokens": 10}, body)
    body.flush()
    for protocol, *flags in [("HTTP/2", "-p", "h2c"), ("HTTP/1.1", "--h1")]:
        command = ["h2load", "-n", "2000", "-c", "40", "-m", "4", "-d", body.name, *flags]
        command += ["-H", "content-type: application/json", f"{URL}/generate"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        [codes] = re.findall(r"^status codes: .*$", done.stdout, re.M)
        [requests] = re.findall(r"^requests: .*$", done.stdout, re.M)
        assert codes.startswith("status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx"), done.stdout + done.stderr
        assert "0 failed" in requests, requests
        said.append(f"{protocol}: 2,000 answered, 0 failed")
print("; ".join(said))
