"""One row a finding: how it opens, counts, closes and comes back; and the rules of when."""

from __future__ import annotations

import re
import sqlite3
import stat
from pathlib import Path

import pytest

from auditor import findings_store, report
from auditor.compare import NAMES as COMPARED
from auditor.debounce import RULES, Graces, Rule, Standing, absent, holds, is_finding, is_over
from auditor.findings_store import MORE_KEY, FindingStore
from auditor.kept import NAMES as KEPT
from auditor.peers import NAMES as PEERS
from auditor.promises import NAMES as PROMISED
from auditor.report import Finding
from auditor.schedule import JITTER, Beat, beat_of
from ktlog.errors import StoreError

LATE = Finding("Late", "Unreachable", "it is late")


@pytest.fixture
def store(tmp_path):
    with FindingStore(tmp_path) as made:
        yield made


def test_a_finding_is_one_row_however_often_it_is_seen(store):
    first = store.record("a.example", LATE, 5)
    again = store.record("a.example", Finding("Late", "Unreachable", "still"), 9)
    assert (first.id, again.count, again.first_seen, again.last_seen, again.what) == (again.id, 2, 5, 9, "still")
    assert store.record("b.example", LATE, 9).id != first.id
    assert store.record("a.example", LATE, 9, key="w1").id != first.id
    assert store.record("a.example", Finding("BadEntry", "Invalid", "x", 7), 9).key == "7"


def test_it_closes_and_opens_again_in_its_row(store):
    row = store.record("a.example", LATE, 5)
    assert store.close_absent("a.example", {("Late", "")}, 6) == []
    assert store.close_absent("a.example", set(), 6, lambda row: False) == []
    assert store.close_absent("b.example", set(), 6) == []
    (closed,) = store.close_absent("a.example", set(), 6)
    assert (closed.id, closed.closed_at, store.open()) == (row.id, 6, [])
    again = store.record("a.example", LATE, 8)
    assert (again.id, again.is_open, again.opened_at, again.first_seen, again.openings) == (row.id, True, 8, 5, 2)


def test_what_convicts_never_closes_and_keeps_its_file(store):
    store.record("a.example", Finding("TwoRoots", "Forked", "x"), 5, Path("evidence/two.json"), key="7")
    store.record("a.example", Finding("TwoRoots", "Forked", "x"), 6, key="7")
    assert store.close_absent("a.example", set(), 7) == []
    assert store.open()[0].evidence == "evidence/two.json"


def test_news_is_told_until_somebody_has_taken_it(store):
    row = store.record("a.example", LATE, 5)

    def refuse(row) -> None:
        raise StoreError("OutboxFull")

    with pytest.raises(StoreError):
        store.tell(row, refuse)
    assert [one.id for one in store.untold()] == [row.id]
    store.tell(row, lambda row: store.close_absent("a.example", set(), 6))  # it closes while it is told
    assert [one.is_open for one in store.untold()] == [False]
    store.tell(store.untold()[0], lambda row: None)
    store.record("a.example", LATE, 5, key="x")
    assert [one.key for one in store.untold()] == ["x"]


def test_all_of_a_round_or_nothing(store):
    def interrupted() -> None:
        with store.transaction():
            store.record("a.example", LATE, 5)
            raise StoreError("DiskFull")

    with pytest.raises(StoreError):
        interrupted()
    assert store.all() == []


def test_a_log_that_breaks_everything_fills_no_disk(store, monkeypatch):
    monkeypatch.setattr(findings_store, "MAX_KEYS_PER_NAME", 3)
    keys = {store.record("a.example", Finding("BadEntry", "Invalid", "x", index), 5).key for index in range(9)}
    assert keys == {"0", "1", "2", MORE_KEY} and store.get("a.example", "BadEntry", MORE_KEY).count == 6


def test_strangers_text_can_be_kept(store):
    row = store.record("a.example", Finding("Late", "Unreachable", "x\ud800\0" + "y" * 9999), 5, key="\udcff" * 999)
    assert len(row.what) < 3000 and len(row.key) < 999 and row.is_open


