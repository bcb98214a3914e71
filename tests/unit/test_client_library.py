"""The library as the author of a messenger meets it: its example runs, its names are documented, its secrets are kept."""

from __future__ import annotations

import builtins
import configparser
import doctest
import os
import socket
import sys
from pathlib import Path

import pytest
from client_log import NOW, key
from client_world import remembering_argon2id
from map_log import ALICE, MapWorld

import ktlog.client
from ktlog import cli
from ktlog.client import Present, load_token, revoke_by_token, save_key, save_token, verify_bundle
from ktlog.errors import KtlogError, StoreError
from ktlog.pkd import attributes

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_runs():
    assert doctest.testmod(ktlog.client).failed == 0 and doctest.testmod(ktlog.client).attempted >= 8


def test_every_public_name_is_there_and_documented():
    for name in ktlog.client.__all__:
        found = getattr(ktlog.client, name)
        assert not callable(found) or not isinstance(found, type) or found.__doc__, name
        assert not callable(found) or found.__doc__, name
    for wanted in (
        "Directory", "verify_bundle", "SigningKey", "enrol", "add_key", "rotate", "revoke_key", "fireproof",
        "move_identity", "add_aux_data", "revoke_aux_data", "revoke_by_token", "save_token", "load_token", "fetch_terms",
    ):
        assert wanted in ktlog.client.__all__


def test_the_package_is_typed():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert (ROOT / "ktlog" / "py.typed").exists()
    assert "py.typed" in settings["options.package_data"]["ktlog"].split()


def test_a_stored_answer_is_verified_without_network_disk_or_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    world = MapWorld(tmp_path)
    bundles = [world.lookup(full=full).bundle for full in (False, True)]

    def forbidden(*_, **__):
        raise AssertionError("verify_bundle looks at nothing but its arguments")

    for place, name in ((socket, "socket"), (builtins, "open"), (os, "open"), (ktlog.client.proof.time, "time")):
        monkeypatch.setattr(place, name, forbidden)
    for bundle in bundles:
        assert isinstance(verify_bundle(bundle, None, world.policy, ALICE, NOW), Present)


def test_every_failure_tells_a_person_what_to_do(tmp_path):
    world = MapWorld(tmp_path)
    world.network.break_("/map/checkpoint")
    with pytest.raises(KtlogError) as caught:
        world.lookup()
    text = caught.value.diagnostics()
    assert caught.value.name in text and caught.value.exit_code == 3


# -- revocation tokens


def test_a_token_is_kept_like_a_secret(tmp_path):
    path = tmp_path / "alice.token"
    save_token(path, key(1))
    assert path.stat().st_mode & 0o777 == 0o600
    assert revoke_by_token(load_token(path)).message.token.public_key == key(1).public_key
    with pytest.raises(StoreError, match="SecretExists"):
        save_token(path, key(2))
    assert revoke_by_token(load_token(path)).message.token.public_key == key(1).public_key


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:-9] + b"\n", lambda data: b"\xff" + data[1:], lambda data: data + data,
    lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], lambda data: bytes(20000),
])
def test_a_damaged_token_is_noticed_when_it_is_read(tmp_path, damage):
    path = tmp_path / "alice.token"
    save_token(path, key(1))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match="BadSecret"):
        load_token(path)


def test_a_token_that_others_may_read(tmp_path):
    path = tmp_path / "alice.token"
    save_token(path, key(1))
    path.chmod(0o644)
    with pytest.raises(StoreError, match="UnsafeSecret"):
        load_token(path)
    with pytest.raises(StoreError, match="MissingSecret"):
        load_token(tmp_path / "none")


def test_the_command_writes_the_token_to_a_file(tmp_path, monkeypatch, capsys):
    save_key(tmp_path / "alice.key", key(1))
    words = ["key", "revocation-token", str(tmp_path / "alice.key"), "--out", str(tmp_path / "alice.token")]
    monkeypatch.setattr(sys, "argv", ["ktlog", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0 and capsys.readouterr().out == ""
    assert revoke_by_token(load_token(tmp_path / "alice.token")).message.token.public_key == key(1).public_key
