"""The two departures from PKD that an operator may switch on, and how little each lets pass."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver
from http_message_signatures.algorithms import RSA_V1_5_SHA256

from ktlog.client import build_envelope
from ktlog.client import totp as totp_client
from ktlog.config import Settings, load_settings
from ktlog.errors import EncodingError, Invalid, MessageRejected, UsageError
from ktlog.operator.actor_keys import ActorKeys
from ktlog.operator.authenticate import Authenticator
from ktlog.operator.create import create_log
from ktlog.operator.instance import direct_message
from ktlog.operator.request import Request, Source
from ktlog.pkd.messages import AddKey, BurnDown
from ktlog.web.app import create_app
from ktlog.web.guarding import penalty_weight
from ktlog.wire.actor import (
    ED25519,
    ML_DSA_44,
    RSA_SHA256,
    Multikey,
    decode_multikey,
    encode_multikey,
    parse_actor,
)
from ktlog.wire.compat import NAMES, PKD_PHP, RSA, parse_compat
from ktlog.wire.fetch import Fetcher, Response
from ktlog.wire.httpsig import PHP_LABELS, sign_request, verify_request
from ktlog.wire.httpsig_response import Exchange, sign_response, verify_response
from ktlog.wire.rsa import parse_rsa_public_key, verify_rsa_sha256
from tests.admission_world import (
    BURNDOWN,
    INBOX,
    PEER_ACTOR,
    REVOKE,
    Inbox,
    Instances,
    checkpoint,
    refusal_code,
    revocation,
    token_text,
)
from tests.operator_world import NOW, ORIGIN, Clock
from tests.pkd_samples import ALICE, BOB, public, quick_argon2
from tests.totp_site import SECRET, Site, make_log

__all__ = ["quick_argon2"]
KEY_ID = f"{ALICE}#main-key"
RSA_KEY, OTHER_RSA = generate_private_key(65537, 2048), generate_private_key(65537, 2048)
PQ = MLDSA44PrivateKey.from_seed_bytes(bytes(range(32)))
PQ_PUBLIC = PQ.public_key().public_bytes_raw()


def pem_of(key) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


RSA_PUBLIC = Multikey(KEY_ID, ALICE, RSA_SHA256, parse_rsa_public_key(pem_of(RSA_KEY)))


class _Signs(HTTPSignatureKeyResolver):
    def __init__(self, key):
        self.key = key

    def resolve_private_key(self, key_id):
        return self.key

    def resolve_public_key(self, key_id):
        raise AssertionError


class _Outgoing:
    def __init__(self, method, url, headers):
        self.method, self.url, self.headers = method, url, headers


def rsa_request(body=b"{}", url=INBOX, actor=ALICE, key=RSA_KEY, created=NOW, alg=False) -> Request:
    """Signed as Mastodon does: by the library's own RSA, with the one key that the actor has."""
    message = _Outgoing("POST", url, {"Content-Type": "application/activity+json"})
    HTTPMessageSigner(signature_algorithm=RSA_V1_5_SHA256, key_resolver=_Signs(key)).sign(
        message, key_id=f"{actor}#main-key", created=datetime.fromtimestamp(created, UTC), label="sig1",
        covered_component_ids=("@method", "@target-uri", "content-digest"), body=body, include_alg=alg,
    )
    return Request("POST", url, list(message.headers.items()), body, Source("192.0.2.1"))


class RsaInstances(Instances):
    """Every actor has one RSA key in ``publicKey``, as on a stock server, and nothing in ``assertionMethod``."""

    changes: dict = {}

    def get(self, url, **_):
        self.asked.append(url)
        key = {"id": f"{url}#main-key", "owner": url, "publicKeyPem": pem_of(RSA_KEY)} | self.changes
        body = {"id": url, "type": "Person", "inbox": f"{url}/inbox", "publicKey": key}
        return Response(200, {"content-type": "application/activity+json"}, json.dumps(body).encode(), url)


# The setting


def test_names_are_known_or_refused(tmp_path):
    assert parse_compat("") == frozenset() and parse_compat(" pkd-php  rsa ") == NAMES
    for text in ("RSA", "rsa,pkd-php", "rsa pss", "pkd_php", "*", "all"):
        with pytest.raises(UsageError):
            parse_compat(text)
        with pytest.raises(UsageError):
            Settings(tmp_path, ORIGIN, "spec", compat=text)


