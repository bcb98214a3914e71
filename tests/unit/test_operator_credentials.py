"""A log whose keys are systemd credentials: it starts without a key in its directory, and a rotation says what to do."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ktlog.cli import ktlog
from ktlog.config import Settings
from ktlog.errors import StoreError
from ktlog.operator.create import check_public_keys, create_log, ensure_map, load_public_keys
from ktlog.operator.custody import Channel, local_custody, remote_custody, start_signer
from ktlog.operator.hpkekeys import load_hpke_keys
from ktlog.operator.keylist import list_all
from ktlog.operator.keys import PURPOSES, load_seed
from ktlog.operator.rotate import read_changes, rotate
from ktlog.operator.startkeys import check_keys
from tests.operator_world import NOW, ORIGIN


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return create_log(tmp_path_factory.mktemp("made") / "log", ORIGIN, "spec", bytes(32))


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "credentials"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path))
    return path


@pytest.fixture
def settings(made: Settings, credentials: Path, tmp_path: Path) -> Settings:
    """A log all of whose keys were moved into credentials."""
    shutil.copytree(made.directory, tmp_path / "log")
    settings = Settings(tmp_path / "log", ORIGIN, "spec")
    for purpose in PURPOSES:
        hand_over(settings, credentials, purpose)
    assert [path.name for path in settings.keys.iterdir()] == ["fetch-rsa.pem"]
    return settings


def hand_over(settings: Settings, credentials: Path, purpose: str) -> None:
    (credentials / purpose).unlink(missing_ok=True)
    (settings.keys / purpose).rename(credentials / purpose)
    (credentials / purpose).chmod(0o440)  # as an access list looks


def refused(settings: Settings) -> StoreError:
    with pytest.raises(StoreError) as caught:
        check_keys(settings)
    return caught.value


def test_all_that_reads_keys_reads_them_there(settings: Settings, made: Settings) -> None:
    check_keys(settings)
    assert local_custody(settings, lambda: NOW).public == replace(load_public_keys(settings), web={})
    assert all(load_seed(settings.keys, purpose) == (made.keys / purpose).read_bytes() for purpose in PURPOSES)
    assert load_hpke_keys(settings.keys, lambda: NOW).encapsulation_key
    assert {key.public is None for key in list_all(settings, load_public_keys(settings), ())} == {False}


def test_the_signers_process_finds_them(settings: Settings) -> None:
    process, connections = start_signer(settings)
    channels = [Channel(connection) for connection in connections]
    try:
        custody = remote_custody(*channels, lambda: None)
        assert custody.public == replace(load_public_keys(settings), web={})
        assert custody.log_heads.last() is None and len(custody.log_heads.vkeys()) == 2
    finally:
        for channel in channels:
            channel.close()
        assert process.wait(20) == 0


@pytest.mark.parametrize("purpose", PURPOSES)
def test_each_must_be_there_once_closed_to_others_and_whole(settings: Settings, credentials: Path, purpose: str) -> None:
    path = credentials / purpose
    kept = path.read_bytes()
    for mode in (0o444, 0o660):
        path.chmod(mode)
        assert refused(settings).name == "UnsafeSecret"
    path.chmod(0o600)
    path.write_bytes(kept[:31])
    assert refused(settings).name == "BadSecret"
    path.unlink()
    error = refused(settings)
    assert error.name == "MissingSecret" and "credential" in error.hint
    os.mkfifo(path, 0o600)
    assert refused(settings).name == "UnsafeSecret"
    path.unlink()
    path.symlink_to("/dev/null")
    assert refused(settings).name == "UnsafeSecret"
    path.unlink()
    path.write_bytes(kept)
    path.chmod(0o400)
    check_keys(settings)
    (settings.keys / purpose).write_bytes(kept)
    (settings.keys / purpose).chmod(0o600)
    assert refused(settings).name == "TwoSources"
    with pytest.raises(StoreError, match="TwoSources"):
        load_seed(settings.keys, purpose)


def back_up_with_keys(settings: Settings, *words: str) -> Result:
    place = str(settings.directory.parent / "backups")
    done = CliRunner().invoke(ktlog, ["backup", place, "--dir", str(settings.directory), "--with-keys", *words])
    assert done.exit_code == 0, done.exception
    return done


def test_a_backup_names_the_keys_that_are_not_in_it(
    settings: Settings, credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (credentials / "http-ed25519").rename(settings.keys / "http-ed25519")
    ensure_map(settings)
    lines = back_up_with_keys(settings).stderr.splitlines()
    there = [purpose for purpose in PURPOSES if purpose != "http-ed25519"]
    assert "NOT in it" in lines[1] and lines[2:] == [f"  {purpose}: the systemd credential {purpose}" for purpose in there]
    left_out = json.loads(back_up_with_keys(settings, "--json").stdout)["keys-left-out"]
    assert left_out == {purpose: f"the systemd credential {purpose}" for purpose in there}
    # Outside of the unit nobody can see that they are credentials; that they are not there, one can.
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    left_out = json.loads(back_up_with_keys(settings, "--json").stdout)["keys-left-out"]
    assert list(left_out) == there and all("not in DIR/keys" in where for where in left_out.values())


def test_a_backup_with_every_key_says_nothing_of_the_kind(made: Settings, tmp_path: Path) -> None:
    shutil.copytree(made.directory, tmp_path / "log")
    settings = Settings(tmp_path / "log", ORIGIN, "spec")
    ensure_map(settings)
    assert len(back_up_with_keys(settings).stderr.splitlines()) == 1
    assert json.loads(back_up_with_keys(settings, "--json").stdout)["keys-left-out"] == {}


def test_without_the_service_manager_none_is_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert refused(settings).name == "MissingSecret"


def test_a_new_log_is_not_made_beside_them(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="TwoSources"):
        create_log(tmp_path / "new", ORIGIN, "spec", bytes(32))
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    check_keys(create_log(tmp_path / "new", ORIGIN, "spec", bytes(32)))


@pytest.mark.parametrize(("kind", "here"), [("leaf", "leaf"), ("hpke", "hpke"), ("fetch", "checkpoint-mldsa44")])
def test_a_rotation_says_what_to_do_and_leaves_nothing_behind(
    settings: Settings, credentials: Path, monkeypatch: pytest.MonkeyPatch, kind: str, here: str
) -> None:
    before = {path.name for path in settings.keys.iterdir()}
    with pytest.raises(StoreError) as caught:
        rotate(settings, kind, "", NOW)
    assert (caught.value.name, here in caught.value.message) == ("KeyInCredential", True)
    # Outside of the unit nobody can see that it is one.
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(StoreError) as told:
        rotate(settings, kind, "", NOW)
    assert told.value.name == "MissingSecret"
    for error in (caught.value, told.value):
        assert "systemd-creds decrypt" in error.hint and "docs/keys.md" in error.hint
    assert {path.name for path in settings.keys.iterdir()} == before and not read_changes(settings)


@pytest.mark.parametrize("kind", ["leaf", "checkpoint", "hpke", "http"])
def test_what_it_says_is_done(
    settings: Settings, credentials: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The keys come back as files, are rotated outside of the unit, and go into credentials again."""
    old = {purpose: (credentials / purpose).read_bytes() for purpose in PURPOSES}
    for purpose in PURPOSES:
        (settings.keys / purpose).write_bytes(old[purpose])
        (settings.keys / purpose).chmod(0o600)
    with monkeypatch.context() as outside:
        outside.delenv("CREDENTIALS_DIRECTORY")
        change = rotate(settings, kind, "yearly", int(time.time()))
    changed = {key.purpose for key in change.keys}
    assert refused(settings).name == "TwoSources"
    # Who forgets to encrypt anew is told: no key signs or answers once another is announced in its place.
    for purpose in PURPOSES:
        (settings.keys / purpose).rename(credentials.parent / purpose)
    if kind in ("hpke", "http"):
        assert refused(settings).name == "RotationUnfinished"
    else:  # what signs is compared by the sequencer, before anything is signed
        with pytest.raises(StoreError, match="KeysDiffer"):
            check_public_keys(settings, local_custody(settings, lambda: NOW).public)
    for purpose in PURPOSES:
        (credentials.parent / purpose).rename(settings.keys / purpose)
        hand_over(settings, credentials, purpose)
    check_keys(settings)
    assert {purpose for purpose in PURPOSES if load_seed(settings.keys, purpose) != old[purpose]} == changed
    public = local_custody(settings, lambda: NOW).public
    assert public.vkeys == load_public_keys(settings).vkeys and public.leaf_keys == load_public_keys(settings).leaf_keys[-1:]
