"""`ktlog submit burn-down` and `ktlog submit revoke-token`, as somebody types them, against the real application."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ktlog import cli
from ktlog.client import (
    SigningKey,
    build_envelope,
    build_plain_envelope,
    burn_down,
    checkpoint_message,
    save_key,
    seal,
)
from ktlog.client.build import build_message
from ktlog.errors import EncodingError, MessageRejected, Unreachable, UsageError
from ktlog.operator import direct
from ktlog.operator.direct import deliver_burndown, deliver_token
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.keys import ZERO_ROOT
from ktlog.pkd.messages import BurnDown, CheckpointMessage, Fireproof, open_message_attributes, parse_wire
from ktlog.pkd.totp import totp_code, window_at
from ktlog.wire.actor import ED25519, ML_DSA_44, actor_key
from ktlog.wire.fetch import Fetcher, Response
from ktlog.wire.httpsig_response import Exchange, content_digest, sign_response
from tests.admission_world import HPKE, LOG_URL, PEER, PEER_ACTOR, Inbox, flipped, http_key, token_text
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import ALICE, BOB, bytes_of, private, public, quick_argon2  # noqa: F401
from tests.submission_site import Internet, Site, make_settings

SECRET = b"\x0b" * 32
LOG_ACTOR = f"{LOG_URL}/users/pubkeydir"
LOG_KEYS = ((f"{LOG_ACTOR}#main-key", http_key(LOG_ACTOR)), (f"{LOG_ACTOR}#pq-key", private("http")))


@pytest.fixture
def desk(tmp_path, monkeypatch, capsys):
    """A moderator's directory, a log on a network, and `run`, which types a command."""
    internet = Internet()
    monkeypatch.setattr(Fetcher, "from_environment", classmethod(lambda cls, *_, **__: internet))

    class Moderator:
        def __init__(self):
            self.internet = internet
            self.site = Site(
                make_settings(tmp_path / "log", burndown_enabled=True, rate_limit_exempt="192.0.2.0/24"), internet
            )
            for name in "ac":
                save_key(tmp_path / f"{name}.key", SigningKey(bytes_of(f"signing key {name}")))
            pem = http_key(BOB).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            (tmp_path / "http.key").write_bytes(pem)
            (tmp_path / "http.key").chmod(0o600)

        def path(self, name):
            return str(tmp_path / name)

        def run(self, *arguments):
            monkeypatch.setattr(sys, "argv", ["ktlog", *arguments])
            code = 0
            try:
                cli.main()
            except SystemExit as end:
                code = end.code or 0
            out, err = capsys.readouterr()
            return code, out, err

        def burn(self, *arguments, target=ALICE):
            return self.run(
                "submit", "burn-down", "--log", ORIGIN, "--actor", BOB, "--http-key", self.path("http.key"),
                "--sign-with", self.path("c.key"), "--target", target, *arguments,
            )

        def revoke(self, *arguments):
            return self.run("submit", "revoke-token", "--log", ORIGIN, *arguments)

    moderator = Moderator()
    yield moderator
    moderator.site.close()


# --- burn-down


