"""The application's outer wall: which hosts it answers, who has to wait, and that every answer is signed."""

import json
import shutil
import time
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Response
from werkzeug.exceptions import MethodNotAllowed, RequestEntityTooLarge

from ktlog.config import Settings
from ktlog.errors import EncodingError, Invalid, MessageRejected, RateLimited, StoreError, UsageError
from ktlog.operator.create import create_log
from ktlog.operator.guard import parse_networks
from ktlog.operator.keys import load_seed
from ktlog.operator.link import decode_receipt, encode_refusal
from ktlog.operator.request import Request, Source
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.keys import private_key_from_seed
from ktlog.web.app import create_app
from ktlog.web.guarding import claimed_domain, client_address, current_request, guarded, penalize_sender, penalty_weight
from ktlog.web.signing import REUSE_LIMIT, REUSE_SECONDS, AnswerSigner, right_digest
from ktlog.wire.actor import ED25519, ML_DSA_44, Multikey
from ktlog.wire.httpsig_response import Exchange, content_digest, verify_response

ORIGIN = "keys.alpha.example"
ALIAS = "directory.alpha.example"
IP = "192.0.2.7"
LOG_ACTOR = f"https://{ORIGIN}/users/pubkeydir"
EMPTY = content_digest(b"")
CLAIM = 'sig1=("@method");created=1;keyid="https://alpha.example/users/alice#main-key"'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return create_log(tmp_path_factory.mktemp("guarded") / "log", ORIGIN, "spec", bytes(32))


class Site:
    """An application with a few views of its own beside the log's."""

    def __init__(self, settings):
        self.settings = settings
        self.app = create_app(settings)
        self.context = self.app.extensions["ktlog"]
        self.seen = []
        self.app.add_url_rule("/refuse/<code>", "refuse", guarded(self.refuse), methods=["POST"])
        self.app.add_url_rule("/take", "take", guarded(self.take), methods=["POST"])
        self.app.add_url_rule("/malformed", "malformed", guarded(self.malformed), methods=["POST"])
        self.app.add_url_rule("/quiet", "quiet", guarded(self.quiet), methods=["POST"])
        self.app.add_url_rule("/broken", "broken", self.broken)

    def refuse(self, code):
        if code == "domain":
            current_request().source.domain = "alpha.example"
        raise MessageRejected(code, "no")

    def take(self):
        self.seen.append(current_request())
        return Response("taken", content_type="text/plain")

    def malformed(self):
        raise EncodingError("BadJson", "no JSON")

    def quiet(self):
        penalize_sender()
        return Response(status=204)

    def broken(self):
        raise ZeroDivisionError("a bug")

    def ask(self, method, target, ip=IP, host=ORIGIN, headers=(), data=None):
        lines = {"Host": host, **dict(headers)}
        if host is None:
            del lines["Host"]
        return self.app.test_client().open(
            target, method=method, headers=lines, data=data,
            environ_overrides={"REMOTE_ADDR": ip, "RAW_URI": target, "SERVER_NAME": ORIGIN} | (
                {} if host is not None else {"HTTP_HOST": ""}),
        )

    def post(self, target, **options):
        return self.ask("POST", target, **options)


@pytest.fixture
def site(made, tmp_path):
    values = {"hosts": ALIAS, "rate_limit_exempt": "10.0.0.0/8", "rate_limit_base_ms": 60_000}
    shutil.copytree(made.directory, tmp_path / "log")
    site = Site(Settings(tmp_path / "log", ORIGIN, "spec", **values))
    yield site
    site.context.guard.close()


def public_keys(settings):
    ed25519 = Ed25519PrivateKey.from_private_bytes(load_seed(settings.keys, "http-ed25519"))
    mldsa44 = private_key_from_seed(load_seed(settings.keys, "http-mldsa44"))
    return {
        f"{LOG_ACTOR}#{name}": Multikey(f"{LOG_ACTOR}#{name}", LOG_ACTOR, algorithm, key.public_key().public_bytes_raw())
        for name, algorithm, key in (("main-key", ED25519, ed25519), ("pq-key", ML_DSA_44, mldsa44))
    }


