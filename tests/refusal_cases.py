"""Bad input for a log's inbox: what is sent, and how it has to be refused.

The table of tests/e2e/test_log_refusals.py. Each case is right in all but one thing.
"""

from __future__ import annotations

import gzip
import html
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ktlog.client import build_envelope, build_message
from ktlog.pkd.compose import signed_bytes
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.keys import ZERO_ROOT, encode_root, sign_mldsa44
from ktlog.pkd.messages import AddAuxData, AddKey, BurnDown, CheckpointMessage, Fireproof, MoveIdentity, build_wire
from ktlog.pkd.token import make_token
from ktlog.tlog.encoding import encode_base64url
from ktlog.wire.actor import ED25519, actor_key
from tests.running_log import EVIL, GONE, INBOX_PATH, LOG_ACTOR, ORIGIN, Answer, RunningLog, actor
from tests.tls_server import answer

PUBLIC = "https://www.w3.org/ns/activitystreams#Public"
PLAINTEXT = "fedi-e2ee:v1-plaintext-message"
ALICE, BOB, CAROL = actor("a01"), actor("a02"), actor("a03")
BASE64URL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
INVALID = "invalid_request"


def signed(log: RunningLog, message: Any, user: str = "a01", **options: Any) -> dict[str, Any]:
    """A message as it should be: encrypted, committed, signed by *user*, bound to the newest root."""
    return dict(build_message(message, log.keys[user], options.pop("root", None) or log.root(), **options).wire)


def fireproof(log: RunningLog, when: int = 0, **options: Any) -> dict[str, Any]:
    return signed(log, Fireproof(ALICE, int(time.time()) + when), **options)


@dataclass(frozen=True)
class Case:
    """What is sent, and how it is refused: HTTP status, the specification's code, ours."""

    name: str
    status: int
    error: str
    code: str
    send: Callable[[RunningLog], Answer]


CASES: list[Case] = []


def case(name: str, status: int, error: str, code: str):
    def register(send: Callable[[RunningLog], Answer]) -> Callable[[RunningLog], Answer]:
        CASES.append(Case(name, status, error, code, send))
        return send
    return register


def message_case(name: str, error: str, code: str, spoil: Callable[[RunningLog], Any], status: int = 400) -> None:
    """A protocol message that is wrong inside; all around it is right."""
    CASES.append(Case(name, status, error, code, lambda log: log.deliver(spoil(log))))


def activity_case(name: str, code: str, path: str, value: Any, error: str = "invalid_request", status: int = 400) -> None:
    """A direct message with one member changed."""
    def send(log: RunningLog) -> Answer:
        document = log.activity(build_envelope(ALICE, log.sealed(log.good)))
        *parents, name = path.split(".")
        target = document
        for parent in parents:
            target = target[parent]
        target[name] = value
        return log.post(json.dumps(document).encode())
    CASES.append(Case(name, status, error, code, send))


def content_case(name: str, code: str, content: Callable[[str], Any]) -> None:
    """A direct message whose content is spoilt."""
    def send(log: RunningLog) -> Answer:
        good = build_envelope(ALICE, log.sealed(log.good))
        return log.post(json.dumps(log.activity(content(good))).encode())
    CASES.append(Case(name, 400, "invalid_request", code, send))


def flipped(text: str, at: int) -> str:
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1:]


def stray_bit(text: str) -> str:
    """The same bytes to a lax decoder: the last character's unused bits are not zero."""
    assert len(text) % 4
    return text[:-1] + BASE64URL[BASE64URL.index(text[-1]) + 1]


# --- the protocol message

message_case("wrong signature", "invalid_signature", "bad_signature",
             lambda log: log.good | {"signature": flipped(log.good["signature"], 100)})
message_case("signed by another actor's key", "invalid_signature", "bad_signature",
             lambda log: dict(build_message(Fireproof(ALICE, int(time.time())), log.keys["a02"], log.root()).wire))
message_case("a signature of another length", "invalid_signature", "bad_signature",
             lambda log: log.good | {"signature": log.good["signature"][:-4]})
