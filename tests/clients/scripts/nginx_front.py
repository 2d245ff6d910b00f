"""nginx in front, with and without its buffers of requests and answers."""

import getpass
import tempfile
from pathlib import Path

import fronts
from expected import URL, until_up
from processes import free_port, running

CONFIG = """
user {user}; daemon off; pid {folder}/pid; error_log {folder}/log;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/a; uwsgi_temp_path {folder}/b; scgi_temp_path {folder}/c;
  upstream pillion {{ server {server}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port}; client_max_body_size 50m;
    location / {{
      proxy_pass http://pillion; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_request_buffering {buffers}; proxy_buffering {buffers};
    }}
  }}
}}
"""
for buffers in ("on", "off"):
    with tempfile.TemporaryDirectory() as folder:
        port, log = free_port(), Path(folder) / "log"
        server = URL.removeprefix("http://")
        text = CONFIG.format(user=getpass.getuser(), folder=folder, server=server, port=port, buffers=buffers)
        (Path(folder) / "nginx.conf").write_text(text)
        with running(["nginx", "-c", f"{folder}/nginx.conf", "-p", folder], log):
            until_up(f"http://127.0.0.1:{port}/livez", log)
            fronts.check(port)
print("answers, streams, 413, 401 and 404 are whole, with and without buffers")
