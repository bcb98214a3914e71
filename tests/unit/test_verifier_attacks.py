"""A verifier against logs that lie: whatever the log signed and cannot be true ends its signatures for good."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ktlog.keymap.evidence import parse_map_evidence, verify_map_evidence
from ktlog.keymap.output import MapConfig, OutputLeaf, format_config, parse_leaf
from ktlog.keymap.prefix import subtree_hash
from ktlog.pkd.messages import AddKey, RevokeKey
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64
from ktlog.tlog.evidence import parse_evidence, verify_evidence
from ktlog.tlog.note import open_note, parse_note, parse_signature_lines
from ktlog.tlog.tree import hash_leaf, verify_inclusion
from tests.pkd_samples import NOW, public, quick_argon2  # noqa: F401
from tests.verifier_world import MAP, ORIGIN, Clock, Daemon, PublishedLog, person, quick_follower, signers
from tests.witness_log import join

ROOT = bytes([42]) * 32


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Two people enrolled, and a verifier that has signed that."""
    quick_follower(monkeypatch)
    clock = Clock()
    log = PublishedLog(clock)
    log.enrol("ann", "p").enrol("ben", "q").grow()
    daemon = Daemon(tmp_path / "v", log, clock)
    assert daemon.submit().status == 200
    yield daemon
    daemon.stop()


def caught(site: Daemon, name: str) -> dict:
    """The submission is refused for *name*, evidence is kept, and nothing helps any more, not even a restart."""
    reply = site.submit()
    assert (reply.status, reply.reason) == (422, f"WrongMap {name}"), reply
    evidence = site.evidence()
    assert site.status()["wrong"]["name"] == name
    size = site.size
    site.restart()
    site.log.output = site.log.output[:size]
    site.log.lies.clear()
    site.log.enrol("dan", "t").grow()
    again = site.submit()
    assert (again.status, again.reason) == (422, f"WrongMap {name}") and site.size == size
    assert site.post(site.log.submission(size, size)).status == 422
    return evidence


def silent(site: Daemon, name: str) -> None:
    """The submission is not answered for *name*, and nobody is convicted."""
    reply = site.submit()
    assert (reply.status, reply.reason) == (503, f"NotChecked {name}"), reply
    assert reply.headers["Retry-After"] == "1"
    assert site.status()["wrong"] is None and site.status()["waiting-for"]["name"] == name


# --- what convicts


def test_a_hidden_revocation(site):
    site.log.say(AddKey(person("ann"), public("r"), NOW), "p").grow()
    assert site.submit().status == 200
    before = subtree_hash(site.log.map_leaves())
    site.log.say(RevokeKey(person("ann"), public("p"), NOW), "r").grow(map_root=before)
    evidence = caught(site, "MapMismatch")
    assert (evidence["format"], evidence["leaf-index"], evidence["derived"]["entries"]) == ("ktlog-wrong-leaf/v1", 3, 4)


def test_a_revocation_hidden_by_an_erasure_of_somebody_else(site):
    """Its text goes together with the text of one who was enrolled for that: the counts are right, the map is not."""
    site.log.say(AddKey(person("ann"), public("r"), NOW), "p").enrol("sock", "s").grow()
    assert site.submit().status == 200
    lie = {leaf.index: leaf for leaf in site.log.map_leaves()}
    site.log.say(RevokeKey(person("ann"), public("p"), NOW), "r").publish()
    read(site, 5)
    record = site.log.erase(person("sock"))
    site.log.records[-1] = replace(record, newly_withheld=record.newly_withheld + 2)
    site.log.plains[4] = dict.fromkeys(site.log.plains[4])
    lie |= {leaf.index: leaf for leaf in site.log.map_leaves() if leaf.index == record.index}
    site.log.add_leaf(map_root=subtree_hash(sorted(lie.values())))
    caught(site, "MapMismatch")


def test_a_revocation_that_nobody_was_shown(site):
    """The same, but the text is gone before anybody has read it. That is silence: no signature says what was shown."""
    site.log.say(AddKey(person("ann"), public("r"), NOW), "p").enrol("sock", "s").grow()
    assert site.submit().status == 200
    lie = {leaf.index: leaf for leaf in site.log.map_leaves()}
    site.log.say(RevokeKey(person("ann"), public("p"), NOW), "r")
    record = site.log.erase(person("sock"))
    site.log.records[-1] = replace(record, newly_withheld=record.newly_withheld + 2)
    site.log.plains[4] = dict.fromkeys(site.log.plains[4])
    lie |= {leaf.index: leaf for leaf in site.log.map_leaves() if leaf.index == record.index}
    site.log.publish().add_leaf(map_root=subtree_hash(sorted(lie.values())))
    silent(site, "WithheldTooSoon")