def check_signed(site, response, method, target, host=ORIGIN, digest=None):
    keys = public_keys(site.settings)
    headers = {name.lower(): value for name, value in response.headers.items()}
    exchange = Exchange(method, f"https://{host}{target}", response.status_code, headers, response.data, digest)
    assert set(verify_response(exchange, keys.__getitem__, int(time.time())).algorithms) == {ED25519, ML_DSA_44}


# -- what a refusal counts for


def test_a_refusal_may_say_itself_what_it_counts_for():
    assert penalty_weight(MessageRejected("html_content", weight=0)) == 0
    assert penalty_weight(MessageRejected("overloaded", weight=1)) == 0
    assert (penalty_weight(MessageRejected("otp_reused")), penalty_weight(MessageRejected("bad_otp"))) == (1, 8)


def test_two_right_passwords_of_one_window_are_no_guess():
    """Both were found good; the sequencer takes one. Its refusal counts as any."""
    with pytest.raises(MessageRejected) as caught:
        decode_receipt(parse_json(encode_refusal("otp_reused", "no")))
    assert (caught.value.code, penalty_weight(caught.value)) == ("otp_reused", 1)


# -- hosts


@pytest.mark.parametrize("host", [
    "127.0.0.1", "127.0.0.1:8080", "[::1]", "evil.example", ORIGIN.upper(), f"{ORIGIN}.", f"{ORIGIN}:443", "",
    f"{ORIGIN}, evil.example", f"x.{ORIGIN}", None,
])
def test_other_hosts_are_refused(site, host):
    """PKD, "DNS Rebinding Attacks"."""
    for method, target in (("GET", "/api/info"), ("POST", "/take"), ("GET", "/nowhere")):
        response = site.ask(method, target, host=host)
        assert (response.status_code, response.json["code"]) == (421, "wrong_host")
    assert site.seen == []


def test_every_host_of_the_list_is_answered_as_itself(site):
    for host in (ORIGIN, ALIAS):
        response = site.post("/take", host=host, headers={"Content-Digest": EMPTY})
        assert response.status_code == 200
        check_signed(site, response, "POST", "/take", host, EMPTY)
    assert [request.target_url for request in site.seen] == [f"https://{ORIGIN}/take", f"https://{ALIAS}/take"]


def test_a_refusal_for_another_host_is_not_signed_as_one_for_ours(site):
    """Or anybody could fetch a signed refusal of any address here, with a Host header of their own."""
    response = site.ask("GET", "/api/info", host="evil.example")
    check_signed(site, response, "GET", "/api/info", "evil.example")
    for host in ("evil.example", "127.0.0.1"):
        with pytest.raises(Invalid):
            check_signed(site, site.ask("GET", "/api/info", host=host), "GET", "/api/info")


@pytest.mark.parametrize("values", [{"compat": "rsa-sha1"}, {"trusted_proxies": "localhost"}, {"rate_limit_exempt": "10.0.0.1/8"}])
def test_settings_that_cannot_be_kept_are_refused_at_the_start(made, tmp_path, values):
    shutil.copytree(made.directory, tmp_path / "log")
    with pytest.raises(UsageError):
        create_app(Settings(tmp_path / "log", ORIGIN, "spec", **values))


# -- signed answers


@pytest.mark.parametrize(("method", "target", "status"), [
    ("GET", "/api/info", 200), ("GET", "/users/pubkeydir", 200), ("GET", "/nowhere", 404), ("DELETE", "/api/info", 405),
    ("GET", "/api/actor/https%3A%2F%2Falpha.example%2Fusers%2Falice", 404), ("GET", "/checkpoint", 404),
    ("GET", "/.well-known/webfinger?resource=acct:pubkeydir@keys.alpha.example", 200), ("POST", "/quiet", 204),
    ("GET", "/broken", 500), ("POST", "/refuse/unauthorized", 401), ("POST", "/refuse/overloaded", 503),
    ("GET", "/livez", 200), ("HEAD", "/api/info", 200), ("OPTIONS", "/api/info", 200),
])
def test_every_answer_is_signed(site, method, target, status):
    digest = EMPTY if method == "POST" else None
    response = site.ask(method, target, headers={"Content-Digest": digest} if digest else ())
    assert response.status_code == status
    check_signed(site, response, method, target, digest=digest)
    if status == 204:
        assert "Content-Type" not in response.headers and response.data == b""