message_case("an unknown root", "merkle_root_stale", "merkle_root_stale",
             lambda log: log.good | {"recent-merkle-root": encode_root(os.urandom(32))})
message_case("the zero root after the first entry", "merkle_root_stale", "merkle_root_stale",
             lambda log: fireproof(log, root=ZERO_ROOT))
message_case("a root in another form", INVALID, "bad_root", lambda log: log.good | {"recent-merkle-root": "AAAA"})
message_case("an unknown action", INVALID, "unknown_action", lambda log: log.good | {"action": "Fireprooof"})
message_case("another context", INVALID, "wrong_context", lambda log: log.good | {"!pkd-context": "https://example.com"})
message_case("an unknown member", INVALID, "bad_request", lambda log: log.good | {"admin": "true"})
message_case("a duplicate key in the message", INVALID, "duplicate_json_key",
             lambda log: json.dumps(log.good)[:-1] + ', "action": "UndoFireproof"}')
message_case("a duplicate key spelt with an escape", INVALID, "duplicate_json_key",
             lambda log: json.dumps(log.good)[:-1] + ', "\\u0061ction": "UndoFireproof"}')
message_case("a number for a time", INVALID, "bad_request",
             lambda log: log.good | {"message": log.good["message"] | {"time": 1_700_000_000}})
message_case("a time with a sign", INVALID, "bad_time",
             lambda log: log.good | {"message": log.good["message"] | {"time": "+1700000000"}})
message_case("a time with an underscore", INVALID, "bad_time",
             lambda log: log.good | {"message": log.good["message"] | {"time": "1_700_000_000"}})
message_case("too old", INVALID, "stale_time", lambda log: fireproof(log, -90_000))
message_case("from the future", INVALID, "stale_time", lambda log: fireproof(log, 90_000))
message_case("a key id that points nowhere", "invalid_signature", "unknown_key_id",
             lambda log: log.good | {"key-id": encode_base64url(os.urandom(32))})
message_case("a key id that is none", INVALID, "bad_key_id", lambda log: log.good | {"key-id": "main-key"})
message_case("an attribute key that does not fit", INVALID, "attribute_decryption_failed",
             lambda log: log.good | {"symmetric-keys": {"actor": encode_base64url(os.urandom(32))}})
message_case("no attribute keys", INVALID, "bad_symmetric_key",
             lambda log: {name: value for name, value in log.good.items() if name != "symmetric-keys"})
message_case("an attribute in clear text", INVALID, "attribute_decryption_failed",
             lambda log: log.good | {"message": log.good["message"] | {"actor": ALICE}})
message_case("non-canonical base64 in the signature", "invalid_signature", "bad_signature",
             lambda log: log.good | {"signature": stray_bit(log.good["signature"])})
message_case("padded base64 in an attribute key", INVALID, "bad_symmetric_key",
             lambda log: log.good | {"symmetric-keys": {"actor": log.good["symmetric-keys"]["actor"] + "="}})
message_case("non-canonical base64 in an attribute key", INVALID, "bad_symmetric_key",
             lambda log: log.good | {"symmetric-keys": {"actor": stray_bit(log.good["symmetric-keys"]["actor"])}})
message_case("white space in a root", INVALID, "bad_root",
             lambda log: log.good | {"recent-merkle-root": log.good["recent-merkle-root"] + "\n"})
message_case("a float", INVALID, "bad_json", lambda log: json.dumps(log.good | {"padding": 1.5}))
message_case("half of a surrogate pair", INVALID, "bad_json",
             lambda log: json.dumps(log.good)[:-1] + ', "padding": "\\ud800"}')
message_case("nested too deep", INVALID, "bad_json",
             lambda log: json.dumps(log.good)[:-1] + ', "padding": ' + "[" * 40 + "]" * 40 + "}")
