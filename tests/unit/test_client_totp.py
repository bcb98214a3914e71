"""The client's side of a TOTP secret: what it builds, and `ktlog submit totp-...` against a real application."""

from __future__ import annotations

import json
import stat
import sys
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from ktlog import cli
from ktlog.client import totp
from ktlog.client.keyfile import SigningKey, save_key
from ktlog.commands.totp import load_secret, save_secret
from ktlog.errors import EncodingError, Invalid, NotLogged, StoreError
from ktlog.pkd.hpke import open_message
from ktlog.pkd.keys import encode_public_key, verify_mldsa44
from ktlog.pkd.totp import decode_secret, encode_secret, totp_code
from ktlog.pkd.totp_requests import Operation, parse_totp_request
from ktlog.wire.fetch import Fetcher
from tests.admission_world import HPKE, http_key
from tests.operator_world import NOW, ORIGIN, Clock
from tests.pkd_samples import ALICE, bytes_of, public, quick_argon2  # noqa: F401
from tests.totp_site import OTHER, SECRET, Site, Through, make_log

KEY = SigningKey(bytes_of("signing key a"))
KEY_ID = "A" * 43
WINDOW = NOW // 30


def read(operation: Operation, body: dict):
    asked = parse_totp_request(operation, json.dumps(body).encode())
    verify_mldsa44(public("a"), asked.signature, asked.signed_bytes)
    assert (asked.time, asked.actor_id, asked.key_id) == (NOW, ALICE, KEY_ID)
    return asked.fields


def opened(text: str) -> bytes:
    return decode_secret(open_message(HPKE, text))


def test_enroll():
    fields = read(Operation.ENROLL, totp.enroll(ALICE, KEY_ID, KEY, SECRET, HPKE.encapsulation_key, now=NOW))
    assert opened(fields["totp-secret"]) == SECRET
    assert (fields["otp-current"], fields["otp-previous"]) == (totp_code(SECRET, WINDOW), totp_code(SECRET, WINDOW - 1))


def test_rotate():
    body = totp.rotate(ALICE, KEY_ID, KEY, OTHER, "12345678", HPKE.encapsulation_key, now=NOW)
    fields = read(Operation.ROTATE, body)
    assert (opened(fields["new-totp-secret"]), fields["old-otp"]) == (OTHER, "12345678")
    assert fields["new-otp-current"] == totp_code(OTHER, WINDOW)
    assert fields["new-otp-previous"] == totp_code(OTHER, WINDOW - 1)


def test_disenroll():
    assert read(Operation.DISENROLL, totp.disenroll(ALICE, KEY_ID, KEY, "12345678", now=NOW))["otp"] == "12345678"


def test_contexts_and_actions_of_the_specification():
    body = totp.disenroll(ALICE, KEY_ID, KEY, "12345678", now=NOW)
    assert (body["!pkd-context"], body["action"]) == ("fedi-e2ee:v1/api/totp/disenroll", "TOTP-Disenroll")
    assert [operation.action for operation in Operation] == ["TOTP-Enroll", "TOTP-Disenroll", "TOTP-Rotate"]
    assert [operation.member for operation in Operation] == ["enrollment", "disenrollment", "rotation"]


def test_new_secrets_differ():
    assert len(totp.new_secret()) == 32
    assert totp.new_secret() != totp.new_secret()


def test_a_uri_that_apps_read():
    parts = urlsplit(totp.otpauth_uri(SECRET, "keys.example.com", "example.com"))
    assert (parts.scheme, parts.netloc, parts.path) == ("otpauth", "totp", "/keys.example.com:example.com")
    assert parse_qs(parts.query) == {
        "secret": [encode_secret(SECRET)], "issuer": ["keys.example.com"], "algorithm": ["SHA512"], "digits": ["8"],
        "period": ["30"],
    }


def test_a_secret_of_another_size():
    for call in (
        lambda: totp.enroll(ALICE, KEY_ID, KEY, SECRET[:20], HPKE.encapsulation_key, now=NOW),
        lambda: totp.otpauth_uri(SECRET + b"x", "keys.example.com", "example.com"),
        lambda: totp.password(b"", NOW),
    ):
        with pytest.raises(EncodingError, match="BadTotpSecret"):
            call()