def test_a_wrong_method_is_told_the_right_ones(site):
    assert site.ask("DELETE", "/api/info").headers["Allow"] == "GET, HEAD, OPTIONS"


def test_even_the_answer_to_who_must_wait_is_signed(site, monkeypatch):
    """And does not say that it answers this body, which was not read."""
    site.post("/refuse/bad_request")
    response = site.post("/take", headers={"Content-Digest": content_digest(b"body")}, data=b"body")
    assert response.status_code == 429
    unread(site, response, "/take", content_digest(b"body"), monkeypatch)


def unread(site, response, target, digest, monkeypatch):
    """The answer is signed, and nobody takes it as the answer to what was posted."""
    for named in (digest, None):
        with pytest.raises(Invalid, match="content-digest;req|does not parse"):
            check_signed(site, response, "POST", target, digest=named)
    with monkeypatch.context() as patch:
        patch.setattr("ktlog.wire.httpsig_response._METHODS_WITH_BODY", frozenset())
        check_signed(site, response, "POST", target)


@pytest.mark.parametrize(("target", "status"), [("/take", 200), ("/quiet", 204), ("/refuse/actor_is_fireproof", 403)])
def test_an_answer_to_one_body_is_none_to_another(site, target, status):
    one, other = content_digest(b"one"), content_digest(b"other")
    response = site.post(target, headers={"Content-Digest": one}, data=b"one")
    assert response.status_code == status
    check_signed(site, response, "POST", target, digest=one)
    for digest in (other, None):
        with pytest.raises(Invalid):
            check_signed(site, response, "POST", target, digest=digest)
    # Nor is a signature that was made a moment ago sent with the answer to another.
    response = site.post(target, ip="10.0.0.1", headers={"Content-Digest": other}, data=b"other")
    check_signed(site, response, "POST", target, digest=other)


@pytest.mark.parametrize("digest", [
    content_digest(b"other"), "", "sha-256", "md5=:AAAA:", "\xe9", content_digest(b"one") + ", md5=:AAAA:",
    content_digest(b"one").split(", ")[0] + ", " + content_digest(b"other").split(", ")[1],
])
def test_a_digest_that_the_sender_made_up_is_not_signed(site, monkeypatch, digest):
    """Or anybody got the answer to a body of theirs signed as that to somebody else's."""
    response = site.post("/take", headers={"Content-Digest": digest}, data=b"one")
    assert response.status_code == 200
    unread(site, response, "/take", digest, monkeypatch)


def test_of_two_digests_none_is_signed():
    headers = [("Content-Digest", content_digest(b"one"))] * 2
    asked = Request("POST", f"https://{ORIGIN}/take", headers, b"one", Source("192.0.2.1"))
    assert right_digest(asked) is None
    assert right_digest(replace(asked, headers=headers[:1])) == content_digest(b"one")
    assert right_digest(None) is None


def test_errors_are_not_kept_by_caches(site):
    for method, target in (
        ("GET", "/nowhere"), ("DELETE", "/api/info"), ("GET", "/broken"), ("GET", "/tile/0/x"), ("POST", "/refuse/bad_request"),
    ):
        response = site.ask(method, target)
        assert response.status_code >= 400
        assert response.headers["Cache-Control"] == "no-store", target


def test_a_signed_404_for_one_actor_is_none_for_another(site):
    target = "/api/actor/https%3A%2F%2Falpha.example%2Fusers%2F"
    response = site.ask("GET", target + "alice")
    check_signed(site, response, "GET", target + "alice")
    with pytest.raises(Invalid):
        check_signed(site, response, "GET", target + "bob")


