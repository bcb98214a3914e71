"""Our HTTP server: gunicorn with threads, started from a function.

    serve(lambda: create_app(...), "127.0.0.1:8000", name="ktlog web")

gunicorn stands behind a TLS front or a reverse proxy and believes nothing that a request says about
itself: no forwarding header is honoured. An app finds the request target and the header lines as they came,
which HTTP signatures are over, with ktlog.wire.environ.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ktlog.collector import look_rarely
from ktlog.errors import EncodingError, KtlogError, UsageError
from ktlog.tlog.encoding import parse_decimal
from ktlog.wire.environ import LINES

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# Above the idle time of our own client (ktlog.wire.fetch), so that it is the client who hangs up.
KEEPALIVE_SECONDS = 20
REQUEST_TIMEOUT_SECONDS = 60
GRACEFUL_SECONDS = 10
BACKLOG = 1024
CONNECTIONS = 1000

_DEADLINES = "ktlog.wire.deadline.DeadlineWorker"
_FD = re.compile(r"fd://([0-9]+)")
_LISTEN = re.compile(r"(?:([0-9.]+|localhost)|\[([0-9a-f:]+)\]):([0-9]+)")
_request = threading.local()


class RefusalCounter(logging.Filter):
    """Keeps out of gunicorn's log what strangers wrote in requests: it quotes them, and an actor's id may be in them.

    A request that gunicorn refuses itself is counted; a line with the count is logged at 1, 2, 4, 8 and so on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        if text.startswith("Error handling request"):
            record.msg, record.args = "Error handling request", ()
        if not text.startswith("Invalid request"):
            return True
        with self._lock:
            self.count += 1
            count = self.count
        record.msg, record.args = f"malformed requests refused by this process so far, unread: {count}", ()
        return count & (count - 1) == 0


_refusals = RefusalCounter()


def parse_listen(text: str) -> int | tuple[str, int]:
    """Where to listen: the descriptor of ``fd://N``, or (address, port) of ``127.0.0.1:8000``, ``[::1]:8000``.

    Raises:
        UsageError: ``BadListen``.
    """
    try:
        if match := _FD.fullmatch(text):
            return parse_decimal(match[1], 65535)
        if match := _LISTEN.fullmatch(text):
            return match[1] or match[2], parse_decimal(match[3], 65535)
    except EncodingError:
        pass
    raise UsageError("BadListen", f"{text!r} is neither ADDRESS:PORT nor fd://N")


def open_listener(listen: str) -> socket.socket:
    """A listening socket for *listen*: a new one, or the one inherited under ``fd://N``.

    Raises:
        UsageError: ``BadListen``: no address of this machine, the port is taken, or no such socket is there.
    """
    where = parse_listen(listen)
    try:
        if isinstance(where, int):
            listener = socket.socket(fileno=where)
        else:
            family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
            created = socket.create_server(where, family=family, backlog=BACKLOG)
            # Made again from its descriptor it knows its protocol, which asyncio asks before it sets TCP_NODELAY.
            listener = socket.socket(fileno=created.detach())
    except OSError as error:
        raise UsageError("BadListen", f"cannot listen on {listen}: {error.strerror or error}") from None
    return listener


