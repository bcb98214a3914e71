"""Strangers between a verifier and an honest log: they may keep it silent for a while, and convict nobody."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ktlog.pkd.erasure import encode_erasure_record
from ktlog.pkd.messages import AddKey
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.tiles import format_bundle
from ktlog.tlog.tree import Frontier, hash_leaf
from tests.pkd_samples import NOW, public, quick_argon2  # noqa: F401
from tests.verifier_world import Clock, Daemon, PublishedLog, person, quick_follower


@pytest.fixture
def log(monkeypatch) -> PublishedLog:
    quick_follower(monkeypatch)
    log = PublishedLog(Clock()).enrol("ann", "p").enrol("ben", "q").enrol("cleo", "r").grow()
    log.clock.now += 100_000
    return log


@pytest.fixture
def start(tmp_path, log):
    daemons = []

    def make() -> Daemon:
        daemons.append(Daemon(tmp_path / "v", log, log.clock))
        return daemons[-1]

    yield make
    for daemon in daemons:
        daemon.stop()


def test_an_erasure_while_a_verifier_that_knows_of_another_one_reads_the_entries(log, start):
    """It takes the text that is missing for the first one's, until the records are read again."""
    log.erase(person("ben"))
    told = iter([log.answer("/erasures")])
    before = log.answer("/erasures/000.p/1")
    log.erase(person("ann"))
    log.lies = {"/erasures": lambda: next(told, None), "/erasures/000.p/1": before}
    log.add_leaf()
    site = start()
    reply = site.submit()
    assert (reply.status, reply.reason) == (503, "NotChecked RecordWithheld"), reply
    assert site.submit().status == 200 and site.status()["erasures"] == 2


def test_a_log_that_erased_before_it_had_a_map(log, start):
    """Its first map stands for all erasures before it; those after that are committed to one by one."""
    log.output.pop()
    log.erase(person("ann"))
    log.enrol("dan", "s").grow()
    site = start()
    assert site.submit().status == 200, site.status()
    log.erase(person("ben"))
    log.enrol("eve", "t").grow()
    assert site.submit().reason == "WrongMap BadErasure"


def show_erasures(log, records) -> None:
    """Somebody between the two says that these were erased. Every number fits; nobody has signed it."""
    leaves = [encode_erasure_record(record) for record in records]
    root = Frontier().extend(map(hash_leaf, leaves)).root()
    log.lies = {
        "/erasures": json.dumps({"size": len(leaves), "root": encode_base64(root)}).encode(),
        f"/erasures/000.p/{len(leaves)}": format_bundle(leaves),
    }


def test_erasures_that_somebody_on_the_way_has_changed(log, start):
    site = start()
    assert site.submit().status == 200
    log.erase(person("ann"))
    log.add_leaf()
    show_erasures(log, [replace(log.records[0], newly_withheld=1)])
    reply = site.submit()
    assert (reply.status, reply.reason) == (503, "NotChecked ErasuresMismatch"), reply
    log.lies.clear()
    assert site.submit().status == 200 and site.status()["erasures"] == 1


def test_an_erasure_that_somebody_on_the_way_has_invented(log, start):
    """Whoever begins under it finds names where none may be, until it is not told any more."""
    twin = PublishedLog(Clock()).enrol("ann", "p").enrol("ben", "q").enrol("cleo", "r")
    show_erasures(log, [twin.erase(person("ann"))])
    site = start()
    assert site.submit().reason.startswith("NotChecked")
    log.lies.clear()
    site.submit()
    assert site.submit().status == 200, site.status()


def test_what_a_verifier_writes_of_its_own_names_no_actor(log, start, caplog):
    """Whom the log erases would stay in the verifier's output: what is wrong is told by names, numbers and roots."""
    lines = [log.line(index) for index in range(len(log.entries))]
    log.lies = {"/records/000.p/3": b"\n".join([log.line(0, actor=person("zoe")), *lines[1:], b""])}
    site = start()
    assert site.submit().reason == "NotChecked PlaintextMismatch"
    log.lies.clear()
    assert not log.log(AddKey(person("ann"), public("p"), NOW), "p")
    log.grow(map_root=bytes(32))
    assert site.submit().reason == "WrongMap MapMismatch"
    for words in ("is not checked: PlaintextMismatch", "breaks a rule: ", "is read again", "WRONG: "):
        assert words in caplog.text
    assert person("") not in caplog.text


def test_evidence_of_before_the_database_was_restored_keeps_nobody_from_being_served(log, start):
    site = start()
    log.enrol("dan", "s").grow(map_root=bytes(32))
    site.directory.evidence.mkdir()
    (path := site.directory.evidence / "keys.example.com.json").write_bytes(b"an older one\n")
    assert site.submit().reason == "WrongMap MapMismatch"
    site.restart()
    assert site.submit().reason == "WrongMap MapMismatch" and path.read_bytes() == b"an older one\n"