message_case("nested so deep that a parser gives up", INVALID, "bad_json", lambda log: "[" * 50_000)
message_case("no JSON inside", INVALID, "bad_json", lambda log: "Fireproof me, please")
message_case("BurnDown by the inbox", INVALID, "burndown_by_inbox",
             lambda log: signed(log, BurnDown(BOB, ALICE, int(time.time()))))
message_case("a Checkpoint of a directory that is not on the list", "unauthorized", "directory_not_allowed",
             lambda log: build_wire(SPEC, CheckpointMessage(
                 "https://keys.beta.example", ZERO_ROOT, log.keys["a01"].public_key, f"https://{ORIGIN}", ZERO_ROOT,
                 int(time.time()),
             ), log.root(), log.keys["a01"].private), status=403)
message_case("an aux type that this log does not take", INVALID, "unsupported_aux_type",
             lambda log: signed(log, AddAuxData(ALICE, "age-v1", "age1xyz", None, int(time.time()))))
message_case("a message for another actor", "unauthorized", "actor_mismatch",
             lambda log: signed(log, Fireproof(BOB, int(time.time())), "a02"), status=403)
message_case("a move that the old actor brings", "unauthorized", "actor_mismatch",
             lambda log: signed(log, MoveIdentity(ALICE, CAROL, int(time.time()))), status=403)
message_case("another key of its own, self-signed", INVALID, "self_signed_not_allowed",
             lambda log: dict(build_message(
                 AddKey(ALICE, log.keys["a04"].public_key, int(time.time())), log.keys["a04"], log.root()
             ).wire))
message_case("a token for a key that nobody has", INVALID, "unknown_token_key",
             lambda log: {"action": "RevokeKeyThirdParty",
                          "revocation-token": make_token(log.keys["a04"].private, log.keys["a04"].public_key)})
message_case("a token that somebody altered", "invalid_signature", "bad_token_signature",
             lambda log: {"action": "RevokeKeyThirdParty", "revocation-token": flipped(
                 make_token(log.keys["a01"].private, log.keys["a01"].public_key), 4000)})


@case("a commitment to another text", 400, INVALID, "plaintext_mismatch")
def wrong_commitment(log: RunningLog) -> Answer:
    """Tag, signature and text are right; the Argon2id commitment is of another root, as if nobody checked it."""
    now = int(time.time())
    elsewhere = fireproof(log, root=encode_root(os.urandom(32)))
    body = elsewhere["message"] | {"time": str(now)}
    signature = sign_mldsa44(log.keys["a01"].private, signed_bytes(SPEC, "Fireproof", body, log.root()))
    return log.deliver(elsewhere | {
        "message": body, "recent-merkle-root": log.root(), "signature": encode_base64url(signature),
    })


@case("not enrolled", 400, INVALID, "actor_not_enrolled")
def not_enrolled(log: RunningLog) -> Answer:
    return log.deliver(signed(log, Fireproof(CAROL, int(time.time())), "a03"), "a03")


# --- the envelope and the direct message

activity_case("addressed to the public", "not_a_direct_message", "cc", [PUBLIC])
activity_case("the Note addressed to the public", "not_a_direct_message", "object.to", [LOG_ACTOR, "as:Public"])
activity_case("addressed to somebody else", "not_a_direct_message", "to", [f"https://{ORIGIN}/users/admin"])
activity_case("addressed to somebody else too", "not_a_direct_message", "object.cc", [BOB])
activity_case("a Create in another spelling", "not_a_direct_message", "type", "create")
activity_case("an Article", "not_a_direct_message", "object.type", "Article")
activity_case("an object by reference", "bad_request", "object", "https://alpha.example/objects/1")
activity_case("attributed to another actor", "actor_mismatch", "object.attributedTo", BOB, "unauthorized", 403)
activity_case("an actor that is no https URL", "bad_actor_id", "actor", "acct:a01@alpha.example")
activity_case("an actor on an address", "bad_actor_id", "actor", "https://127.0.0.1/users/a01")
activity_case("an actor on another port", "bad_actor_id", "actor", "https://alpha.example:8443/users/a01")
activity_case("a float in the activity", "bad_json", "published", 1.5)
content_case("HTML around the content", "html_content", lambda good: f"<p>{html.escape(good)}</p>")
content_case("escaped content", "html_content", html.escape)
content_case("a content that is no text", "bad_request", lambda good: {"envelope": good})
content_case("a content that is null", "bad_request", lambda good: None)
content_case("a content that is prose", "bad_json", lambda good: "@pubkeydir hello")
content_case("a duplicate key in the content", "duplicate_json_key",
             lambda good: good[:-1] + f', "actor": "{BOB}"}}')
