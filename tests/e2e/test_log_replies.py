"""The log as the Fediverse meets it: shared inbox, floods, status, and a direct message with the result.

One real log behind TLS, an instance that checks who signed what it gets, and nothing but HTTPS between them.
"""

from __future__ import annotations

import json
import os
import signal

import pytest

from ktlog.client import build_envelope, seal
from ktlog.demo.instance import read_messages
from ktlog.operator.replyqueue import ReplyQueue
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.messages import parse_wire
from ktlog.tlog.encoding import encode_base64url
from ktlog.wire.actor import actor_key
from tests.running_log import EVIL, INBOX_PATH, LOG_ACTOR, ORIGIN, RunningLog, actor, running_log
from tests.tls_server import answer

SHARED_INBOX = f"https://{ORIGIN}/inbox"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    with running_log(tmp_path_factory.mktemp("replies")) as running:
        yield running


def _messages(log: RunningLog, user: str) -> list[dict]:
    return read_messages(log.directory / "instance", user)


def _wait_message(log: RunningLog, user: str, number: int) -> dict:
    """The *number*-th message that *user* got, from 1, and no further one has come by then."""
    log.wait(f"a message to {user}", lambda: len(_messages(log, user)) >= number)
    assert len(_messages(log, user)) == number
    return _messages(log, user)[-1]


def _queued(log: RunningLog) -> int:
    queue = ReplyQueue(log.settings.replies)
    try:
        return len(queue)
    finally:
        queue.close()


def _enrolment(log: RunningLog, user: str) -> tuple[dict, bytes]:
    built = log.build_enrolment(user)
    content = build_envelope(actor(user), seal(built, log.hpke()))
    activity = log.activity(content, user)
    return activity, parse_wire(SPEC, built.preimage).unique_hash


def test_the_result_comes_as_a_signed_direct_message_and_at_the_status_url(log):
    activity, unique_hash = _enrolment(log, "a01")
    body = json.dumps(activity).encode()
    headers = log.signed_headers(body, "a01", url=SHARED_INBOX)
    accepted = log.request("POST", "/inbox", headers, body)
    assert accepted.status == 202, accepted.body
    receipt = accepted.json()
    status_path = f"/api/status/{encode_base64url(unique_hash)}"
    assert receipt["status-url"] == f"https://{ORIGIN}{status_path}"
    # The instance took it because the log's own actor document lists the key that signed it.
    message = _wait_message(log, "a01", 1)
    assert json.loads(message["object"]["content"]) == receipt
    assert (message["actor"], message["to"], message["object"]["to"]) == (LOG_ACTOR, [actor("a01")], [actor("a01")])
    assert message["object"]["inReplyTo"] == activity["object"]["id"]
    log.wait_published(receipt["tree-size"])
    found = log.get(status_path)
    assert found.status == 200
    shown = found.json()
    assert shown.pop("current-time").isdigit()
    assert shown == {
        "!pkd-context": "fedi-e2ee:v1/api/status", "leaf-index": receipt["leaf-index"],
        "tree-size": receipt["tree-size"], "merkle-root": receipt["merkle-root"], "published": True,
    }
    log.wait("the queue to be empty", lambda: _queued(log) == 0)


@pytest.mark.parametrize(("name", "status"), [
    (encode_base64url(bytes(32)), 404), (encode_base64url(bytes(31)), 400), (encode_base64url(bytes(33)), 400),
    ("x", 400), (encode_base64url(bytes(32)) + "=", 400), ("", 404), ("a/b", 404), ("%00", 400), ("A" * 7000, 400),
])
def test_the_status_of_nothing(log, name, status):
    found = log.get(f"/api/status/{name}")
    assert found.status == status
    assert found.json()["!pkd-context"] == "fedi-e2ee:v1/api/error"


def test_a_refusal_comes_as_a_direct_message_too(log):
    """To who signed it, once it is known that they did."""
    before = len(_messages(log, "a02"))
    content = build_envelope(actor("a02"), log.sealed("{}"))
    refused = log.post(json.dumps(log.activity(content, "a02")).encode(), "a02")
    assert 400 <= refused.status < 500
    message = _wait_message(log, "a02", before + 1)
    assert json.loads(message["object"]["content"]) == refused.json()


def test_nobody_is_written_to_on_somebody_elses_word(log):
    """Unsigned, signed by another's key, for another's actor, or replayed: no message, and none is queued."""
    before = {user: len(_messages(log, user)) for user in ("a02", "a03")}
    content = build_envelope(actor("a03"), log.sealed("{}"))
    body = json.dumps(log.activity(content, "a03")).encode()
    attempts = [
        log.request("POST", INBOX_PATH, {"Content-Type": "application/activity+json"}, body),
        log.post(body, "a03", key=log.http_key("a02")),
        log.request("POST", INBOX_PATH, log.signed_headers(body, "a02"), body),
    ]
    assert [found.status for found in attempts] == [401] * 3
    assert _queued(log) == 0
    assert {user: len(_messages(log, user)) for user in before} == before


