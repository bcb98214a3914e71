"""What a mirror does with a source that lies: it stops, says at what, and nothing of the lie is stored or shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ktlog.errors import Forked, Stale, StoreError, Unreachable
from ktlog.operator import mirror as mirror_module
from ktlog.operator.sources import load_status
from ktlog.pkd.erasure import ErasureRecord, map_index
from ktlog.pkd.keys import encode_public_key
from ktlog.pkd.messages import AddKey
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import sign_checkpoint
from ktlog.tlog.tiles import format_bundle, parse_bundle
from tests.mirror_world import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    FRED,
    SourceLog,
    check_same,
    edit_record,
    make_mirror,
    refused,
    stored,
)
from tests.operator_world import NOW, ORIGIN, log_signers
from tests.pkd_samples import public, quick_argon2  # noqa: F401

SIZE = 17
WITHHELD = edit_record(0, plain={"actor": None, "public-key": None}, withheld=True, salts={})


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """For tests that leave the log as it is, and only lie about it."""
    made = SourceLog(tmp_path_factory.mktemp("fixed") / "log").fill().publish()
    yield made
    made.close()


@pytest.fixture
def log(tmp_path):
    made = SourceLog(tmp_path / "log").fill().publish()
    yield made
    made.close()


@pytest.fixture
def mirror(tmp_path, log):
    made = make_mirror(tmp_path / "mirror", log)
    yield made
    made.close()


def entries_but(change):
    return lambda body: format_bundle(change(parse_bundle(body, SIZE)))


@pytest.mark.parametrize(("path", "lie", "name"), [
    ("records/000.p/17", edit_record(0, plain={"actor": CAROL}), "PlaintextMismatch"),
    ("records/000.p/17", edit_record(0, message="{}"), "BadEntry"),
    ("records/000.p/17", edit_record(0, salts={"public-key": encode_base64(bytes(32))}), "BadRecord"),
    ("records/000.p/17", edit_record(3, **{"leaf-index": 4}), "BadRecord"),
    ("records/000.p/17", edit_record(0, withheld=True), "BadRecord"),
    ("records/000.p/17", WITHHELD, "RecordWithheld"),
    ("records/000.p/17", lambda body: body[:-1], "BadRecords"),
    ("records/000.p/17", lambda body: b"".join(body.splitlines(keepends=True)[:-1]), "BadRecords"),
    ("records/000.p/17", lambda body: 404, "MissingRecords"),
    ("records/000.p/17", lambda body: 500, "BadStatus"),
    ("tile/entries/000.p/17", entries_but(lambda entries: entries[:-1]), "BadEntryBundle"),
    ("tile/entries/000.p/17", entries_but(lambda entries: [*entries[:4], entries[5], entries[4], *entries[6:]]),
     "BadEntryProof"),
    ("tile/entries/000.p/17", lambda body: 404, "MissingEntries"),
    ("tile/0/000.p/17", lambda body: bytes(len(body)), "BadTile"),
    ("leaf-keys", lambda body: json.dumps({"leaf-keys": [encode_public_key(public("a"))]}).encode(), "BadLeafSignature"),
    ("leaf-keys", lambda body: b"[]", "BadLeafKeys"),
    ("erasures", lambda body: b"[]", "BadErasures"),
    ("erasures", lambda body: 404, "MissingErasures"),
    ("checkpoint", lambda body: 404, "NoCheckpoint"),
    ("checkpoint", lambda body: body.replace(b"\n17\n", b"\n18\n"), "BadLogSignature"),
    ("checkpoint", lambda body: b"\n".join(body.split(b"\n")[:6]) + b"\n", "TooFewWitnesses"),
])
def test_a_lie_stops_the_mirror_and_nothing_of_it_is_stored(tmp_path, fixed, path, lie, name, monkeypatch):
    log, mirror = fixed, make_mirror(tmp_path, fixed)
    monkeypatch.setattr(mirror_module, "SAMPLE", 256)
    log.lies[path] = lie
    assert refused(mirror).name == name
    assert stored(mirror) is None
    log.lies.clear()
    mirror.poll()
    check_same(mirror, log)
    mirror.close()


def test_a_message_that_breaks_a_rule_is_not_mirrored(mirror, log):
    mirror.poll()
    log.force(AddKey(CAROL, public("m"), NOW + 50), "m")  # signed by itself, and Carol has keys
    log.publish()
    assert refused(mirror).name == "BadTransition"


def test_a_tree_that_is_not_an_extension_of_the_one_mirrored(tmp_path, mirror, log):
    mirror.poll()
    other = SourceLog(tmp_path / "other", log.clock)
    for number in range(20):
        other.desk.send(AddKey(f"https://example.net/users/{number}", public("g"), NOW + number), "g")
    other.publish()
    log._client = other._client
    error = refused(mirror)
    assert isinstance(error, Forked) and error.name == "Inconsistent"
    (evidence,) = mirror.source.directory.glob("evidence-*.txt")
    assert evidence.read_bytes() == error.evidence
    with pytest.raises(StoreError, match="MirrorStopped"):
        mirror.poll()
    assert not load_status(mirror.source).may_show_plaintext(log.clock.now)
    other.close()


def test_two_roots_for_one_size_convict_the_source(mirror, log):
    mirror.poll()
    fork = sign_checkpoint(Checkpoint(ORIGIN, SIZE, bytes(32)), list(log_signers()), NOW)
    log.lies["checkpoint"] = lambda body: fork
    error = refused(mirror)
    assert isinstance(error, Forked) and error.name == "TwoRoots" and error.evidence


def test_a_source_that_shows_an_older_tree_or_an_old_head(mirror, log):
    older = log.get(f"https://{ORIGIN}/checkpoint").body
    log.desk.send(AddKey(BOB, public("b2"), NOW + 50), "b2")
    log.publish()
    mirror.poll()
    log.lies["checkpoint"] = lambda body: older
    assert (type(error := refused(mirror)), error.name) == (Stale, "RolledBack")
    log.lies.clear()
    log.clock.now += 3601
    assert (type(error := refused(mirror)), error.name) == (Stale, "OldCosignatures")


def test_a_head_that_was_verified_is_remembered_also_when_nothing_else_worked(mirror, log):
    older = log.get(f"https://{ORIGIN}/checkpoint").body
    log.desk.send(AddKey(BOB, public("b2"), NOW + 50), "b2")
    log.publish()
    log.lies["tile/entries/000.p/18"] = lambda body: Unreachable("Timeout", "no answer")
    assert refused(mirror).name == "Timeout"
    log.lies = {"checkpoint": lambda body: older}
    assert refused(mirror).name == "RolledBack"


def test_an_erasure_log_that_forgets(mirror, log):
    log.erase(ALICE)
    mirror.poll()
    log.tell_erasures()
    assert refused(mirror).name == "BadErasures"
    assert not load_status(mirror.source).may_show_plaintext(log.clock.now)


def test_an_erasure_that_is_not_told(mirror, log):
    log.erase(ALICE)
    log.tell_erasures()
    assert refused(mirror).name == "RecordWithheld"
    assert stored(mirror) is None


def test_an_erasure_that_says_it_was_long_ago(mirror, log):
    """An erasure appears with the first checkpoint that covers it. Later it could rewrite what was."""
    mirror.poll()
    log.tell_erasures(ErasureRecord(SIZE - 1, map_index(ORIGIN, ALICE), 7, 1, 6, ()))
    assert refused(mirror).name == "BadErasure"


@pytest.mark.parametrize("change", [
    {"index": map_index(ORIGIN, "https://example.com/users/nobody")},  # Dave's text goes in somebody else's name
    {"index": map_index(ORIGIN, FRED)},  # who is still readable
    {"newly_withheld": 9},  # more than is gone
    {"newly_withheld": 1},  # less
])
def test_an_erasure_that_is_not_what_it_says(mirror, log, change):
    mirror.poll()
    log.erase(DAVE)
    (record,) = log.store.erasures(0, 1)
    log.tell_erasures(replace(record, **change))
    assert refused(mirror).name in ("BadErasure", "NotErased", "RecordWithheld")
    status = load_status(mirror.source)
    assert status.erasing and not status.may_show_plaintext(log.clock.now)
    log.lies.clear()
    mirror.poll()
    check_same(mirror, log)