def format_address(listener: socket.socket) -> str:
    """``ADDRESS:PORT`` of a listening socket, as parse_listen reads it."""
    address, port = listener.getsockname()[:2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def serve(
    app_factory: Callable[[], WsgiApp],
    listen: str,
    *,
    workers: int = 1,
    threads: int = 4,
    name: str = "ktlog",
    on_starting: Callable[[], None] | None = None,
    on_ready: Callable[[str], None] | None = None,
    after_fork: Callable[[], None] | None = None,
    on_worker_exit: Callable[[], None] | None = None,
    on_exit: Callable[[], None] | None = None,
    whole: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; return when every request in hand is answered.

    Args:
        app_factory: makes the app, once in each worker, after the fork: what cannot cross a fork (threads,
            database connections) may be opened there. What is imported by now is shared by all workers.
        listen: see parse_listen. Port 0 takes a free one, which *on_ready* is told.
        name: for the process list and the log.
        on_starting: in this process, before the first worker.
        on_ready: in this process, with ``ADDRESS:PORT``, when connections are accepted.
        after_fork: in each worker, before *app_factory*.
        on_worker_exit: in each worker, when its last request is answered.
        on_exit: in this process, after the last worker.
        whole: hand requests to the app when all of them is here, at most so many bytes of a body (ktlog.wire.whole);
            the app answers whole.

    Raises:
        UsageError: ``BadListen``.
        SystemExit: not 0, when a worker cannot start; the reason is on standard error.
    """
    listener = open_listener(listen)
    address = format_address(listener)
    settings = _settings(workers, threads, name)
    if whole is not None:
        settings |= _whole_settings(whole)
    settings["bind"] = f"fd://{listener.detach()}"

    def starting(arbiter: Any) -> None:
        if workers == 1:
            _stay_one(arbiter)
        if on_starting is not None:
            on_starting()

    settings["on_starting"] = starting
    if on_ready is not None:
        settings["when_ready"] = lambda _arbiter: on_ready(address)
    if after_fork is not None:
        settings["post_fork"] = lambda _arbiter, _worker: after_fork()
    settings["post_worker_init"] = lambda _worker: look_rarely()
    if on_worker_exit is not None:
        settings["worker_exit"] = lambda _arbiter, _worker: on_worker_exit()
    if on_exit is not None:
        settings["on_exit"] = lambda _arbiter: on_exit()
    _run(app_factory, settings)


def _stay_one(arbiter: Any) -> None:
    """Who asks for one worker must not get a second by a signal, not even for the moment of a reload."""
    say = logging.getLogger("ktlog.httpd").warning
    for name in ("HUP", "TTIN", "TTOU", "USR2"):
        setattr(arbiter, f"handle_{name.lower()}", partial(say, "SIG%s does nothing here: restart the service", name))


def _settings(workers: int, threads: int, name: str) -> dict[str, Any]:
    return {
        "workers": workers,
        "threads": threads,
        "worker_connections": connections_limit(threads),
        "worker_class": _DEADLINES,
        "proc_name": name,
        "keepalive": KEEPALIVE_SECONDS,
        "timeout": REQUEST_TIMEOUT_SECONDS,
        "graceful_timeout": GRACEFUL_SECONDS,
        "loglevel": "warning",
        "accesslog": None,
        "errorlog": "-",
        "limit_request_line": 8190,
        "limit_request_fields": 64,
        "limit_request_field_size": 8190,
        # The peer is a proxy on loopback that passes on whatever strangers send.
        "forwarded_allow_ips": "",
        "forwarder_headers": "",
        "secure_scheme_headers": {},
        "header_map": "drop",
        "http_parser": "python",
        "control_socket_disable": True,
        "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,  # noqa: S108
        "pre_request": _remember_lines,
    }


def _whole_settings(body_limit: int) -> dict[str, Any]:
    from ktlog.wire.whole import WholeWorker, raise_descriptors

    return {
        "worker_class": type("BoundWorker", (WholeWorker,), {"body_limit": body_limit}),
        "worker_connections": raise_descriptors(),
    }


def connections_limit(threads: int) -> int:
    """How many connections a worker holds: at most half of its descriptors. The rest is for what requests need."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CONNECTIONS if descriptors < 0 else max(threads, min(CONNECTIONS, descriptors // 2))


def _run(app_factory: Callable[[], WsgiApp], settings: dict[str, Any]) -> None:
    from gunicorn.app.base import BaseApplication  # late: only servers need it installed
    from gunicorn.arbiter import Arbiter
    from gunicorn.errors import HaltServer

    class Application(BaseApplication):
        def load_config(self) -> None:
            for key, value in settings.items():
                if key in self.cfg.settings:  # some are younger than the oldest gunicorn we take
                    self.cfg.set(key, value)

        def load(self) -> WsgiApp:
            try:
                app = app_factory()
                return app if settings["worker_class"] != _DEADLINES else _with_lines(app)
            except KtlogError as error:
                print(f"{settings['proc_name']}: {error.diagnostics()}", file=sys.stderr, flush=True)
                # The code that tells the master not to try for ever.
                raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from None

    logging.getLogger("gunicorn.error").addFilter(_refusals)
    # A stray variable of this name would change every path that apps see.
    os.environ.pop("SCRIPT_NAME", None)
    master = os.getpid()
    try:
        try:
            Application().run()
        except HaltServer as halted:  # when a second worker failed before the first was cleared away
            raise SystemExit(halted.exit_status) from None
    except SystemExit as leaving:
        if os.getpid() != master:
            # A worker: the frames above belong to the parent, and so does their cleaning up.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(leaving.code if isinstance(leaving.code, int) else 1)
        if leaving.code:
            raise


def _remember_lines(_worker: Any, request: Any) -> None:
    """gunicorn calls this just before it builds the environ, in the same thread."""
    _request.lines = tuple(request.headers)


class _Body(io.RawIOBase):
    """A request's body, in which chunks that break HTTP's rules look like a sender that went away.

    That is what frameworks expect of a body. gunicorn's own error would look like one of the app's, whose traceback
    in the log quotes what the stranger sent.
    """

    def __init__(self, body: Any, refused: type[Exception]) -> None:
        super().__init__()
        self._body, self._refused = body, refused

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._body.read(len(buffer))
        except self._refused:
            raise ConnectionAbortedError("the body's chunks are malformed") from None
        buffer[: len(data)] = data
        return len(data)


def _with_lines(app: WsgiApp) -> WsgiApp:
    from gunicorn.http.errors import ParseException  # late, as above

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ[LINES] = getattr(_request, "lines", None)
        environ["wsgi.input"] = _Body(environ["wsgi.input"], ParseException)
        connection = environ.get("gunicorn.socket")
        if connection is not None:
            # gunicorn sets it on the listener, too late for connections that waited there while we started.
            # Without it each answer on them loses 40 ms between its head and its body.
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return app(environ, start_response)

    return application