content_case("another content context", "wrong_context", lambda good: good.replace("v1-encrypted", "v2-encrypted"))
content_case("a content context that is an object", "wrong_context",
             lambda good: json.dumps(json.loads(good) | {"!pkd-context": {"a": "b"}}))
content_case("an unknown member in the content", "bad_request", lambda good: json.dumps(json.loads(good) | {"x": "y"}))
content_case("a ciphertext that was altered", "decryption_failed", lambda good: flipped(good, 2000))
content_case("non-canonical base64 in the ciphertext", "decryption_failed",
             lambda good: good[:-2] + "=" + good[-2:])


@case("another actor in the envelope", 403, "unauthorized", "actor_mismatch")
def wrong_envelope(log: RunningLog) -> Answer:
    return log.deliver(log.good, "a01", sender=BOB)


@case("signed by the wrong actor", 403, "unauthorized", "actor_mismatch")
def carried_by_another(log: RunningLog) -> Answer:
    return log.deliver(log.good, "a02", sender=ALICE)


@case("BurnDown in clear text", 400, INVALID, "burndown_by_inbox")
def plain_burn_down(log: RunningLog) -> Answer:
    wire = signed(log, BurnDown(BOB, ALICE, int(time.time())))
    content = json.dumps({"!pkd-context": PLAINTEXT, "actor": ALICE, "message": json.dumps(wire)})
    return log.post(json.dumps(log.activity(content)).encode())


@case("BurnDown by its own door, where none are taken", 403, "unauthorized", "burndown_disabled")
def burn_down_disabled(log: RunningLog) -> Answer:
    wire = signed(log, BurnDown(BOB, ALICE, int(time.time())))
    body = json.dumps({"!pkd-context": PLAINTEXT, "actor": ALICE, "message": json.dumps(wire)}).encode()
    headers = log.signed_headers(body, url=f"https://{ORIGIN}/api/burndown")
    return log.request("POST", "/api/burndown", headers, body)


@case("a revocation whose time is no time", 400, INVALID, "bad_time")
def untimely_revocation(log: RunningLog) -> Answer:
    token = make_token(log.keys["a01"].private, log.keys["a01"].public_key)
    body = {"!pkd-context": "fedi-e2ee:v1/api/revoke", "current-time": "+1", "revocation-token": token}
    return log.request("POST", "/api/revoke", {"Content-Type": "application/json"}, json.dumps(body).encode())


@case("a message in clear text", 400, INVALID, "not_encrypted")
def clear_text(log: RunningLog) -> Answer:
    content = json.dumps({"!pkd-context": PLAINTEXT, "actor": ALICE, "message": json.dumps(log.good)})
    return log.post(json.dumps(log.activity(content)).encode())


@case("a duplicate key in the activity", 400, INVALID, "duplicate_json_key")
def duplicate_in_activity(log: RunningLog) -> Answer:
    body = json.dumps(log.activity(build_envelope(ALICE, log.sealed(log.good))))
    return log.post((body[:-1] + f', "actor": "{ALICE}"}}').encode())


@case("no JSON", 400, INVALID, "bad_json")
def no_json(log: RunningLog) -> Answer:
    return log.post(b"actor=a01&content=hello")


@case("no body", 400, INVALID, "bad_json")
def no_body(log: RunningLog) -> Answer:
    return log.post(b"")