def test_the_file_is_its_owners_and_synced_and_read_beside_a_writer(store):
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert store.execute("PRAGMA journal_mode") == [("delete",)] and store.execute("PRAGMA synchronous") == [(2,)]
    store.record("a.example", LATE, 5)
    with FindingStore(store.path.parent, read_only=True) as reader:
        assert [row.name for row in reader.open()] == ["Late"]
        with pytest.raises(StoreError):
            reader.record("a.example", LATE, 6)


def test_a_directory_where_nothing_was_watched_and_a_newer_file_are_refused(tmp_path):
    with pytest.raises(StoreError) as missing:
        FindingStore(tmp_path, read_only=True)
    FindingStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "watch.db") as database:
        database.execute("UPDATE watch_meta SET oldest_code = 99")
    with pytest.raises(StoreError) as newer:
        FindingStore(tmp_path)
    assert (missing.value.name, newer.value.name) == ("MissingStore", "NewerSchema")
    assert "nothing was ever watched here" in missing.value.message and "`ktlog-auditor watch` first" in missing.value.hint


# Rules


def test_a_condition_has_to_hold_long_enough_and_in_enough_looks():
    graces, standing = Graces(), None
    for now, expected in ((0, False), (200, False), (310, True)):
        standing = holds(standing, None, now)
        assert is_finding("Unreachable", standing, graces, now) is expected
    assert not is_finding("Unreachable", holds(holds(None, None, 0), None, 9999), graces, 9999)  # two looks
    assert is_finding("TwoRoots", holds(None, None, 0), graces, 0)


def test_a_better_known_beginning_counts_and_is_forgotten_when_it_moves():
    standing = holds(holds(None, 0, 1000), 0, 1060)
    assert is_finding("FrozenLog", standing, Graces(), 1060)
    assert not is_finding("FrozenLog", holds(standing, 1100, 1120), Graces(), 1120)


def test_a_clock_that_is_set_back_makes_no_wait_longer():
    standing = holds(holds(holds(None, None, 10_000), None, 5_000), None, 5_400)
    assert is_finding("Unreachable", standing, Graces(), 5_400)


def test_what_is_not_there_is_over_at_once_or_after_calm():
    before = Standing(0, 60, 5)
    assert is_over("Unreachable", absent(before), opened=False)
    assert not is_over("Unreachable", absent(before), opened=True)
    assert is_over("Unreachable", absent(absent(before)), opened=True)
    assert holds(absent(before), None, 90).calm == 0


def test_rules_are_about_what_may_pass():
    assert not {"TwoRoots", "Inconsistent", "BadLogSignature", "BadCosignature", "BadEntry"} & RULES.keys()


# Beats


def test_beats_do_not_drift_and_are_not_made_up_for():
    beat = Beat(100.0, 60.0)
    for draw in (0.0, 0.5, 0.999):
        assert abs(beat.next(100.0, draw) - 160.0) <= 60 * JITTER
        assert abs(beat.next(1234.5, draw) - 1240.0) <= 60 * JITTER + 60.0
        assert beat.next(1234.5, draw) > 1234.5 + 60 * JITTER
    assert {beat_of(number, 4, 0.0, 60.0).start for number in range(4)} == {0.0, 1.25, 2.5, 3.75}


# The page


def test_the_page_has_every_rule_as_it_is():
    text = (Path(__file__).resolve().parents[2] / "docs" / "watching.md").read_text(encoding="utf-8")
    said = {}
    for row in re.findall(r"^\| (`\w+`.*?) \| (\w+) \| .* \| (.*?) \| (\d) \| ?(\d?) ?\|$", text, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", row[0]):
            said[name] = row[1], Rule(row[2], int(row[3]), int(row[4] or 1))
    assert RULES.items() <= {name: rule for name, (_, rule) in said.items()}.items()
    assert {rule for name, (_, rule) in said.items() if name not in RULES} == {Rule()}
    assert COMPARED | PROMISED | PEERS | KEPT | {"Late"} <= said.keys()
    listed = report.__doc__ or ""
    assert not [name for name in said if name not in listed]
