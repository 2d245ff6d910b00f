"""Locust: 40 users of its two HTTP clients for some seconds."""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from expected import MODEL, URL

USERS = f'''
from locust import FastHttpUser, HttpUser

def chat(user):
    body = {{"model": {MODEL!r}, "messages": [{{"role": "user", "content": "What is 17 + 25?"}}], "temperature": 0}}
    with user.client.post("/v1/chat/completions", json=body, catch_response=True) as answer:
        if "42" not in (answer.text or ""):
            answer.failure(answer.text)

class Plain(HttpUser):
    tasks = [chat]

class Fast(FastHttpUser):
    tasks = [chat]
'''
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "users.py").write_text(USERS)
    command = [sys.executable, "-m", "locust", "-f", f"{folder}/users.py", "--headless", "-u", "40", "-r", "40"]
    command += ["-t", "5s", "-H", URL, "--csv", f"{folder}/out", "--only-summary"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    with (Path(folder) / "out_stats.csv").open() as table:
        total = next(row for row in csv.DictReader(table) if row["Name"] == "Aggregated")
assert int(total["Request Count"]) > 40 and int(total["Failure Count"]) == 0, total
print(f"{total['Request Count']} requests, {total['Failure Count']} failed")