@case("bytes that are not UTF-8", 400, INVALID, "bad_json")
def not_utf8(log: RunningLog) -> Answer:
    return log.post(json.dumps(log.activity("x")).encode() + b"\xff")


@case("a compressed body", 400, INVALID, "bad_json")
def compressed(log: RunningLog) -> Answer:
    return log.post(gzip.compress(json.dumps(log.activity("x")).encode()))


@case("a body nested too deep", 400, INVALID, "bad_json")
def deep_body(log: RunningLog) -> Answer:
    return log.post(b'{"object":' * 50 + b"1" + b"}" * 50)


@case("an oversized body", 413, INVALID, "too_large")
def oversized(log: RunningLog) -> Answer:
    document = log.activity(build_envelope(ALICE, log.sealed(log.good)))
    document["summary"] = "x" * log.settings.body_limit_bytes
    return log.post(json.dumps(document).encode())


@case("an oversized body that does not say so", 413, INVALID, "too_large")
def oversized_in_chunks(log: RunningLog) -> Answer:
    body = b"x" * (log.settings.body_limit_bytes + 1)
    head = f"POST {INBOX_PATH} HTTP/1.1\r\nHost: {ORIGIN}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[at:at + 65_536]), body[at:at + 65_536]) for at in range(0, len(body), 65_536))
    return log.send(head.encode() + chunks + b"0\r\n\r\n")


def chunks_case(name: str, body: bytes) -> None:
    head = f"POST {INBOX_PATH} HTTP/1.1\r\nHost: {ORIGIN}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    CASES.append(Case(name, 400, INVALID, "bad_request", lambda log: log.send(head.encode() + body)))


chunks_case("a chunk of no size", b"zz\r\nhello\r\n0\r\n\r\n")
chunks_case("a chunk that does not end", b"5\r\nhello!!0\r\n\r\n")
chunks_case("a trailer without a name", b"5\r\nhello\r\n0\r\n : x\r\n\r\n")


# --- the HTTP signature


def good_body(log: RunningLog) -> bytes:
    return json.dumps(log.activity(build_envelope(ALICE, log.sealed(log.good)))).encode()


def unauthorized(name: str, send: Callable[[RunningLog, bytes, dict[str, str]], Answer], code: str = "unauthorized") -> None:
    def run(log: RunningLog) -> Answer:
        body = good_body(log)
        return send(log, body, log.signed_headers(body))
    CASES.append(Case(name, 401, "unauthorized", code, run))


def resent(log: RunningLog, body: bytes, headers: dict[str, str], **changes: str | None) -> Answer:
    """With some headers changed (underscores are hyphens) or, for None, left out."""
    changed = headers | {name.replace("_", "-").title(): value for name, value in changes.items()}
    return log.request("POST", INBOX_PATH, {k: v for k, v in changed.items() if v is not None}, body)


unauthorized("no HTTP signature", lambda log, body, headers: resent(
    log, body, headers, signature=None, signature_input=None))
unauthorized("a signature without its input", lambda log, body, headers: resent(log, body, headers, signature_input=None))
unauthorized("an altered HTTP signature", lambda log, body, headers: resent(
    log, body, headers, signature="sig1=:" + flipped(headers["Signature"][6:], 10)))
unauthorized("no digest", lambda log, body, headers: resent(log, body, headers, content_digest=None))
unauthorized("an altered digest", lambda log, body, headers: resent(
    log, body, headers, content_digest=flipped(headers["Content-Digest"], 20)))
unauthorized("a digest of another body", lambda log, body, headers: resent(
    log, body, headers, content_digest=log.signed_headers(body + b" ")["Content-Digest"]))
unauthorized("an altered body", lambda log, body, headers: resent(log, body + b"\n", headers))
unauthorized("created long ago", lambda log, body, headers: log.post(body, created=int(time.time()) - 400))
unauthorized("created in the future", lambda log, body, headers: log.post(body, created=int(time.time()) + 400))
unauthorized("signed for another log", lambda log, body, headers: log.post(
    body, url=f"https://keys.beta.example{INBOX_PATH}"))
