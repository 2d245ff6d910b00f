"""HAProxy in front, as deploy/README.md says to set it."""

import tempfile
from pathlib import Path

import fronts
from expected import URL, until_up
from processes import free_port, running

CONFIG = """
defaults
  mode http
  timeout connect 5s
  timeout client 120s
  timeout server 120s
  option http-no-delay
frontend in
  bind 127.0.0.1:{port}
  default_backend pillion
backend pillion
  option httpchk GET /readyz
  server one {server} check inter 500ms
"""
with tempfile.TemporaryDirectory() as folder:
    port, path = free_port(), Path(folder)
    (path / "haproxy.cfg").write_text(CONFIG.format(port=port, server=URL.removeprefix("http://")))
    with running(["haproxy", "-f", f"{folder}/haproxy.cfg"], path / "log"):
        until_up(f"http://127.0.0.1:{port}/livez", path / "log")
        fronts.check(port)
print("answers, streams, 413, 401 and 404 are whole")
