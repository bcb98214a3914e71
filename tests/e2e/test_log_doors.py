"""BurnDown and revocation tokens by their own doors: the commands, the TLS front, the workers, the sequencer's socket."""

from __future__ import annotations

import json
import sys
import time

import pytest

from ktlog import cli
from ktlog.client import SigningKey, save_key
from ktlog.operator.link import SequencerLink
from ktlog.pkd.state import Status
from ktlog.pkd.totp import totp_code, window_at
from ktlog.store.sqlite import SqliteStore
from tests.running_log import DOMAIN, ORIGIN, RunningLog, actor, running_log

SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    with running_log(tmp_path_factory.mktemp("doors"), burndown_enabled=True) as running:
        for user in ("a01", "a02", "a03"):
            assert running.enrol(user).status == 202
            save_key(running.directory / f"{user}.key", running.keys[user])
        yield running


@pytest.fixture
def submit(log, monkeypatch, capsys):
    """Types a command; gives its exit code, output and errors."""
    monkeypatch.setenv("KTLOG_DIAL", str(log.directory / "dial.json"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ktlog", "submit", arguments[0], "--log", ORIGIN, *arguments[1:]])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def burn(log, submit):
    """A BurnDown that a02 issues."""
    key, http_key = log.directory / "a02.key", log.directory / "instance" / "keys" / "a02.key"

    def run(target: str, *arguments: str) -> tuple[int, str, str]:
        return submit(
            "burn-down", "--actor", actor("a02"), "--http-key", str(http_key), "--sign-with", str(key),
            "--target", actor(target), "--json", *arguments,
        )

    return run


def status_of(log: RunningLog, user: str) -> int:
    with SqliteStore.open(log.settings.database, read_only=True) as store:
        return store.actor(actor(user)).status


def test_a_burn_down_with_a_password_and_then_a_token(log, burn, submit):
    SequencerLink(log.settings.socket_record).totp_set(DOMAIN, SECRET, 0, None)
    code, _, err = burn("a01")
    assert (code, "otp_required" in err) == (5, True), err
    assert status_of(log, "a01") == Status.ACTIVE

    password = totp_code(SECRET, window_at(int(time.time())))
    code, out, err = burn("a01", "--otp", password)
    assert (code, err) == (0, "")
    assert (json.loads(out)["status"], json.loads(out)["leaf-index"]) == (True, 3)
    assert status_of(log, "a01") == Status.BURNED

    code, _, err = burn("a03", "--otp", password)
    assert (code, status_of(log, "a03")) == (5, Status.ACTIVE)
    assert "otp_reused" in err or "bad_otp" in err  # the latter when its windows are over

    def revoke(key: SigningKey) -> tuple[int, str, str]:
        return submit("revoke-token", "--token", key.revocation_token())

    assert revoke(log.keys["a03"])[0] == 0
    assert status_of(log, "a03") == Status.REVOKED
    assert revoke(log.keys["a03"])[0] == 0
    code, _, err = revoke(SigningKey.generate())
    assert (code, "unknown_token_key" in err) == (5, True)
    log.wait_published(5)
    assert log.snapshot()["state"].size == 5
