"""The high-water mark: an older record is refused, and a crash at any point is not taken for one."""

from __future__ import annotations

import os
import shutil

import pytest
from click.testing import CliRunner

from ktlog.errors import StoreError
from tests.witness_log import NOW
from tests.witness_site import NAME, Session
from witness import cli
from witness.mark import MARK_SYNCED, MARK_WRITTEN, SLOT_BYTES, open_mark
from witness.store import AFTER_COMMIT, BEFORE_COMMIT, WitnessStore

VKEYS = ("a", "b")
DATABASE = ("witness.db", "witness.db-wal", "witness.db-shm")


def opened(session: Session) -> StoreError | None:
    store = WitnessStore.open(session.directory.database)
    try:
        store.keep_mark(session.directory.mark)
    except StoreError as error:
        return error
    finally:
        store.close()
    return None


def copy_database(source, target) -> None:
    target.mkdir(exist_ok=True)
    for name in DATABASE:
        (target / name).unlink(missing_ok=True)
        if (source / name).exists():
            shutil.copy(source / name, target / name)


def test_a_restored_older_copy_is_refused_and_the_newest_is_not(tmp_path):
    session = Session(tmp_path)
    session.submit(0, 1)
    copy_database(session.directory.path, tmp_path / "old")
    session.submit(1, 3)
    session.witness.store.close()
    copy_database(session.directory.path, tmp_path / "new")
    assert opened(session) is None

    copy_database(tmp_path / "old", session.directory.path)
    error = opened(session)
    assert error.name == "RecordRolledBack"
    assert "init" in error.hint
    said = CliRunner().invoke(cli.main, [
        "set-mark", "--dir", str(session.directory.path), "--record-is-the-newest",
    ])
    assert (said.exit_code, "RecordRolledBack" in said.stderr) == (8, True)  # its word does not stand against the mark
    copy_database(tmp_path / "new", session.directory.path)
    assert opened(session) is None


def test_evidence_counts_too(tmp_path):
    session = Session(tmp_path)
    session.submit(0, 5)
    copy_database(session.directory.path, tmp_path / "old")
    session.submit(5, 5, root=bytes(32))
    session.witness.store.close()
    copy_database(tmp_path / "old", session.directory.path)  # in which the log is not frozen
    assert opened(session).name == "RecordRolledBack"


def test_a_missing_mark_is_refused_until_somebody_vouches_for_the_record(tmp_path):
    session = Session(tmp_path)
    session.submit(0, 1)
    session.witness.store.close()
    session.directory.mark.unlink()
    error = opened(session)
    assert (error.name, "--record-is-the-newest" in error.hint) == ("MarkMissing", True)
    elsewhere = tmp_path / "elsewhere"
    command = ["set-mark", "--dir", str(session.directory.path), "--mark", str(elsewhere)]
    assert CliRunner().invoke(cli.main, command).exit_code == 2
    assert CliRunner().invoke(cli.main, [*command, "--record-is-the-newest"]).exit_code == 0
    assert open_mark(elsewhere, [str(vkey) for vkey in session.vkeys], 1).count == 1


def test_a_foreign_and_a_damaged_mark_are_refused_and_one_good_slot_will_do(tmp_path):
    path = tmp_path / "mark"
    mark = open_mark(path, VKEYS, 0)
    mark.advance(2)
    mark.advance(3)
    mark.close()
    whole = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        open_mark(path, ("c",), 5)
    assert caught.value.name == "ForeignMark"
    for slot in (0, 1):  # a write that the power cut short
        path.write_bytes(whole[: slot * SLOT_BYTES] + bytes(SLOT_BYTES) + whole[(slot + 1) * SLOT_BYTES :])
        assert open_mark(path, VKEYS, 5).count == 5
        with pytest.raises(StoreError):
            open_mark(path, VKEYS, 1)
    path.write_bytes(bytes(2 * SLOT_BYTES))
    with pytest.raises(StoreError) as caught:
        open_mark(path, VKEYS, 5)
    assert caught.value.name == "MarkDamaged"
    path.write_bytes(whole.replace(b'"count": 5', b'"count": 1'))  # by hand
    assert open_mark(path, VKEYS, 5).count == 5
    with pytest.raises(StoreError):
        open_mark(path, VKEYS, 1)


@pytest.mark.parametrize("hook", [BEFORE_COMMIT, MARK_WRITTEN, MARK_SYNCED, AFTER_COMMIT])
def test_dead_at_any_point_the_mark_is_never_ahead_and_the_record_opens(tmp_path, hook):
    session = Session(tmp_path)
    session.submit(0, 1)
    session.witness.store.close()

    def reach(name):
        if name == hook:
            raise OSError("died")

    session.start(reach)
    try:
        status = session.submit(1, 3).status_code
    except OSError:
        status = 500
    assert status in (500, 503)
    session.witness.store.close()
    store = WitnessStore.open(session.directory.database)
    recorded = store.count_writes()
    store.close()
    assert recorded == (1 if hook == BEFORE_COMMIT else 2)
    assert opened(session) is None
    session.start()
    size = 1 if hook == BEFORE_COMMIT else 3
    assert session.submit(size, 5).status_code == 200


def test_a_mark_that_cannot_be_written_stops_the_witness_before_it_answers(tmp_path):
    session = Session(tmp_path)
    session.submit(0, 1)
    mark = session.witness.store._mark
    os.close(mark._handle)
    mark._handle = os.open(session.directory.mark, os.O_RDONLY)
    response = session.submit(1, 3)
    assert (response.status_code, response.data[:8]) == (503, b"Poisoned")
    assert session.submit(3, 5).status_code == 503
    session.witness.store.close()
    session.start()
    assert session.submit(3, 5).status_code == 200


def test_serve_refuses_the_copy_too(tmp_path):
    session = Session(tmp_path)
    session.submit(0, 1)
    session.witness.store.close()
    path = str(session.directory.path)
    result = CliRunner().invoke(cli.main, ["serve", "--dir", path, "--mark", f"{path}/none", "--listen", "127.0.0.1:0"])
    assert (result.exit_code, "MarkMissing" in result.stderr) == (8, True)
    assert not os.path.exists(f"{path}/none")


def test_a_new_witness_has_a_mark_with_its_first_start(tmp_path):
    store = WitnessStore.create(tmp_path / "witness.db", NAME, Session(tmp_path).vkeys, NOW)
    store.keep_mark(tmp_path / "mark")
    assert (tmp_path / "mark").stat().st_size == 2 * SLOT_BYTES
    store.close()
