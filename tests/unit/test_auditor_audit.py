"""A whole audit: honest logs, trees, tiles, logs that do not answer, and which finding decides."""

from __future__ import annotations

import json
import random

import pytest
from auditor_runs import NONE, Mutation, flip, long_world, names, other_tree, run
from auditor_world import NOW, ORIGIN, Answer, World, checkpoint_message, honest_world, log_under_audit, policy

from auditor.audit import AuditRequest, Selection, audit, parse_selection
from auditor.fetch import LogReader
from ktlog.errors import Unreachable, UsageError
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.entry import make_entry
from ktlog.tlog.tiles import format_bundle


def test_an_honest_log_raises_no_alarm_and_every_count_is_right() -> None:
    report = run(honest_world().clone(), commitments=Selection("all"))
    assert names(report) == set()
    assert report.ok
    assert report.exit_code == 0
    assert (report.tree_size, report.root) == (10, honest_world().root())
    assert (report.entries_audited, report.leaf_signatures, report.message_signatures) == (10, 10, 9)
    assert (report.commitments.checked, report.commitments.total) == (15, 15)
    assert (report.actors, report.answers.checked, report.answers.total, report.tiles) == (4, 4, 4, 1)
    assert report.cosigners == ("w1.witness.example", "w2.witness.example", "w3.witness.example")
    assert report.signed_head == honest_world().serve["checkpoint"]


def test_an_empty_log_is_honest() -> None:
    report = run(World().publish())
    assert report.ok
    assert (report.tree_size, report.entries_audited, report.tiles) == (0, 0, 0)


def test_a_log_of_several_pages_is_read_whole() -> None:
    world = long_world().clone()
    done: list[tuple[str, int, int]] = []
    request = AuditRequest(log_under_audit(), policy())
    reader = LogReader(world, f"https://{ORIGIN}")
    report = audit(request, reader, NOW, lambda *_: "", progress=lambda *step: done.append(step))
    assert report.ok
    assert (report.entries_audited, report.leaf_signatures, report.message_signatures) == (600, 600, 600)
    assert report.tiles == 4
    assert {path for path in world.requests if path.startswith("tile/")} == {
        "tile/entries/000", "tile/entries/001", "tile/entries/002.p/88",
        "tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2",
    }
    assert done == sorted(done)
    assert done[-1] == ("entries", 600, 600)


@pytest.mark.parametrize("path", ["tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2"])
def test_every_tile_of_every_level_is_compared(path: str) -> None:
    world = long_world().clone()
    world.serve[path] = flip(world.serve[path], 40)
    report = run(world)
    assert names(report) == {"TileMismatch"}
    assert path in next(iter(report.findings)).what
    assert report.tiles == 3


def test_partial_tiles_dropped_after_growth_are_taken_from_the_full_one() -> None:
    """C2SP tlog-tiles allows a log to delete a partial tile once the full one exists."""
    world = long_world().clone()
    bigger = long_world().clone()
    while bigger.size < 768:
        bigger.say(checkpoint_message(bigger), "beta")
    bigger.publish()
    for full in ("tile/0/002", "tile/entries/002", "records/002"):
        del world.serve[f"{full}.p/88"]
        world.serve[full] = bigger.serve[full]
    assert run(world).ok


def _other_entry(world: World) -> None:
    """The last entry signed again: valid in itself, another leaf."""
    again = make_entry(SPEC, world.records[-1]["message"].encode(), world.leaf_key, world.leaf_public)
    world.serve[world.bundle_path] = format_bundle([*world.entries[:-1], again])


def test_entries_that_are_not_the_signed_ones() -> None:
    world = honest_world().clone()
    _other_entry(world)
    report = run(world, answers=NONE)
    assert names(report) == {"TreeMismatch", "TileMismatch"}
    assert report.exit_code == 5


BUNDLE_LIES: list[tuple[str, Mutation]] = [
    ("garbage", lambda w: w.serve.update({w.bundle_path: b"\x00\x05abc"})),
    ("empty", lambda w: w.serve.update({w.bundle_path: b""})),
    ("truncated", lambda w: w.serve.update({w.bundle_path: w.serve[w.bundle_path][:-1]})),
    ("one entry less", lambda w: w.serve.update({w.bundle_path: format_bundle(w.entries[:-1])})),
    ("one entry more", lambda w: w.serve.update({w.bundle_path: format_bundle([*w.entries, w.entries[0]])})),
]


@pytest.mark.parametrize(("lie", "mutate"), BUNDLE_LIES, ids=[lie for lie, _ in BUNDLE_LIES])
def test_a_bundle_that_is_not_one(lie: str, mutate: Mutation) -> None:
    world = honest_world().clone()
    mutate(world)
    report = run(world)
    assert names(report) == {"BadEntryBundle"}, lie
    assert report.exit_code == 5
    assert report.entries_audited == 0
    assert any("the entries could not be read" in sentence for sentence in report.not_checked)


def test_a_tile_of_the_wrong_length() -> None:
    world = honest_world().clone()
    world.serve["tile/0/000.p/10"] += bytes(32)
    assert names(run(world)) == {"TileMismatch"}


def test_an_audit_stops_where_the_entries_stop() -> None:
    world = long_world().clone()
    world.serve["tile/entries/001"] = b""
    report = run(world)
    assert names(report) == {"BadEntryBundle"}
    assert report.entries_audited == 256
    assert next(iter(report.findings)).leaf_index == 256


