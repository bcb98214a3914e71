"""A small S3 over HTTP that misbehaves on purpose: a real server, whose every fault a test orders.

It knows PUT with conditions, GET, DELETE and ListObjectsV2 of one bucket, addressed by path, and believes any
signature. What it does wrong, it does in one of two ways: always (``Habits``), or in the order of a script, one step
for each PUT or GET: ``""`` is well-behaved, ``"503"`` a status and nothing done, ``"404 NoSuchBucket"`` the same with a
code, ``"503 stored"`` done and a status all the same, ``"drop"`` and ``"drop stored"`` a connection that ends without an
answer, ``"cut"`` a GET's answer that ends early, ``"hold"`` a PUT that is worked off only when the test releases it.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "tiles-of-a-log"
HELD_SECONDS = 60.0
"""After which a held request gives up: no test may hang."""


@dataclass(frozen=True)
class Habits:
    """quoted: ETags in answers. compares: "any", or "quoted" or "bare" for If-Match byte by byte with that form.

    ignores: headers that are not read. refusal: the status for a condition that does not hold. not_implemented: of
    these headers it says 501. hasty: looks at the condition when a request begins, and stores when *hasty* of them
    have looked. absent: the status for what is not there. stale: a GET gives what was there before the last PUT.
    no_etag: gives none.
    """

    quoted: bool = True
    compares: str = "any"
    ignores: frozenset[str] = frozenset()
    refusal: int = 412
    not_implemented: frozenset[str] = frozenset()
    hasty: int = 0
    absent: int = 404
    stale: bool = False
    no_etag: bool = False


@dataclass(frozen=True)
class Kept:
    data: bytes
    headers: Mapping[str, str]

    @property
    def etag(self) -> str:
        return hashlib.md5(self.data).hexdigest()


class ObjectsServer:
    """Listens on loopback from ``start`` to ``stop``. ``kept`` holds the objects by key."""

    def __init__(self, habits: Habits = Habits()) -> None:
        self.habits = habits
        self.kept: dict[str, Kept] = {}
        self.before: dict[str, Kept | None] = {}
        self.puts: deque[str] = deque()
        self.gets: deque[str] = deque()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self.release = threading.Event()
        self.late = threading.Event()
        """Set when a held PUT was worked off; ``late_status`` says how it ended."""
        self.late_status = 0
        self._looked = threading.Barrier(habits.hasty, timeout=HELD_SECONDS) if habits.hasty else None
        self._server = _Server(("127.0.0.1", 0), self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> ObjectsServer:
        self._thread.start()
        return self

    def stop(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> ObjectsServer:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def asked(self, method: str, key: str) -> int:
        """How many requests of *method* there were for *key*."""
        return sum((m, k) == (method, key) for m, k, _headers in self.requests)

    # What the handler does, under one condition or another

    def may_put(self, key: str, headers: Mapping[str, str]) -> int:
        """200, or the status of a refusal."""
        habits, there = self.habits, self.kept.get(key)
        if any(name in headers for name in habits.not_implemented):
            return 501
        if "If-None-Match" in headers and "If-None-Match" not in habits.ignores and there is not None:
            return habits.refusal
        wanted = headers.get("If-Match")
        if wanted is None or "If-Match" in habits.ignores:
            return 200
        if there is None:
            return 404
        form = {"any": wanted.strip('"'), "quoted": wanted, "bare": wanted}[habits.compares]
        own = f'"{there.etag}"' if habits.compares == "quoted" else there.etag
        return 200 if form == own else habits.refusal

    def put(self, key: str, data: bytes, headers: Mapping[str, str]) -> int:
        with self.lock:
            status = self.may_put(key, headers)
            if self._looked is None:
                if status == 200:
                    self._store(key, data, headers)
                return status
        if status == 200 and "If-None-Match" in headers and key.endswith("-race"):
            self._looked.wait()  # everybody has looked by now
        with self.lock:
            if status == 200:
                self._store(key, data, headers)
        return status

    def _store(self, key: str, data: bytes, headers: Mapping[str, str]) -> None:
        self.before[key] = self.kept.get(key)
        self.kept[key] = Kept(data, {name: headers[name] for name in ("Content-Type", "Cache-Control") if name in headers})

    def find(self, key: str) -> Kept | None:
        with self.lock:
            return self.before.get(key) if self.habits.stale else self.kept.get(key)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], objects: ObjectsServer) -> None:
        self.objects = objects
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_arguments: object) -> None:
        pass

    @property
    def objects(self) -> ObjectsServer:
        return self.server.objects

    def key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").removeprefix("/")

    def headers_of(self) -> dict[str, str]:
        return dict(self.headers.items())

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key, headers, objects = self.key(), self.headers_of(), self.objects
        objects.requests.append(("PUT", key, headers))
        with objects.lock:
            step = objects.puts.popleft() if objects.puts else ""
        if base64.b64encode(hashlib.md5(data).digest()).decode() != headers.get("Content-MD5"):
            self.answer(400, code="BadDigest")
        elif step == "hold":
            objects.release.wait(HELD_SECONDS)
            objects.late_status = objects.put(key, data, headers)
            objects.late.set()
            self.close_connection = True
        elif not step:
            self.answer(objects.put(key, data, headers), etag=objects.kept.get(key))
        else:
            if step.endswith(" stored"):
                objects.put(key, data, headers)
            self.fault(step.removesuffix(" stored"))

    def do_GET(self) -> None:
        key, objects = self.key(), self.objects
        objects.requests.append(("GET", key, self.headers_of()))
        if not key:
            self.list_keys()
            return
        with objects.lock:
            step = objects.gets.popleft() if objects.gets else ""
        found = objects.find(key)
        if step == "cut" and found is not None:
            self.answer(200, found.data[:-1], etag=found, missing=1)
            self.close_connection = True
            return
        if step:
            self.fault(step)
            return
        if found is None:
            self.answer(objects.habits.absent, code="NoSuchKey" if objects.habits.absent == 404 else "AccessDenied")
        else:
            self.answer(200, found.data, etag=found, headers=found.headers)

    def do_DELETE(self) -> None:
        self.objects.requests.append(("DELETE", self.key(), {}))
        with self.objects.lock:
            self.objects.kept.pop(self.key(), None)
        self.answer(204)

    def list_keys(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        prefix, limit = query.get("prefix", [""])[0], int(query["max-keys"][0])
        with self.objects.lock:
            keys = sorted(key for key in self.objects.kept if key.startswith(prefix))[:limit]
        listed = "".join(f"<Contents><Key>{escape(key)}</Key></Contents>" for key in keys)
        self.answer(200, f"<ListBucketResult>{listed}</ListBucketResult>".encode())

    def fault(self, step: str) -> None:
        if step == "drop":
            self.close_connection = True
            return
        status, _, code = step.partition(" ")
        self.answer(int(status), code=code or "Fault")

    def answer(
        self, status: int, body: bytes = b"", *, code: str = "", etag: Kept | None = None,
        headers: Mapping[str, str] | None = None, missing: int = 0,
    ) -> None:
        if status >= 300 and status != 304:
            # What some stores do: the key of whoever asked is in the answer.
            asked = escape(self.headers.get("Authorization", ""))
            body = f"<Error><Code>{code or 'PreconditionFailed'}</Code><Message>{asked}</Message></Error>".encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(body) + missing))
        if etag is not None and not self.objects.habits.no_etag:
            self.send_header("ETag", f'"{etag.etag}"' if self.objects.habits.quoted else etag.etag)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
