"""When the last backup was made: noted after it, read by who watches, and never in anybody's way."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.errors import StoreError
from ktlog.operator import doctor, lastbackup
from ktlog.operator.backup import generations
from ktlog.operator.create import create_log
from ktlog.operator.doctor import BACKUP_SECONDS, examine_inside
from ktlog.operator.lastbackup import LIMIT_BYTES, NAME, LastBackup, last_backup, note_backup

NOW = 1_800_000_000


@pytest.fixture
def settings(tmp_path):
    return create_log(tmp_path / "log", "keys.example.com", "spec", None)


def found(settings, now: int = NOW) -> doctor.Ailment:
    return next(one for one in examine_inside(settings, now=lambda: now) if one.name == "Backup")


def test_what_is_noted_is_read(settings):
    assert last_backup(settings) is None
    note_backup(settings, LastBackup(NOW, 7))
    assert last_backup(settings) == LastBackup(NOW, 7)
    assert (settings.directory / NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [
    b"", b"{}", b"[]", b"null", b"7", b"\xff", b'{"time": -1, "size": 7}', b'{"time": 1.5, "size": 7}', b'{"time": true, "size": 7}',
    b'{"time": "1", "size": 7}', b'{"time": 1, "size": null}', b'{"time": 1e400, "size": 7}', b'{"time": %d, "size": 7}' % 2**63,
    b'{"time": 1, "size": 7}' + b" " * LIMIT_BYTES, b'{"time": 1}', b'{"time": 1, "time": 2, "size": 7}', b"[" * 1000,
])
def test_what_is_no_such_note_is_none(settings, content):
    (settings.directory / NAME).write_bytes(content)
    assert last_backup(settings) is None
    assert found(settings).state == "look"


@pytest.mark.parametrize("make", [
    os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink("nowhere", path),
])
def test_what_is_no_file_is_not_read(settings, make):
    make(settings.directory / NAME)
    assert last_backup(settings) is None


def test_the_doctor_says_how_old_it_is_and_what_to_do(settings):
    assert (found(settings).state, "no backup" in found(settings).what) == ("look", True)
    note_backup(settings, LastBackup(NOW - 7_300, 1))
    assert (found(settings).state, found(settings).what) == ("ok", "the newest backup is 2 hours old and has 1 entry")
    assert "is 1 minute old" in found(settings, NOW - 7_200).what and "is 0 minutes old" in found(settings, NOW - 9_000).what
    assert found(settings, NOW + BACKUP_SECONDS).state == "look"
    assert "ktlog backup --dir" in found(settings, NOW + BACKUP_SECONDS).advice
    assert found(settings, NOW - 10_000).state == "ok"  # made before the clock was set back


def test_a_backup_notes_itself_and_holds_no_note(settings, tmp_path):
    done = CliRunner().invoke(ktlog, ["backup", "--dir", str(settings.directory), str(tmp_path / "copies")])
    assert done.exit_code == 0, done.output
    (copy,) = generations(tmp_path / "copies")
    assert last_backup(settings).size == 0 and not (copy / NAME).exists()


def test_a_backup_counts_where_it_cannot_be_noted(settings, tmp_path, monkeypatch):
    def full(*_arguments: object, **_options: object) -> None:
        raise StoreError("DiskFull", "no room for the note")

    monkeypatch.setattr(lastbackup, "write_atomic", full)
    done = CliRunner().invoke(ktlog, ["backup", "--dir", str(settings.directory), str(tmp_path / "copies"), "--json"])
    assert done.exit_code == 0 and "no room for the note" in done.output
    assert len(generations(tmp_path / "copies")) == 1