@pytest.mark.parametrize("change", [
    {"content": "thank you"}, {"content": json.dumps({"!pkd-context": "fedi-e2ee:v1/api/inbox"})},
    {"content": json.dumps({"!pkd-context": "fedi-e2ee:v1/api/error", "code": "x"})},
    {"inReplyTo": f"https://{ORIGIN}/objects/1"}, {"content": "<p>hello</p>"},
])
def test_an_answer_to_an_answer_gets_none(log, change):
    """Signed and all: what is no protocol message, or a reply, is refused and left at that."""
    before = len(_messages(log, "a03"))
    activity = log.activity(build_envelope(actor("a03"), log.sealed("{}")), "a03")
    activity["object"] |= change
    refused = log.post(json.dumps(activity).encode(), "a03")
    assert refused.status == 400, refused.body
    assert _queued(log) == 0
    assert len(_messages(log, "a03")) == before


@pytest.mark.parametrize("path", [INBOX_PATH, "/inbox"])
@pytest.mark.parametrize("kind", ["Delete", "Follow", "Undo", "Like", "Announce"])
def test_floods_end_here(log, kind, path):
    """202 without a look at the signature: the actor's server is never asked, and nothing changes."""
    asked = len(log._evil.requests)
    before = log.snapshot()
    who = f"https://{EVIL}/users/gone"
    body = json.dumps({"id": f"{who}#delete", "type": kind, "actor": who, "object": who, "to": ["as:Public"]}).encode()
    for headers in ({}, {"Signature": "x", "Signature-Input": "y"}, log.signed_headers(body, url=f"https://{ORIGIN}{path}")):
        found = log.request("POST", path, headers, body)
        assert (found.status, found.body) == (202, b"")
    assert len(log._evil.requests) == asked
    assert log.snapshot() == before


def test_a_create_is_looked_at_though(log):
    """The same message as a Create is no noise, however it is signed."""
    body = json.dumps({"type": "Create", "actor": f"https://{EVIL}/users/x", "object": {"type": "Delete"}}).encode()
    assert log.request("POST", "/inbox", {}, body).status == 400
    activity, _ = _enrolment(log, "a04")
    assert log.request("POST", "/inbox", {}, json.dumps(activity).encode()).status == 401


def test_a_recipient_whose_server_fails_costs_nobody_else_anything(log):
    """Their reply waits; everybody else's goes on; and the log stays as it was."""
    path = "/users/mallory"
    who = f"https://{EVIL}{path}"
    key = log.http_key("a05")
    listed = actor_key(f"{who}#main-key", who, "ed25519", key.public_key().public_bytes_raw())
    log.evil_documents[path] = {"id": who, "type": "Person", "inbox": f"{who}/inbox", "assertionMethod": [listed]}
    log.evil_documents[f"{path}/inbox"] = answer(b"", 503)
    activity = log.activity(build_envelope(who, log.sealed("{}")), "a05")
    activity["actor"] = activity["object"]["attributedTo"] = who
    body = json.dumps(activity).encode()
    refused = log.post(body, "a05", key=key, key_id=f"{who}#main-key")
    assert refused.status == 400, refused.body
    log.wait("the first attempt", lambda: any(r.target == f"{path}/inbox" for r in log._evil.requests))
    delivered = next(r for r in log._evil.requests if r.target == f"{path}/inbox")
    assert json.loads(json.loads(delivered.body)["object"]["content"]) == refused.json()
    assert delivered.header("content-digest").startswith("sha-256=")
    # A web worker has asked for the actor, with a signature, and told the courier; the POST has the other kind.
    asked = [request for request in log._evil.requests if request.target == path]
    assert asked
    assert all(f'keyId="{LOG_ACTOR}#fetch-key"' in request.header("signature") for request in asked)
    assert "keyId" not in delivered.header("signature")
    before = len(_messages(log, "a06"))
    assert log.enrol("a06").status == 202
    _wait_message(log, "a06", before + 1)
    assert _queued(log) == 1


def test_the_courier_is_started_again_and_nothing_else_is(log):
    pids = json.loads((log.settings.directory / "pids.json").read_bytes())
    os.kill(pids["replies"], signal.SIGKILL)

    def again() -> bool:
        now = json.loads((log.settings.directory / "pids.json").read_bytes())
        assert {**now, "replies": 0} == {**pids, "replies": 0}
        return now["replies"] != pids["replies"]

    log.wait("another courier", again)
    before = len(_messages(log, "a05"))
    assert log.enrol("a05").status == 202
    _wait_message(log, "a05", before + 1)