def test_a_checkpoint_of_absurd_size_costs_nothing() -> None:
    world = honest_world().clone()
    world.serve["checkpoint"] = world.checkpoint(2**62, bytes(32))
    world.serve["tile/entries/000"] = b"garbage"
    report = run(world, commitments=Selection("sample:5", 5))
    assert names(report) == {"BadEntryBundle"}
    assert len(world.requests) < 20


SILENT: list[tuple[str, str]] = [
    ("checkpoint", "there is no head"), ("leaf-keys", "Leaf signatures"), ("tile/0/000.p/10", "Tiles:"),
    ("tile/entries/000.p/10", "the entries could not be read"), ("records/000.p/10", "records could not be read"),
    ("api/actor/https%3A%2F%2Falpha.example%2Fusers%2Falice/keys", "the API stopped answering"),
]


@pytest.mark.parametrize(("path", "sentence"), SILENT, ids=[path[:20] for path, _ in SILENT])
def test_a_resource_that_times_out_is_unreachable_not_a_lie(path: str, sentence: str) -> None:
    world = honest_world().clone()
    world.serve[path] = Unreachable("Timeout", "30 seconds without an answer")
    report = run(world)
    assert names(report) == {"Timeout"}
    assert report.exit_code == 3
    assert world.requests.count(path) == 3
    assert any(sentence in text for text in report.not_checked)


MISSING = {
    "leaf-keys": "MissingLeafKeys", "tile/0/000.p/10": "MissingTile", "tile/entries/000.p/10": "MissingEntries",
    "records/000.p/10": "MissingRecords",
}


@pytest.mark.parametrize("path", MISSING)
def test_a_resource_that_the_head_commits_to_and_that_is_denied_is_a_finding(path: str) -> None:
    world = honest_world().clone()
    world.serve[path] = Answer(404, b"")
    report = run(world)
    assert names(report) == {MISSING[path]}
    assert report.exit_code == 5


def test_a_log_that_published_nothing_has_claimed_nothing() -> None:
    report = run(World())
    assert names(report) == {"NoCheckpoint"}
    assert report.exit_code == 3


def test_answers_too_large_are_listed_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.asking.SHOWN_ACTORS", 2)
    world = honest_world().clone()
    for user in ("alice", "alicia", "bob", "carol", "dave", "root"):
        for host in ("alpha", "beta"):
            path = f"api/actor/https%3A%2F%2F{host}.example%2Fusers%2F{user}/keys"
            world.serve[path] = Unreachable("TooLarge", "longer than it may be")
    report = run(world)
    assert report.ok
    said = [sentence for sentence in report.not_checked if "larger than" in sentence]
    assert len(said) == 1
    assert "about 4 of 4 actors" in said[0]
    assert said[0].count("https://") == 2
    assert said[0].endswith("and 2 more.")


@pytest.mark.parametrize("path", [path for path, _ in SILENT if not path.startswith("api/actor/")])
def test_an_answer_too_large_is_a_finding(path: str) -> None:
    world = honest_world().clone()
    world.serve[path] = Unreachable("TooLarge", "longer than it may be")
    report = run(world)
    assert names(report) == {"TooLarge"}
    assert report.exit_code == 5
    assert world.requests.count(path) == 1


def test_the_gravest_finding_decides() -> None:
    """Fork over invalid over policy over stale over unreachable."""
    world = honest_world().clone()
    world.serve["tile/0/000.p/10"] = Unreachable("Timeout", "")
    assert run(world).exit_code == 3
    world.cosigned_at = NOW - 9999
    world.serve["checkpoint"] = world.checkpoint()
    assert run(world).exit_code == 9
    world.serve["checkpoint"] = world.checkpoint(witnesses=0)
    assert run(world).exit_code == 6
    world.serve["leaf-keys"] = b"{}"
    assert run(world).exit_code == 5
    report = run(world, other_tree(6))
    assert names(report) == {"Timeout", "TooFewWitnesses", "BadLeafKeys", "Inconsistent"}
    assert report.exit_code == 7


def test_garbage_everywhere_never_raises() -> None:
    """Whatever is served, the audit ends with a report."""
    chance = random.Random(7)
    honest = honest_world()
    for _ in range(150):
        world = honest.clone()
        for path in chance.sample(sorted(honest.serve), chance.randint(1, 3)):
            body = bytearray(honest.serve[path])
            match chance.randrange(4):
                case 0:
                    body = bytearray(chance.randbytes(chance.randrange(300)))
                case 1:
                    del body[chance.randrange(len(body)) :]
                case 2:
                    body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
                case 3:
                    at = chance.randrange(len(body))
                    body[at:at] = body[at // 2 : at]
            world.serve[path] = bytes(body)
        report = run(world)
        json.dumps(report.as_dict())
        assert report.ok == (report.exit_code == 0)


@pytest.mark.parametrize(
    "text", ["", "sample", "sample:", "sample:-1", "sample:+5", "sample:1_0", "some", "ALL", "none:1"]
)
def test_selections_are_read_strictly(text: str) -> None:
    with pytest.raises(UsageError):
        parse_selection(text)


def test_selections() -> None:
    assert parse_selection("all") == Selection("all", None)
    assert parse_selection("none") == Selection("none", 0)
    assert parse_selection("sample:12").count == 12