def read(site: Daemon, size: int) -> None:
    """Wait until it has read that many entries."""
    follower = site.verifier.follower(MAP)
    seen = follower.wait(lambda now: now.input_size >= size, 60)
    assert follower.wait(lambda now: now.round > seen.round + 1, 60).failure is None


def test_the_evidence_shows_what_the_log_signed(site):
    site.log.enrol("cleo", "r").grow(map_root=ROOT)
    assert site.submit().status == 422
    evidence = site.evidence()
    note, checkpoint = parse_signed_checkpoint(evidence["checkpoint"].encode())
    assert len(open_note(note, [signer.vkey for signer in site.log.map_signers])) == 2
    leaf = decode_base64(evidence["leaf"])
    assert leaf == site.log.output[2]
    path = [decode_base64(node) for node in evidence["path"]]
    verify_inclusion(hash_leaf(leaf), evidence["leaf-index"], checkpoint.size, path, checkpoint.root)


def test_entries_held_back(site):
    site.clock.now += 10
    site.log.enrol("cleo", "r").publish()
    read(site, 3)
    seen = site.clock.now
    two = {"input_size": 2, "input_root": site.log.tree()([(1, 0)])[0], "map_root": leaf_of(site.log, 1).map_root}
    site.clock.now = seen + 59
    site.log.add_leaf(**two)
    assert site.submit().status == 200, "it is not 60 seconds since"
    site.clock.now = seen + 60
    site.log.add_leaf(**two)
    caught(site, "InputHeldBack")


def leaf_of(log: PublishedLog, index: int) -> OutputLeaf:
    return parse_leaf(log.output[index])


