"""Where a window waits for its server: an address that can be opened at once, and leads there once the server answers.

A browser takes as long to start as the server does, so both start together.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

_LOOK_S = 20.0
"""that a request waits before it is asked again: nothing between here and the browser gives up by then"""
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>edgespec</title>
<link rel="icon" href="data:,">
<body style="font: 1rem system-ui, sans-serif; text-align: center; padding-top: 30vh">
<p role="status">edgespec starts. The first time, it fetches its model.</p>
<p hidden>The server did not start. edgespec serve, in a terminal, says why.</p>
<script>
(async () => {
  let answer;
  do answer = await fetch("/server"); while (answer.status === 204);
  if (answer.ok) location.replace(await answer.text());
  else for (const line of document.querySelectorAll("p")) line.hidden = !line.hidden;
})();
</script>
"""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A window that is closed leaves a request behind."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Door:
    """``url`` is open within the block. ``lead`` says where it leads; None: nowhere, as there is no server."""

    def __init__(self) -> None:
        self._there = Event()
        self._target: str | None = None
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/server":
                    self._answer(*door._server())
                else:
                    self._answer(200, _PAGE)

            def _answer(self, status: int, text: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/"

    def lead(self, url: str | None) -> None:
        self._target = url
        self._there.set()

    def _server(self) -> tuple[int, str]:
        if not self._there.wait(_LOOK_S):
            return 204, ""
        return (200, self._target) if self._target else (410, "")

    def __enter__(self) -> Door:
        Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
