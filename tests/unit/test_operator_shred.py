"""Erasing an actor: when it may be, in what order, and what a restored copy must not bring back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ktlog import durable
from ktlog.config import Settings
from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.operator import journal, shred
from ktlog.operator.journal import JournaledErasure, format_line, journal_erasures, parse_line, read_journal
from ktlog.operator.replyqueue import ReplyQueue
from ktlog.operator.shred import Shredder, finish_erasures, resume
from ktlog.pkd.erasure import map_index
from ktlog.pkd.state import Change, HistoryLeaf
from ktlog.store import connections
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.encoding import encode_base64
from tests.store_samples import ALICE, BOB, ORIGIN, Draft, append, dump, enrol, hash_of, make_actor, make_key, touch

NOTICE = 86_400
PUBLIC = 1_800_000_000
ROOT = Path(__file__).parents[2]


class Site:
    """A log's directory with two actors, all of it public since ``PUBLIC``."""

    def __init__(self, directory: Path) -> None:
        self.settings = Settings(directory, ORIGIN, "spec")
        self.store = SqliteStore.create(self.settings.database, ORIGIN, "spec")
        append(self.store, replace(enrol(ALICE, make_key("a")), text="one"), replace(enrol(BOB, make_key("b")), text="2"))
        self.store.note_published(2, PUBLIC)
        self.time = PUBLIC + NOTICE
        self.shredder = Shredder(
            self.store, self.settings.journal, self.settings.replies, NOTICE, lambda: self.time
        )

    def shred(self, actor_id: str = ALICE, *, preview: bool = False):
        return self.shredder.shred(actor_id, self.store.state(), preview=preview)

    def refusal(self, actor_id: str = ALICE) -> MessageRejected:
        before = dump(self.store)
        with pytest.raises(MessageRejected) as caught:
            self.shred(actor_id)
        assert dump(self.store) == before
        assert not self.settings.journal.exists()
        return caught.value

    def reopen(self) -> None:
        self.store.close()
        self.store = SqliteStore.open(self.settings.database)
        self.shredder = replace(self.shredder, store=self.store)


@pytest.fixture
def site(tmp_path: Path):
    made = Site(tmp_path)
    yield made
    made.store.close()


def test_an_actor_is_erased_and_the_report_says_what_went(site: Site) -> None:
    preview = site.shred(preview=True)
    assert (preview.done, preview.scrubbed, site.store.erasure_count()) == (False, False, 0)
    report = site.shred()
    assert report == replace(preview, done=True, scrubbed=True)
    assert (report.number, report.input_size, report.withheld, report.entries) == (0, 2, 2, 1)
    assert report.map_index == encode_base64(map_index(ORIGIN, ALICE))
    assert site.store.actor(ALICE).erasures == 1
    assert not site.store.scrub_due()


def test_the_journal_names_the_index_and_nobody(site: Site) -> None:
    site.shred()
    data = site.settings.journal.read_bytes()
    assert site.settings.journal.stat().st_mode & 0o777 == 0o600
    assert b"alice" not in data and b"example.com/" not in data
    (line,) = data.splitlines()
    assert json.loads(line)["map-index"] == encode_base64(map_index(ORIGIN, ALICE))
    assert read_journal(site.settings.journal) == (JournaledErasure(0, site.time, site.store.erasures(0, 1)[0]),)


def test_nothing_goes_before_its_notice_period(site: Site) -> None:
    site.time -= 1
    refusal = site.refusal()
    assert refusal.code == "notice_period"
    assert "2027-01-16 08:00:00 UTC" in refusal.message
    early = site.shred(preview=True)
    assert (early.due, early.done, site.store.erasure_count()) == (PUBLIC + NOTICE, False, 0)
    site.time += 1
    assert site.shred().done


def test_the_newest_entry_counts_and_one_that_nobody_saw_yet_is_never_erased(site: Site) -> None:
    append(site.store, touch(make_actor(ALICE, [make_key("a")], version=2), "three"))
    assert site.refusal().code == "notice_period" and site.shred(preview=True).due is None
    site.store.note_published(3, PUBLIC + 50)
    assert site.refusal().code == "notice_period"
    site.time += 50
    assert site.shred().withheld == 3


