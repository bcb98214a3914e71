"""The instance client, against an inbox that checks what a log's inbox checks of the request."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from tls_server import HOST, answer

from ktlog.errors import EncodingError, KtlogError, MessageRejected, Unreachable
from ktlog.operator.activity import parse_activity
from ktlog.operator.instance import deliver, direct_message
from ktlog.pkd.rejections import NEXT_STEPS, REJECTIONS, reject
from ktlog.wire.actor import actor_key
from ktlog.wire.fetch import Fetcher
from ktlog.wire.httpsig import target_uri, verify_request
from ktlog.wire.httpsig_response import Exchange, content_digest, sign_response

NOW = 1_790_000_000
LOG = f"https://{HOST}"
ACTOR = "https://alpha.example/users/alice"
KEY_ID = f"{ACTOR}#main-key"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CONTENT = json.dumps({"!pkd-context": "fedi-e2ee:v1-encrypted-message", "actor": ACTOR, "encrypted-message": "hpke:é"})
RECEIPT = {
    "!pkd-context": "fedi-e2ee:v1/api/inbox", "leaf-index": 4, "tree-size": 5,
    "merkle-leaf": base64.urlsafe_b64encode(bytes(2484)).decode().rstrip("="), "merkle-root": "pkd-mr-v1:" + "A" * 43,
}
ERROR = {"!pkd-context": "fedi-e2ee:v1/api/error", "error": "invalid_request", "message": "no", "code": "key_exists"}


LOG_ACTOR = f"{LOG}/users/pubkeydir"
LOG_KEYS = (
    (f"{LOG_ACTOR}#main-key", Ed25519PrivateKey.from_private_bytes(bytes(range(32, 64)))),
    (f"{LOG_ACTOR}#pq-key", MLDSA44PrivateKey.from_seed_bytes(bytes(range(32, 64)))),
)


def send(server, key=KEY, log=LOG, actor=ACTOR):
    return deliver(
        Fetcher(server.dial(), timeout=5), log, actor, key, KEY_ID, CONTENT, now=NOW, random=lambda size: bytes(range(size))
    )


def says(server, body, status=202, *, signed_by=LOG_KEYS, signed_as=None):
    """The log answers *body* to a message, signed by its keys, and its actor document to who asks for it.

    signed_as: what the signature is over, where that is not what is sent.
    """
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def behave(request):
        if request.method == "GET":
            listed = [
                actor_key(name, LOG_ACTOR, algorithm, key.public_key().public_bytes_raw())
                for (name, key), algorithm in zip(LOG_KEYS, ("ed25519", "ml-dsa-44"), strict=True)
            ]
            document = {"id": LOG_ACTOR, "inbox": f"{LOG_ACTOR}/inbox", "assertionMethod": listed}
            return answer(json.dumps(document).encode(), content_type="application/activity+json")
        asked = {
            "method": "POST", "url": f"{LOG_ACTOR}/inbox", "status": status, "body": data,
            "request_digest": request.header("content-digest"),
        } | (signed_as or {})
        headers = sign_response(Exchange(headers={"content-type": "application/json"}, **asked), signed_by, NOW)
        return answer(data, status, "application/json", **headers)

    server.behave = behave


@pytest.mark.parametrize("key", [KEY, MLDSA44PrivateKey.from_seed_bytes(bytes(32))])
@pytest.mark.parametrize("log", [LOG, LOG + "/"])
def test_deliver(server, key, log):
    says(server, {**RECEIPT, "another-member": True})
    assert send(server, key, log) == {**RECEIPT, "another-member": True}
    request, fetched = server.requests
    assert (fetched.method, fetched.target) == ("GET", "/users/pubkeydir")
    assert (request.method, request.target) == ("POST", "/users/pubkeydir/inbox")
    assert request.header("content-type") == "application/activity+json"
    # The request is what our own inbox admits: the signature, and the shape of a direct message.
    verified = verify_request(
        request.method, target_uri(HOST, request.target), request.headers, request.body, lambda _: key.public_key(), NOW
    )
    assert (verified.key_id, verified.created) == (KEY_ID, NOW)
    activity = parse_activity(request.body, f"{LOG}/users/pubkeydir")
    assert (activity.actor, activity.content) == (ACTOR, CONTENT)


def test_the_message_has_the_specifications_shape():
    log_actor = f"{LOG}/users/pubkeydir"
    randoms = iter((bytes(16), b"\xff" * 16))
    message = direct_message(log_actor, ACTOR, CONTENT, lambda size: next(randoms))
    # PKD specification, "Wire Format for Protocol Messages".
    assert message == {
        "@context": "https://www.w3.org/ns/activitystreams",
        "id": "https://alpha.example/activities/00000000-0000-4000-8000-000000000000",
        "type": "Create",
        "actor": ACTOR,
        "to": [log_actor],
        "object": {
            "id": "https://alpha.example/objects/ffffffff-ffff-4fff-bfff-ffffffffffff",
            "type": "Note",
            "attributedTo": ACTOR,
            "to": [log_actor],
            "content": CONTENT,
        },
    }


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
def test_a_refusal_is_passed_on(server, status):
    says(server, ERROR, status)
    with pytest.raises(MessageRejected) as caught:
        send(server)
    assert (caught.value.code, caught.value.message) == ("key_exists", "no")


def test_a_refusal_that_can_be_mended_says_how(server):
    """The words are the specification's, so that the next step stands beside them, here and at the log."""
    says(server, {**ERROR, "code": "self_signed_not_allowed"}, 400)
    with pytest.raises(MessageRejected) as caught:
        send(server)
    assert "--sign-with FILE" in caught.value.hint == reject("self_signed_not_allowed").hint
    assert (reject("key_exists").hint, reject("key_exists", "entry 5").hint) == ("", "entry 5")
    assert NEXT_STEPS.keys() <= REJECTIONS.keys()