@pytest.mark.parametrize("changes", [
    {"time": NOW - 1}, {"input_size": 1}, {"input_root": ROOT}, {"erasures_root": ROOT}, {"map_root": ROOT},
], ids=["time fell", "entries fell", "another input root", "another erasures root", "another map"])
def test_a_leaf_that_contradicts_the_one_before(site, changes):
    """Anybody can check the evidence, without entries and without a verifier."""
    site.log.add_leaf(**changes)
    document = caught(site, "MapContradiction")
    evidence = parse_map_evidence((json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode())
    assert evidence.vkey in [signer.vkey for signer in site.log.map_signers]
    verify_map_evidence(evidence, evidence.vkey)


@pytest.mark.parametrize(("changes", "name"), [
    ({"config": ROOT}, "WrongConfig"), ({"input_root": ROOT}, "InputMismatch"), ({"map_root": ROOT}, "MapMismatch"),
])
def test_a_leaf_that_is_not_of_the_log(site, changes, name):
    site.log.enrol("cleo", "r").grow(**changes)
    caught(site, name)


def test_a_leaf_that_is_none(site):
    site.log.output.append(b"ktlog-map/v2\n")
    caught(site, "BadOutputLeaf")


def test_the_map_of_an_erasure_that_is_told_wrong(site):
    site.log.publish().erase(person("ann"))
    site.log.add_leaf(map_root=ROOT)
    caught(site, "MapMismatch")


def test_an_erasure_log_that_nobody_is_shown(site):
    """No signature says what was shown instead, so this is silence."""
    site.log.publish().erase(person("ann"))
    site.log.add_leaf(erasures_root=ROOT)
    silent(site, "ErasuresMismatch")
    silent(site, "ErasuresMismatch")


def test_a_wrong_map_that_an_erasure_is_to_cover_up(site):
    """Reading again finds nothing to compare it with any more; so what was found before counts."""
    site.log.enrol("cleo", "r").grow(map_root=ROOT)
    site.log.erase(person("ann"))
    reply = site.submit()
    assert (reply.status, reply.reason) == (422, "WrongMap MapMismatch"), reply


def test_an_erasure_after_the_fact(site):
    """It takes effect after entry 2, and its leaf covers three entries."""
    site.log.erase(person("ann"))
    site.log.enrol("cleo", "r").grow()
    caught(site, "BadErasure")


def test_an_erasure_of_somebody_else_s_deeds(site):
    site.log.erase(person("ann"))
    site.log.records[0] = replace(site.log.records[0], version=9)
    site.log.grow()
    caught(site, "BadErasure")


@pytest.mark.parametrize("config", [
    b"ktlog-map-config/v2\n", format_config(MapConfig(ORIGIN, "spec")).replace(b"suite hash", b"suite vrf"),
    format_config(MapConfig(ORIGIN, "spec", mmd=10**9)),
])
def test_a_configuration_that_is_not_known(tmp_path, monkeypatch, config):
    quick_follower(monkeypatch)
    log = PublishedLog(Clock()).enrol("ann", "p").grow()
    log.output[0] = config
    site = Daemon(tmp_path / "v", log, log.clock)
    try:
        silent(site, "BadMapConfig")
    finally:
        site.stop()


def test_the_configuration_of_another_log_s_map(tmp_path, monkeypatch):
    quick_follower(monkeypatch)
    log = PublishedLog(Clock(), config=MapConfig("keys.example.org", "spec")).enrol("ann", "p").grow()
    convicted(tmp_path, log, "WrongConfig")


def convicted(tmp_path, log: PublishedLog, name: str) -> None:
    """By a verifier that sees the log for the first time."""
    site = Daemon(tmp_path / "v", log, log.clock)
    reply = site.submit()
    site.stop()
    assert (reply.status, reply.reason) == (422, f"WrongMap {name}")


def test_an_input_log_with_two_roots(site):
    site.log.publish(2, ROOT)
    site.log.add_leaf()
    evidence = caught(site, "TwoRoots")
    check_fork(evidence, site.log.signers)


def test_an_input_log_that_rewrote_its_entries(site):
    other = PublishedLog(site.clock).enrol("ann", "p").enrol("eve", "r").enrol("cleo", "s").grow()
    other.map_signers, other.output = site.log.map_signers, site.log.output
    site.log.entries, site.log.preimages, site.log.plains, site.log.pages = (
        other.entries, other.preimages, other.plains, other.pages
    )
    site.log.publish().output.append(other.add_leaf().output[-1])
    reply = site.submit()
    assert (reply.status, reply.reason) == (422, "WrongMap Inconsistent"), reply
    check_fork(site.evidence(), site.log.signers)


def test_a_map_s_log_with_two_roots(site):
    reply = site.post(site.log.submission(2, 2, root=ROOT))
    assert reply.status == 422 and reply.reason.startswith("OtherRoot")
    check_fork(site.evidence(), site.log.map_signers)
    site.log.enrol("cleo", "r").grow()
    assert site.submit().reason == "WrongMap TwoRoots"


def check_fork(document: dict, by: tuple) -> None:
    evidence = parse_evidence((json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode())
    assert evidence.vkey in [signer.vkey for signer in by]
    verify_evidence(evidence, evidence.vkey)


def test_two_roots_of_a_size_that_was_never_signed_here(site):
    """Neither can be checked, and both extend what was signed: nothing but the two signatures convicts."""
    site.log.enrol("cleo", "r").grow(time=NOW + 301)
    silent(site, "LeafInFuture")
    site.log.output.pop()
    site.log.add_leaf(time=NOW + 302)
    reply = site.submit()
    assert (reply.status, reply.reason) == (422, "WrongMap TwoRoots"), reply
    check_fork(site.evidence(), site.log.map_signers)


def test_a_map_s_log_that_went_back_on_a_leaf_that_was_never_checked(site):
    site.log.enrol("cleo", "r").grow(time=NOW + 301)
    silent(site, "LeafInFuture")
    site.log.output.pop()
    site.log.add_leaf(time=NOW + 1).add_leaf(time=NOW + 2)
    reply = site.submit()
    assert (reply.status, reply.reason) == (422, "WrongMap Inconsistent"), reply
    check_fork(site.evidence(), site.log.map_signers)


def test_a_map_s_log_that_went_back_on_a_leaf_that_was_checked(site):
    """The leaf of size 3 is checked and then another one is at its place: under a larger checkpoint, in time."""
    site.log.enrol("cleo", "r").grow().enrol("dan", "s").grow(time=NOW + 301)
    silent(site, "LeafInFuture")
    site.log.output[2:] = []
    site.log.add_leaf(time=NOW + 1).add_leaf(time=NOW + 2).add_leaf(time=NOW + 3)
    reply = site.submit()
    assert (reply.status, reply.reason) == (422, "WrongMap Inconsistent"), reply
    check_fork(site.evidence(), site.log.map_signers)


# --- what keeps it silent for as long as it lasts


def test_a_leaf_from_the_future_is_signed_when_its_time_has_come(site):
    site.log.enrol("cleo", "r").grow(time=NOW + 301)
    silent(site, "LeafInFuture")
    site.clock.now += 1
    assert site.submit().status == 200


def test_an_entry_that_no_leaf_key_signed(site):
    site.log.lies["/leaf-keys"] = b'{"leaf-keys":[]}'
    site.log.make_entry = lambda preimage: super(PublishedLog, site.log).make_entry(preimage)
    site.log.enrol("cleo", "r").grow()
    silent(site, "BadLeafSignature")
    site.log.lies.clear()
    silent(site, "BadLeafSignature")


@pytest.mark.parametrize(("changes", "name"), [
    ({"actor": person("eve")}, "PlaintextMismatch"), ({"actor": None}, "WithheldTooSoon"),
])
def test_a_record_that_is_not_what_the_entry_commits_to(site, changes, name):
    site.log.enrol("cleo", "r").grow()
    whole = b"".join(site.log.line(index) + b"\n" for index in range(2))
    site.log.lies["/records/000.p/3"] = whole + site.log.line(2, **changes) + b"\n"
    silent(site, name)
    site.log.lies.clear()
    assert site.submit().status == 200


def test_a_record_of_another_entry(site):
    site.log.enrol("cleo", "r").grow()
    site.log.lies["/records/000.p/3"] = (site.log.line(0) + b"\n") * 3
    silent(site, "BadRecord")
    site.log.lies["/records/000.p/3"] = b""
    silent(site, "BadRecords")


def test_a_salt_that_was_wrong_once_convicts_nobody(site):
    site.log.enrol("cleo", "r").grow()
    good = site.log.answer("/records/000.p/3").splitlines()
    before, salt = good[2].split(b'"salts": {"actor": "')
    lies = [b"\n".join([*good[:2], before + b'"salts": {"actor": "' + b"A" * 43 + salt[43:]]) + b"\n"]
    site.log.lies["/records/000.p/3"] = lambda: lies.pop() if lies else None
    assert site.submit().status == 200
    assert lies == []


def test_pages_that_are_not_in_the_tree(site):
    site.log.enrol("cleo", "r").grow()
    true = site.log.answer("/tile/entries/000.p/3")
    site.log.lies["/tile/entries/000.p/3"] = true[:-1] + bytes([true[-1] ^ 1])
    silent(site, "BadEntryProof")
    site.log.lies = {"/map/tile/entries/000.p/3": site.log.answer("/map/tile/entries/000.p/3").replace(b"map ", b"nap ")}
    silent(site, "BadOutputProof")
    site.log.lies = {"/checkpoint": b"nothing\n"}
    silent(site, "MalformedCheckpoint")
    site.log.lies.clear()
    assert site.submit().status == 200


def test_a_leaf_about_entries_that_are_not_shown(site):
    site.log.enrol("cleo", "r").add_leaf()
    silent(site, "InputBehind")
    site.log.publish()
    assert site.submit().status == 200


def test_a_log_that_shows_less_than_before(site):
    site.log.enrol("cleo", "r").grow()
    assert site.submit().status == 200
    site.log.publish(2).add_leaf()
    silent(site, "RolledBack")


# --- what decides nothing


def test_garbage_freezes_nothing(site):
    site.log.enrol("cleo", "r").grow()
    assert site.submit(proof=[ROOT]).status == 422
    assert site.submit(by=signers(MAP, 77)).status == 403
    assert site.submit(by=signers(ORIGIN, 77)).status == 403
    assert site.post(b"old 2\n\nnothing").status == 400
    assert site.status()["wrong"] is None and not site.directory.evidence.exists()
    assert site.submit().status == 200


def test_a_verifier_signs_for_no_log_that_it_does_not_derive(site):
    assert site.post(join(0, [], site.log.note)).status == 404
    assert site.request("GET", "/").body.count(b"verifier of key directories") == 1


def test_sizes_as_at_any_witness(site):
    site.log.enrol("cleo", "r").grow().enrol("dan", "s").grow()
    early = site.log.submission(0, 3)
    reply = site.post(early)
    assert (reply.status, reply.body, reply.headers["Content-Type"]) == (409, b"2\n", "text/x.tlog.size")
    reply = site.submit()
    assert reply.status == 200 and len(parse_signature_lines(reply.body)) == 2
    reply = site.post(site.log.submission(2, 3))
    assert (reply.status, reply.body) == (409, b"4\n")
    assert site.submit().status == 200, "the same again"


def test_a_larger_head_comes_first(site):
    site.log.enrol("cleo", "r").grow().enrol("dan", "s").grow(time=NOW + 301)
    silent(site, "LeafInFuture")
    reply = site.post(site.log.submission(2, 3))
    assert (reply.status, reply.reason) == (503, "LargerHeadSeen this")
    assert site.post(site.log.submission(2, 2)).status == 503, "not even what was signed before"
    site.clock.now += 1
    assert site.submit().status == 200


def test_what_is_signed_is_the_checkpoint(site):
    site.log.enrol("cleo", "r").grow()
    note = parse_note(site.log.map_note())
    lines = parse_signature_lines(site.submit().body)
    signed = open_note(replace(note, signatures=lines), [signer.vkey for signer in site.witness.signers])
    assert [one.timestamp for one in signed] == [NOW, NOW]