def test_an_unknown_name_in_the_environment_keeps_the_log_from_starting(tmp_path):
    create_log(tmp_path / "log", ORIGIN, "spec", bytes(32))
    assert load_settings(tmp_path / "log", None, {}).compat_names() == frozenset()
    assert load_settings(tmp_path / "log", None, {"KTLOG_COMPAT": "rsa"}).compat_names() == {RSA}
    with pytest.raises(UsageError) as caught:
        load_settings(tmp_path / "log", None, {"KTLOG_COMPAT": "rsa sha1"})
    assert "sha1" in caught.value.message


@pytest.mark.parametrize("compat", ["", "rsa", "rsa pkd-php"])
def test_the_log_says_what_it_lets_pass(tmp_path, compat):
    made = create_log(tmp_path / "log", ORIGIN, "spec", bytes(32))
    app = create_app(replace(made, compat=compat))

    def get(target):
        answer = app.test_client().get(target, headers={"Host": ORIGIN}, environ_overrides={"RAW_URI": target})
        return json.loads(answer.data)

    assert get("/api/info")["non-conformant"] == sorted(compat.split())
    assert get("/nodeinfo/2.1")["metadata"]["pkd"]["non-conformant"] == sorted(compat.split())
    app.extensions["ktlog"].guard.close()
    app.extensions["ktlog"].store.close()


# RSA: the signature


def verify(request, key=RSA_PUBLIC, compat=(), now=NOW):
    return verify_request(
        request.method, request.target_url, request.headers, request.body, lambda _: key, now, compat
    )


@pytest.mark.parametrize("alg", [False, True])
def test_rsa_is_refused_even_under_a_key_that_is_trusted_for_it(alg):
    for compat in ((), {PKD_PHP}):
        with pytest.raises(MessageRejected) as caught:
            verify(rsa_request(alg=alg), compat=compat)
        assert caught.value.code == "unauthorized"
    assert verify(rsa_request(alg=alg), compat={RSA}).algorithms == (RSA_SHA256,)


@pytest.mark.parametrize("alg", ["rsa-pss-sha512", "ed25519", "rsa-sha256", "hs2019", "mldsa44"])
def test_rsa_has_one_name(alg):
    request = rsa_request(alg=True)
    lines = [(name, value.replace(RSA_SHA256, alg)) for name, value in request.headers]
    with pytest.raises(MessageRejected) as caught:
        verify(replace(request, headers=lines), compat=NAMES)
    assert "alg" in caught.value.message


def test_rsa_by_another_key_or_over_another_body_or_too_old():
    with pytest.raises(MessageRejected):
        verify(rsa_request(key=OTHER_RSA), compat={RSA})
    with pytest.raises(MessageRejected):
        verify(replace(rsa_request(), body=b"[]"), compat={RSA})
    with pytest.raises(MessageRejected):
        verify(rsa_request(), compat={RSA}, now=NOW + 301)
    with pytest.raises(MessageRejected):
        verify(replace(rsa_request(), target_url=BURNDOWN), compat={RSA})


def test_an_rsa_signature_has_one_spelling():
    """Or a copy with other bytes would pass the replay cache."""
    public_key, modulus = RSA_PUBLIC.public_key, RSA_KEY.public_key().public_numbers().n
    # One so small that the modulus still fits on top of it: about half of them are.
    for number in range(200):
        message = f"message {number}".encode()
        signature = RSA_KEY.sign(message, PKCS1v15(), SHA256())
        larger = int.from_bytes(signature, "big") + modulus
        if larger.bit_length() <= 2048:
            break
    verify_rsa_sha256(public_key, signature, message)
    for bent in (larger.to_bytes(256, "big"), b"\0" + signature, signature[:-1], signature + b"\0", b"", bytes(256)):
        with pytest.raises(Invalid):
            verify_rsa_sha256(public_key, bent, message)


def test_an_answer_is_never_verified_with_rsa():
    headers = {"content-type": "text/plain"}
    signed = sign_response(Exchange("GET", INBOX, 200, headers, b""), [(KEY_ID, Ed25519PrivateKey.generate())], NOW)
    exchange = Exchange("GET", INBOX, 200, headers | {name.lower(): value for name, value in signed.items()}, b"")
    exchange.headers["signature-input"] = exchange.headers["signature-input"].replace('"ed25519"', f'"{RSA_SHA256}"')
    with pytest.raises(Invalid) as caught:
        verify_response(exchange, lambda _: RSA_PUBLIC, NOW, algorithms=())
    assert RSA_SHA256 in caught.value.message