def test_the_key_id_is_found_in_the_log_s_answer():
    rows = [{"public-key": encode_public_key(public(name)), "key-id": f"id of {name}"} for name in "ab"]
    page = json.dumps({"public-keys": rows}).encode()
    assert totp.key_id_of(page, public("b")) == "id of b"
    with pytest.raises(NotLogged, match="KeyNotListed"):
        totp.key_id_of(page, public("c"))


@pytest.mark.parametrize("page", [
    b"", b"[]", b"{}", b'{"public-keys":{}}', b'{"public-keys":[[]]}', b'{"public-keys":[{"key-id":"x"}]}',
    b'{"public-keys":null}', b'{"public-keys":"xyz"}',
    json.dumps({"public-keys": [{"public-key": encode_public_key(public("b")), "key-id": 5}]}).encode(),
])
def test_answers_that_are_none(page):
    with pytest.raises((Invalid, NotLogged)):
        totp.key_id_of(page, public("b"))


# --- ktlog submit


class Person:
    """Somebody at a terminal; ``run`` types a command and returns (exit code, output, errors)."""

    def __init__(self, directory, network, clock, monkeypatch, capsys) -> None:
        self.directory, self.network, self.clock = directory, network, clock
        self._monkeypatch, self._capsys = monkeypatch, capsys
        save_key(self.path("a.key"), KEY)
        self.write("http.key", http_key(ALICE).private_bytes_raw().hex())

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)
        (self.directory / name).chmod(0o600)

    def run(self, action: str, *arguments: str, key: str = "a.key") -> tuple[int, str, str]:
        options = ["--log", ORIGIN, "--actor", ALICE, "--http-key", self.path("http.key"), "--sign-with", self.path(key)]
        self._monkeypatch.setattr(sys, "argv", ["ktlog", "submit", action, *options, *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = self._capsys.readouterr()
        return end.value.code, out, err


@pytest.fixture
def person(tmp_path, monkeypatch, capsys):
    clock = Clock()
    site = Site(make_log(tmp_path / "log", clock, monkeypatch), clock, monkeypatch)
    network = Through(site)
    monkeypatch.setattr(Fetcher, "from_environment", classmethod(lambda cls, *_, **__: network))
    monkeypatch.setattr(time, "time", lambda: float(clock()))
    yield Person(tmp_path, network, clock, monkeypatch, capsys)
    site.close()


def key_id(person: Person) -> list[str]:
    return ["--key-id", person.network.site.key_id]


def stored(person: Person) -> bytes | None:
    found = person.network.site.context.store.totp("example.com")
    return found.secret if found else None


def test_a_secret_s_life(person):
    first, second = person.path("1.totp"), person.path("2.totp")
    code, out, err = person.run("totp-enroll", *key_id(person), "--secret-file", first)
    assert (code, err) == (0, "")
    assert "example.com" in out
    assert encode_secret(load_secret(first)) not in out
    assert stored(person) == load_secret(first)
    assert stat.S_IMODE((person.directory / "1.totp").stat().st_mode) == 0o600
    person.clock.now += 30
    code, out, err = person.run(
        "totp-rotate", *key_id(person), "--secret-file", first, "--new-secret-file", second, "--show-uri"
    )
    assert (code, err) == (0, "")
    assert stored(person) == load_secret(second) != load_secret(first)
    assert totp.otpauth_uri(load_secret(second), ORIGIN, "example.com") in out
    person.clock.now += 30
    otp = totp.password(load_secret(second), person.clock())
    code, out, err = person.run("totp-disenroll", *key_id(person), "--otp", otp, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "!pkd-context": "fedi-e2ee:v1/api/totp/disenroll", "success": True, "time": str(person.clock()),
    }
    assert stored(person) is None


def test_a_secret_that_is_there_is_used_and_kept(person):
    save_secret(person.directory / "my.totp", SECRET)
    assert person.run("totp-enroll", *key_id(person), "--secret-file", person.path("my.totp"))[0] == 0
    assert stored(person) == SECRET
    with pytest.raises(StoreError, match="SecretExists"):
        save_secret(person.directory / "my.totp", OTHER)


def test_a_refusal_is_told_and_the_secret_is_kept(person):
    person.run("totp-enroll", *key_id(person), "--secret-file", person.path("1.totp"))
    code, _, err = person.run("totp-enroll", *key_id(person), "--secret-file", person.path("2.totp"))
    assert (code, "totp_exists" in err) == (5, True)
    assert stored(person) == load_secret(person.path("1.totp"))
    person.clock.now += 3600
    code, _, err = person.run("totp-disenroll", *key_id(person), "--otp", "00000000")
    assert (code, "bad_otp" in err) == (5, True)
    code, _, err = person.run("totp-disenroll", *key_id(person), "--secret-file", person.path("1.totp"))
    assert (code, "rate_limited" in err) == (3, True)
    assert stored(person) is not None


@pytest.mark.parametrize("arguments", [[], ["--otp", "12345678", "--secret-file", "1.totp"]])
def test_one_password_and_no_more(person, arguments):
    assert person.run("totp-disenroll", *key_id(person), *arguments)[0] == 2
    assert person.network.posted == []


@pytest.mark.parametrize("text", ["", "x", encode_secret(SECRET), encode_secret(SECRET).lower() + "\n", "A" * 53])
def test_files_that_hold_no_secret(person, text):
    person.write("bad.totp", text)
    assert person.run("totp-enroll", *key_id(person), "--secret-file", person.path("bad.totp"))[0] == 8
    assert person.network.posted == []


def test_the_log_is_asked_for_the_key_id(person, monkeypatch):
    """Before its first checkpoint the log names no keys; then it does."""
    assert person.run("totp-enroll", "--secret-file", person.path("1.totp"))[0] == 3
    rows = [{"public-key": KEY.public_text, "key-id": person.network.site.key_id}]
    real = person.network.get

    def get(url: str, **options):
        response = real(url, **options)
        if url.endswith("/keys"):
            return type(response)(200, response.headers, json.dumps({"public-keys": rows}).encode(), url)
        return response

    monkeypatch.setattr(person.network, "get", get)
    assert person.run("totp-enroll", "--secret-file", person.path("1.totp"))[0] == 0
    assert stored(person) == load_secret(person.path("1.totp"))


@pytest.mark.parametrize("status", [200, 403])
def test_what_the_log_said_to_another_request_is_not_believed(person, monkeypatch, status):
    """Whoever stands between keeps an old answer, and the log never hears of the new secret."""
    secret = person.path("1.totp")
    arguments = ("totp-enroll", *key_id(person), "--secret-file", secret)
    kept = {}
    real = person.network.post

    def post(url, body, headers=None, **options):
        kept["answer"] = real(url, body, headers, **options)
        return kept["answer"]

    monkeypatch.setattr(person.network, "post", post)
    if status == 403:
        assert person.run("totp-enroll", *key_id(person), "--secret-file", secret)[0] == 0
        person.clock.now += 60
    code, _, _ = person.run(*arguments)
    assert (code, kept["answer"].status) == ((0, 200) if status == 200 else (5, 409))
    monkeypatch.setattr(person.network, "post", lambda *_, **__: kept["answer"])
    person.clock.now += 60
    code, out, err = person.run(*arguments)
    assert (code, out) == (3, "") and "BadAnswer" in err


def test_answers_that_mean_nothing(person, monkeypatch):
    for status, body in ((200, b"{}"), (200, b"?"), (202, b"{}"), (500, b""), (404, b"<html>")):
        answer = type(person.network.get(f"https://{ORIGIN}/api/info"))(status, {}, body, "https://x.example/")
        monkeypatch.setattr(person.network, "post", lambda *_, answer=answer, **__: answer)
        assert person.run("totp-disenroll", *key_id(person), "--otp", "12345678")[0] == 3
