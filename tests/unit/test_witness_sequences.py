"""Sequences that other witnesses' published suites ask for, where tlog-witness v1.1 agrees, in our own words.

Most of them are behaviour that test_witness_web.py and test_witness_decide.py have already (growth, 409, 422, zero sizes,
64 proof lines, the stalled request); here is what those lack. Which suite has what is in docs/interop.md.
"""

from __future__ import annotations

import pytest

from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Note, open_note, parse_signature_lines, parse_vkey
from tests.unit.test_tlog_foreign import PQ_NOTE, PQ_VKEY, SUMDB_NOTE, SUMDB_VKEY
from tests.witness_log import NOW, Log, join
from tests.witness_site import Session
from witness.store import hash_origin

HASH = b"\x2a" * 32


@pytest.fixture
def session(tmp_path):
    session = Session(tmp_path)
    yield session
    session.witness.store.close()


def follow(session: Session, origin: str, *vkeys: str) -> None:
    session.witness.store.add_log(origin, tuple(map(parse_vkey, vkeys)), NOW)


def cosigned(session: Session, note: bytes, answer) -> bool:
    assert answer.status_code == 200, answer.data
    text = parse_signed_checkpoint(note)[0].text
    found = open_note(Note(text, parse_signature_lines(answer.data)), session.vkeys)
    return {one.vkey for one in found} == set(session.vkeys)


@pytest.mark.parametrize(("vkey", "note", "origin"), [
    (SUMDB_VKEY, SUMDB_NOTE, "go.sum database tree"), (PQ_VKEY, PQ_NOTE, "example.com/mldsa-log"),
], ids=["a key whose name is not the origin", "a log that signs with ML-DSA-44 alone"])
def test_a_log_in_the_wild(session, vkey, note, origin):
    """As litewitness's sumdb and mldsa sessions have it, with the checkpoints that those logs signed."""
    size = parse_signed_checkpoint(note)[1].size
    assert session.post(join(0, [], note)).status_code == 404
    follow(session, origin, vkey)
    for old in (1, size):
        conflict = session.post(join(old, [], note))
        assert (conflict.status_code, conflict.data) == (409, b"0\n")
    assert session.post(join(0, [], note.replace(b"\n%d\n" % size, b"\n%d\n" % (size + 1)))).status_code == 403
    assert session.post(join(0, [HASH], note)).status_code == 422
    assert cosigned(session, note, session.post(join(0, [], note)))
    again = session.post(join(0, [], note))
    assert (again.status_code, again.data) == (409, b"%d\n" % size)
    assert cosigned(session, note, session.post(join(size, [], note)))
    kept = session.client.get(f"/{hash_origin(origin)}/checkpoint")
    assert kept.data.startswith(note)


def test_two_logs_know_nothing_of_each_other(session):
    """One's checkpoints move the other's record by nothing, and neither's key speaks for the other."""
    other = Log("example.com/other", seed=2)
    follow(session, other.origin, *map(str, other.vkeys))
    session.submit(0, 5)
    assert cosigned(session, other.note(3), session.post(other.submission(0, 3)))
    assert session.submit(3, 7).data == b"5\n"
    disguised = Log(session.log.origin, key_name=other.origin, seed=2)
    assert session.post(disguised.submission(5, 7)).status_code == 403
    assert cosigned(session, session.log.note(7), session.submit(5, 7))
    assert session.post(other.submission(7, 9)).data == b"3\n"


def test_one_key_for_two_logs_signs_for_each_in_its_own_name(session):
    """The origin decides which record is meant, not the key that signed."""
    first, second = (Log(f"example.com/{n}", key_name="example.com/key", seed=3) for n in (1, 2))
    for log in (first, second):
        follow(session, log.origin, *map(str, log.vkeys))
    assert cosigned(session, first.note(5), session.post(first.submission(0, 5)))
    assert session.post(second.submission(5, 6)).data == b"0\n"
    assert cosigned(session, second.note(2), session.post(second.submission(0, 2)))
    assert session.post(first.submission(0, 6)).data == b"5\n"


def test_a_log_goes_over_to_another_key(session):
    """While both are trusted either is enough; what the record says came from the older one."""
    old, new = (
        Log("example.com/moving", seed=seed, algorithms=(kind,)) for seed, kind in ((4, ED25519), (5, COSIGNATURE_MLDSA44))
    )
    follow(session, old.origin, str(old.vkeys[0]))
    assert cosigned(session, old.note(3), session.post(old.submission(0, 3)))
    assert session.post(new.submission(3, 8)).status_code == 403
    follow(session, old.origin, str(new.vkeys[0]))
    assert cosigned(session, new.note(8), session.post(new.submission(3, 8)))
    assert cosigned(session, old.note(9), session.post(old.submission(8, 9)))
    liar = Log("example.com/moving", seed=5, algorithms=(COSIGNATURE_MLDSA44,), prefix=b"other")
    assert session.post(liar.submission(9, 12)).status_code == 422


def test_from_any_size_to_any_greater_one(session):
    """Growth in every step of a small tree, each from a record of its own; then the same step again is a 409."""
    for old in range(6):
        for new in range(old, 7):
            log = Log(f"example.com/{old}/{new}", algorithms=(ED25519,))
            follow(session, log.origin, *map(str, log.vkeys))
            assert session.post(log.submission(0, old)).status_code == 200
            assert session.post(log.submission(old, new, proof=[*log.proof(old, new), HASH])).status_code == 422
            assert session.post(log.submission(old, new)).status_code == 200
            if new > old:
                assert session.post(log.submission(old, new)).data == b"%d\n" % new