def test_signatures_are_made_again_only_when_something_changed():
    now = [1_790_000_000]
    made = []

    class Key:
        def sign(self, message):
            made.append(message)
            return b"signature"

    signer = AnswerSigner(((f"{LOG_ACTOR}#pq-key", Key()),), lambda: now[0])
    first = Exchange("GET", f"https://{ORIGIN}/a", 200, {"content-type": "text/plain"}, b"body")
    signer.headers(first)
    signer.headers(first)
    assert len(made) == 1
    for other in (
        Exchange("GET", f"https://{ORIGIN}/b", 200, first.headers, b"body"), Exchange("GET", first.url, 404, first.headers, b"body"),
        Exchange("GET", first.url, 200, {}, b"body"), Exchange("GET", first.url, 200, first.headers, b"bodY"),
        Exchange("HEAD", first.url, 200, first.headers, b"body"), Exchange("GET", None, 200, first.headers, b"body"),
        replace(first, request_digest=content_digest(b"one")), replace(first, request_digest=content_digest(b"two")),
    ):
        before = len(made)
        signer.headers(other)
        assert len(made) == before + 1
    for later in (REUSE_SECONDS - 1, REUSE_SECONDS, -1):
        before = len(made)
        now[0] = 1_790_000_000 + later
        signer.headers(first)
        assert len(made) == before + (later != REUSE_SECONDS - 1)
    for number in range(REUSE_LIMIT + 1):
        signer.headers(Exchange("GET", f"https://{ORIGIN}/{number}", 200, {}, b""))
    assert len(signer._made) == REUSE_LIMIT


# -- who must wait


def test_a_refusal_makes_the_sender_wait(site):
    assert site.post("/take").status_code == 200
    refused = site.post("/refuse/bad_request")
    assert refused.status_code == 400
    waiting = site.post("/take")
    assert (waiting.status_code, waiting.json["error"], waiting.json["code"]) == (429, "rate_limited", "rate_limited")
    now = int(time.time())
    for response in (refused, waiting):
        assert 1 <= int(response.headers["Retry-After"]) <= 60
        assert response.headers["X-RateLimit-Limit"] == "1"
        assert now <= int(response.headers["X-RateLimit-Reset"]) <= now + 62
    assert len(site.seen) == 1
    assert site.post("/take", ip="198.51.100.3").status_code == 200
    assert site.ask("GET", "/api/info").status_code == 200, "reading is not limited"


@pytest.mark.parametrize("target", [
    "/malformed", "/quiet", "/refuse/unauthorized", "/refuse/actor_mismatch", "/refuse/merkle_root_stale", "/refuse/domain",
    "/refuse/replayed_request", "/refuse/too_large", "/refuse/whatever", "/users/pubkeydir/inbox",
])
def test_what_counts(site, target):
    site.post(target)
    assert site.post("/take").status_code == 429


@pytest.mark.parametrize("code", ["overloaded", "unavailable", "internal_error"])
def test_what_is_our_own_fault_does_not_count(site, code):
    response = site.post(f"/refuse/{code}")
    assert response.status_code >= 500 and "X-RateLimit-Limit" not in response.headers
    assert site.post("/take").status_code == 200


def test_a_body_that_is_too_large_counts(site):
    assert site.post("/take", data=b"x" * (site.settings.body_limit_bytes + 1)).status_code == 413
    assert site.post("/take").status_code == 429


def test_nothing_is_read_from_who_must_wait(site):
    site.post("/refuse/bad_request")
    assert site.post("/take", data=b"x" * (site.settings.body_limit_bytes + 1)).status_code == 429


def test_an_exempt_network_never_waits(site):
    for _ in range(3):
        response = site.post("/refuse/bad_request", ip="10.1.2.3")
        assert response.status_code == 400 and "Retry-After" not in response.headers
    assert site.post("/take", ip="10.1.2.3").status_code == 200