# RSA: the key


def actor_with(**key):
    entry = {"id": KEY_ID, "owner": ALICE, "publicKeyPem": pem_of(RSA_KEY)} | key
    return {"id": ALICE, "inbox": f"{ALICE}/inbox", "publicKey": entry}


def test_a_public_key_is_read_only_when_asked_for():
    assert parse_actor(actor_with(), ALICE).public_key is None
    assert parse_actor(actor_with(), ALICE, {PKD_PHP}).public_key is None
    assert parse_actor(actor_with(), ALICE, {RSA}).public_key == RSA_PUBLIC


@pytest.mark.parametrize("key", [
    {"owner": BOB}, {"owner": None}, {"owner": f"{ALICE}/"}, {"publicKeyPem": pem_of(generate_private_key(65537, 1024))},
    {"publicKeyPem": pem_of(generate_private_key(65537, 2047))}, {"publicKeyPem": pem_of(generate_private_key(3, 2048))},
    {"publicKeyPem": pem_of(generate_ec_key(SECP256R1()))}, {"publicKeyPem": pem_of(Ed25519PrivateKey.generate())},
    {"publicKeyPem": ""}, {"publicKeyPem": 5}, {"publicKeyPem": "é" * 100}, {"publicKeyPem": pem_of(RSA_KEY) + " " * 5000},
    {"id": None},
], ids=lambda key: repr(key)[:40])
def test_public_keys_that_count_for_nothing(key):
    """They are passed over: the actor may have a good key beside them."""
    document = actor_with(**key)
    document["assertionMethod"] = [{
        "id": f"{ALICE}#pq", "type": "Multikey", "controller": ALICE,
        "publicKeyMultibase": encode_multikey(ML_DSA_44, PQ_PUBLIC),
    }]
    parsed = parse_actor(document, ALICE, {RSA})
    assert parsed.public_key is None and len(parsed.assertion_method) == 1


@pytest.mark.parametrize("entry", [None, [], [actor_with()["publicKey"]], "x", KEY_ID])
def test_a_public_key_of_another_form(entry):
    assert parse_actor(actor_with() | {"publicKey": entry}, ALICE, {RSA}).public_key is None


# RSA: the doors


@pytest.fixture
def inbox(quick_argon2):
    """A log's admission, whose actors' servers have RSA keys only."""
    inbox = Inbox()
    inbox.instances = RsaInstances()
    yield inbox
    inbox.guard.close()


def switch(inbox, *compat):
    inbox.admission._authenticator = Authenticator(
        ORIGIN, ActorKeys(inbox.instances, inbox.clock, compat=compat), inbox.guard, inbox.clock, compat
    )


def message_for(inbox, sender=ALICE, wire=None):
    """The body of a direct message that enrols Alice."""
    wire = inbox.wire(AddKey(ALICE, public("a"), NOW)) if wire is None else wire
    return inbox.request(build_envelope(sender, inbox.sealed(wire)), sender).body


@pytest.mark.parametrize("compat", [(), (PKD_PHP,)])
def test_the_inbox_refuses_rsa_unless_it_is_switched_on(inbox, compat):
    switch(inbox, *compat)
    assert inbox.code(rsa_request(message_for(inbox))) == "unknown_http_key"


def test_the_inbox_takes_rsa_when_it_is_switched_on(inbox):
    switch(inbox, RSA)
    request = rsa_request(message_for(inbox))
    assert inbox.sequence(inbox.admission.admit(request)).leaf_index == 0
    assert request.source.domain == "example.com"
    assert inbox.code(rsa_request(request.body)) == "replayed_request"
    assert inbox.code(rsa_request(message_for(inbox), key=OTHER_RSA)) == "unauthorized"
    assert inbox.code(rsa_request(message_for(inbox), actor=BOB)) == "unknown_http_key"


@pytest.mark.parametrize("compat", [(), (RSA,)])
def test_a_mention_signed_with_rsa_is_looked_at_no_further(inbox, compat):
    """As stock servers sign whatever they send: nobody is fetched, and nothing counted."""
    switch(inbox, *compat)
    activity = json.loads(message_for(inbox))
    activity["object"] |= {"content": "<p>@pubkeydir hello</p>", "tag": [{"x": 0.5}]}
    with pytest.raises(MessageRejected) as caught:
        inbox.admission.admit(rsa_request(json.dumps(activity).encode()))
    assert (caught.value.code, penalty_weight(caught.value), inbox.instances.asked) == ("bad_json", 0, [])


