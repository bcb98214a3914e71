"""A log's key is replaced: the client takes the new one from a line that the old one signed, and from nothing else."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest
from client_log import NOW, ORIGIN, actor, key, witness_signers
from client_world import ALICE, BOB, ROOT, World, remembering_argon2id, say

from ktlog.client.build import add_key, burn_down, enrol
from ktlog.errors import EncodingError, Invalid, NotLogged, PolicyUnmet, StoreError, Unreachable
from ktlog.pkd import attributes
from ktlog.pkd.keychanges import (
    FIRST,
    KeyChange,
    Replaced,
    change_message,
    format_change,
    hash_change,
    parse_change,
    parse_changes,
    successors,
    verify_changes,
)
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Signer, signer_from_seed

Pair = tuple[Signer, Signer]


def pair(seed: int, origin: str = ORIGIN) -> Pair:
    return (
        signer_from_seed(origin, ED25519, bytes([seed]) * 32),
        signer_from_seed(origin, COSIGNATURE_MLDSA44, bytes([seed + 1]) * 32),
    )


def signed(change: KeyChange, old: Pair, new: Pair, log: Signer) -> KeyChange:
    message = change_message(change)
    keys = tuple(
        replace(one, old_signature=a.private_key.sign(message), new_signature=b.private_key.sign(message))
        for one, a, b in zip(change.keys, old, new, strict=True)
    )
    return replace(change, keys=keys, log_signature=log.private_key.sign(message))


def changed(
    old: Pair, new: Pair, *, time: int = NOW, until: int = NOW, after: KeyChange | None = None, origin: str = ORIGIN,
    kind: str = "checkpoint", log: Signer | None = None,
) -> KeyChange:
    keys = tuple(
        Replaced(f"{kind}-{name}", str(a.vkey), str(b.vkey))
        for name, a, b in zip(("ed25519", "mldsa44"), old, new, strict=True)
    )
    by = old[1] if log is None else log
    bare = KeyChange(
        origin, 0 if after is None else after.number + 1, FIRST if after is None else hash_change(after), time, 6,
        bytes(32), kind, until, "a test", keys, str(by.vkey),
    )
    return signed(bare, old, new, by)


def lines(*changes: KeyChange) -> bytes:
    return b"".join(format_change(change) + b"\n" for change in changes)


SECOND, THIRD, THIEF = pair(40), pair(50), pair(60)


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return World(tmp_path)


def rotate(world: World, *changes: KeyChange, to: Pair, at: int) -> None:
    """The log goes on under other keys, and says so at /keys."""
    say(world.log, add_key, ALICE, key(at).public_key, key(2))
    world.log.signers = to
    world.log.publish(now=NOW + at)
    world.now = NOW + at
    if changes:
        world.network.replace("/keys", lines(*changes))


def kept(world: World) -> bytes | None:
    path = world.state / "keys" / f"{ORIGIN}.jsonl"
    return path.read_bytes() if path.exists() else None


def test_a_new_key_is_taken_from_a_line_that_the_pinned_one_signed(world):
    first = world.log.signers
    world.lookup()
    assert kept(world) is None
    line = changed(first, SECOND)
    rotate(world, line, to=SECOND, at=4)
    answer = world.lookup()  # the policy names the first key still
    assert answer.tree_size == 7 and len(answer.keys) == 3
    assert kept(world) == lines(line)
    asked = len(world.network.requests)
    world.lookup()
    assert not any(url.endswith("/keys") and "/actor/" not in url for url in world.network.requests[asked:])
    # And the next one, two steps from what the policy says.
    following = changed(SECOND, THIRD, after=line, time=NOW + 5, until=NOW + 5)
    rotate(world, line, following, to=THIRD, at=6)
    assert world.lookup().tree_size == 8
    assert kept(world) == lines(line, following)


def test_who_begins_late_follows_the_whole_chain(world):
    first = world.log.signers
    line = changed(first, SECOND)
    rotate(world, line, changed(SECOND, THIRD, after=line), to=THIRD, at=4)
    assert world.lookup().tree_size == 7


def test_both_sign_for_a_while_and_nobody_has_to_ask(world):
    first = world.log.signers
    rotate(world, changed(first, SECOND, until=NOW + 1000), to=(*SECOND, *first), at=4)
    world.lookup()
    assert kept(world) is None


def test_the_old_key_is_good_until_its_time_is_over(world):
    first = world.log.signers
    line = changed(first, SECOND, until=NOW + 50)
    rotate(world, line, to=SECOND, at=4)
    world.lookup()
    # Somebody has the old key: what it signs now, no one takes who knows of the new one.
    say(world.log, add_key, ALICE, key(5).public_key, key(2))
    world.log.signers = first
    world.log.publish(now=NOW + 49)
    world.now = NOW + 49
    assert world.lookup().tree_size == 8
    say(world.log, add_key, ALICE, key(6).public_key, key(2))
    world.log.publish(now=NOW + 51)
    world.now = NOW + 51
    world.refuses(Invalid, "BadLogSignature")
    world.log.signers = SECOND  # the remembered head was the old key's, and is still compared with
    world.log.publish(now=NOW + 51)
    assert world.lookup().tree_size == 9


def bent(line: KeyChange) -> list[KeyChange]:
    ed, pq = line.keys
    flip = line.log_signature[:-1] + bytes([line.log_signature[-1] ^ 1])
    return [
        replace(line, log_signature=flip), replace(line, reason="another"), replace(line, until=line.until + 1),
        replace(line, keys=(replace(ed, new=str(THIEF[0].vkey)), pq)), replace(line, tree_size=7),
        replace(line, keys=(ed, replace(pq, new=str(THIEF[1].vkey)))), replace(line, number=1),
        replace(line, keys=(replace(ed, old_signature=ed.new_signature), pq)),
        replace(line, keys=(ed, replace(pq, new_signature=pq.old_signature))), replace(line, previous=b"\1" * 32),
        replace(line, keys=(replace(ed, old_signature=b""), pq)),
    ]


def test_a_line_with_a_flaw_changes_nothing(world):
    first = world.log.signers
    world.lookup()
    good = changed(first, SECOND)
    rotate(world, to=SECOND, at=4)
    for line in bent(good):
        world.network.replace("/keys", lines(line))
        assert world.refuses(Invalid, "BadKeyChange").exit_code == 5
        assert kept(world) is None
    for other in (
        changed(THIEF, SECOND),  # signed, but by a key that the policy does not know
        changed(first, SECOND, origin="keys.example.net"),
        changed(pair(70, f"{ORIGIN}/map"), pair(80, f"{ORIGIN}/map"), kind="map", log=first[1]),
    ):
        world.network.replace("/keys", lines(other))
        world.refuses(Invalid, "BadLogSignature" if other.origin == ORIGIN else "BadKeyChange")
    for body in (b"", b"{}\n", b"[]\n", b"rubbish\n", lines(good)[:-1]):
        world.network.replace("/keys", body)
        world.refuses(Invalid, "BadKeyChange" if body.endswith(b"\n") else "BadLogSignature")
    world.network.replace("/keys", b"", 404)
    world.refuses(Invalid, "BadLogSignature")
    world.network.break_("/keys")
    world.refuses(Invalid, "BadLogSignature")
    world.network.replace("/keys", lines(good))
    assert world.lookup().tree_size == 7


def test_a_new_key_without_the_witnesses_is_not_remembered(world):
    """Who stole the old key can sign the line; the quorum he has not."""
    first = world.log.signers
    world.lookup()
    rotate(world, changed(first, THIEF), to=THIEF, at=4)
    world.log.publish(now=NOW + 4, witnesses=1)
    world.refuses(PolicyUnmet, "TooFewWitnesses")
    assert kept(world) is None
    rotate(world, changed(first, SECOND), to=SECOND, at=5)
    world.lookup()


def test_a_second_successor_of_one_key_is_refused(world):
    first = world.log.signers
    rotate(world, changed(first, SECOND), to=SECOND, at=4)
    world.lookup()
    rotate(world, changed(first, THIEF), to=THIEF, at=5)
    world.refuses(Invalid, "TwoSuccessors")
    world.network.replace("/keys", lines(changed(first, SECOND)))
    world.refuses(Invalid, "BadLogSignature")
    world.log.signers = SECOND
    world.log.publish(now=NOW + 5)
    world.lookup()


@pytest.mark.parametrize("failure", ["unknown", "unreachable"])
def test_a_lookup_that_fails_under_a_new_key_shuts_nobody_out(world, failure):
    """Its head was checked to the end, and is remembered: under a key that is to be known again, then."""
    first = world.log.signers
    world.lookup()
    rotate(world, changed(first, SECOND), to=SECOND, at=4)
    who, kind = {"unknown": (actor("nobody"), NotLogged), "unreachable": (BOB, Unreachable)}[failure]
    world.network.break_(f"/api/actor/{quote(BOB, safe='')}/keys")
    with pytest.raises(kind):
        world.lookup(who)
    assert len(world.lookup().keys) == 3


def test_a_lookup_that_was_shown_another_successor_than_an_overlapping_one_changes_nothing(world):
    first = world.log.signers
    world.lookup()
    say(world.log, burn_down, ALICE, ROOT, key(20))
    say(world.log, enrol, ALICE, key(2))
    rotate(world, changed(first, SECOND), to=SECOND, at=9)

    def meanwhile(url):
        if url.endswith("/checkpoint") and world.network.requests[-2].endswith("/keys"):
            (world.state / "keys" / f"{ORIGIN}.jsonl").write_bytes(lines(changed(first, THIEF)))

    before = world.remembered()
    world.network.before = meanwhile
    world.refuses(Invalid, "TwoSuccessors")
    assert world.remembered() == before
    world.network.before = lambda url: None
    (world.state / "keys" / f"{ORIGIN}.jsonl").unlink()
    assert world.lookup().reset == "enrolment after a BurnDown"


def test_a_cosigner_s_key_is_no_log_s(world):
    first = world.log.signers
    disguised = (SECOND[0], signer_from_seed(ORIGIN, COSIGNATURE_MLDSA44, bytes([110]) * 32))
    assert disguised[1].vkey.public_key == witness_signers()[0][1].vkey.public_key
    rotate(world, changed(first, disguised), to=disguised, at=4)
    world.refuses(Invalid, "BadKeyChange")


def test_damaged_memory_is_no_missing_one(world):
    first = world.log.signers
    rotate(world, changed(first, SECOND), to=SECOND, at=4)
    world.lookup()
    (world.state / "keys" / f"{ORIGIN}.jsonl").write_bytes(b"{}\n")
    world.refuses(StoreError, "BadState")


def test_lines_are_read_back_as_they_were_written():
    line = changed(pair(1), SECOND)
    assert parse_change(format_change(line)) == line
    assert parse_changes(lines(line) + b'{"format') == (line,)  # a last line without its end was never written
    verify_changes((line,), ORIGIN)
    assert [one.new for one in successors((line,), [pair(1)[1].vkey])] == [SECOND[1].vkey]
    assert successors((line,), [THIRD[0].vkey]) == ()
    text = format_change(line)
    for wrong in (
        b"", b"5", b"[]", text.replace(b'"number":"0"', b'"number":0'), text.replace(b'"kind":"checkpoint"', b'"kind":"map"'),
        text.replace(b'"kind":"checkpoint"', b'"kind":5'), text + b" ", text.replace(b'"reason":"a test"', b'"reason":[]'),
        text.replace(b"a test", b"x" * 201),
    ):
        with pytest.raises(EncodingError, match="BadKeyChange"):
            parse_change(wrong)


def test_an_unbroken_history_and_nothing_else():
    first = pair(1)
    one, two = changed(first, SECOND, until=NOW + 9), changed(THIRD, first)
    follow = changed(SECOND, THIRD, after=one, time=NOW + 1, until=NOW + 1)
    verify_changes((one, follow), ORIGIN)
    for wrong in (
        (follow,), (one, one), (one, two), (one, changed(first, THIRD, after=one, time=NOW + 1, until=NOW + 2)),
        (one, changed(SECOND, THIRD, after=one, time=NOW - 1, until=NOW)),
        (one, changed(SECOND, THIRD, after=one, time=NOW + 2, until=NOW + 1)),
        (one, changed(SECOND, SECOND, after=one)), (changed(first, SECOND, log=THIEF[1]),),
    ):
        with pytest.raises(Invalid, match="BadKeyChange"):
            verify_changes(wrong, ORIGIN)

