"""Audits that go on from a saved position: after growth, erasures, forks and kills; and what catching up costs."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from auditor_runs import NONE, flip, long_world, names
from auditor_world import (
    ALICE,
    CAROL,
    NOW,
    ORIGIN,
    World,
    checkpoint_message,
    honest_world,
    log_under_audit,
    policy,
    public,
)
from test_auditor_erasures import BOB, GINA, ErasedWorld

from auditor.audit import Selection
from auditor.events import Event
from auditor.fetch import LocalCopy, LogReader
from auditor.follow import Advance, Follower
from auditor.outbox import Outbox
from auditor.owners import Owners
from auditor.position import KEPT_SIZES, STRUCTURAL, Position, decode_position, note_shown
from auditor.report import Finding, Findings
from auditor.state import AuditDirectory
from ktlog.errors import Unreachable
from ktlog.pkd.messages import AddKey, Fireproof
from ktlog.pkd.replay import Directory
from ktlog.wire.fetch import Response

ALL = Selection("all")


def follower(world: object, state: AuditDirectory, **options: object) -> Follower:
    options = {"policy": policy(), "commitments": NONE, "save_seconds": 0.0, **options}
    reader = LogReader(world, f"https://{ORIGIN}", attempts=2, pause=lambda _: None)
    return Follower(log_under_audit(), reader, state, **options)


def advance(world: object, path: Path, **options: object) -> Advance:
    with AuditDirectory(path) as state:
        return follower(world, state, **options).advance(NOW)


def rows(path: Path) -> dict[tuple[str, bytes], bytes]:
    with AuditDirectory(path) as state:
        found = state._connection.execute("SELECT kind, key, value FROM facts").fetchall()
    return {(kind, bytes(key)): bytes(value) for kind, key, value in found}


def test_step_by_step_is_the_same_as_at_once(tmp_path: Path) -> None:
    world = honest_world()
    found = [advance(world.first(size), tmp_path / "steps", commitments=ALL, answers=NONE) for size in (3, 4, 7)]
    found.append(advance(world.clone(), tmp_path / "steps", commitments=ALL, answers=NONE))
    once = advance(world.clone(), tmp_path / "once", commitments=ALL, answers=NONE)
    assert [(one.first, one.size, one.report.entries_audited) for one in found] == [
        (0, 3, 3), (3, 4, 1), (4, 7, 3), (7, 10, 3),
    ]
    assert all(one.report.complete for one in (*found, once))
    assert found[-1].report.covered == once.report.covered
    assert found[-1].report.covered.commitments_checked == 15
    assert rows(tmp_path / "steps") == rows(tmp_path / "once")
    assert [event for one in found for event in one.events] == once.events
    assert len(once.events) == 9


def test_nothing_new_is_nothing_read_and_nothing_said(tmp_path: Path) -> None:
    world = honest_world().clone()
    advance(world, tmp_path)
    world.requests.clear()
    again = advance(world, tmp_path)
    assert again.report.ok
    assert (again.first, again.size, again.events) == (10, 10, [])
    assert not [path for path in world.requests if path.startswith(("records", "tile/entries", "api", "leaf-keys"))]


def test_a_skipped_commitment_is_never_forgotten(tmp_path: Path) -> None:
    """Later audits open what they read; that an earlier one did not, nobody may take for complete."""
    advance(honest_world().first(7), tmp_path)
    report = advance(honest_world().clone(), tmp_path, commitments=ALL).report
    assert report.ok and not report.complete
    assert any("plaintext commitments of entries before 7" in sentence for sentence in report.not_checked)
    assert advance(honest_world().clone(), tmp_path, commitments=ALL, from_start=True).report.complete
    assert advance(honest_world().clone(), tmp_path, commitments=ALL).report.complete


def test_the_api_is_asked_about_whom_an_entry_touched(tmp_path: Path) -> None:
    world = honest_world().first(9)
    assert advance(world, tmp_path, answers=NONE).report.answers.checked == 0
    first = advance(world, tmp_path)
    assert (first.report.answers.checked, first.report.answers.total) == (4, 4)
    world = honest_world().clone()
    second = advance(world, tmp_path)
    assert (second.report.answers.checked, second.report.answers.total, second.report.ok) == (1, 1, True)
    assert [path for path in world.requests if path.startswith("api/")] == [
        "api/actor/https%3A%2F%2Falpha.example%2Fusers%2Falice/keys"
    ]
    assert advance(world, tmp_path, answers=ALL).report.answers.checked == 4


def test_a_position_stays_where_it_is_while_there_are_findings(tmp_path: Path) -> None:
    advance(honest_world().first(7), tmp_path)
    lying = honest_world().clone()
    lying.edit_answer = lambda answer: answer["public-keys"].clear()
    for _ in range(2):
        told = advance(lying, tmp_path)
        assert (names(told.report), told.first, told.size) == ({"AnswerContradictsLog"}, 7, 7)
    assert advance(honest_world().clone(), tmp_path).first == 7


def test_a_head_without_witnesses_is_read_once(tmp_path: Path) -> None:
    alone = honest_world().clone().publish(witnesses=0)
    assert names(advance(alone, tmp_path).report) == {"TooFewWitnesses"}
    again = advance(alone, tmp_path)
    assert (names(again.report), again.first) == ({"TooFewWitnesses"}, 10)


def other_history(size: int) -> World:
    world = honest_world().first(4)
    while world.size < size:
        world.say(checkpoint_message(world), "beta")
    return world.publish()


@pytest.mark.parametrize("size", [8, 10, 12])
def test_a_log_that_goes_on_otherwise_is_convicted(tmp_path: Path, size: int) -> None:
    """Not with the old entries' tree under the new entries: that would be neither of the two that it signed."""
    advance(honest_world().first(8), tmp_path)
    report = advance(other_history(size), tmp_path).report
    assert names(report) == {"TwoRoots" if size == 8 else "Inconsistent"}
    assert len(report.evidence) == 1