def test_the_other_doors_refuse_rsa_though_it_is_switched_on(inbox):
    inbox.enrol()
    inbox.enrol(BOB, "c")
    switch(inbox, *NAMES)
    wire = inbox.wire(BurnDown(ALICE, BOB, NOW), "c")
    burn = rsa_request(inbox.plain(wire, BOB).encode(), BURNDOWN, BOB)
    assert refusal_code(lambda: inbox.admission.admit_burndown(burn)) == "unknown_http_key"
    token = rsa_request(json.dumps(revocation(token_text("a"))).encode(), REVOKE)
    assert refusal_code(lambda: inbox.admission.admit_revocation(token)) == "unknown_http_key"


def test_the_other_doors_refuse_rsa_whatever_key_they_are_given(inbox):
    """If the look-up ever gave them such a key, the signature under it would still not count."""
    class Careless(ActorKeys):
        def find(self, key_id, actor_id, **_):
            return super().find(key_id, actor_id, rsa=True)

    keys = Careless(inbox.instances, inbox.clock, compat=NAMES)
    strict = Authenticator(ORIGIN, keys, inbox.guard, inbox.clock, NAMES)
    with pytest.raises(MessageRejected) as caught:
        strict.authenticate(rsa_request(url=BURNDOWN), ALICE)
    assert caught.value.code == "unauthorized" and RSA_SHA256 in caught.value.message
    assert strict.authenticate(rsa_request(), ALICE, at_inbox=True).algorithms == (RSA_SHA256,)


def test_a_directory_does_not_send_its_checkpoint_with_rsa(inbox):
    switch(inbox, RSA)
    wire = inbox.wire(checkpoint(inbox), "directory")
    body = inbox.request(build_envelope(PEER_ACTOR, inbox.sealed(wire)), PEER_ACTOR).body
    assert inbox.code(rsa_request(body, actor=PEER_ACTOR)) == "unauthorized"


def test_a_log_that_takes_rsa_takes_no_one_time_passwords_with_it(tmp_path, monkeypatch, quick_argon2):
    """Through the application as it is served: the inbox takes what the TOTP door refuses."""
    clock = Clock()
    settings = replace(make_log(tmp_path / "log", clock, monkeypatch), compat="rsa", rate_limit_exempt="192.0.2.0/24")
    monkeypatch.setattr(Fetcher, "from_environment", classmethod(lambda cls, *_, **__: RsaInstances()))
    site = Site(settings, clock, monkeypatch)

    def post(target, body):
        request = rsa_request(body, f"https://{ORIGIN}{target}")
        return site.app.test_client().post(
            target, data=body, headers=[("Host", ORIGIN), *request.headers],
            environ_overrides={"REMOTE_ADDR": "192.0.2.1", "RAW_URI": target},
        )

    enrol = totp_client.enroll(ALICE, site.key_id, site.signer, SECRET, site.hpke, now=clock())
    refused = post("/api/totp/enroll", json.dumps(enrol).encode())
    assert refused.status_code in (401, 403) and refused.get_json()["code"] == "unknown_http_key"
    assert site.desk.store.totp("example.com") is None
    taken = post("/users/pubkeydir/inbox", _direct_message(site))
    assert taken.get_json()["code"] == "wrong_context"  # past the signature, which is checked first
    site.close()


def _direct_message(site) -> bytes:
    """A direct message whose signature counts, and whose content does not."""
    return json.dumps(direct_message(site.context.settings.actor_id, ALICE, "{}", bytes)).encode()


# pkd-php


def php_multikey(prefix: bytes, public_key: bytes) -> str:
    return "u" + base64.urlsafe_b64encode(prefix + public_key).decode().rstrip("=")


ED_PUBLIC = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
PHP_KEYS = [(php_multikey(b"\x12\x10", PQ_PUBLIC), ML_DSA_44, PQ_PUBLIC), (php_multikey(b"\xed\x01", ED_PUBLIC), ED25519, ED_PUBLIC)]