@pytest.mark.parametrize("actor_id", ["https://example.com/users/nobody", "", "\ud800", "https://example.com/users/ALICE"])
def test_an_actor_that_the_log_does_not_know(site: Site, actor_id: str) -> None:
    assert site.refusal(actor_id).code == "nothing_to_erase"


def test_an_actor_is_not_erased_twice(site: Site) -> None:
    site.shred()
    with pytest.raises(MessageRejected, match="nothing_to_erase"):
        site.shred()
    assert len(read_journal(site.settings.journal)) == 1


def test_tokens_are_listed_because_they_stay(site: Site) -> None:
    change = Change((make_actor(ALICE, version=2, status=3),), (HistoryLeaf(ALICE, 1),), hash_of("k"))
    append(site.store, Draft("token", change, action="RevokeKeyThirdParty"))
    site.store.note_published(3, PUBLIC)
    assert site.shred().tokens == (2,)


def test_waiting_replies_go_too(site: Site) -> None:
    queue = ReplyQueue(site.settings.replies)
    queue.put(ALICE, "example.com", b"to alice", 1)
    queue.put(BOB, "example.com", b"to bob", 1)
    site.shred()
    assert len(queue) == 1
    queue.close()
    assert b"alice" not in site.settings.replies.read_bytes()


def test_a_reply_that_was_queued_while_the_actor_was_erased_goes_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = ReplyQueue(site.settings.replies)
    monkeypatch.setattr(shred, "reach", lambda hook: hook == "shred.erased" and queue.put(ALICE, "example.com", b"x", 1))
    site.shred()
    assert len(queue) == 0
    queue.close()
    assert b"alice" not in site.settings.replies.read_bytes()


# The journal


def test_a_journal_that_lags_behind_is_brought_up_to_date(site: Site) -> None:
    site.shred()
    site.settings.journal.unlink()
    resume(site.store, site.settings.journal, lambda: 5)
    assert [(one.number, one.time) for one in read_journal(site.settings.journal)] == [(0, 5)]


def test_a_line_that_was_cut_off_was_never_written(site: Site) -> None:
    site.shred()
    whole = site.settings.journal.read_bytes()
    site.settings.journal.write_bytes(whole + whole[:100])
    assert len(read_journal(site.settings.journal)) == 1
    site.shred(BOB)
    assert [one.number for one in read_journal(site.settings.journal)] == [0, 1]


@pytest.mark.parametrize("damage", [
    lambda line: b"{}", lambda line: b"", lambda line: line[:-1], lambda line: line.replace(b'"0"', b'"1"'),
    lambda line: line.replace(b"shred", b"other"), lambda line: line.replace(b'"withheld":"2"', b'"withheld":"3"'),
    lambda line: line + b" ",
])
def test_a_damaged_journal_is_refused(site: Site, damage) -> None:
    site.shred()
    line = site.settings.journal.read_bytes()[:-1]
    site.settings.journal.write_bytes(damage(line) + b"\n")
    with pytest.raises(StoreError, match="BadJournal"):
        resume(site.store, site.settings.journal, lambda: 5)


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"{}\n"), Path.mkdir])
def test_nothing_is_erased_that_could_not_be_journaled(site: Site, spoil) -> None:
    """Afterwards it would be too late: without its journal a log does not start."""
    spoil(site.settings.journal)
    before = dump(site.store)
    with pytest.raises(MessageRejected) as caught:
        site.shred()
    assert caught.value.code == "journal_unusable"
    assert dump(site.store) == before


def test_a_line_there_and_back(site: Site) -> None:
    site.shred()
    erasure = JournaledErasure(3, 7, site.store.erasures(0, 1)[0])
    assert parse_line(format_line(erasure)) == erasure
    with pytest.raises(EncodingError, match="BadJournal"):
        parse_line(b"\xff")


# Restored copies


def test_what_an_older_copy_brings_back_is_erased_again(site: Site, tmp_path: Path) -> None:
    site.store.close()
    shutil.copy(site.settings.database, tmp_path / "copy")
    site.reopen()
    site.shred()
    records = site.store.erasures(0, 1)
    site.store.close()
    shutil.copy(tmp_path / "copy", site.settings.database)
    finish_erasures(site.settings, lambda: 9)
    site.reopen()
    assert site.store.erasures(0, 1) == records
    assert site.store.actor(ALICE).erasures == 1
    assert hash_of(f"salt {ALICE}") not in site.settings.database.read_bytes()
    assert len(read_journal(site.settings.journal)) == 1