def test_entries_served_otherwise_than_they_were_audited(tmp_path: Path) -> None:
    advance(honest_world().first(7), tmp_path)
    world = honest_world().clone()
    world.serve[world.bundle_path] = flip(world.serve[world.bundle_path], 700)
    assert names(advance(world, tmp_path).report) == {"TreeMismatch"}


# Erasures


def state_of(path: Path) -> dict[tuple[str, bytes], bytes]:
    return {key: value for key, value in rows(path).items() if key[0] in ("actor", "tomb", "token", "id")}


def test_erasures_are_followed_as_they_come(tmp_path: Path) -> None:
    """Right after the entries audited: nothing is read again. In the midst of new ones: all of it, but Argon2id."""
    erased = ErasedWorld(honest_world().clone())
    path = tmp_path / "followed"
    assert advance(erased.publish(), path, commitments=ALL).report.ok
    erased.erase(CAROL)
    erased.erase(BOB)
    world = erased.publish()
    followed = advance(world, path, commitments=ALL)
    assert followed.report.ok, list(followed.report.findings)
    assert (followed.first, followed.report.entries_audited, followed.report.actors) == (10, 0, 2)
    assert [event.action for event in followed.events] == ["Erasure", "Erasure"]
    world.say(AddKey(GINA, public("gina"), world.next_time()), "gina")
    later = advance(erased.publish(), path, commitments=ALL)
    assert (later.report.ok, later.first, later.report.entries_audited) == (True, 10, 1)
    # Gina was seen, and her second message never will be.
    world.say(Fireproof(GINA, world.next_time()), "gina")
    erased.moved = {**erased.moved, 10: None, 11: None}
    erased.erase(GINA)
    world.say(checkpoint_message(world), "beta")
    again = advance(erased.publish(), path, commitments=ALL)
    assert again.report.ok, list(again.report.findings)
    assert (again.first, again.size, again.report.entries_audited) == (0, 13, 13)
    assert again.report.commitments.checked == 0
    assert ("The first 11 entries were read again, because text was erased since, from entries after them too."
            in again.report.not_checked)
    assert again.report.commitments_before > 0 and again.report.complete
    advance(erased.publish(), tmp_path / "once", commitments=ALL)
    assert state_of(path) == state_of(tmp_path / "once")


def test_an_erasure_that_misstates_the_actor_is_caught_in_passing(tmp_path: Path) -> None:
    erased = ErasedWorld(honest_world().clone())
    advance(erased.publish(), tmp_path)
    erased.erase(ALICE)
    erased.records[0] = replace(erased.records[0], version=erased.records[0].version + 1)
    assert names(advance(erased.publish(), tmp_path).report) == {"BadErasure"}