def test_burn_down_from_the_command_line(desk):
    code, out, err = desk.burn("--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert (answer["status"], answer["leaf-index"]) == (True, 2)
    assert desk.site.desk.store.actor(ALICE).keys == ()


def test_burn_down_in_words(desk):
    assert desk.burn() == (0, "accepted: the log signed this message as an entry; as entry 2, the log says\n", "")


def test_burn_down_with_a_one_time_password(desk):
    desk.site.desk.store.set_totp("example.com", SECRET, 0, None)
    code, _, err = desk.burn()
    assert (code, "otp_required" in err) == (5, True)
    code, _, err = desk.burn("--otp", "00000000")
    assert (code, "bad_otp" in err) == (5, True)
    code, _, err = desk.burn("--otp", totp_code(SECRET, window_at(int(time.time()))))
    assert (code, err) == (0, "")


def test_burn_down_that_the_log_refuses(desk):
    code, out, err = desk.burn(target="https://elsewhere.example/users/erin")
    assert (code, out, "actor_not_enrolled" in err) == (5, "", True)
    assert desk.site.desk.size == 2


def test_a_log_that_does_not_sign_its_answer_is_not_believed(desk, monkeypatch):
    post = desk.internet.post

    def unsigned(url, body, headers=None, **options):
        answer = post(url, body, headers, **options)
        return Response(answer.status, {"content-type": "application/json"}, answer.body, url)

    monkeypatch.setattr(desk.internet, "post", unsigned)
    assert desk.burn()[0] == 3
    assert desk.revoke("--key", desk.path("c.key"))[0] == 3
    # Neither is its word that it has no use for a token, nor its refusal.
    assert desk.revoke("--token", token_text("stranger"))[0] == 3
    code, _, err = desk.burn(target="https://elsewhere.example/users/erin")
    assert (code, "BadAnswer" in err) == (3, True)


# --- revoke-token


@pytest.mark.parametrize("how", ["--token", "--token-file", "--key"])
def test_revoke_token_from_the_command_line(desk, tmp_path, how):
    given = {"--token": token_text("a"), "--token-file": desk.path("a.token"), "--key": desk.path("a.key")}
    (tmp_path / "a.token").write_text(token_text("a") + "\n")
    code, out, err = desk.revoke(how, given[how])
    assert (code, out, err) == (0, "accepted: the key is revoked, the log says and signed\n", "")
    assert desk.site.desk.store.actor(ALICE).keys == ()
    assert desk.revoke(how, given[how], "--json")[:2] == (0, '{"revoked": true}\n')


def test_revoke_token_of_a_key_that_nobody_has(desk):
    code, out, err = desk.revoke("--token", token_text("stranger"))
    assert (code, out) == (5, "")
    assert "unknown_token_key" in err
    assert desk.site.desk.size == 2


@pytest.mark.parametrize("arguments", [
    [], ["--token", "x"], ["--token", token_text("a"), "--token-file", "x"], ["--token", flipped(token_text("a"), 4000)],
    ["--token-file", "nothing-there"],
])
def test_revoke_token_with_what_is_none_asks_nobody(desk, monkeypatch, arguments):
    monkeypatch.setattr(desk.internet, "post", lambda *_, **__: pytest.fail("sent"))
    code, out, err = desk.revoke(*arguments)
    assert (code in (2, 5), out, err != "") == (True, "", True)


# --- answers that are none


class Says:
    """A network where every POST gets one answer, signed as the answer to *asked*, or to what was asked."""

    def __init__(self, status: int, body: object, asked: bytes | None = None) -> None:
        self.answer = Response(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode(), "https://x")
        self.asked = asked

    def get(self, url, **_):
        document = {"id": LOG_ACTOR, "inbox": f"{LOG_ACTOR}/inbox", "assertionMethod": [
            actor_key(name, LOG_ACTOR, algorithm, key.public_key().public_bytes_raw())
            for (name, key), algorithm in zip(LOG_KEYS, (ED25519, ML_DSA_44), strict=True)
        ]}
        return Response(200, {"content-type": "application/activity+json"}, json.dumps(document).encode(), url)

    def post(self, url, body, headers=None, *, max_bytes=None):
        digest = headers["Content-Digest"] if self.asked is None else content_digest(self.asked)
        made = sign_response(Exchange("POST", url, self.answer.status, {}, self.answer.body, digest), LOG_KEYS, NOW)
        return replace(self.answer, headers={name.lower(): value for name, value in made.items()})


@pytest.mark.parametrize(("status", "body", "error"), [
    (200, b"", Unreachable), (200, [], Unreachable), (200, {"!pkd-context": "x"}, Unreachable),
    (200, {"!pkd-context": direct.BURNDOWN_CONTEXT}, Unreachable),
    (200, {"!pkd-context": direct.BURNDOWN_CONTEXT, "status": False}, Unreachable),
    (200, {"!pkd-context": direct.BURNDOWN_CONTEXT, "status": 1}, Unreachable),
    (202, {}, Unreachable), (204, b"", Unreachable), (302, b"", Unreachable), (500, b"oops", Unreachable),
    (503, {"!pkd-context": "fedi-e2ee:v1/api/error", "error": "internal_error", "message": "later"}, Unreachable),
    (403, {"!pkd-context": "fedi-e2ee:v1/api/error", "error": "fireproof", "message": "no"}, MessageRejected),
])
def test_answers_to_a_burn_down(status, body, error):
    with pytest.raises(error):
        deliver_burndown(Says(status, body), LOG_URL, http_key(BOB), f"{BOB}#main-key", "{}", NOW)


@pytest.mark.parametrize(("status", "body", "error"), [
    (200, b"", Unreachable), (200, {"!pkd-context": "x"}, Unreachable), (202, b"", Unreachable),
    (429, {"!pkd-context": "fedi-e2ee:v1/api/error", "error": "rate_limited", "message": "wait"}, Unreachable),
    (400, {"!pkd-context": "fedi-e2ee:v1/api/error", "error": "invalid_request", "message": "no"}, MessageRejected),
])
def test_answers_to_a_token(status, body, error):
    with pytest.raises(error):
        deliver_token(Says(status, body), LOG_URL, token_text("a"), NOW)


def test_a_token_of_no_use():
    assert deliver_token(Says(204, b""), LOG_URL, token_text("a"), NOW) is False


REFUSED = {"!pkd-context": "fedi-e2ee:v1/api/error", "error": "invalid_request", "message": "no"}


@pytest.mark.parametrize(("status", "body"), [
    (204, b""), (200, {"!pkd-context": direct.REVOKE_CONTEXT, "time": str(NOW)}), (400, REFUSED),
])
def test_what_was_said_of_another_token_says_nothing_of_this_one(status, body):
    with pytest.raises(Unreachable) as caught:
        deliver_token(Says(status, body, asked=b"another token"), LOG_URL, token_text("a"), NOW)
    assert caught.value.name == "BadAnswer"


@pytest.mark.parametrize(("status", "body", "name"), [
    (200, {"!pkd-context": direct.BURNDOWN_CONTEXT, "status": True}, "BadReceipt"), (403, REFUSED, "BadAnswer"),
])
def test_what_was_said_of_another_burn_down_says_nothing_of_this_one(status, body, name):
    def send(*asked):
        return deliver_burndown(
            Says(status, body, *asked), LOG_URL, http_key(BOB), f"{BOB}#main-key", "{}", NOW, kept.append
        )

    kept = []
    with pytest.raises(Unreachable) as caught:
        send(b"another")
    assert (caught.value.name, kept) == (name, [])
    if status == 200:
        assert send() == body
        assert [exchange.request_digest for exchange in kept] == [content_digest(b"{}").split(", ")[0]]


# --- building


def test_a_burn_down_is_built_with_its_password_and_never_sealed():
    key = SigningKey(bytes_of("signing key c"))
    built = burn_down(ALICE, BOB, key, recent_root=ZERO_ROOT, now=NOW, otp="12345678")
    envelope = json.loads(build_plain_envelope(BOB, built))
    wire = parse_wire(SPEC, envelope["message"])
    assert (envelope["actor"], wire.otp, built.sender) == (BOB, "12345678", BOB)
    assert open_message_attributes(SPEC, wire, commitments=True) == BurnDown(ALICE, BOB, NOW)
    assert wire.preimage == built.preimage
    with pytest.raises(UsageError, match="NoPassword"):
        build_message(Fireproof(ALICE, NOW), key, ZERO_ROOT, otp="12345678")


def test_a_checkpoint_is_built_and_taken():
    """Signed by the key that the sending directory publishes, and brought by an actor on its host."""
    inbox, key = Inbox(), SigningKey(bytes_of("signing key directory"))
    built = checkpoint_message(PEER, ZERO_ROOT, LOG_URL, ZERO_ROOT, key, recent_root=ZERO_ROOT, now=NOW)
    assert built.message == CheckpointMessage(PEER, ZERO_ROOT, public("directory"), LOG_URL, ZERO_ROOT, NOW)
    assert built.sender is None
    content = build_envelope(PEER_ACTOR, seal(built, HPKE.encapsulation_key))
    receipt = inbox.sequence(inbox.admission.admit(inbox.request(content, PEER_ACTOR)))
    (record,) = inbox.desk.store.records(receipt.leaf_index, receipt.leaf_index + 1)
    assert record.preimage == built.preimage


@pytest.mark.parametrize("roots", [("x", ZERO_ROOT), (ZERO_ROOT, "x")])
def test_a_checkpoint_of_no_root(roots):
    with pytest.raises(EncodingError):
        checkpoint_message(PEER, roots[0], LOG_URL, roots[1], SigningKey(bytes(32)), recent_root=ZERO_ROOT, now=NOW)