def test_a_copy_where_that_is_not_possible_is_refused(site: Site, tmp_path: Path) -> None:
    """It is older than the entries that the erasure was made after: the log ended before them."""
    site.store.close()
    shutil.copy(site.settings.database, tmp_path / "copy")
    site.reopen()
    append(site.store, Draft("three"))
    site.shred()
    site.store.close()
    shutil.copy(tmp_path / "copy", site.settings.database)
    with pytest.raises(StoreError) as caught:
        finish_erasures(site.settings, lambda: 9)
    assert caught.value.name == "ErasureUndone"
    assert caught.value.hint


def test_another_log_s_journal_is_refused(site: Site, tmp_path: Path) -> None:
    site.shred()
    other = Site(tmp_path / "other") if (tmp_path / "other").mkdir() is None else None
    other.shred(BOB)
    shutil.copy(other.settings.journal, site.settings.journal)
    other.store.close()
    with pytest.raises(StoreError, match="ErasureUndone"):
        journal_erasures(site.settings.journal, site.store, lambda: 9)


@pytest.mark.parametrize("name", ["serve.lock", "sequencer.lock"])
def test_nothing_is_finished_beside_a_running_log(site: Site, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(shred, "LOCK_PAUSE_SECONDS", 0.0)
    with durable.FileLock(site.settings.directory / name), pytest.raises(StoreError, match="Locked"):
        finish_erasures(site.settings, lambda: 9)


def test_a_sequencer_that_is_just_ending_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.shred()
    site.settings.journal.unlink()
    lock = durable.FileLock(site.settings.directory / "sequencer.lock")
    lock.acquire()
    monkeypatch.setattr(shred.time, "sleep", lambda _seconds: lock.release())
    finish_erasures(site.settings, lambda: 9)
    assert len(read_journal(site.settings.journal)) == 1


# Death and failure

SHRED = """
import sys
from pathlib import Path
from ktlog.operator.shred import Shredder
from ktlog.store.sqlite import SqliteStore
directory, actor_id, now = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = SqliteStore(directory / "log.db")
Shredder(store, directory / "journal.jsonl", directory / "replies.db", 1, lambda: now).shred(
    actor_id, store.state(), preview=False
)
print("done")
"""
KILLS = (*connections.HOOKS, *shred.HOOKS, *journal.HOOKS, *connections.REWRITE_HOOKS)


@pytest.mark.parametrize("hook", KILLS)
def test_a_process_killed_at_any_point_is_finished_by_the_next(site: Site, hook: str) -> None:
    site.store.close()
    result = subprocess.run(
        [sys.executable, "-c", SHRED, str(site.settings.directory), ALICE, str(site.time)], capture_output=True,
        text=True, timeout=60, check=False, cwd=ROOT, env=os.environ | {durable.KILL_VARIABLE: hook},
    )
    assert (result.returncode, result.stdout) == (-signal.SIGKILL, ""), result.stderr
    finish_erasures(site.settings, lambda: 9)
    site.reopen()
    if hook == "store.written":
        assert (site.store.erasure_count(), read_journal(site.settings.journal)) == (0, ())
        site.shred()
    assert site.store.actor(ALICE).erasures == 1
    assert [one.record for one in read_journal(site.settings.journal)] == list(site.store.erasures(0, 1))
    assert not site.store.scrub_due()
    data = b"".join(file.read_bytes() for file in site.settings.directory.iterdir() if file.is_file())
    for needle in (b"users/alice", hash_of(f"salt {ALICE}"), make_key("a").public_key[:64]):
        assert needle not in data


def test_a_scrub_that_fails_is_reported_and_stays_due(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self) -> bool:
        raise StoreError("DiskFull", "no space")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "scrub", full)
        report = site.shred()
    assert (report.done, report.scrubbed, site.store.scrub_due()) == (True, False, True)
    finish = site.store.scrub()
    assert finish


def test_a_scrub_of_which_nobody_knows_the_end_ends_the_process(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def ambiguous(self) -> bool:
        raise StoreError("AmbiguousCommit", "who knows")

    monkeypatch.setattr(SqliteStore, "scrub", ambiguous)
    with pytest.raises(StoreError, match="AmbiguousCommit"):
        site.shred()