@pytest.mark.parametrize("change", ["fewer", "other"])
def test_an_erasure_log_that_is_not_what_it_was(tmp_path: Path, change: str) -> None:
    erased = ErasedWorld(honest_world().clone())
    erased.erase(CAROL)
    assert advance(erased.publish(), tmp_path).report.ok
    if change == "fewer":
        erased.records.pop()
    else:
        erased.records[0] = replace(erased.records[0], version=9)
    assert "ErasuresRewritten" in names(advance(erased.publish(), tmp_path).report)


# Kills

_KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
from pathlib import Path
from auditor import ledger
from test_auditor_resume import copied, follower
from auditor.state import AuditDirectory

left, real = int(sys.argv[4]), ledger.Ledger.put

def put(self, *row):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, *row)

ledger.Ledger.put = put
with AuditDirectory(sys.argv[3]) as state:
    follower(copied(Path(sys.argv[2])), state).advance(1_800_000_000)
"""


def copied(directory: Path) -> LocalCopy:
    return LocalCopy(directory, f"https://{ORIGIN}")


def write_copy(world: World, directory: Path) -> Path:
    for path, body in world.serve.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
    return directory


@pytest.mark.slow  # three processes that each import the auditor
def test_a_kill_between_any_two_writes_loses_no_more_than_the_last_position(tmp_path: Path) -> None:
    files, path = write_copy(long_world(), tmp_path / "files"), tmp_path / "killed"
    first = []
    for writes in (500, 1000, 600):
        found = subprocess.run(
            [sys.executable, "-c", _KILLED, os.pathsep.join(sys.path), files, path, str(writes)], check=False,
            capture_output=True, text=True, timeout=60,
        )
        assert found.returncode == -signal.SIGKILL, found.stderr
        with AuditDirectory(path) as state, state.ledger(ORIGIN, "semantic") as ledger:
            position = ledger.position()
            first.append(0 if position is None else position.size)
    assert first == [0, 256, 512]
    last = advance(copied(files), path)
    assert (last.report.ok, last.first, last.size, last.report.entries_audited) == (True, 512, 600, 88)
    advance(copied(files), tmp_path / "once")
    assert rows(path) == rows(tmp_path / "once")


def test_events_are_handed_over_before_the_position_beyond_them_is_saved(tmp_path: Path) -> None:
    def lost(events: object) -> None:
        raise InterruptedError("killed before they were stored")

    with AuditDirectory(tmp_path) as state, pytest.raises(InterruptedError):
        follower(honest_world().clone(), state, on_events=lost).advance(NOW)
    got: list = []
    with AuditDirectory(tmp_path) as state:
        again = follower(honest_world().clone(), state, on_events=got.extend).advance(NOW)
    assert (again.first, again.events, len(got)) == (0, [], 9)


def test_no_position_is_saved_before_the_alarms_up_to_it_are_in_the_outbox(tmp_path: Path) -> None:
    """In the midst of a reading and at its end: else a kill between the two would lose an alarm, and nobody know."""
    world = honest_world().clone()
    for _ in range(260):
        world.say(checkpoint_message(world), "beta")
    world.say(Fireproof(ALICE, world.next_time()), "alice-2")
    put: list[tuple[int, int]] = []

    class Watched(Outbox):
        def put_all(self, alarms, now: int) -> int:
            put.extend((alarm.more["leaf_index"], saved_size()) for alarm, _ in alarms)
            return super().put_all(alarms, now)

    def saved_size() -> int:
        """As whoever comes after a kill would read it."""
        with closing(sqlite3.connect(f"file:{state.database}?mode=ro", uri=True)) as other:
            rows = other.execute("SELECT position FROM logs WHERE position IS NOT NULL").fetchall()
        return decode_position(rows[0][0]).size if rows else 0

    with AuditDirectory(tmp_path) as state, Watched(tmp_path) as outbox:
        owners = Owners(outbox, {})
        owners.subscriptions.add(ORIGIN, "actor", ALICE, "box", "", NOW)
        reader = LogReader(world.publish(), f"https://{ORIGIN}")

        def take(events: Sequence[Event]) -> None:
            owners.take(ORIGIN, events, None, reader, NOW)

        assert follower(world, state, on_events=take).advance(NOW).size == 271
        assert saved_size() == 271 and outbox.waiting() == 5
    assert [index for index, _ in put] == [0, 2, 3, 9, 270]
    assert all(index >= size for index, size in put) and {size for _, size in put} == {0, 256}


# What catching up costs


class Metered:
    """Counts the bytes of every answer."""

    def __init__(self, world: World) -> None:
        self.world, self.read_bytes = world, 0

    def get(self, url: str, *, max_bytes: int | None = None):
        answer = self.world.get(url, max_bytes=max_bytes)
        self.read_bytes += len(answer.body)
        return answer


def cost(path: Path, before: int, after: int) -> tuple[int, int]:
    """Bytes of network and of rows, to catch up."""
    advance(long_world().first(before), path, answers=NONE)
    world = Metered(long_world().first(after))
    with AuditDirectory(path) as state:
        one, ledgers, real = follower(world, state, answers=NONE), [], state.ledger

        def kept(*names: str):
            found = real(*names)
            return Kept(found, ledgers)

        state.ledger = kept
        assert one.advance(NOW).first == before
    return world.read_bytes, ledgers[0].read_bytes


class Kept:
    def __init__(self, manager, kept: list) -> None:
        self.manager, self.kept = manager, kept

    def __enter__(self):
        self.kept.append(self.manager.__enter__())
        return self.kept[0]

    def __exit__(self, *what: object):
        return self.manager.__exit__(*what)


def test_catching_up_costs_by_what_is_new_and_not_by_the_size_of_the_log(tmp_path: Path) -> None:
    """Twenty entries at the same place in a bundle, in a log of 88 entries and in one of 600."""
    small, large = cost(tmp_path / "small", 68, 88), cost(tmp_path / "large", 580, 600)
    assert large[0] <= small[0] + 4096, (small, large)
    assert large[1] <= small[1] + 1024, (small, large)


# The structural tier, local copies, worker processes


def test_the_structural_tier_reads_no_plaintext(tmp_path: Path) -> None:
    world = honest_world().clone()
    world.serve[world.records_path] = b"what is not asked for cannot matter"
    found = advance(world, tmp_path, tier=STRUCTURAL)
    assert found.report.ok and not found.report.complete
    assert (found.size, found.report.entries_audited, found.report.leaf_signatures) == (10, 10, 10)
    assert not [path for path in world.requests if path.startswith(("records", "api"))]
    assert any("--tier was structural" in sentence for sentence in found.report.not_checked)
    assert found.report.as_dict()["tier"] == "structural"
    # Its position is no position of the other tier.
    assert advance(honest_world().clone(), tmp_path).first == 0


def test_leaf_signatures_left_out_are_told(tmp_path: Path) -> None:
    found = advance(honest_world().clone(), tmp_path, leaf_signatures=False, commitments=ALL)
    assert found.report.ok and not found.report.complete
    assert found.report.leaf_signatures == 0
    assert any("--leaf-signatures was none" in sentence for sentence in found.report.not_checked)


def broken(world: World) -> World:
    """Faults in a whole bundle, in the last one, and in a tile."""
    for number, path in enumerate(("tile/entries/000", "tile/entries/002.p/88")):
        body = bytearray(world.serve[path])
        body[2 + 40 + number] ^= 1  # in the signature of its first entry
        world.serve[path] = bytes(body)
    world.serve["tile/0/001"] = flip(world.serve["tile/0/001"], 40)
    return world


@pytest.mark.parametrize(
    "mutate", [pytest.param(lambda world: world, id="honest", marks=pytest.mark.slow), pytest.param(broken, id="broken")]
)
def test_workers_find_what_the_network_way_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutate
) -> None:
    world = mutate(long_world().clone())
    told = advance(world, tmp_path / "network", tier=STRUCTURAL).report
    monkeypatch.setattr("auditor.structural.FEWEST_FOR_PROCESSES", 2)
    files = write_copy(world, tmp_path / "files")
    (files / "tile/0/000").unlink()  # what a copy lacks is asked of the log
    (files / "tile/entries/001").unlink()
    mine = advance(LocalCopy(files, f"https://{ORIGIN}", world), tmp_path / "local", tier=STRUCTURAL, tiles=files)
    assert told.ok == (mutate is not broken)
    for name in ("findings", "tiles", "leaf_signatures", "entries_audited", "covered", "root", "ok"):
        assert told.as_dict()[name] == mine.report.as_dict()[name], name


@pytest.mark.slow  # processes
def test_workers_take_what_the_network_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.structural.FEWEST_FOR_PROCESSES", 2)
    report = advance(long_world().clone(), tmp_path).report
    assert report.ok
    assert (report.leaf_signatures, report.message_signatures, report.tiles) == (600, 600, 4)


def test_a_local_copy_never_leaves_its_directory(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "copy").mkdir()
    for path in ("../secret", "tile/../../secret", "/secret", "", "tile//0", "%2e%2e/secret"):
        assert copied(tmp_path / "copy").get(f"https://{ORIGIN}/{path}").status == 404


def test_a_log_that_stops_answering_half_way_is_gone_on_with(tmp_path: Path) -> None:
    world = long_world().clone()
    world.serve["tile/entries/002.p/88"] = Unreachable("Timeout", "no answer")
    first = advance(world, tmp_path)
    assert (names(first.report), first.size) == ({"Timeout"}, 512)
    assert advance(long_world().clone(), tmp_path).first == 512


def test_the_ledgers_directory_is_the_directory(tmp_path: Path) -> None:
    """The same entries through rows and through dictionaries: the same actors, holders and history."""
    world = honest_world()
    advance(world.clone(), tmp_path)
    directory: Directory = world.directory
    found = rows(tmp_path)
    assert len([1 for kind, _ in found if kind == "actor"]) == len(directory.actors)
    assert {key for kind, key in found if kind == "holder"} == {
        hashed + actor_id.encode() for hashed, holders in directory._holders.items() for actor_id in holders
    }
    assert len([1 for kind, _ in found if kind == "hist"]) == sum(map(len, directory.histories.values()))


class Flickering:
    """Of a world, /erasures alone: each look at it is given what *looks* has next, and then the last of them."""

    def __init__(self, world: World, *looks: int) -> None:
        self._world, self._looks = world, looks
        self._at = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._world, name)

    def get(self, url: str, *, max_bytes: int | None = None) -> Response:
        if url.endswith("/checkpoint"):
            self._at = 0
        if not url.endswith("/erasures"):
            return self._world.get(url, max_bytes=max_bytes)
        status = self._looks[min(self._at, len(self._looks) - 1)]
        self._at += 1
        return Response(status, {}, b"", url)


def test_no_answer_about_erasures_hides_no_forged_entry(tmp_path: Path) -> None:
    world = honest_world().clone()
    world.force(AddKey(ALICE, public("mallory"), world.next_time()), "mallory-2")
    found = advance(Flickering(world.publish(), 404, 500), tmp_path)
    assert names(found.report) == {"BadMessageSignature"} and found.report.exit_code == 5


def test_an_erasure_explains_what_is_withheld_or_about_the_erased_and_nothing_else() -> None:
    findings = Findings()
    for leaf_index in range(60):
        findings.add(Finding("RecordWithheld", "Invalid", "gone", leaf_index))
        findings.add(Finding("BadMessageSignature", "Invalid", "forged", leaf_index))
    findings.add(Finding("AnswerContradictsLog", "Invalid", "x", about=ALICE))
    findings.add(Finding("AnswerContradictsLog", "Invalid", "x", about=CAROL))
    assert findings.remove(lambda one: one.about != CAROL, {"RecordWithheld"}) == 51
    # Ten forged ones are not listed; none of their name goes, as nobody can tell whether all are explained.
    assert (len(findings), findings.omitted, findings.exit_code) == (61, {"BadMessageSignature": 10}, 5)


def test_erasures_that_never_rest_are_a_fault_of_their_own(tmp_path: Path) -> None:
    with AuditDirectory(tmp_path) as state, state.ledger(ORIGIN, STRUCTURAL) as ledger:
        assert [ledger.erased_again(True) for _ in range(2)] == [1, 2]
        ledger.clear()
        ledger.keep()
    with AuditDirectory(tmp_path) as state, state.ledger(ORIGIN, STRUCTURAL) as ledger:
        assert ledger.erased_again(True) == 3
        assert (ledger.erased_again(False), ledger.erased_again(True)) == (0, 1)


def test_what_the_map_did_not_cover_is_remembered_by_when_it_was_seen_first() -> None:
    shown = note_shown((), 5, 100)
    shown = note_shown(note_shown(shown, 5, 200), 8, 300)
    assert shown == ((5, 100), (8, 300))
    assert note_shown(shown, 8, 400, covered=5) == ((8, 300),)
    for size in range(9, 2000):
        shown = note_shown(shown, size, size)
    assert len(shown) <= KEPT_SIZES and shown[0] == (5, 100)
    position = Position(ORIGIN, STRUCTURAL, shown=shown)
    assert decode_position(position.encode()) == position
