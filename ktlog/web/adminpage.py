"""``ktlog admin page``: what an operator looks at while the log runs, as one page on which nothing can be changed.

It is a program of its own, started by whoever may open the log's socket, and it asks over that, as ``ktlog admin``
does: no part that strangers talk to has anything to do with it. It listens on this machine alone, answers only who has
its URL, in which there is a secret that is drawn anew each time, and only under an address of this machine, so that a
name which somebody else made lead here opens nothing. (Decision 12.)
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ktlog.config import Settings
from ktlog.errors import EncodingError, KtlogError, UsageError
from ktlog.operator.administration import parse_rows
from ktlog.operator.create import load_public_keys
from ktlog.operator.firsthour import missing
from ktlog.operator.keylist import ListedKey, list_all
from ktlog.operator.refusalbook import RefusalRow
from ktlog.operator.roles import open_link
from ktlog.operator.rotate import read_changes
from ktlog.operator.rules import Rules, load_rules
from ktlog.operator.stores import rules_document
from ktlog.web.explorer.answer import environment, stylesheet
from ktlog.wire.httpd import open_listener
from ktlog.wire.prometheus import parse_metrics_listen
from ktlog.words import size

REQUEST_SECONDS = 5.0
SECRET_BYTES = 16
SHOWN = 200
"""Refusals and instances on the page, at most."""

HEADERS = {
    "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
}

_LOG = logging.getLogger("ktlog.admin")


@dataclass(frozen=True)
class Seen:
    """What was seen of a log. status: what its sequencer says, None if it says nothing, and then *why*."""

    status: Mapping[str, Any] | None
    why: str
    refusals: tuple[RefusalRow, ...]
    rules: Rules
    keys: tuple[ListedKey, ...]
    steps: tuple[str, ...]


def look(settings: Settings) -> Seen:
    """Ask the running log, and read what needs no running one.

    Raises:
        StoreError: the directory cannot be read.
    """
    status, why, rows = None, "", ()
    try:
        link = open_link(settings)
        status = link.status()
        rows = tuple(parse_rows(link.administer({"act": "refusals"})))
    except (KtlogError, EncodingError) as error:
        why = error.diagnostics()
    public = load_public_keys(settings)
    return Seen(
        status, why, rows, load_rules(rules_document(settings)), list_all(settings, public, read_changes(settings)),
        tuple(step.what for step in missing(settings, serving=True)),
    )


def judge(seen: Seen, heartbeat_seconds: int) -> tuple[str, str]:
    """A state and a sentence: what an operator has to do, if anything."""
    status = seen.status
    if status is None:
        return "bad", f"The log does not answer: {seen.why}"
    if status["rules"]["paused"]:
        return "warn", "Messages are refused until you say ktlog admin resume."
    late = [name for name in ("checkpoint-age", "map-age") if int(status[name]) > 2 * heartbeat_seconds]
    if late:
        return "bad", "What is published is older than it may be: ktlog doctor says why."
    if seen.steps:
        return "warn", f"Missing still: {seen.steps[0]}"
    return "ok", "It takes messages, publishes, and is cosigned."


def render(settings: Settings, seen: Seen, now: int) -> str:
    """The page."""
    state, sentence = judge(seen, settings.heartbeat_seconds)
    status = None if seen.status is None else {
        **seen.status, "free-bytes": size(float(seen.status["free-bytes"])),
        "database-bytes": {name: size(float(count)) for name, count in seen.status["database-bytes"].items()},
    }
    return environment().get_template("admin.html").render(
        origin=settings.origin, directory=str(settings.directory.absolute()), state=state, sentence=sentence,
        status=status, refusals=seen.refusals[:SHOWN], more=max(0, len(seen.refusals) - SHOWN), rules=seen.rules,
        blocked=sorted(seen.rules.blocked.items())[:SHOWN], allowed=sorted(seen.rules.allowed.items())[:SHOWN],
        keys=[key for key in seen.keys if key.until is None or key.until > now], steps=seen.steps, now=now,
    )


class AdminServer:
    """Serves the page of the log in *settings*, in threads of its own, until it is closed.

    Args:
        listen: ADDRESS:PORT of this machine; port 0 takes a free one.

    Raises:
        UsageError: ``BadListen``: none, or one that others reach.
    """

    def __init__(
        self, settings: Settings, listen: str, *, now: Callable[[], int] = lambda: int(time.time()),
        look: Callable[[Settings], Seen] = look,
    ) -> None:
        if " " in listen.strip():
            raise UsageError("BadListen", f"{listen!a} is not ADDRESS:PORT of this machine, and nothing else")
        listener = open_listener(parse_metrics_listen(listen.strip()))
        address, port = listener.getsockname()[:2]
        host = f"[{address}]" if ":" in address else address
        self._secret = secrets.token_urlsafe(SECRET_BYTES)
        self._hosts = {f"{host}:{port}", f"localhost:{port}"}
        self.url = f"http://{host}:{port}/{self._secret}/"
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS
            server_version, sys_version = "ktlog", ""

            def do_GET(self) -> None:
                status, content_type, body = answer(self.headers.get_all("Host") or [], self.path)
                self.send_response(status)
                for name, value in (HEADERS | {"Content-Type": content_type, "Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                """Nothing: the path has the secret in it."""

        self._now, self._look, self._settings = now, look, settings
        self._server = _Server((address, port), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener

    def serve(self) -> None:
        """Until :meth:`close`, called from another thread."""
        self._server.serve_forever(0.1)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, hosts: list[str], path: str) -> tuple[int, str, bytes]:
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 421, "text/plain", b"This page is only shown under an address of the machine that it is on.\n"
        secret, _, rest = path.removeprefix("/").partition("/")
        if not hmac.compare_digest(secret.encode(), self._secret.encode()) or rest not in ("", "admin.css"):
            return 404, "text/plain", b"Take the address that ktlog admin page printed.\n"
        if rest:
            return 200, "text/css; charset=utf-8", stylesheet()[1]
        try:
            page = render(self._settings, self._look(self._settings), self._now())
        except KtlogError as error:
            return 503, "text/plain; charset=utf-8", f"{error.diagnostics()}\n".encode()
        return 200, "text/html; charset=utf-8", page.encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        _LOG.debug("a reader went away", exc_info=True)
