"""A log's application with two actors enrolled, and what their instance sends about its TOTP secret."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ktlog.client import totp as client
from ktlog.client.keyfile import SigningKey
from ktlog.config import Settings
from ktlog.errors import Conflict, MessageRejected
from ktlog.operator.create import create_log
from ktlog.operator.link import SequencerLink
from ktlog.pkd.cosign import make_cosignature
from ktlog.pkd.keys import encode_public_key
from ktlog.pkd.messages import AddKey
from ktlog.store.sqlite import SqliteStore
from ktlog.web.app import create_app
from ktlog.web.context import Context
from ktlog.wire.fetch import Fetcher, Response
from ktlog.wire.httpsig import sign_request
from tests.admission_world import Instances, http_key
from tests.operator_world import NOW, ORIGIN, Clock, Desk
from tests.pkd_samples import ALICE, BOB, bytes_of, private, public

SECRET, OTHER = bytes_of("totp secret"), bytes_of("another totp secret")
WITNESS = "https://w1.example"


def make_log(directory: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A log's directory that lists one cosigner. Applications of it have *clock*, and fetch actors from nowhere."""
    monkeypatch.setattr(Fetcher, "from_environment", classmethod(lambda cls, *_, **__: Instances()))
    monkeypatch.setattr(Context, "now", lambda self: clock())
    monkeypatch.setattr(Context, "now_ms", lambda self: clock() * 1000)
    settings = create_log(directory, ORIGIN, "spec", bytes(32))
    settings.cosigners.write_text(f"# ours\n{WITNESS} {encode_public_key(public('witness'))}\n")
    return settings


class Site:
    """A log's application with ALICE and BOB enrolled; the sequencer is asked without a socket between."""

    def __init__(self, settings: Settings, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = clock
        self.desk = Desk(SqliteStore.open(settings.database, origin=ORIGIN))
        for actor, name in ((ALICE, "a"), (BOB, "b")):
            self.desk.send(AddKey(actor, public(name), NOW), name)

        def totp_set(_link, domain, secret, window, serial):
            try:
                self.desk.store.set_totp(domain, secret, window, serial)
            except Conflict:
                raise MessageRejected("totp_moved", "changed meanwhile") from None

        monkeypatch.setattr(SequencerLink, "totp_set", totp_set)
        monkeypatch.setattr(SequencerLink, "cosign", lambda _link, found: self.desk.store.add_cosignature(found))
        self.app = create_app(settings)
        self.context: Context = self.app.extensions["ktlog"]
        self.hpke = self.context.hpke_key.encapsulation_key
        self.signer = SigningKey(bytes_of("signing key a"))

    @property
    def key_id(self) -> str:
        return self.desk.store.actor(ALICE).keys[0].key_id

    def close(self) -> None:
        self.context.guard.close()
        self.context.store.close()
        self.desk.store.close()

    def post(self, path: str, body, signed: bool = True, address: str = "192.0.2.1"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if signed:
            url = f"https://{ORIGIN}{path}"
            headers = sign_request("POST", url, headers, data, f"{ALICE}#main-key", http_key(ALICE), self.clock())
        return self.app.test_client().post(
            path, data=data, headers=[("Host", ORIGIN), *headers.items()],
            environ_overrides={"REMOTE_ADDR": address, "RAW_URI": path},
        )

    def enroll(self, secret: bytes = SECRET, **options):
        body = client.enroll(ALICE, self.key_id, self.signer, secret, self.hpke, now=self.clock())
        return self.post("/api/totp/enroll", body, **options)

    def rotate(self, secret: bytes = OTHER, old: str | None = None, **options):
        old = client.password(SECRET, self.clock()) if old is None else old
        body = client.rotate(ALICE, self.key_id, self.signer, secret, old, self.hpke, now=self.clock())
        return self.post("/api/totp/rotate", body, **options)

    def disenroll(self, otp: str | None = None, **options):
        otp = client.password(SECRET, self.clock()) if otp is None else otp
        body = client.disenroll(ALICE, self.key_id, self.signer, otp, now=self.clock())
        return self.post("/api/totp/disenroll", body, **options)

    def cosign(self, root: str, signed_root: str | None = None, path: str | None = None, witness: str = WITNESS):
        token = make_cosignature(private("witness"), self.clock(), ORIGIN, signed_root or root)
        body = {"witness": witness, "cosigned": token}
        return self.post(f"/api/history/cosign/{root if path is None else path}", body, signed=False)


class Through:
    """A fetcher for whom the application is the whole network."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.posted: list[bytes] = []

    def get(self, url: str, **_) -> Response:
        return self._ask("GET", url, b"", {})

    def post(self, url: str, body: bytes, headers=None, **_) -> Response:
        self.posted.append(body)
        return self._ask("POST", url, body, headers or {})

    def _ask(self, method: str, url: str, body: bytes, headers) -> Response:
        path = urlsplit(url).path
        found = self.site.app.test_client().open(
            path, method=method, data=body, headers=[("Host", urlsplit(url).hostname), *headers.items()],
            environ_overrides={"REMOTE_ADDR": "192.0.2.1", "RAW_URI": path},
        )
        return Response(found.status_code, {k.lower(): v for k, v in found.headers.items()}, found.data, url)
