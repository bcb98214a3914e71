"""Signed answers: what holds, what was bent, and that a signature answers one request only."""

import base64
import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from ktlog.errors import EncodingError, Invalid
from ktlog.wire.actor import ED25519, ML_DSA_44, Multikey
from ktlog.wire.httpsig_response import Exchange, content_digest, sign_response, verify_response

NOW = 1_790_000_000
LOG = "https://keys.alpha.example/users/pubkeydir"
URL = "https://keys.alpha.example/api/actor/https%3A%2F%2Falpha.example%2Fusers%2Falice?x=%20y"
ED_ID, PQ_ID = f"{LOG}#main-key", f"{LOG}#pq-key"
ED = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PQ = MLDSA44PrivateKey.from_seed_bytes(bytes(range(32)))
KEYS = ((ED_ID, ED), (PQ_ID, PQ))
TRUSTED = {
    ED_ID: Multikey(ED_ID, LOG, ED25519, ED.public_key().public_bytes_raw()),
    PQ_ID: Multikey(PQ_ID, LOG, ML_DSA_44, PQ.public_key().public_bytes_raw()),
}
ANSWER = Exchange("GET", URL, 404, {"content-type": "application/json"}, b'{"error":"not_found"}')

SHORT = content_digest(b"sent").split(", ")[0]
POSTED = Exchange("POST", f"{LOG}/inbox", 204, {}, b"", content_digest(b"one body"))


def signed(exchange=ANSWER, keys=KEYS, created=NOW):
    headers = {name.lower(): value for name, value in sign_response(exchange, keys, created).items()}
    return replace(exchange, headers={**exchange.headers, **headers})


def trusted(key_id):
    if key_id not in TRUSTED:
        raise Invalid("UnknownKey", key_id)
    return TRUSTED[key_id]


def refused(exchange, **options):
    with pytest.raises(Invalid) as caught:
        verify_response(exchange, trusted, options.pop("now", NOW), **options)
    assert caught.value.name == "BadResponseSignature"
    return caught.value.message


def with_header(exchange, name, value):
    return replace(exchange, headers={**exchange.headers, name: value})


@pytest.mark.parametrize("exchange", [
    ANSWER,
    replace(ANSWER, status=200, body=b""),
    replace(ANSWER, status=204, headers={}, body=b""),
    replace(ANSWER, method="POST", url=f"{LOG}/inbox", status=202, request_digest=content_digest(b"sent")),
    replace(ANSWER, method="POST", url=f"{LOG}/inbox", status=204, headers={}, body=b"", request_digest=f" {SHORT} "),
    replace(ANSWER, request_digest=SHORT),
])
def test_what_is_signed_holds(exchange):
    verified = verify_response(signed(exchange), trusted, NOW + 5)
    assert verified.created == NOW and set(verified.algorithms) == {ED25519, ML_DSA_44}


def test_the_signature_base_is_that_of_the_rfc():
    """Written down by hand after RFC 9421 sections 2.4 and 2.5."""
    headers = sign_response(ANSWER, ((ED_ID, ED),), NOW)
    covered = '("@status" "content-type" "content-digest" "@method";req "@target-uri";req)'
    parameters = f'{covered};created={NOW};keyid="{ED_ID}";alg="ed25519"'
    digest = "sha-256=:{}:, sha-512=:{}:".format(*(
        base64.b64encode(hashlib.new(name, ANSWER.body).digest()).decode() for name in ("sha256", "sha512")
    ))
    base = (
        f'"@status": 404\n"content-type": application/json\n"content-digest": {digest}\n"@method";req: GET\n'
        f'"@target-uri";req: {URL}\n"@signature-params": {parameters}'
    )
    assert headers["Content-Digest"] == digest == content_digest(ANSWER.body)
    assert headers["Signature-Input"] == f"sig1={parameters}"
    assert base64.b64decode(headers["Signature"][6:-1]) == ED.sign(base.encode())


def test_the_signature_base_names_the_body_that_was_sent():
    headers = sign_response(POSTED, ((ED_ID, ED),), NOW)
    covered = '("@status" "content-digest" "@method";req "@target-uri";req "content-digest";req)'
    parameters = f'{covered};created={NOW};keyid="{ED_ID}";alg="ed25519"'
    base = (
        f'"@status": 204\n"content-digest": {content_digest(b"")}\n"@method";req: POST\n'
        f'"@target-uri";req: {LOG}/inbox\n"content-digest";req: {content_digest(b"one body")}\n'
        f'"@signature-params": {parameters}'
    )
    assert headers["Signature-Input"] == f"sig1={parameters}"
    assert base64.b64decode(headers["Signature"][6:-1]) == ED.sign(base.encode())


def test_a_signed_answer_to_one_post_is_none_to_another():
    verify_response(signed(POSTED), trusted, NOW)
    for digest in (content_digest(b"another body"), SHORT, content_digest(b"one body").split(", ")[0], "", "sha-256", "\xe9"):
        refused(replace(signed(POSTED), request_digest=digest))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_an_answer_to_a_body_that_it_does_not_name_is_taken_by_nobody(method):
    bare = signed(replace(POSTED, method=method, request_digest=None))
    for digest in (None, POSTED.request_digest):
        assert "content-digest;req" in refused(replace(bare, request_digest=digest))
    # Whoever knows the digest of what they sent takes no answer without it, whatever the method.
    assert "content-digest;req" in refused(replace(signed(), request_digest=SHORT))
    # An answer that names a body answers no request without one.
    refused(replace(signed(replace(ANSWER, request_digest=SHORT)), request_digest=None))
    # Nor do the parameters of another component make it that one.
    for other in ('"content-digest";req;key="sha-256"', '"content-digest";req;sf'):
        exchange = signed(replace(POSTED, method=method))
        refused(with_header(
            exchange, "signature-input", exchange.headers["signature-input"].replace('"content-digest";req', other)
        ))