@pytest.mark.parametrize(("text", "algorithm", "public_key"), PHP_KEYS)
def test_multikeys_as_pkd_php_writes_them(text, algorithm, public_key):
    with pytest.raises(EncodingError):
        decode_multikey(text)
    assert decode_multikey(text, php=True) == (algorithm, public_key)
    # What the standards say is taken as ever.
    assert decode_multikey(encode_multikey(algorithm, public_key), php=True) == (algorithm, public_key)


@pytest.mark.parametrize("text", [
    php_multikey(b"\x12\x10", PQ_PUBLIC[:-1]), php_multikey(b"\x12\x10", PQ_PUBLIC) + "=", PHP_KEYS[0][0].replace("u", "U", 1),
    "m" + PHP_KEYS[0][0][1:], "u" + "A" * 3000, "u!", php_multikey(b"\xed\x01", b"\x01" + bytes(31)), "",
], ids=lambda text: text[:20] + str(len(text)))
def test_multikeys_that_are_none_for_pkd_php_either(text):
    with pytest.raises(EncodingError):
        decode_multikey(text, php=True)


def test_other_codes_in_base64url_are_unknown():
    assert decode_multikey(php_multikey(b"\x90\x24", PQ_PUBLIC), php=True) is None
    assert decode_multikey(php_multikey(b"\x80\x24", bytes(33)), php=True) is None


def test_an_actor_document_of_pkd_php():
    entry = {"id": KEY_ID, "type": "Multikey", "controller": ALICE, "publicKeyMultibase": PHP_KEYS[0][0]}
    document = {"id": ALICE, "inbox": f"{ALICE}/inbox", "assertionMethod": [entry]}
    for compat in ((), {RSA}):
        with pytest.raises(EncodingError):
            parse_actor(document, ALICE, compat)
    (key,) = parse_actor(document, ALICE, {PKD_PHP}).assertion_method
    assert key == Multikey(KEY_ID, ALICE, ML_DSA_44, PQ_PUBLIC)
    with pytest.raises(Invalid):
        parse_actor(document | {"assertionMethod": [entry | {"controller": BOB}]}, ALICE, {PKD_PHP})


def php_request(label, key=PQ):
    """As sign_request makes it, with another label, which the signature covers."""
    headers = sign_request("POST", INBOX, {}, b"{}", KEY_ID, key, NOW)
    said = re.sub(r';alg="[^"]*"', "", headers["Signature-Input"]) + f';alg="{label}"'
    base = "\n".join([
        '"@method": POST', f'"@target-uri": {INBOX}', f'"content-digest": {headers["Content-Digest"]}',
        f'"@signature-params": {said.removeprefix("sig1=")}',
    ])
    signature = base64.b64encode(key.sign(base.encode())).decode()
    lines = headers | {"Signature-Input": said, "Signature": f"sig1=:{signature}:"}
    return Request("POST", INBOX, list(lines.items()), b"{}", Source("192.0.2.1"))


@pytest.mark.parametrize("label", PHP_LABELS)
def test_labels_of_pkd_php(label):
    trusted = Multikey(KEY_ID, ALICE, ML_DSA_44, PQ_PUBLIC)
    for compat in ((), {RSA}):
        with pytest.raises(MessageRejected):
            verify(php_request(label), trusted, compat)
    assert verify(php_request(label), trusted, {PKD_PHP}).algorithms == (ML_DSA_44,)
    assert verify(php_request("ml-dsa-44"), trusted, {PKD_PHP}).algorithms == (ML_DSA_44,)
    with pytest.raises(MessageRejected):  # another name for one algorithm, not a way to choose one
        verify(php_request(label, Ed25519PrivateKey.from_private_bytes(bytes(range(32)))),
               Multikey(KEY_ID, ALICE, ED25519, ED_PUBLIC), {PKD_PHP})
    with pytest.raises(MessageRejected):
        verify(replace(php_request(label), body=b"[]"), trusted, {PKD_PHP})


@pytest.mark.parametrize("label", ["ML-DSA-44", "mldsa", "ml-dsa-65", "", "ml_dsa_44"])
def test_no_other_labels(label):
    with pytest.raises(MessageRejected):
        verify(php_request(label), Multikey(KEY_ID, ALICE, ML_DSA_44, PQ_PUBLIC), NAMES)


def test_every_signature_test_above_can_pass():
    """The hand-made base of php_request is the one that is verified: with the true label nothing else is needed."""
    assert verify(php_request("ml-dsa-44"), Multikey(KEY_ID, ALICE, ML_DSA_44, PQ_PUBLIC)).key_id == KEY_ID
