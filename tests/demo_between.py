"""Somebody between a log and its readers, without any key: passes everything on, but for the lookup bundles."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ktlog.demo.front import write_routes
from ktlog.keymap.bundle import Bundle, encode_bundle, parse_bundle

Edit = Callable[[Bundle], Bundle | bytes]


class Between:
    """Takes the place of *origin* in the routes of a demo's front until it is closed."""

    def __init__(self, front: Path, origin: str, edit: Edit) -> None:
        routes = json.loads((front / "routes.json").read_text())
        self._backend, self._edit = routes[origin], edit
        between = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                between._relay(self)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        write_routes(front, {**routes, origin: f"127.0.0.1:{self._server.server_port}"})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _relay(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self._backend, timeout=60)
        connection.request(request.command, request.path, body, dict(request.headers))
        answer = connection.getresponse()
        data = answer.read()
        if answer.status == 200 and "/map/bundle/" in request.path:
            edited = self._edit(parse_bundle(data))
            data = edited if isinstance(edited, bytes) else encode_bundle(edited)
        request.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)
        connection.close()