@pytest.mark.parametrize("changes", [
    {"url": URL.replace("alice", "bob")}, {"method": "HEAD"}, {"status": 200}, {"body": b'{"error":"not found"}'},
    {"body": b""}, {"url": URL + "&"}, {"url": URL.replace("alpha.example/api", "beta.example/api")},
])
def test_a_signed_answer_answers_one_request(changes):
    """The signed "not found" for one actor cannot be shown as that for another."""
    refused(replace(signed(), **changes))


def test_content_type_is_signed():
    refused(with_header(signed(), "content-type", "text/html"))
    bare = signed(replace(ANSWER, headers={}))
    assert "content-type" in refused(with_header(bare, "content-type", "text/html"))
    without = dict(signed().headers)
    del without["content-type"]
    refused(replace(signed(), headers=without))


@pytest.mark.parametrize("name", ["signature", "signature-input", "content-digest"])
def test_a_missing_header(name):
    exchange = signed()
    headers = {key: value for key, value in exchange.headers.items() if key != name}
    assert name in refused(replace(exchange, headers=headers))


def test_an_answer_for_no_url_is_taken_by_nobody():
    assert "@target-uri" in refused(replace(signed(replace(ANSWER, url=None)), url=URL))


def test_both_algorithms_are_wanted_unless_one_is_said_to_do():
    for keys, missing in ((KEYS[:1], ML_DSA_44), (KEYS[1:], ED25519)):
        assert missing in refused(signed(keys=keys))
    assert verify_response(signed(keys=KEYS[:1]), trusted, NOW, algorithms=[ED25519]).algorithms == (ED25519,)
    # Nothing wanted is not nothing checked.
    refused(signed(keys=((f"{LOG}#other", ED),)), algorithms=[])


def test_a_bad_signature_spoils_a_good_one():
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    refused(signed(keys=((ED_ID, other), KEYS[1])), algorithms=[ML_DSA_44])
    refused(signed(keys=(KEYS[0], KEYS[0])), algorithms=[ED25519])


def test_unknown_keys_are_passed_over():
    somebody = ("https://proxy.example/#k", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    assert verify_response(signed(keys=(somebody, *KEYS)), trusted, NOW).created == NOW
    refused(signed(keys=(somebody,)), algorithms=[ED25519])


def test_algorithms_come_from_the_key():
    exchange = signed()
    for old, new in (('"ed25519"', '"ml-dsa-44"'), ('"ml-dsa-44"', '"ed25519"'), ('"ed25519"', '"rsa-v1_5-sha256"')):
        refused(with_header(exchange, "signature-input", exchange.headers["signature-input"].replace(old, new)))
    refused(with_header(exchange, "signature-input", exchange.headers["signature-input"].replace(ED_ID, PQ_ID)))


def test_times():
    assert "created" in refused(signed(), now=NOW + 301)
    assert "created" in refused(signed(), now=NOW - 301)
    for now in (NOW + 300, NOW - 300):
        verify_response(signed(), trusted, now)
    # A receipt that was kept is as good years later; one from the future never is.
    assert verify_response(signed(), trusted, NOW + 10**8, max_age_seconds=None).created == NOW
    refused(signed(), now=NOW - 301, max_age_seconds=None)


@pytest.mark.parametrize("change", [
    lambda text: text.replace('"@method";req ', ""), lambda text: text.replace('"@target-uri";req', '"@path";req'),
    lambda text: text.replace('"@status" ', ""), lambda text: text.replace('"content-digest" ', ""),
    lambda text: text.replace('"@method";req', '"@method"'), lambda text: text.replace("sig1=", "sig3="),
    lambda text: text.replace("(", "").replace(")", ""), lambda text: text + ', sig1=("@status")', lambda text: "",
    lambda text: text.replace("created=1", 'created="1"'), lambda text: "é", lambda text: text.replace('"@status" ', '"@status" ' * 20),
])
def test_signature_inputs_that_are_none(change):
    exchange = signed()
    refused(with_header(exchange, "signature-input", change(exchange.headers["signature-input"])))


@pytest.mark.parametrize("change", [
    lambda text: text.replace("sig2=:", "sig2=:AA"), lambda text: "sig1=:AAAA:, sig2=:AAAA:", lambda text: "sig1=1, sig2=2",
    lambda text: text.replace("sig1=:", "sig1=::, sig3=:"), lambda text: text[:-3] + "!=:", lambda text: "",
])
def test_signatures_that_are_none(change):
    exchange = signed()
    refused(with_header(exchange, "signature", change(exchange.headers["signature"])))


def test_one_wrong_digest_of_two():
    exchange = signed()
    wrong = content_digest(b"other").split(", ")[1]
    refused(with_header(exchange, "content-digest", exchange.headers["content-digest"].split(", ")[0] + ", " + wrong))


def test_a_key_id_is_a_url():
    for key_id in ("main-key", 'https://keys.alpha.example/"', "http://keys.alpha.example/#k"):
        with pytest.raises(EncodingError):
            sign_response(ANSWER, ((key_id, ED),), NOW)
