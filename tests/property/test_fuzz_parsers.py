"""Whatever arrives, a parser reads it or refuses it with a coded error: nothing else comes out.

Each parser of tests/fuzz_cases.py gets known nuisances (SEEDS, kept here for good), random bytes, and
something it reads with a piece of its structure exchanged: JSON members and header parameters by their
structure, everything by its bytes.
"""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ktlog.errors
from ktlog.errors import Invalid, KtlogError, MessageRejected
from ktlog.operator.create import create_log
from ktlog.store.sqlite import SqliteStore
from ktlog.web.app import create_app
from ktlog.wire.actor import ED25519, ML_DSA_44, Multikey
from ktlog.wire.httpsig import sign_request, verify_request
from ktlog.wire.httpsig_response import Exchange, sign_response, verify_response
from tests.admission_world import http_key
from tests.fuzz_cases import LOG_ACTOR, Target, targets
from tests.pkd_samples import ALICE, private, public, quick_argon2  # noqa: F401 - works by being here

TARGETS = targets()
EACH = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
CLASSES = {name for name, kind in vars(ktlog.errors).items() if isinstance(kind, type) and issubclass(kind, KtlogError)}

#: Each run is bounded; ``KTLOG_FUZZ=50`` looks fifty times as long for something new.
LONGER = int(os.environ.get("KTLOG_FUZZ", "1"))
few = settings(max_examples=25 * LONGER, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

SEEDS: tuple[bytes, ...] = (
    b"", b"\x00", b"\xff", b"\xef\xbb\xbf{}", b"{", b"{}", b"[]", b"null", b"true", b"0", b'""', b"NaN", b"1e999", b"-0",
    b"9" * 5000, b"[" * 5000, b'{"a":' * 3000, b'{"a":1,"a":2}', b'{"a":"\\ud800"}', b'{"\\ud800":1}', b'{"a":NaN}',
    b'{"type":' + b"9" * 5000 + b"}", b'{"error":"x"}', b'{"error":{}}', b'{"error":{"code":[],"message":{}}}',
    b'{"ok":[]}', b'{"ok":{"duplicate":{}}}', b'{"keys":[],"plain":{}}', b'{"keys":5,"plain":{}}', b'{"id":{}}',
    b'{"links":[{"href":{},"rel":"self"}]}', b'{"assertionMethod":[[]]}', b"\xf0\x9f\x94\x91" * 50, b"\xd9\xa3" * 10,
    b"+1", b"1_0", b" 1", b"1\n", b"x999/" * 3000, b"z" + b"1" * 3000, b"=" * 100, b"A" * 43 + b"\n", b"\r\n\r\n",
    b"old 0\n\n", b"old 0\n\n\n\n", b"old \xd9\xa3\n\n", b"ssh-rsa ", b"ssh-ed25519 AAAA", b"age1" + b"q" * 58,
    b"\x01" + b"\xff" * 80, b"hpke:", b"@\x00@", b"https://[", b"https://a.example:\xc2\xb2/", b"%", b"a;b=\"",
)

odd_texts = st.sampled_from([
    "", " ", "\x00", "\ud800", "9" * 5000, "+1", "-1", "1_0", "\u0663", "x" * 70_000, "AB==", "hpke:", "mldsa44:", "null",
    "pkd-mr-v1:", "https://127.0.0.1/a", "yes", "*", "../..", "\u2028", "é", "1e5",
])
odd_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd_texts | st.text(max_size=8)
    | st.sampled_from([2**63, -(2**63), 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)
pieces = st.sampled_from((
    b"", b"\n", b" ", b"\n\n", b"\r", b"+", b"=", b"0", b"-", b"\xff", b'"', b"\\ud800", b"\0", b",", b"{", b"[", b"}", b";",
    b":", b"/", b"%00", b"\xe2\x80\xa8", b"99999999999999999999",
)) | st.binary(max_size=4)


def attempt(target: Target, data: bytes) -> None:
    try:
        target.parse(data)
    except KtlogError as error:
        kind = type(error).__name__
        assert kind in CLASSES and kind in target.refused, f"{kind} is not what {target.name} raises: {error}"
        # A refusal by our own sequencer is passed on as it came.
        assert isinstance(error.name, str) and (error.name.isprintable() or target.name == "refusal frame")
        assert str(error).isprintable() or "\n" in str(error)
        assert error.as_dict()["name"] == error.name


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        found += places(inner)
    return found


def write(value: Any) -> bytes:
    """JSON text, lone surrogates escaped and infinities spelt out, for that is what arrives."""
    return json.dumps(value).encode()


@st.composite
def changed_json(draw, good: bytes) -> bytes:
    """*good* with one to three members replaced, removed, renamed, moved or doubled."""
    value = copy.deepcopy(json.loads(good))
    for _ in range(draw(st.integers(1, 3))):
        spots = places(value)
        if not spots:
            return write(draw(odd_values))
        container, key = draw(st.sampled_from(spots))
        change = draw(st.sampled_from(["replace", "replace", "remove", "rename", "wrap", "swap", "double", "number", "cut"]))
        if change == "remove":
            del container[key]
        elif change == "rename" and isinstance(container, dict):
            container[draw(st.text(max_size=5))] = container.pop(key)
        elif change == "wrap":
            container[key] = draw(st.sampled_from([[container[key]], {"a": container[key]}, str(container[key])]))
        elif change == "swap":
            other, spot = draw(st.sampled_from(spots))
            if spot in other if isinstance(other, dict) else spot < len(other):
                container[key] = copy.deepcopy(other[spot])
        elif change == "double" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif change == "cut" and isinstance(container[key], str):
            text = container[key]
            at = draw(st.integers(0, len(text)))
            container[key] = text[:at] + draw(odd_texts) + text[at + draw(st.integers(0, 2)):]
        elif change == "number":
            container[key] = draw(st.sampled_from([0, -1, 1.5, 2**70, True, "1", "01"]))
        else:
            container[key] = draw(odd_values)
    text = write(value)
    if draw(st.integers(0, 5)) == 0 and b'"' in text:  # one key twice
        text = text.replace(b"{", b'{"a":1,"a":2,', 1)
    return text


@st.composite
def changed_bytes(draw, good: bytes) -> bytes:
    """*good* with a piece put in, taken out, repeated or moved."""
    at, cut = draw(st.integers(0, len(good))), draw(st.integers(0, 4))
    kind = draw(st.sampled_from(["splice", "splice", "repeat", "truncate", "reverse"]))
    if kind == "repeat":
        return good[:at] + good[at:at + 40] * draw(st.integers(2, 40)) + good[at:]
    if kind == "truncate":
        return good[:at]
    if kind == "reverse":
        return good[at:] + good[:at]
    return good[:at] + draw(pieces) + good[at + cut:]


def test_the_table_is_as_wide_as_the_doors_are() -> None:
    """One name for each thing that is read; and what is good is read, or refused as it says."""
    assert len(TARGETS) >= 40
    for target in TARGETS.values():
        if target.name.startswith("refusal"):
            with pytest.raises(MessageRejected, match="bad_time"):
                target.parse(target.good)
        elif target.name == "key id on a page":
            with pytest.raises(KtlogError):
                target.parse(target.good)
        else:
            target.parse(target.good)


@EACH
def test_what_was_a_nuisance_once(target: Target) -> None:
    """Every seed at every parser, and every seed in the middle and at the ends of something good."""
    for seed in SEEDS:
        attempt(target, seed)
        half = len(target.good) // 2
        for data in (target.good + seed, seed + target.good, target.good[:half] + seed[:200] + target.good[half:]):
            attempt(target, data)


@EACH
@few
@given(data=st.binary(max_size=120) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes(target: Target, data: bytes) -> None:
    attempt(target, data)


@EACH
@few
@given(data=st.data())
def test_something_good_with_its_structure_changed(target: Target, data) -> None:
    attempt(target, data.draw(changed_json(target.good) if target.is_json else changed_bytes(target.good)))


@EACH
@few
@given(data=st.data())
def test_something_good_with_its_bytes_changed(target: Target, data) -> None:
    attempt(target, data.draw(changed_bytes(target.good)))


# --- HTTP signatures, whose structure is that of headers

NOW = 1_800_000_000
URL = f"{LOG_ACTOR}/inbox"
BODY = b'{"type":"Create"}'
SIGNED = sign_request("POST", URL, {"Content-Type": "application/json"}, BODY, f"{ALICE}#main-key", http_key(ALICE), NOW)
KEY = http_key(ALICE).public_key()
ANSWER_KEYS = ((f"{LOG_ACTOR}#main-key", http_key(LOG_ACTOR)), (f"{LOG_ACTOR}#pq-key", private("http")))
ANSWERED = Exchange("GET", "https://keys.example.com/api/info", 200, {"content-type": "application/json"}, b"{}")
ANSWER_HEADERS = {
    name.lower(): value for name, value in sign_response(ANSWERED, ANSWER_KEYS, NOW).items()
} | dict(ANSWERED.headers)
KNOWN = {
    f"{LOG_ACTOR}#main-key": Multikey(
        f"{LOG_ACTOR}#main-key", LOG_ACTOR, ED25519, http_key(LOG_ACTOR).public_key().public_bytes_raw()
    ),
    f"{LOG_ACTOR}#pq-key": Multikey(f"{LOG_ACTOR}#pq-key", LOG_ACTOR, ML_DSA_44, public("http")),
}

tokens = st.sampled_from([
    '"@method"', '"@target-uri"', '"content-digest"', '"@status"', '"@query-param";name="a"', ";req", ";bs", ";sf", ";key=\"a\"",
    "sig1", "sig2", "sig1=()", "()", "(", ")", ";created=1", ";created=-1", ";created=1.5", ";created=?1", ";expires=0",
    ';keyid=""', ';keyid="https://x.example/a#k"', ";keyid=5", ';alg="ed25519"', ';alg="hmac-sha256"', ';alg="rsa-v1_5-sha256"',
    ";nonce=:AA==:", ";tag", "=", ",", ";", ":AA==:", ":AB==:", "::", "?1", "@5", "%\"x\"", "\"", "\\", " ", "\t", "\x00",
    "sha-256=:AA==:", "sha-512=:AA==:", "md5=:AA==:", "9" * 40, "\xe9", "*", "(((", '"@signature-params"', '"@query"', '"@authority"',
])


@st.composite
def changed_headers(draw, good: dict[str, str]) -> list[tuple[str, str]]:
    """The header lines of something signed, one or two of them spoilt, doubled or missing."""
    lines = list(good.items())
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(lines) - 1))
        name, value = lines[at]
        change = draw(st.sampled_from(["insert", "insert", "cut", "remove", "double", "swap", "replace"]))
        place = draw(st.integers(0, len(value)))
        if change == "insert":
            lines[at] = (name, value[:place] + draw(tokens) + value[place:])
        elif change == "cut":
            lines[at] = (name, value[:place] + value[place + draw(st.integers(1, 12)):])
        elif change == "remove" and len(lines) > 1:
            lines.pop(at)
        elif change == "double":
            lines.append((name.upper(), value if draw(st.booleans()) else draw(tokens)))
        elif change == "swap":
            lines[at] = (name, lines[draw(st.integers(0, len(lines) - 1))][1])
        else:
            lines[at] = (name, "".join(draw(st.lists(tokens, max_size=6))))
    return lines


def as_sent(lines: list[tuple[str, str]]) -> bool:
    return sorted((name.lower(), value) for name, value in lines) == sorted(
        (name.lower(), value) for name, value in SIGNED.items()
    )


@settings(max_examples=120 * LONGER, deadline=None)
@given(changed_headers(SIGNED))
@example(list(SIGNED.items()))
@example([("Signature", "sig1=:AA==:"), ("Signature-Input", "sig1=();created=1")])
@example([("Signature", "sig1"), ("Signature-Input", "sig1"), ("Content-Digest", "sha-256=?1")])
def test_the_headers_of_a_request(lines) -> None:
    """A request verifies or is ``unauthorized``. Its signature covers no less than before: what still verifies
    says nothing new, or it would have been signed."""
    try:
        found = verify_request("POST", URL, lines, BODY, lambda key_id: KEY, NOW)
    except MessageRejected as error:
        assert error.code == "unauthorized"
        assert not as_sent(lines)
    else:
        assert (found.algorithms, found.key_id, found.created) == ((ED25519,), f"{ALICE}#main-key", NOW)


@settings(max_examples=80 * LONGER, deadline=None)
@given(changed_headers(ANSWER_HEADERS))
@example(list(ANSWER_HEADERS.items()))
def test_the_headers_of_an_answer(lines) -> None:
    headers: dict[str, str] = {}
    for name, value in lines:
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value

    def find(key_id: str) -> Multikey:
        if key_id not in KNOWN:
            raise Invalid("UnknownKey", "not ours")
        return KNOWN[key_id]

    exchange = Exchange(ANSWERED.method, ANSWERED.url, ANSWERED.status, headers, ANSWERED.body)
    try:
        found = verify_response(exchange, find, NOW)
    except Invalid as error:
        assert error.name == "BadResponseSignature"
        assert headers != ANSWER_HEADERS
    else:
        assert set(found.algorithms) == {ED25519, ML_DSA_44}


# --- what can be asked of the running application

PATHS = (
    "/api/actor/{}", "/api/actor/{}/keys", "/api/actor/{}/key/{}", "/api/actor/{}/auxiliary", "/api/actor/{}/auxiliary/{}",
    "/api/history/since/{}", "/api/history/view/{}", "/api/status/{}", "/api/replica/{}/history", "/tile/{}", "/tile/entries/{}",
    "/records/{}", "/erasures/{}", "/users/{}", "/.well-known/webfinger?resource={}", "/.well-known/nodeinfo", "/nodeinfo/{}",
    "/api/actor/https%3A%2F%2Falpha.example%2Fusers%2Fa/keys?tree-size={}",
    "/api/actor/https%3A%2F%2Falpha.example%2Fusers%2Fa/keys?include-proofs={}&tree-size={}",
)
segments = st.sampled_from([
    "https%3A%2F%2Falpha.example%2Fusers%2Falice", "%", "%zz", "%00", "%ff", "..", "%2e%2e", "%2F", "", "0", "-1", "+1", "1_0",
    "99999999999999999999", "9" * 5000, "%D9%A3", "pkd-mr-v1%3A" + "A" * 43, "pkd-mr-v1:" + "A" * 42 + "B", "A" * 43, "A" * 43 + "=",
    "x001/234", "0/000.p/1", "000.p/1", "true", "acct%3Apubkeydir%40keys.example.org", "a;b", "a%20b", "a&b=c", "#", "[", "~",
]) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    settings_of_log = create_log(tmp_path_factory.mktemp("fuzz") / "log", "keys.example.org", "spec", None)
    SqliteStore.open(settings_of_log.database).close()
    app = create_app(settings_of_log)
    return app.test_client()


@settings(max_examples=100 * LONGER, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PATHS), st.lists(segments, min_size=2, max_size=2))
@example("/api/history/since/{}", ["pkd-mr-v1:" + "A" * 43, ""])
def test_any_path_and_query(client, path, words) -> None:
    """Never a crash: an answer, or an error of the one format. (503 says that the sequencer is not there.)"""
    target = path.format(*words)
    found = client.get("/", environ_overrides={"RAW_URI": target, "REQUEST_URI": target}, headers={"Host": "keys.example.org"})
    assert found.status_code < 500 or found.status_code == 503, (target, found.data)
    if found.status_code >= 400:
        body = found.get_json()
        assert set(body) == {"!pkd-context", "error", "message", "code"}, target
        assert body["!pkd-context"] == "fedi-e2ee:v1/api/error"


