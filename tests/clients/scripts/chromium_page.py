"""A page of another origin in headless Chromium: fetch, a stream that is read as it comes, an error's words, what a header says."""

import http.server
import json
import subprocess
import tempfile
import threading
from pathlib import Path

from expected import ANSWER, MODEL, QUESTION, V1

PAGE = """<!doctype html><title>page</title><pre id="said"></pre><script>
const ask = (body, key = 'KEY') => fetch('URL/chat/completions', {
  method: 'POST',
  headers: { 'content-type': 'application/json', authorization: `Bearer ${key}` },
  body: JSON.stringify({ model: 'MODEL', temperature: 0, messages: [{ role: 'user', content: 'QUESTION' }], ...body }),
});
(async () => {
  const said = {};
  try {
    const whole = await ask({});
    said.whole = (await whole.json()).choices[0].message.content;
    said.id = whole.headers.get('x-request-id') !== null;
    const stream = await ask({ stream: true });
    const reader = stream.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = '';
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) text += piece.value;
    said.stream = text.split('\\n\\n').filter((event) => event.startsWith('data: {'))
      .map((event) => JSON.parse(event.slice(6)).choices[0]?.delta?.content ?? '').join('');
    const wrong = await ask({ temperature: 9 });
    said.wrong = [wrong.status, (await wrong.json()).error.param];
    said.key = (await ask({}, 'wrong')).status;
  } catch (error) { said.failed = String(error); }
  document.getElementById('said').textContent = JSON.stringify(said);
  await fetch('/said', { method: 'POST', body: JSON.stringify(said) });
})();
</script>"""

key = Path(__file__).with_name("key").read_text().strip()
page = PAGE.replace("URL", V1).replace("MODEL", MODEL).replace("QUESTION", QUESTION).replace("KEY", key)
told: list[dict] = []
heard = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the page, and hears what it says."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page.encode())

    def do_POST(self) -> None:
        told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()
        heard.set()

    def log_message(self, *_: object) -> None:
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
with tempfile.TemporaryDirectory() as folder:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-sync", "--disable-quic", f"--user-data-dir={folder}", "--remote-debugging-port=0"]
    # `localhost` and `127.0.0.1` are different origins.
    address = f"http://localhost:{server.server_port}/"
    browser = subprocess.Popen(["chromium", *flags, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert heard.wait(60), "the page said nothing"
    finally:
        browser.terminate()
        browser.wait(10)
[said] = told
expected = {"whole": ANSWER, "id": True, "stream": ANSWER, "wrong": [400, "temperature"], "key": 401}
assert said == expected, said
print("fetch and a stream from another origin, an error's field, the request's id")
