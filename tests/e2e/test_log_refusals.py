"""Bad input of every kind, over real HTTPS, at a log that is really running.

Each case is refused with its status and its code in the specification's error format, changes not one
row, and leaves a log behind that answers the next request. Source of the format: PKD, "Error Responses".
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

import pytest

from ktlog.client import build_envelope
from ktlog.pkd.compose import signed_bytes
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.keys import encode_root, sign_mldsa44
from ktlog.tlog.encoding import encode_base64url
from tests.refusal_cases import ALICE, CASES, INVALID, fireproof, good_body
from tests.running_log import INBOX_PATH, ORIGIN, Answer, RunningLog, running_log


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    with running_log(tmp_path_factory.mktemp("refusals")) as running:
        built = running.build_enrolment("a01")
        running.first_wire = dict(built.wire)
        assert running.deliver(running.first_wire).status == 202
        assert running.enrol("a02").status == 202
        running.wait_published(2)
        running.good = fireproof(running)
        yield running
        # After all of it: somebody enrols, and it is published.
        before = running.snapshot()
        receipt = running.enrol("a05")
        assert (receipt.status, receipt.json()["leaf-index"]) == (202, before["state"].size)
        running.wait_published(before["state"].size + 1)


def check_refused(log: RunningLog, make: Callable[[], Answer], status: int, error: str, code: str) -> None:
    before = log.snapshot()
    found = make()
    assert found.status == status, found.body[:500]
    assert found.headers["content-type"] == "application/json"
    body = found.json()
    assert set(body) == {"!pkd-context", "error", "message", "code"}
    assert (body["!pkd-context"], body["error"], body["code"]) == ("fedi-e2ee:v1/api/error", error, code)
    assert isinstance(body["message"], str)
    assert body["message"]
    assert str(log.directory) not in body["message"]
    assert (status == 401) == ("accept-signature" in found.headers)
    assert log.snapshot() == before
    assert "Traceback" not in log.output()
    # And on it goes: a message that is in the log already goes all the way to the sequencer and back.
    again = log.deliver(log.first_wire)
    assert (again.status, again.json()["already-processed"], again.json()["leaf-index"]) == (202, True, 0)


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_refused(log, bad):
    check_refused(log, lambda: bad.send(log), bad.status, bad.error, bad.code)


# --- what may look like a refusal and is none


def test_a_message_that_is_in_the_log_already(log):
    """Sent again, signed again, in other white space, by a new request: the first receipt, and no new leaf."""
    before = log.snapshot()
    receipt = log.deliver(log.first_wire).json()
    assert receipt == {
        "!pkd-context": "fedi-e2ee:v1/api/inbox", "leaf-index": 0, "tree-size": 1, "already-processed": True,
        "merkle-leaf": encode_base64url(before["records"][0].entry), "merkle-root": encode_root(before["roots"][1]),
        "status-url": receipt["status-url"],
    }
    body = json.dumps(log.activity(build_envelope(ALICE, log.sealed(log.first_wire)))).encode()
    headers = log.signed_headers(body)
    spaced = json.dumps(log.first_wire, indent=4, sort_keys=True).replace('"action"', '  "action"  ')
    signature = sign_mldsa44(log.keys["a01"].private, signed_bytes(
        SPEC, "AddKey", log.first_wire["message"], log.first_wire["recent-merkle-root"]))
    again = [
        log.request("POST", INBOX_PATH, headers, body), log.post(body, created=int(time.time()) + 1),
        log.deliver(spaced), log.deliver(log.first_wire | {"padding": "x" * 500}),
        log.deliver(log.first_wire | {"signature": encode_base64url(signature)}),
    ]
    assert [(found.status, found.json()) for found in again] == [(202, receipt)] * 5
    assert log.snapshot() == before


def test_a_body_of_exactly_the_limit(log):
    before = log.snapshot()
    document = log.activity(build_envelope(ALICE, log.sealed(log.first_wire)))
    document["summary"] = ""
    missing = log.settings.body_limit_bytes - len(json.dumps(document).encode())
    document["summary"] = "x" * missing
    body = json.dumps(document).encode()
    assert len(body) == log.settings.body_limit_bytes
    assert log.post(body).status == 202
    lines = {**log.signed_headers(body, created=int(time.time()) + 1), "Transfer-Encoding": "chunked", "Host": ORIGIN, "Connection": "close"}
    head = f"POST {INBOX_PATH} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    assert log.send(head.encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)).status == 202
    check_refused(log, lambda: log.post(body + b" "), 413, INVALID, "too_large")
    assert log.snapshot() == before


def test_without_its_sequencer_it_says_so_and_loses_nothing(log):
    """kill -9: the web workers answer 503 until the supervisor has started another, and reading goes on."""
    before = log.snapshot()
    pids = json.loads(before["pids"])
    os.kill(pids["sequencer"], signal.SIGKILL)
    built = log.build_enrolment("a06")
    answers = []

    def accepted() -> bool:
        assert log.get("/checkpoint").status == 200
        answers.append(log.deliver(dict(built.wire), "a06"))
        return answers[-1].status == 202

    log.wait("a new sequencer", accepted)
    for found in answers[:-1]:
        assert (found.status, found.json()["error"], found.json()["code"]) == (503, "internal_error", "unavailable")
        assert found.headers["retry-after"] == "2"
    after = log.snapshot()
    assert (after["state"].size, after["state"].epoch) == (before["state"].size + 1, before["state"].epoch + 1)
    assert after["entries"][:-1] == before["entries"]
    now = json.loads(after["pids"])
    assert (now["supervisor"], now["web"]) == (pids["supervisor"], pids["web"])
    assert now["sequencer"] != pids["sequencer"]
    assert log.get("/readyz").status == 200


# --- reading


NOT_FOUND, BAD_PATH = (404, "not_found", "not_found"), (400, INVALID, "bad_request")
NOT_PUBLISHED = (404, "not_found", "not_published")
ALICE_IN_PATH = ALICE.replace(":", "%3A").replace("/", "%2F")


@pytest.mark.parametrize(("target", "refusal"), [
    ("/tile/%2e%2e/ktlog.toml", BAD_PATH), ("/tile/../keys/leaf", BAD_PATH), ("/tile/..%2f..%2fkeys%2fleaf", BAD_PATH),
    ("/tile/0/000.p/2/../../../../log.db", BAD_PATH), ("/tile/%2Fetc%2Fpasswd", BAD_PATH), ("/tile//etc/passwd", NOT_FOUND),
    ("/tile/0%2F000.p%2F2", BAD_PATH), ("/tile/0/000.p%2f2", BAD_PATH), ("/tile/0/000.p/0", BAD_PATH),
    ("/tile/0/000.p/256", BAD_PATH), ("/tile/0/000.p/02", BAD_PATH), ("/tile/0/000.p/+2", BAD_PATH),
    ("/tile/0/000.p/-1", BAD_PATH), ("/tile/00/000", BAD_PATH), ("/tile/64/000", BAD_PATH), ("/tile/-1/000", BAD_PATH),
    ("/tile/0/x000/000", BAD_PATH), ("/tile/0/0000", BAD_PATH), ("/tile/0/%D9%A0%D9%A0%D9%A0", BAD_PATH),
    ("/tile/0/000%00", BAD_PATH), ("/tile/0/000.p/2/", BAD_PATH), ("/tile/" + "x999/" * 1500 + "999", BAD_PATH),
    ("/tile/0/000", NOT_FOUND), ("/tile/0/000.p/250", NOT_FOUND), ("/tile/entries/x123/456", NOT_FOUND),
    ("//tile/0/000.p/2", NOT_FOUND), ("/tile", NOT_FOUND), ("/tile/", NOT_FOUND), ("/checkpoint/", NOT_FOUND),
    ("/checkpoint%00", NOT_FOUND), ("/%63heckpoint", NOT_FOUND), ("/log.db", NOT_FOUND),
    ("/static/../keys/leaf", NOT_FOUND), ("/keys/leaf", NOT_FOUND),
    ("/records/%2e%2e", BAD_PATH), ("/records/../log.db", BAD_PATH), ("/records/000.p/0", BAD_PATH), ("/records/0", BAD_PATH),
    ("/records/000.p/%32", BAD_PATH), ("/records/-01", BAD_PATH),
    ("/records/000", NOT_FOUND), ("/records/000.p/255", NOT_FOUND), ("/records/x999/x999/x999/x999/999", NOT_FOUND),
    ("/api/actor/", NOT_FOUND), ("/api/actor//keys", NOT_FOUND), (f"/api/actor/{ALICE}", NOT_FOUND),
    ("/api/actor/%2e%2e/keys", BAD_PATH), ("/api/actor/../info", NOT_FOUND), ("/api/actor/a01", BAD_PATH),
    (f"/api/actor/{ALICE_IN_PATH.replace('%', '%25')}", BAD_PATH), (f"/api/actor/{ALICE_IN_PATH}%00", BAD_PATH),
    (f"/api/actor/{ALICE_IN_PATH}%23main-key", BAD_PATH), ("/api/actor/%ff%fe", BAD_PATH), ("/api/actor/%", BAD_PATH),
    ("/api/actor/https%3A%2F%2Fx%2Fa", BAD_PATH), ("/api/actor/http%3A%2F%2Falpha.example%2Fusers%2Fa01", BAD_PATH),
    ("/api/actor/" + "a" * 8000, BAD_PATH), ("/api/actor/" + "%41" * 2500, BAD_PATH),
    (f"/api/actor/{ALICE_IN_PATH}x", NOT_FOUND), (f"/api/actor/{ALICE_IN_PATH}/secrets", NOT_FOUND),
    (f"/api/actor/{ALICE_IN_PATH}x/keys", NOT_FOUND), ("/api", NOT_FOUND), ("/api/", NOT_FOUND), ("/api/infos", NOT_FOUND),
    ("/.well-known/webfinger", BAD_PATH), ("/.well-known/webfinger?resource=acct:a01@alpha.example", NOT_FOUND),
    (f"https://{ORIGIN}/checkpoint", NOT_FOUND), ("http://127.0.0.1/checkpoint", NOT_FOUND),
    ("/checkpoint#x", NOT_FOUND),
], ids=lambda value: value[:60] if isinstance(value, str) else "")
def test_paths(log, target, refusal):
    check_refused(log, lambda: log.get(target), *refusal)


@pytest.mark.parametrize(("query", "refusal"), [
    ("tree-size=%2B1", BAD_PATH), ("tree-size=+1", BAD_PATH), ("tree-size=1_0", BAD_PATH), ("tree-size=01", BAD_PATH),
    ("tree-size=-1", BAD_PATH), ("tree-size=", BAD_PATH), ("tree-size=1.0", BAD_PATH), ("tree-size=1e0", BAD_PATH),
    ("tree-size=0x1", BAD_PATH), ("tree-size=%D9%A1", BAD_PATH), ("tree-size=1%00", BAD_PATH), ("tree-size=%201", BAD_PATH),
    ("tree-size=" + "9" * 19, BAD_PATH), ("tree-size=" + "9" * 7000, BAD_PATH), ("tree-size=1&tree-size=2", BAD_PATH),
    ("tree-size=0", NOT_PUBLISHED), ("tree-size=1000", NOT_PUBLISHED), (f"tree-size={2**63 - 1}", NOT_PUBLISHED),
    ("include-proofs=1", BAD_PATH), ("include-proofs=True", BAD_PATH), ("include-proofs=", BAD_PATH),
    ("include-proofs=true&include-proofs=false", BAD_PATH),
], ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_tree_sizes(log, query, refusal):
    check_refused(log, lambda: log.get(f"/api/actor/{ALICE_IN_PATH}/keys?{query}"), *refusal)


def test_what_these_cases_come_close_to_is_there(log):
    """Or the tables above would hold for a log that answers nothing at all."""
    for target in ("/checkpoint", "/tile/0/000.p/2", "/tile/entries/000.p/2", "/records/000.p/2", "/leaf-keys", "/api/info",
                   f"/api/actor/{ALICE_IN_PATH}", f"/api/actor/{ALICE_IN_PATH}/keys?tree-size=1&include-proofs=true",
                   f"/.well-known/webfinger?resource=acct:pubkeydir@{ORIGIN}", "/users/pubkeydir", "/livez", "/readyz"):
        found = log.get(target)
        assert (found.status, bool(found.body)) == (200, True), target
    keys = log.get(f"/api/actor/{ALICE_IN_PATH}/keys?tree-size=1&include-proofs=true").json()
    assert (keys["tree-size"], [row["leaf-index"] for row in keys["history"]]) == (1, [0])


WRONG_HOST = (421, INVALID, "wrong_host")


@pytest.mark.parametrize("host", [
    "evil.example", "localhost", "127.0.0.1", f"{ORIGIN}:443", f"{ORIGIN}.", ORIGIN.upper(), f"x.{ORIGIN}", f"{ORIGIN}, {ORIGIN}",
], ids=str)
def test_other_hosts(log, host):
    check_refused(log, lambda: log.get("/checkpoint", host=host), *WRONG_HOST)
    body = good_body(log)
    headers = log.signed_headers(body)
    check_refused(log, lambda: log.request("POST", INBOX_PATH, headers, body, host=host), *WRONG_HOST)


def test_a_proxy_s_header_does_not_name_the_host(log):
    for name in ("X-Forwarded-Host", "Forwarded", "X-Original-Host", "X-Host"):
        assert log.get("/checkpoint", headers={name: "evil.example"}).status == 200
        check_refused(log, lambda n=name: log.get("/checkpoint", headers={n: ORIGIN}, host="evil.example"), *WRONG_HOST)


@pytest.mark.parametrize(("method", "target"), [
    ("GET", INBOX_PATH), ("PUT", INBOX_PATH), ("DELETE", "/checkpoint"), ("POST", "/checkpoint"), ("PATCH", "/tile/0/000.p/2"),
    ("POST", f"/api/actor/{ALICE_IN_PATH}/keys"), ("TRACE", "/checkpoint"),
])
def test_other_methods(log, method, target):
    check_refused(log, lambda: log.request(method, target, body=b"" if method == "GET" else b"{}"), 405, INVALID, "bad_request")


@pytest.mark.parametrize("raw", [
    b"GET /checkpoint HTTP/1.1\r\nHost: keys.alpha.example\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    b"POST /users/pubkeydir/inbox HTTP/1.1\r\nHost: keys.alpha.example\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: close\r\n\r\n0\r\n\r\nGET /checkpoint HTTP/1.1\r\n\r\n",
    b"POST /users/pubkeydir/inbox HTTP/1.1\r\nHost: keys.alpha.example\r\nContent-Length: +5\r\nConnection: close\r\n\r\nhello",
    b"POST /users/pubkeydir/inbox HTTP/1.1\r\nHost: keys.alpha.example\r\nContent-Length: 5\r\nContent-Length: 6\r\n"
    b"Connection: close\r\n\r\nhello!",
    b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: keys.alpha.example\r\nConnection: close\r\n\r\n",
    b"GET /checkpoint HTTP/1.1\r\nHost: keys.alpha.example\r\nX: " + b"a" * 17_000 + b"\r\nConnection: close\r\n\r\n",
    b"GET /checkpoint HTTP/1.1\r\nHost: keys.alpha.example\r\n" + b"X: y\r\n" * 100 + b"Connection: close\r\n\r\n",
    b"GET /checkpoint HTTP/3.7\r\nHost: keys.alpha.example\r\n\r\n",
    b"\x16\x03\x01 hello\r\n\r\n",
    b"GET /checkpoint\r\n\r\n", b"BREW /checkpoint HTTP/1.1\r\nHost: keys.alpha.example\r\n\r\n", b"GET * HTTP/1.1\r\nHost: keys.alpha.example\r\n\r\n",
], ids=["two hosts", "two framings", "a length with a sign", "two lengths", "a long line", "a long header", "many headers",
        "another version", "no HTTP", "HTTP/0.9", "no method", "an asterisk"])
def test_what_the_http_server_refuses_by_itself(log, raw):
    """Nobody has understood a request, so no answer is signed; but it says what was wrong, and nothing changes."""
    before = log.snapshot()
    found = log.send(raw)
    assert 400 <= found.status < 600
    assert found.json()["code"] in ("bad_request", "too_large", "not_found")
    assert log.snapshot() == before
    assert log.deliver(log.first_wire).status == 202