@settings(max_examples=80 * LONGER, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["/users/pubkeydir/inbox", "/inbox", "/api/burndown", "/api/revoke", "/api/totp/enroll", "/api/totp/disenroll",
                     "/api/totp/rotate", "/api/history/cosign/pkd-mr-v1:" + "A" * 43]),
    st.data(),
)
def test_any_body(client, path, data) -> None:
    """Every door that takes a body, unsigned and badly signed, with bodies meant for one door or another."""
    names = ["activity", "envelope", "BurnDown's body", "revocation's body", "totp enroll", "totp rotate", "cosignature"]
    good = TARGETS[data.draw(st.sampled_from(names))].good
    body = data.draw(st.just(good) | changed_json(good) | changed_bytes(good) | st.binary(max_size=60))
    headers = [("Host", "keys.example.org"), ("X-Forwarded-For", data.draw(st.sampled_from(["", "x", "10.0.0.1", ", ,", "::1%eth0"])))]
    if data.draw(st.booleans()):
        headers += [(name, value) for name, value in data.draw(changed_headers(SIGNED)) if value.isprintable() and value.isascii()]
    found = client.post("/", data=body, headers=headers, environ_overrides={"RAW_URI": path, "REQUEST_URI": path})
    assert found.status_code in (202, 204) or 400 <= found.status_code < 500 or found.status_code == 503, (path, found.data)
    if found.status_code >= 400:
        assert found.get_json()["!pkd-context"] == "fedi-e2ee:v1/api/error"