@pytest.mark.parametrize(("changes", "code"), [
    ({"code": None}, "invalid_request"), ({"code": "\x1b[2J"}, "invalid_request"), ({"code": "A" * 99}, "invalid_request"),
    ({"code": 1, "error": 2}, "unknown_error"),
])
def test_a_refusals_code_is_a_code(server, changes, code):
    says(server, {**ERROR, **changes}, 400)
    with pytest.raises(MessageRejected) as caught:
        send(server)
    assert caught.value.code == code


def test_a_refusals_words_are_harmless(server):
    says(server, {**ERROR, "message": "\x1b]0;owned\x07\u202e" + "x" * 9999}, 400)
    with pytest.raises(MessageRejected) as caught:
        send(server)
    assert caught.value.message.isprintable() and len(caught.value.message) <= 500


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_trouble_is_not_a_refusal(server, status):
    for body in (ERROR, b"<html>"):
        says(server, body, status)
        with pytest.raises(Unreachable) as caught:
            send(server)
        assert caught.value.name == "BadStatus"


@pytest.mark.parametrize(("status", "body"), [
    (400, b"<html>"), (404, b"{}"), (200, RECEIPT), (204, b""), (400, {**ERROR, "!pkd-context": "other"}),
    (302, ERROR),
])
def test_answers_that_explain_nothing(server, status, body):
    says(server, body, status)
    with pytest.raises(Unreachable):
        send(server)


@pytest.mark.parametrize("changes", [
    {"!pkd-context": "other"}, {"leaf-index": "4"}, {"leaf-index": -1, "tree-size": 0}, {"leaf-index": True, "tree-size": 2},
    {"tree-size": 4}, {"tree-size": None}, {"merkle-leaf": 5}, {"merkle-leaf": "A"}, {"merkle-root": None},
    {"merkle-root": "A" * 43}, {"merkle-root": "pkd-mr-v1:" + "A" * 42 + "B"},
])
def test_receipts_that_are_none(server, changes):
    says(server, {**RECEIPT, **changes})
    with pytest.raises(Unreachable) as caught:
        send(server)
    assert caught.value.name == "BadReceipt"
    says(server, b'{"leaf-index":4,"leaf-index":5}')
    with pytest.raises(Unreachable):
        send(server)


def test_only_real_names_are_sent_to(server):
    for log, actor in (("http://keys.alpha.example", ACTOR), ("https://127.0.0.1", ACTOR), (LOG, "alice"), (LOG, ACTOR + "#x")):
        with pytest.raises((EncodingError, KtlogError)):
            send(server, log=log, actor=actor)
    assert server.connections == 0


OTHER_KEYS = (
    (LOG_KEYS[0][0], Ed25519PrivateKey.from_private_bytes(bytes(32))),
    (LOG_KEYS[1][0], MLDSA44PrivateKey.from_seed_bytes(bytes(32))),
)


@pytest.mark.parametrize("changes", [
    {"signed_by": LOG_KEYS[:1]}, {"signed_by": LOG_KEYS[1:]}, {"signed_by": OTHER_KEYS},
    {"signed_by": (LOG_KEYS[0], OTHER_KEYS[1])}, {"signed_by": (("https://keys.beta.example/u#k", OTHER_KEYS[0][1]), LOG_KEYS[1])},
    {"signed_as": {"url": f"{LOG}/users/somebody/inbox"}}, {"signed_as": {"method": "PUT"}},
    {"signed_as": {"status": 200}}, {"signed_as": {"body": b"{}"}},
    {"signed_as": {"request_digest": content_digest(b"another message")}}, {"signed_as": {"request_digest": None}},
])
def test_an_acceptance_that_the_log_did_not_sign_is_none(server, changes):
    """Somebody between could have said anything; the log could deny it later."""
    says(server, RECEIPT, **changes)
    with pytest.raises(Unreachable) as caught:
        send(server)
    assert caught.value.name == "BadReceipt" and "sign" in caught.value.message


@pytest.mark.parametrize("changes", [
    {"signed_by": LOG_KEYS[:1]}, {"signed_by": OTHER_KEYS}, {"signed_as": {"url": f"{LOG}/inbox"}},
    {"signed_as": {"body": json.dumps(RECEIPT).encode(), "status": 202}},
    {"signed_as": {"request_digest": content_digest(b"another message")}}, {"signed_as": {"request_digest": None}},
])
def test_a_refusal_that_the_log_did_not_sign_is_none(server, changes):
    """The log may have taken the message: what it said to another one, or a proxy says, does not tell."""
    says(server, ERROR, 403, **changes)
    with pytest.raises(Unreachable) as caught:
        send(server)
    assert caught.value.name == "BadAnswer"
    assert "403" in caught.value.message and "key_exists" in caught.value.message and "sign" in caught.value.message


def test_nothing_is_asked_about_an_answer_that_nobody_believes(server):
    """Of a proxy, or of a log that is busy."""
    for status, body in ((502, b"<html>"), (400, b"<html>"), (429, ERROR)):
        says(server, body, status, signed_by=OTHER_KEYS)
        before = len(server.requests)
        with pytest.raises(Unreachable) as caught:
            send(server)
        assert caught.value.name == "BadStatus" and str(status) in caught.value.message
        assert [request.method for request in server.requests[before:]] == ["POST"]


def test_a_log_without_keys_signs_nothing(server):
    says(server, RECEIPT)
    honest = server.behave
    server.behave = lambda request: answer(b"", 404) if request.method == "GET" else honest(request)
    with pytest.raises(Unreachable) as caught:
        send(server)
    assert caught.value.name == "BadReceipt"