unauthorized("signed for another path", lambda log, body, headers: log.post(body, url=f"https://{ORIGIN}/users/pubkeydir"))
unauthorized("signed for another method", lambda log, body, headers: log.post(body, method="PUT"))
unauthorized("a query that was not signed", lambda log, body, headers: log.request(
    "POST", INBOX_PATH + "?x=1", headers, body))
unauthorized("a digest line that is there twice", lambda log, body, headers: log.request(
    "POST", INBOX_PATH, [*headers.items(), ("Content-Digest", headers["Content-Digest"])], body))
unauthorized("signed by another actor's key", lambda log, body, headers: log.post(body, key=log.http_key("a02")))
unauthorized("a key id of another actor", lambda log, body, headers: log.post(
    body, key=log.http_key("a02"), key_id=f"{BOB}#main-key"), "unknown_http_key")
unauthorized("a key id that the actor does not list", lambda log, body, headers: log.post(
    body, key_id=f"{ALICE}#other-key"), "unknown_http_key")


def evil_case(name: str, code: str, document: Callable[[str], Any], host: str = EVIL) -> None:
    """An actor of an instance that serves *document* as the actor's own. Every case has a new actor."""
    path = f"/users/{name.replace(' ', '-')}"

    def send(log: RunningLog) -> Answer:
        mallory = f"https://{host}{path}"
        log.evil_documents[path] = document(mallory)
        message = log.activity(build_envelope(mallory, log.sealed(log.good)))
        message["actor"] = message["object"]["attributedTo"] = mallory
        return log.post(json.dumps(message).encode(), key_id=f"{mallory}#main-key")
    CASES.append(Case(name, 401, "unauthorized", code, send))


def person(mallory: str, key: bytes, **changes: Any) -> dict[str, Any]:
    keys = [actor_key(f"{mallory}#main-key", mallory, ED25519, key)]
    return {"id": mallory, "type": "Person", "inbox": f"{mallory}/inbox", "assertionMethod": keys} | changes


evil_case("a key of low order", "unknown_http_key", lambda mallory: person(mallory, b"\x01" + bytes(31)))
evil_case("another key of low order", "unknown_http_key", lambda mallory: person(mallory, bytes(32)))
evil_case("a key that is no point", "unknown_http_key", lambda mallory: person(mallory, b"\x02" + bytes(31)))
evil_case("a document about somebody else", "unknown_http_key", lambda mallory: person(mallory, bytes(32), id=ALICE))
evil_case("a key that somebody else controls", "unknown_http_key", lambda mallory: person(
    mallory, bytes(32), assertionMethod=[actor_key(f"{mallory}#main-key", ALICE, ED25519, b"\x09" * 32)]))
evil_case("no keys", "unknown_http_key", lambda mallory: person(mallory, bytes(32), assertionMethod=[]))
evil_case("a document with a duplicate key", "unknown_http_key", lambda mallory: b'{"id":"x","id":"y"}')
evil_case("a document that is too long", "actor_unreachable", lambda mallory: b" " * 1_100_000)
evil_case("a document that is elsewhere", "actor_unreachable", lambda mallory: answer(
    b"", 302, Location=f"https://{ORIGIN}/users/pubkeydir"))
evil_case("a document in HTML", "actor_unreachable", lambda mallory: answer(b"<html>", content_type="text/html"))
evil_case("no document", "actor_unreachable", lambda mallory: None)
evil_case("an instance that is gone", "actor_unreachable", lambda mallory: None, host=GONE)


@case("the log itself as the sender", 401, "unauthorized", "unknown_http_key")
def the_log_itself(log: RunningLog) -> Answer:
    """It does not even ask itself for its own document: threads that wait for threads might wait for ever."""
    message = log.activity(build_envelope(LOG_ACTOR, log.sealed(log.good)))
    message["actor"] = message["object"]["attributedTo"] = LOG_ACTOR
    return log.post(json.dumps(message).encode(), key_id=f"{LOG_ACTOR}#main-key")