def test_a_server_that_must_wait_is_known_by_its_claim_too(site):
    site.post("/refuse/domain", ip="198.51.100.3")
    assert site.post("/take", headers={"Signature-Input": CLAIM}).status_code == 429
    assert site.post("/take", headers={"Signature-Input": CLAIM.replace("alpha", "beta")}).status_code == 200
    # The claim itself makes nobody wait: an invalid signature in the name of beta.example.
    beta = {"Signature-Input": CLAIM.replace("alpha", "beta")}
    site.post("/refuse/unauthorized", headers=beta)
    assert site.post("/take", headers=beta, ip="198.51.100.4").status_code == 200


def test_a_wrong_one_time_password_weighs_more(site):
    assert int(site.post("/refuse/bad_otp").headers["Retry-After"]) > 60 * 2**5


def test_weights():
    assert (penalty_weight(MessageRejected("bad_otp")), penalty_weight(MessageRejected("otp_reused"))) == (8, 1)
    assert penalty_weight(MessageRejected("bad_signature")) == penalty_weight(EncodingError("BadJson")) == 1
    assert penalty_weight(RequestEntityTooLarge()) == penalty_weight(MethodNotAllowed()) == 1
    assert penalty_weight(MessageRejected("overloaded")) == 0
    assert penalty_weight(RateLimited("", retry_after_ms=1, limit=1, reset=1)) == 0


def test_forwarded_addresses_in_a_request(site):
    site.post("/refuse/bad_request", ip="127.0.0.1", headers={"X-Forwarded-For": "198.51.100.3"})
    assert site.post("/take", ip="127.0.0.1", headers={"X-Forwarded-For": "192.0.2.99, 198.51.100.3"}).status_code == 429
    assert site.post("/take", ip="127.0.0.1", headers={"X-Forwarded-For": "198.51.100.3, 192.0.2.99"}).status_code == 200
    assert site.post("/take", ip="198.51.100.3", headers={"X-Forwarded-For": "192.0.2.99"}).status_code == 429
    assert [request.source.ip for request in site.seen] == ["192.0.2.99"]


@pytest.mark.parametrize(("peer", "forwarded", "found"), [
    ("192.0.2.1", [], "192.0.2.1"),
    ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),
    ("127.0.0.1", [], "127.0.0.1"),
    ("127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
    ("127.0.0.1", ["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
    ("127.0.0.1", ["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
    ("127.0.0.1", ["203.0.113.9, 198.51.100.1, 10.0.0.3"], "198.51.100.1"),
    ("127.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
    ("::ffff:127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
    ("127.0.0.1", ["2001:db8::1"], "2001:db8::1"),
    ("127.0.0.1", ["198.51.100.1, unknown"], "127.0.0.1"),
    ("127.0.0.1", ["198.51.100.1, "], "127.0.0.1"),
    ("127.0.0.1", ["198.51.100.1:4711, 10.0.0.3"], "10.0.0.3"),
    ("", ["198.51.100.1"], ""),
])
def test_client_address(peer, forwarded, found):
    headers = [("X-Forwarded-For", line) for line in forwarded] + [("X-Real-Ip", "203.0.113.77")]
    assert client_address(peer, headers, parse_networks("127.0.0.0/8 10.0.0.0/8")) == found


@pytest.mark.parametrize(("value", "domain"), [
    (CLAIM, "alpha.example"), (CLAIM.replace("alpha.example", "127.0.0.1"), None), ("", None),
    (CLAIM.replace("https", "http"), None), (CLAIM.replace("alpha.example", "ALPHA.example"), None),
    ('keyid="https://alpha.example', None), ('keyid="https://user@alpha.example/"', None),
])
def test_claimed_domain(value, domain):
    assert claimed_domain([("Host", "x"), ("Signature-Input", value)]) == domain
    assert claimed_domain([]) is None


def test_a_guard_that_fails_lets_nobody_in(site, monkeypatch):
    def broken(*_):
        raise StoreError("InputOutput", "the disk is gone")

    monkeypatch.setattr(site.context.guard, "check", broken)
    response = site.post("/take")
    assert (response.status_code, response.json["code"]) == (503, "unavailable")
    assert site.seen == []
    assert "disk" not in json.dumps(response.json)
