"""GETs that the log signs: against a real TLS server that shows nothing to whoever does not sign."""

from __future__ import annotations

import base64
import json
import re
import time
from email.utils import parsedate_to_datetime

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)
from tls_server import HOST, OTHER, answer

from ktlog.durable import write_atomic
from ktlog.errors import EncodingError, MessageRejected, StoreError, Unreachable
from ktlog.operator.create import create_log
from ktlog.operator.keys import FETCH_KEY, create_fetch_key, fetch_key_pem, load_fetch_key
from ktlog.web.app import create_app
from ktlog.wire.actor import ED25519, actor_key, fetch_actor, parse_actor
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.cavage import get_signer, sign_get
from ktlog.wire.fetch import Fetcher
from ktlog.wire.webfinger import ACTIVITY_JSON

ORIGIN = "keys.example.com"
LOG_ACTOR = f"https://{ORIGIN}/users/pubkeydir"
FETCH_KEY_ID = f"{LOG_ACTOR}#fetch-key"
ALICE = f"https://{HOST}/users/alice"
DOCUMENT = json.dumps({
    "id": ALICE, "type": "Person", "inbox": f"{ALICE}/inbox",
    "assertionMethod": [actor_key(f"{ALICE}#main-key", ALICE, ED25519, bytes.fromhex(
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"))],
}).encode()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return create_log(tmp_path_factory.mktemp("cavage") / "log", ORIGIN, "spec", bytes(32))


class Secure:
    """A server in secure mode: it knows one key, and shows Alice to whoever signs with that."""

    def __init__(self, server, key_id, pem):
        self.key_id, self.public = key_id, load_pem_public_key(pem.encode())
        self.refused = []
        self.moved = {}
        server.behave = self.behave

    def behave(self, request):
        why = self.check(request)
        if why is not None:
            self.refused.append(why)
            return answer(b"", 401)
        if request.target in self.moved:
            return answer(b"", 302, Location=self.moved[request.target])
        return answer(DOCUMENT, content_type=ACTIVITY_JSON)

    def check(self, request):
        """What is wrong with the signature, read as draft-cavage-http-signatures-12 has it; None when it holds."""
        fields = dict(re.findall(r'(\w+)="([^"]*)"', request.header("signature") or ""))
        if not fields:
            return "unsigned"
        if fields["keyId"] != self.key_id or fields["algorithm"] != "rsa-sha256":
            return "not the key"
        if fields["headers"].split() != ["(request-target)", "host", "date"]:
            return "not enough covered"
        if abs(parsedate_to_datetime(request.header("date")).timestamp() - time.time()) > 300:
            return "old"
        lines = {
            "(request-target)": f"{request.method.lower()} {request.target}", "host": request.header("host"),
            "date": request.header("date"),
        }
        text = "\n".join(f"{name}: {lines[name]}" for name in fields["headers"].split())
        try:
            self.public.verify(base64.b64decode(fields["signature"]), text.encode(), PKCS1v15(), SHA256())
        except InvalidSignature:
            return "bad signature"
        return None


@pytest.fixture
def app(log, server, tmp_path, monkeypatch):
    """The log's application, for which the server is the whole network."""
    hosts = {HOST: f"127.0.0.1:{server.port}"}
    write_atomic(tmp_path / "dial.json", json.dumps({"ca_file": server.ca_file, "hosts": hosts}).encode())
    monkeypatch.setenv("KTLOG_DIAL", str(tmp_path / "dial.json"))
    app = create_app(log)
    yield app
    app.extensions["ktlog"].guard.close()
    app.extensions["ktlog"].store.close()


def own_document(app):
    """The log's actor, as anybody gets it who signs nothing."""
    found = app.test_client().get(
        "/users/pubkeydir", headers={"Host": ORIGIN}, environ_overrides={"RAW_URI": "/users/pubkeydir"}
    )
    assert found.status_code == 200
    return json.loads(found.data)


def keys_of(app):
    return app.extensions["ktlog"].authenticator._actor_keys


def test_an_actor_on_a_server_that_refuses_unsigned_gets_is_found(app, server):
    """With nothing but the document that the log shows to everybody, the server believes the log."""
    published = own_document(app)["publicKey"]
    secure = Secure(server, published["id"], published["publicKeyPem"])
    assert keys_of(app).find(f"{ALICE}#main-key", ALICE).controller == ALICE
    assert secure.refused == [] and len(server.requests) == 1
    with Fetcher(server.dial(), timeout=5) as unsigned, pytest.raises(Unreachable):
        fetch_actor(unsigned, ALICE)
    assert secure.refused == ["unsigned"], "the server is strict"


def test_what_the_log_shows_of_the_key(app, log):
    document = own_document(app)
    key = document["publicKey"]
    assert set(key) == {"id", "owner", "publicKeyPem"}
    assert (key["id"], key["owner"], document["id"]) == (FETCH_KEY_ID, LOG_ACTOR, LOG_ACTOR)
    assert "https://w3id.org/security/v1" in document["@context"]
    public = load_pem_public_key(key["publicKeyPem"].encode())
    assert public == load_fetch_key(log.keys).public_key() and public.key_size == 2048
    # Whoever verifies what the log says looks in assertionMethod, where it is not.
    assert {one.id for one in parse_actor(document, LOG_ACTOR).assertion_method} == {
        f"{LOG_ACTOR}#main-key", f"{LOG_ACTOR}#pq-key"
    }


def test_each_hop_of_a_redirect_is_signed_for_itself(log, server):
    secure = Secure(server, FETCH_KEY_ID, _pem(log))
    secure.moved = {"/users/alice": "/ap/users/alice?x=%2F"}
    with Fetcher(server.dial(), timeout=5, sign_get=_signer(log)) as fetcher:
        assert fetcher.get(ALICE).status == 200
    assert [request.target for request in server.requests] == ["/users/alice", "/ap/users/alice?x=%2F"]
    assert secure.refused == []


@pytest.mark.parametrize("change", [
    {"method": "POST"}, {"target": "/users/bob"}, {"host": OTHER}, {"date": "Thu, 01 Jan 1970 00:00:00 GMT"},
])
def test_the_signature_is_for_this_request_alone(log, change):
    """Copied onto another it is refused: by the reading that the tests above rest on, too."""
    class Server:
        behave = None

    class Copy:
        method, target = "GET", "/users/alice"
        headers = {"host": HOST, "user-agent": "x"}

        def header(self, name):
            return self.headers.get(name)

    copy, secure = Copy(), Secure(Server(), FETCH_KEY_ID, _pem(log))
    signed = sign_get(parse_https_url(ALICE), FETCH_KEY_ID, load_fetch_key(log.keys), int(time.time()))
    copy.headers = copy.headers | {name.lower(): value for name, value in signed.items()}
    assert secure.check(copy) is None
    for name, value in change.items():
        if name in ("method", "target"):
            setattr(copy, name, value)
        else:
            copy.headers[name] = value
    assert secure.check(copy) in ("bad signature", "old")


def test_posts_are_not_signed_with_it(log, server):
    with Fetcher(server.dial(), timeout=5, sign_get=_signer(log)) as fetcher:
        fetcher.post(f"{ALICE}/inbox", b"{}")
    assert server.requests[0].header("signature") is None and server.requests[0].header("date") is None


def test_the_key_id_is_a_url(log):
    with pytest.raises(EncodingError):
        sign_get(parse_https_url(ALICE), 'x",headers="date', load_fetch_key(log.keys), 0)


def test_a_log_made_before_fetches_unsigned(app, log, server):
    """It works as it did, and shows no key that it does not have."""
    (log.keys / FETCH_KEY).rename(log.keys / "away")
    try:
        older = create_app(log)
        assert "publicKey" not in own_document(older)
        secure = Secure(server, FETCH_KEY_ID, own_document(app)["publicKey"]["publicKeyPem"])
        with pytest.raises(MessageRejected) as caught:
            keys_of(older).find(f"{ALICE}#main-key", ALICE)
        assert caught.value.code == "actor_unreachable" and secure.refused == ["unsigned"]
        older.extensions["ktlog"].guard.close()
        older.extensions["ktlog"].store.close()
        assert get_signer(FETCH_KEY_ID, load_fetch_key(log.keys), lambda: 0) is None
    finally:
        (log.keys / "away").rename(log.keys / FETCH_KEY)


def test_the_key_file(tmp_path):
    create_fetch_key(tmp_path)
    path = tmp_path / FETCH_KEY
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_fetch_key(tmp_path).key_size == 2048
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        create_fetch_key(tmp_path)
    assert caught.value.name == "SecretExists" and path.read_bytes() == before
    path.chmod(0o640)
    with pytest.raises(StoreError) as caught:
        load_fetch_key(tmp_path)
    assert caught.value.name == "UnsafeSecret"


def _private(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("content", [
    b"", b"no PEM", _private(generate_private_key(65537, 1024)), _private(generate_private_key(3, 2048)),
    _private(generate_ec_key(SECP256R1())), b"x" * 10_000,
], ids=["empty", "text", "1024 bits", "exponent 3", "P-256", "long"])
def test_key_files_that_hold_no_such_key(tmp_path, content):
    """An operator's own key that other servers would refuse is found at the start."""
    (tmp_path / FETCH_KEY).write_bytes(content)
    (tmp_path / FETCH_KEY).chmod(0o600)
    with pytest.raises(StoreError) as caught:
        load_fetch_key(tmp_path)
    assert caught.value.name == "BadSecret"


def test_what_openssl_writes_is_taken(tmp_path):
    key = generate_private_key(65537, 3072)
    (tmp_path / FETCH_KEY).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    (tmp_path / FETCH_KEY).chmod(0o600)
    assert load_fetch_key(tmp_path).key_size == 3072


def _signer(log):
    return get_signer(FETCH_KEY_ID, load_fetch_key(log.keys), lambda: int(time.time()))


def _pem(log):
    return fetch_key_pem(load_fetch_key(log.keys))
