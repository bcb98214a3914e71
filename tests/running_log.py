"""One real log with all that it needs: a witness, an instance stand-in and a TLS front, each a process.

Beside them, in the test's own process, stands ``evil.example``: an instance whose actor documents are
whatever a test wants them to be. Requests are written byte by byte, so that a test can send anything.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.client import Built, SigningKey, build_envelope, enrol, load_http_key, seal
from ktlog.config import Settings, write_settings
from ktlog.demo.front import write_routes
from ktlog.demo.instance import http_key_id, prepare_instance
from ktlog.demo.pki import create_pki
from ktlog.demo.processes import Processes, listen_on_loopback
from ktlog.durable import write_atomic
from ktlog.operator.create import create_log, load_public_keys
from ktlog.operator.instance import direct_message
from ktlog.operator.stores import open_log, open_tiles
from ktlog.pkd.compose import format_wire
from ktlog.pkd.hpke import seal_message
from ktlog.pkd.keys import pkd_root
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64url
from ktlog.tlog.note import Vkey, parse_vkey
from ktlog.tlog.policy import Group, Policy, format_policy
from ktlog.tlog.policy import Witness as PolicyWitness
from ktlog.wire.httpsig import sign_request
from ktlog.wire.webfinger import ACTIVITY_JSON
from tests.store_samples import dump
from tests.tls_server import Request, TlsServer, answer
from witness.cli import main as witness_command
from witness.config import WitnessDir
from witness.keys import write_keys
from witness.store import WitnessStore

ORIGIN = "keys.alpha.example"
LOG_ACTOR = f"https://{ORIGIN}/users/pubkeydir"
INBOX_PATH = "/users/pubkeydir/inbox"
DOMAIN = "alpha.example"
USERS = ("a01", "a02", "a03", "a04", "a05", "a06")
EVIL = "evil.example"
GONE = "gone.example"
WITNESS = "w1.witness.example"
VERIFIER = "v1.verifier.example"
SECONDS = 60.0


Others = Callable[[Any], Mapping[str, tuple[tuple[Vkey, ...], str]]]


def actor(user: str, domain: str = DOMAIN) -> str:
    return f"https://{domain}/users/{user}"


def _cosigners(prefix: str, host: str, vkeys: tuple[Vkey, ...]) -> dict[str, PolicyWitness]:
    names = {f"{prefix}-{vkey.algorithm}": vkey for vkey in vkeys}
    return {name: PolicyWitness(name, vkey, f"https://{host}") for name, vkey in names.items()}


@dataclass(frozen=True)
class Answer:
    """What came back. header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RunningLog:
    """Starts everything in *directory*; ``stop`` ends it. settings: of the log, where they are not the usual.

    verifier: whether the map needs the cosignatures of a verifier too, which is then one more process.
    others: given the log's public keys, other witnesses that run already and must all cosign too, by host: their
    vkeys, and the ``ADDRESS:PORT`` of their plain HTTP.
    """

    def __init__(
        self, directory: Path, *, verifier: bool = False, others: Others = lambda public: {}, **settings: Any
    ) -> None:
        self.directory = directory
        self.source: str | None = None  # the address to send from
        self.verifier = verifier
        self._others = others
        self.keys = {user: SigningKey.generate() for user in USERS}
        place = {name: value for name, value in settings.items() if name.startswith(("objects", "store"))}
        self.settings = create_log(directory / "log", ORIGIN, "spec", None, **place)
        usual: dict[str, Any] = {
            "workers": 1, "checkpoint_interval_ms": 100, "map_interval_ms": 100, "aux_types": "ssh-v2",
            "rate_limit_exempt": "127.0.0.0/8",  # the limits have tests of their own
        }
        write_settings(Settings(self.settings.directory, ORIGIN, "spec", **(usual | settings)))
        self._make_witness()
        prepare_instance(directory / "instance", DOMAIN, USERS)
        self.evil_documents: dict[str, Any] = {}
        self._start()
        self._context = ssl.create_default_context(cafile=str(directory / "front" / "ca.pem"))
        self._hpke: bytes | None = None
        self.first_wire: dict[str, Any] = {}
        """The first message that was accepted, to be sent again."""
        self.good: dict[str, Any] = {}
        """One that would be accepted, to be spoilt."""

    # Setting up

    def _make_witness(self) -> None:
        directory = WitnessDir(self.directory / "witness")
        directory.make()
        signers = write_keys(directory, os.urandom(32), WITNESS)
        vkeys = tuple(signer.vkey for signer in signers)
        store = WitnessStore.create(directory.database, WITNESS, vkeys, int(time.time()))
        public = load_public_keys(self.settings)
        store.add_log(ORIGIN, tuple(map(parse_vkey, public.vkeys)), int(time.time()))
        store.add_log(f"{ORIGIN}/map", tuple(map(parse_vkey, public.map_vkeys)), int(time.time()))
        store.close()
        lines = _cosigners("w", WITNESS, vkeys)
        others = self._others(public)
        self._other_routes = {host: address for host, (_, address) in others.items()}
        for number, (host, (of_other, _)) in enumerate(others.items()):
            lines |= _cosigners(f"o{number}", host, of_other)
        groups = {"witnesses": Group("witnesses", len(lines), tuple(lines))}
        if self.verifier:
            of_verifier = _cosigners("v", VERIFIER, self._make_verifier(public.vkeys + public.map_vkeys))
            groups["verifiers"] = Group("verifiers", len(of_verifier), tuple(of_verifier))
            groups["all"] = Group("all", 2, tuple(groups))
            lines |= of_verifier
        self.policy = Policy((), lines, groups, list(groups)[-1])
        """The publish policy: with ``log`` lines it is a client's."""
        write_atomic(self.settings.publish_policy, format_policy(self.policy))

    def _make_verifier(self, log_vkeys: tuple[str, ...]) -> tuple[Vkey, ...]:
        directory = ["--dir", str(self.directory / "verifier")]
        for arguments in (
            ["init", *directory, "--name", VERIFIER],
            ["add-log", *directory, "--replay", f"https://{ORIGIN}", *log_vkeys],
        ):
            witness_command.main(arguments, standalone_mode=False)
        with closing(WitnessStore.open(WitnessDir(self.directory / "verifier").database, read_only=True)) as store:
            return tuple(map(parse_vkey, store.vkeys))

    def _start(self) -> None:
        front = self.directory / "front"
        create_pki(front, [ORIGIN, DOMAIN, WITNESS, VERIFIER, EVIL, GONE, *self._other_routes])
        self._evil = TlsServer(front, self._evil_answer)
        self._evil.start()
        started = (WITNESS, *([VERIFIER] if self.verifier else []), DOMAIN, ORIGIN)
        listeners = {host: listen_on_loopback() for host in started}
        entry, closed = listen_on_loopback(), listen_on_loopback()
        self.port = entry.getsockname()[1]
        routes = {host: f"127.0.0.1:{listener.getsockname()[1]}" for host, listener in listeners.items()}
        routes |= self._other_routes
        write_routes(front, routes)
        hosts = dict.fromkeys(routes, f"127.0.0.1:{self.port}")
        hosts |= {EVIL: f"127.0.0.1:{self._evil.port}", GONE: f"127.0.0.1:{closed.getsockname()[1]}"}
        closed.close()  # nobody listens there
        dial = self.directory / "dial.json"
        write_atomic(dial, json.dumps({"ca_file": "front/ca.pem", "hosts": hosts}).encode())
        self.processes = Processes(self.directory / "logs", {"KTLOG_DIAL": str(dial)})
        self.processes.start("front", "ktlog.demo.front", ["--dir", str(front)], entry)
        start = {
            WITNESS: ("witness", "witness", ["serve", "--dir", str(self.directory / "witness")]),
            VERIFIER: ("verifier", "witness", ["serve", "--replay", "--dir", str(self.directory / "verifier")]),
            DOMAIN: ("instance", "ktlog.demo.instance", ["--dir", str(self.directory / "instance")]),
            ORIGIN: self._log_command(),
        }
        for host, listener in listeners.items():
            self.processes.start(*start[host], listener)

    def _log_command(self) -> tuple[str, str, list[str]]:
        """Name, module and arguments of the process that answers in the log's name."""
        return "log", "ktlog", ["serve", "--dir", str(self.settings.directory)]

    def _evil_answer(self, request: Request) -> list:
        document = self.evil_documents.get(request.target)
        if document is None:
            return answer(b"", 404)
        if isinstance(document, list):
            return document  # the response itself
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return answer(body, content_type=ACTIVITY_JSON)

    def stop(self) -> None:
        self.processes.stop_all()
        self._evil.stop()

    def output(self) -> str:
        """What the log's processes wrote."""
        return (self.directory / "logs" / "log.log").read_text(encoding="utf-8", errors="replace")

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz").status == 200
        except OSError:
            return False

    def wait(self, what: str, ready) -> None:
        deadline = time.monotonic() + SECONDS
        while not ready():
            assert self.processes.ended() == [], self.output()
            assert time.monotonic() < deadline, f"{what}: not within {SECONDS} s\n{self.output()}"
            time.sleep(0.05)

    # Talking to it

    def send(self, raw: bytes) -> Answer:
        """*raw* over TLS, and one answer."""
        with (
            socket.create_connection(("127.0.0.1", self.port), SECONDS, self.source and (self.source, 0)) as plain,
            self._context.wrap_socket(plain, server_hostname=ORIGIN) as connection,
        ):
            try:
                connection.sendall(raw)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                pass  # it reads no more; what it has to say may be there
            response = http.client.HTTPResponse(connection)
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())

    def request(
        self, method: str, target: str, headers: Mapping[str, str] | list[tuple[str, str]] = (), body: bytes = b"",
        host: str | None = ORIGIN,
    ) -> Answer:
        lines = [("Host", host)] if host is not None else []
        lines += list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        lines.append(("Connection", "close"))
        if method != "GET":
            lines.append(("Content-Length", str(len(body))))
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines) + "\r\n"
        return self.send(head.encode("utf-8", "surrogateescape") + body)

    def get(self, target: str, **options: Any) -> Answer:
        return self.request("GET", target, **options)

    def hpke(self) -> bytes:
        if self._hpke is None:
            self._hpke = decode_base64url(self.get("/api/server-public-key").json()["hpke-public-key"])
        return self._hpke

    # Sending messages

    def http_key(self, user: str) -> Ed25519PrivateKey:
        return load_http_key(self.directory / "instance" / "keys" / f"{user}.key")

    def sealed(self, wire: Mapping[str, Any] | str) -> str:
        text = wire if isinstance(wire, str) else format_wire(wire)
        return seal_message(self.hpke(), text.encode("utf-8"))

    def activity(self, content: Any, user: str = "a01") -> dict[str, Any]:
        """The direct message that carries *content*, to be spoilt."""
        return direct_message(LOG_ACTOR, actor(user), content, os.urandom)

    def signed_headers(self, body: bytes, user: str = "a01", **options: Any) -> dict[str, str]:
        fields = {
            "key": self.http_key(user), "key_id": http_key_id(actor(user)), "created": int(time.time()),
            "url": f"https://{ORIGIN}{INBOX_PATH}", "method": "POST",
        } | options
        return sign_request(
            fields["method"], fields["url"], {"Content-Type": ACTIVITY_JSON}, body, fields["key_id"], fields["key"],
            fields["created"],
        )

    def post(self, body: bytes, user: str = "a01", **options: Any) -> Answer:
        """A signed request to the inbox."""
        return self.request("POST", INBOX_PATH, self.signed_headers(body, user, **options), body)

    def deliver(self, wire: Mapping[str, Any] | str, user: str = "a01", sender: str | None = None) -> Answer:
        """A protocol message, sealed, in its envelope and its direct message; all but *wire* as it should be."""
        content = build_envelope(sender or actor(user), self.sealed(wire))
        return self.post(json.dumps(self.activity(content, user)).encode(), user)

    def build_enrolment(self, user: str) -> Built:
        return enrol(actor(user), self.keys[user], recent_root=self.root(), now=int(time.time()))

    def enrol(self, user: str) -> Answer:
        built = self.build_enrolment(user)
        content = build_envelope(actor(user), seal(built, self.hpke()))
        return self.post(json.dumps(self.activity(content, user)).encode(), user)

    # What it has

    def root(self) -> str:
        with closing(open_log(self.settings, read_only=True)) as store:
            state = store.state()
            return pkd_root(state.size, state.root)

    def snapshot(self) -> dict[str, Any]:
        """Everything that a refused message must leave as it was; the epoch shows that nobody was restarted."""
        with sqlite3.connect(f"{self.settings.database.as_uri()}?mode=ro", uri=True) as database:
            tables = [row[0] for row in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            counts = {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}
        database.close()
        with SqliteStore.open(self.settings.database, read_only=True) as store:
            return {"rows": counts, "pids": (self.settings.directory / "pids.json").read_bytes()} | dump(store)

    def published_size(self) -> int:
        note = open_tiles(self.settings, read_only=True).checkpoint()
        return -1 if note is None else parse_signed_checkpoint(note)[1].size

    def wait_published(self, size: int) -> None:
        self.wait(f"a checkpoint of size {size}", lambda: self.published_size() >= size)


@contextmanager
def running_log(directory: Path, **settings: Any) -> Iterator[RunningLog]:
    """A log that answers. After the tests each of its processes must be there still, and none had an error."""
    log = RunningLog(directory, **settings)
    try:
        log.wait("the log to be ready", log.is_ready)
        yield log
        assert "Traceback" not in log.output()
        assert log.processes.ended() == []
    finally:
        log.stop()
