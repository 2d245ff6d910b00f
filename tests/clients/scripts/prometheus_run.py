"""promtool on the metrics, and a Prometheus that scrapes them."""

import json
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from expected import QUESTION, URL, until_up
from processes import free_port, running

with urllib.request.urlopen(f"{URL}/metrics") as answer:
    metrics = answer.read()
checked = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True)
assert checked.returncode == 0, checked.stderr.decode()
body = json.dumps({"text": QUESTION}).encode()
for _ in range(10):
    urllib.request.urlopen(f"{URL}/generate", body).close()
with tempfile.TemporaryDirectory() as folder:
    port, path = free_port(), Path(folder)
    targets = {"job_name": "pillion", "static_configs": [{"targets": [URL.removeprefix("http://")]}]}
    # JSON is YAML.
    settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": [targets]}
    (path / "prometheus.yml").write_text(json.dumps(settings))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with running(command, path / "log"):
        until_up(f"http://127.0.0.1:{port}/-/ready", path / "log")
        query = f"http://127.0.0.1:{port}/api/v1/query?query=sum(pillion_requests_total%7Bendpoint=%22/generate%22%7D)"
        deadline, seen = time.monotonic() + 60, None
        while seen != "10":
            with urllib.request.urlopen(query) as answer:
                result = json.load(answer)["data"]["result"]
            seen = result[0]["value"][1] if result else None
            assert time.monotonic() < deadline, (seen, (path / "log").read_text()[-2000:])
            time.sleep(0.2)
print("promtool finds nothing; Prometheus counts 10 of 10 requests")
