"""A running log with two web workers and no exemptions: who has to wait, what is a replay, and what is signed.

The front is a trusted proxy that passes on X-Forwarded-For, so a test says where each request comes from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import pytest

from ktlog.client import build_envelope, seal
from ktlog.errors import Invalid
from ktlog.wire.actor import ED25519, parse_actor
from ktlog.wire.httpsig_response import ACCEPT_BOTH, BOTH, Exchange, content_digest, verify_response
from tests.running_log import INBOX_PATH, LOG_ACTOR, ORIGIN, Answer, RunningLog, actor, running_log

BASE_MS = 600_000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    settings = {"workers": 2, "rate_limit_exempt": "", "rate_limit_base_ms": BASE_MS}
    with running_log(tmp_path_factory.mktemp("guard"), **settings) as running:
        yield running


def enrolment(log: RunningLog, user: str) -> tuple[bytes, Mapping[str, str]]:
    """The body and the signed headers of a request that is taken."""
    built = log.build_enrolment(user)
    body = json.dumps(log.activity(build_envelope(actor(user), seal(built, log.hpke())), user)).encode()
    return body, log.signed_headers(body, user)


def post(log: RunningLog, ip: str, headers: Mapping[str, str], body: bytes) -> Answer:
    return log.request("POST", INBOX_PATH, {**headers, "X-Forwarded-For": ip}, body)


def check_signed(
    log: RunningLog, answer: Answer, method: str, target: str, digest: str | None = None, algorithms=BOTH,
) -> None:
    """The answer is signed with these keys, which the log's own actor document lists, for this very request."""
    document = parse_actor(log.get("/users/pubkeydir").json(), LOG_ACTOR)
    keys = {key.id: key for key in document.assertion_method}
    exchange = Exchange(method, f"https://{ORIGIN}{target}", answer.status, answer.headers, answer.body, digest)
    verified = verify_response(exchange, keys.__getitem__, int(time.time()), algorithms=algorithms)
    assert set(verified.algorithms) == set(algorithms)


@pytest.mark.parametrize("target", [
    "/api/info", "/api/history", "/users/pubkeydir", "/leaf-keys", "/nowhere", "/tile/0/x",
    "/api/actor/https%3A%2F%2Falpha.example%2Fusers%2Fa06", "/api/actor/%ff", "//api/info", "/x?y=%20",
])
def test_what_is_read_is_signed(log, target):
    check_signed(log, log.get(target), "GET", target)


def test_an_acceptance_is_signed_and_a_replay_of_it_is_refused_by_every_worker(log):
    body, headers = enrolment(log, "a02")
    headers |= ACCEPT_BOTH
    receipt = post(log, "192.0.2.1", headers, body)
    assert receipt.status == 202
    digest = headers["Content-Digest"]
    check_signed(log, receipt, "POST", INBOX_PATH, digest)
    for other in (content_digest(b"another message"), None):
        with pytest.raises(Invalid):
            check_signed(log, receipt, "POST", INBOX_PATH, other)
    bent = Answer(receipt.status, receipt.headers, receipt.body.replace(b'"leaf-index":0', b'"leaf-index":7'))
    assert bent.body != receipt.body
    with pytest.raises(Invalid):
        check_signed(log, bent, "POST", INBOX_PATH, digest)
    before = log.snapshot()["state"]
    for number in range(8):
        again = post(log, f"198.51.100.{number}", headers, body)
        assert (again.status, again.json()["code"]) == (401, "replayed_request")
        assert "accept-signature" in again.headers
        check_signed(log, again, "POST", INBOX_PATH, digest)
    assert log.snapshot()["state"] == before
    # Signed anew it is the same message, which the log has already.
    renewed = post(log, "192.0.2.1", log.signed_headers(body, "a02", created=int(time.time()) + 1), body)
    assert (renewed.status, renewed.json()["already-processed"]) == (202, True)
    # As a stock server signs, and not a word of what it knows: so is the answer.
    check_signed(log, renewed, "POST", INBOX_PATH, digest, (ED25519,))


def test_one_bad_request_makes_its_sender_wait_at_every_worker(log):
    body, headers = enrolment(log, "a03")
    before = log.snapshot()["state"]
    assert post(log, "192.0.2.33", {}, b"{}").status == 400
    answers = [post(log, "192.0.2.33", headers, body) for _ in range(12)]
    assert {answer.status for answer in answers} == {429}
    for answer in answers:
        assert answer.json()["error"] == answer.json()["code"] == "rate_limited"
        assert 1 <= int(answer.headers["retry-after"]) <= BASE_MS // 1000
        assert answer.headers["x-ratelimit-limit"] == "1"
        assert int(answer.headers["x-ratelimit-reset"]) > time.time()
    with pytest.raises(Invalid, match="content-digest;req"):  # signed, but not as the answer to a body: it was not read
        check_signed(log, answers[0], "POST", INBOX_PATH, headers["Content-Digest"])
    assert log.snapshot()["state"] == before
    assert log.request("GET", "/api/info", {"X-Forwarded-For": "192.0.2.33"}).status == 200
    # It was not the instance's doing: from elsewhere its request is taken.
    assert post(log, "192.0.2.34", headers, body).status == 202


def test_an_invented_address_before_the_real_one_does_not_help(log):
    assert post(log, "192.0.2.55", {}, b"{}").status == 400
    assert post(log, "203.0.113.1, 192.0.2.55", {}, b"{}").status == 429


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example", f"{ORIGIN}:443", ""])
def test_only_the_hosts_of_the_list_are_answered(log, host):
    """PKD, "DNS Rebinding Attacks"."""
    assert log.get("/api/info", host=host).status == 421


def test_a_server_is_answerable_for_what_it_signed(log):
    """Last: after this, alpha.example has to wait."""
    mention = json.dumps(log.activity("<p>@pubkeydir hello</p>")).encode()
    chatting = post(log, "192.0.2.77", log.signed_headers(mention), mention)
    assert (chatting.status, "retry-after" in chatting.headers) == (400, False), "no attempt at a message"
    body = json.dumps(log.activity(build_envelope(actor("a01"), log.sealed("{}")))).encode()
    refused = post(log, "192.0.2.77", log.signed_headers(body), body)
    assert refused.status == 400
    body, headers = enrolment(log, "a04")
    waiting = post(log, "192.0.2.78", headers, body)
    assert (waiting.status, waiting.json()["code"]) == (429, "rate_limited")
    # Whoever claims to be alpha.example shares its wait, and can neither shorten nor lengthen it.
    forged = {**headers, "Signature": "sig1=:AAAA:"}
    assert post(log, "192.0.2.79", forged, body).status == 429
    assert int(post(log, "192.0.2.80", headers, body).headers["retry-after"]) <= int(waiting.headers["retry-after"])
