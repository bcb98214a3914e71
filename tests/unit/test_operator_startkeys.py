"""Before anything of a log starts its keys are looked at; and what a check of the log says of them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from ktlog.commands import serve
from ktlog.config import SEQUENCER, WEB, Settings
from ktlog.errors import StoreError
from ktlog.operator.create import create_log, load_public_keys, write_public_keys
from ktlog.operator.findings import Findings
from ktlog.operator.fsckfiles import read_documents
from ktlog.operator.keys import WEB_PURPOSES
from ktlog.operator.rotate import rotate
from ktlog.operator.startkeys import SIGNING, check_keys
from ktlog.web.context import Context
from tests.operator_world import NOW, ORIGIN


@pytest.fixture(scope="module")
def rotated(tmp_path_factory) -> Settings:
    settings = create_log(tmp_path_factory.mktemp("rotated") / "log", ORIGIN, "spec", bytes(32))
    rotate(settings, "leaf", "yearly", NOW)
    rotate(settings, "hpke", "yearly", NOW)
    return settings


@pytest.fixture
def settings(rotated, tmp_path) -> Settings:
    shutil.copytree(rotated.directory, tmp_path / "log")
    return replace(rotated, directory=tmp_path / "log")


def refused(settings: Settings, role: str) -> StoreError | None:
    try:
        check_keys(replace(settings, role=role, store="" if role == "all" else "postgresql:///x"))
    except StoreError as error:
        return error
    return None


def found(settings: Settings) -> dict[str, int]:
    findings = Findings()
    read_documents(settings, findings)
    assert all(finding.hint for finding in findings.kept)
    return dict(findings.counts)


@pytest.mark.parametrize("role", ["all", WEB, SEQUENCER])
def test_a_lost_history_of_keys_stops_every_role_and_is_damage(settings, role):
    assert refused(settings, role) is None and found(settings) == {}
    whole = settings.key_changes.read_bytes()
    settings.key_changes.unlink()
    assert refused(settings, role).name == "KeyChangesLost"
    assert found(settings) == {"KeyChangesLost": 1}
    settings.key_changes.write_bytes(whole.replace(b"yearly", b"yearlz"))
    assert refused(settings, role).name == "BadKeyChanges"
    assert found(settings) == {"BadKeyChanges": 1}
    settings.key_changes.write_bytes(whole)
    rotate(settings, "leaf", "", NOW)
    settings.key_changes.write_bytes(whole)  # one line short
    assert refused(settings, role).name == "KeyChangesLost"
    assert found(settings) == {"KeyChangesLost": 1}


@pytest.mark.parametrize("role", ["all", WEB, SEQUENCER])
def test_older_public_keys_than_the_history_says_stop_every_role(settings, role):
    before = (settings.directory / "public-keys.json").read_bytes()
    rotate(settings, "map", "", NOW)
    (settings.directory / "public-keys.json").write_bytes(before)
    assert refused(settings, role).name == "RotationUnfinished"
    assert "RotationUnfinished" in found(settings)


@pytest.mark.parametrize("purpose", WEB_PURPOSES)
def test_a_key_of_web_workers_that_nobody_was_told_of_is_not_used(settings, purpose):
    path = settings.keys / purpose
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    for role in ("all", WEB):
        assert refused(settings, role).name in ("KeysDiffer", "RotationUnfinished")
    assert refused(settings, SEQUENCER) is None, "it does not look at them"
    assert sum(found(settings).values()) == 1
    path.unlink()
    assert found(settings) == {}, "on another machine, perhaps"


def test_what_older_code_did_not_write_down_is_written_down_at_a_start(settings):
    wanted = load_public_keys(settings)
    assert set(wanted.web) == set(WEB_PURPOSES)
    write_public_keys(settings, replace(wanted, web={}))
    assert refused(settings, SEQUENCER) is None and load_public_keys(settings).web == {}
    assert found(settings) == {} and refused(settings, "all") is None
    assert load_public_keys(settings) == wanted


def test_each_key_is_asked_for_where_it_is_used_and_nowhere_else(settings):
    for purpose in (*SIGNING, *WEB_PURPOSES):
        path = settings.keys / purpose
        kept = path.read_bytes()
        path.unlink()
        for role, wanted in ((WEB, WEB_PURPOSES), (SEQUENCER, SIGNING), ("all", SIGNING + WEB_PURPOSES)):
            error = refused(settings, role)
            assert (error is not None) == (purpose in wanted), (purpose, role)
            assert error is None or (error.name == "MissingSecret" and "keys.md" in error.hint)
        assert refused(replace(settings, signer="/run/signer"), SEQUENCER) is None
        path.write_bytes(kept[:31])
        path.chmod(0o600)
        assert refused(settings, "all").name == "BadSecret"
        path.write_bytes(kept)
        path.chmod(0o640)
        assert refused(settings, "all").name == "UnsafeSecret"
        path.chmod(0o600)
    shutil.rmtree(settings.keys)
    assert refused(settings, "all").hint.startswith("Restore ")


@pytest.mark.parametrize("purpose", WEB_PURPOSES)
def test_no_web_worker_holds_a_seed_that_is_another_keys_too(settings, purpose):
    """As when a line in a unit names the wrong file. Keys that signed once are no better."""
    rotate(settings, "checkpoint", "", NOW)
    rotate(settings, "map", "", NOW)
    kept = (settings.keys / purpose).read_bytes()
    own = [path.name for path in settings.keys.iterdir() if path.name in {*SIGNING, *WEB_PURPOSES} - {purpose}]
    old = [path.name for path in settings.keys.iterdir() if ".until-" in path.name]
    assert len(own) == len(SIGNING) + len(WEB_PURPOSES) - 1 and len(old) == 5
    for name in (*own, *old):
        (settings.keys / purpose).write_bytes((settings.keys / name).read_bytes())
        error = refused(settings, WEB)
        if purpose == "hpke" == name.partition(".")[0]:  # a switch that died between two steps leaves just that
            assert error.name == "RotationUnfinished"
            continue
        others = {purpose, name.partition(".")[0]}
        assert error.name == "KeyReused" and error.exit_code == 8, name
        assert all(other in error.message for other in others) and str(settings.keys) in error.message
        with pytest.raises(StoreError) as caught:
            Context(settings, load_public_keys(settings))
        assert caught.value.name == "KeyReused"
        result = CliRunner().invoke(serve.command, ["--dir", str(settings.directory)])
        assert result.exception.name == "KeyReused"
        assert refused(settings, SEQUENCER) is None
    (settings.keys / purpose).write_bytes(kept)
    assert refused(settings, WEB) is None


def test_an_old_key_and_a_credential_are_compared_too(settings, tmp_path, monkeypatch):
    old = next(path for path in settings.keys.iterdir() if path.name.startswith("hpke.until-"))
    kept = old.read_bytes()
    old.write_bytes((settings.keys / "map-mldsa44").read_bytes())
    error = refused(settings, WEB)
    assert error.name == "KeyReused" and str(old) in error.message and "map-mldsa44" in error.message
    old.write_bytes(kept)
    (tmp_path / "credentials").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    (settings.keys / "hpke").unlink()
    shutil.copy(settings.keys / "leaf", tmp_path / "credentials" / "hpke")
    error = refused(settings, WEB)
    assert error.name == "KeyReused" and "the credential hpke" in error.message and "LoadCredential=hpke" in error.hint
    assert "rotate leaf" in error.hint


def test_serve_says_so_before_it_starts_anything(settings, monkeypatch):
    monkeypatch.setattr(serve, "supervise", lambda _settings: pytest.fail("something was started"))
    (settings.keys / "leaf").unlink()
    result = CliRunner().invoke(serve.command, ["--dir", str(settings.directory)])
    assert isinstance(result.exception, StoreError) and result.exception.name == "MissingSecret"


@pytest.mark.parametrize(("kind", "lost"), [
    ("leaf", "leaf"), ("map", "map-mldsa44"), ("hpke", "checkpoint-mldsa44"), ("fetch", "checkpoint-mldsa44"),
])
def test_a_rotation_that_cannot_be_signed_leaves_nothing_behind(settings, kind, lost):
    (settings.keys / lost).unlink()
    before = {path.name for path in settings.keys.iterdir()}
    with pytest.raises(StoreError) as caught:
        rotate(settings, kind, "", NOW)
    assert caught.value.name == "MissingSecret" and "restore it" in caught.value.hint
    assert {path.name for path in settings.keys.iterdir()} == before
    assert len(load_public_keys(settings).leaf_keys) == 2
