"""Evidence convicts with the log's public key alone, and nothing an honest log signs convicts it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ktlog.errors import EncodingError, Invalid
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.evidence import (
    Evidence,
    format_evidence,
    inconsistent,
    parse_evidence,
    two_roots,
    verify_evidence,
)
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    Note,
    format_note,
    parse_note,
    parse_vkey,
    sign_checkpoint,
    signer_from_seed,
)
from ktlog.tlog.tree import EMPTY_ROOT, hash_leaf, leaf_reader, prove_consistency, root_hash

ORIGIN = "keys.example.com"
LOGS = {
    algorithm: signer_from_seed(ORIGIN, algorithm, b"l" * 32) for algorithm in (ED25519, COSIGNATURE_MLDSA44)
}
WITNESS = signer_from_seed("w.example", COSIGNATURE_MLDSA44, b"w" * 32)
HONEST = leaf_reader([hash_leaf(b"%d" % number) for number in range(20)])
FORKED = leaf_reader([hash_leaf(b"%d" % (number + (number == 2))) for number in range(20)])
EITHER = pytest.mark.parametrize("log", LOGS.values(), ids=["ed25519", "mldsa44"])


def signed(size, root, *signers, origin=ORIGIN, time=7):
    return sign_checkpoint(Checkpoint(origin, size, root), signers or LOGS.values(), time)


def head(read, size, *signers, **options):
    return signed(size, root_hash(size, read), *signers, **options)


def refuse(name, call, *arguments, error=Invalid):
    with pytest.raises(error) as caught:
        call(*arguments)
    assert caught.value.name == name


# -- two roots


@EITHER
def test_two_roots_convict(log):
    one = head(HONEST, 5, *LOGS.values(), WITNESS)
    two = head(FORKED, 5, WITNESS, *LOGS.values(), time=8)
    evidence = two_roots(log.vkey, one, two)
    assert evidence.kind == "two-roots"
    assert evidence.origin == ORIGIN
    assert evidence.proof == ()
    data = format_evidence(evidence)
    assert b"w.example" not in data, "only the accused key's lines are kept"
    again = parse_evidence(data)
    assert again == evidence
    verify_evidence(again)
    # The public key, read from wherever the verifier keeps it, is all that is needed.
    verify_evidence(again, parse_vkey(str(log.vkey)))
    for note in again.notes:
        (line,) = parse_note(note).signatures
        assert (line.name, line.key_id) == (log.vkey.name, log.vkey.key_id)


def test_both_notes_must_verify_under_one_key():
    ed, pq = LOGS[ED25519], LOGS[COSIGNATURE_MLDSA44]
    one, two = head(HONEST, 5, ed), head(FORKED, 5, pq)
    for vkey in (ed.vkey, pq.vkey):
        refuse("BadLogSignature", two_roots, vkey, one, two)
        refuse("BadLogSignature", two_roots, vkey, two, one)


def test_one_key_under_two_names_does_not_convict():
    renamed = signer_from_seed("keys.example.net", ED25519, b"l" * 32)
    assert renamed.vkey.public_key == LOGS[ED25519].vkey.public_key
    one, two = head(HONEST, 5, LOGS[ED25519]), head(FORKED, 5, renamed)
    refuse("BadLogSignature", two_roots, LOGS[ED25519].vkey, one, two)
    both = head(HONEST, 5, renamed), head(FORKED, 5, renamed)
    refuse("WrongLog", two_roots, renamed.vkey, *both)


def test_the_vkey_given_is_the_one_that_counts():
    evidence = two_roots(LOGS[ED25519].vkey, head(HONEST, 5), head(FORKED, 5))
    verify_evidence(evidence, LOGS[ED25519].vkey)
    for vkey in (LOGS[COSIGNATURE_MLDSA44].vkey, signer_from_seed(ORIGIN, ED25519, bytes(32)).vkey, WITNESS.vkey):
        refuse("WrongLog", verify_evidence, evidence, vkey)
    for vkey in (LOGS[COSIGNATURE_MLDSA44].vkey, signer_from_seed(ORIGIN, ED25519, bytes(32)).vkey):
        refuse("BadLogSignature", verify_evidence, replace(evidence, vkey=vkey))


@EITHER
def test_what_an_honest_log_signs_does_not_convict(log):
    five = head(HONEST, 5)
    refuse("NotEvidence", two_roots, log.vkey, five, five)
    refuse("NotEvidence", two_roots, log.vkey, five, head(HONEST, 5, time=99))
    refuse("NotEvidence", two_roots, log.vkey, five, head(HONEST, 6))
    refuse("NotEvidence", two_roots, log.vkey, five, head(FORKED, 6))


def test_other_extension_lines_are_no_other_root():
    root = root_hash(5, HONEST)
    notes = [
        sign_checkpoint(Checkpoint(ORIGIN, 5, root, extensions), [LOGS[ED25519]], 7) for extensions in ((), ("x",))
    ]
    refuse("NotEvidence", two_roots, LOGS[ED25519].vkey, *notes)


def test_another_log_of_the_same_operator_is_another_log():
    """The map log signs with its own name; were a key ever shared, its roots would still be its own."""
    log = LOGS[ED25519]
    other = head(FORKED, 5, log, origin=ORIGIN + "/map")
    refuse("WrongLog", two_roots, log.vkey, head(HONEST, 5), other)
    refuse("WrongLog", two_roots, log.vkey, other, head(HONEST, 5))
    refuse("WrongLog", two_roots, log.vkey, other, head(HONEST, 5, log, origin=ORIGIN + "/map"))


def test_size_zero():
    """Only one root is true of no leaves; two signed ones still contradict each other."""
    log = LOGS[ED25519]
    empty, zeros = signed(0, EMPTY_ROOT), signed(0, bytes(32))
    verify_evidence(two_roots(log.vkey, empty, zeros))
    refuse("NotEvidence", two_roots, log.vkey, empty, empty)
    refuse("NotEvidence", two_roots, log.vkey, empty, head(HONEST, 1))


def test_a_cosigner_is_not_accused_of_the_logs_fork():
    cosigner = signer_from_seed(ORIGIN, COSIGNATURE_ED25519, b"c" * 32)
    refuse("NotEvidence", two_roots, cosigner.vkey, head(HONEST, 5, cosigner), head(FORKED, 5, cosigner))
    refuse("WrongLog", two_roots, WITNESS.vkey, head(HONEST, 5, WITNESS), head(FORKED, 5, WITNESS))


def test_a_forged_note_does_not_convict():
    forger = signer_from_seed(ORIGIN, ED25519, b"f" * 32)
    evidence = two_roots(LOGS[ED25519].vkey, head(HONEST, 5), head(FORKED, 5))
    note = parse_note(evidence.notes[1])
    changed = format_note(Note(note.text.replace(b"\n5\n", b"\n6\n"), note.signatures))
    for forged in (changed, head(FORKED, 5, forger)):
        refuse("BadLogSignature", verify_evidence, replace(evidence, notes=(evidence.notes[0], forged)))
    refuse("BadLogSignature", two_roots, LOGS[ED25519].vkey, head(HONEST, 5), head(FORKED, 5, forger))


def test_evidence_keeps_to_its_form():
    evidence = two_roots(LOGS[ED25519].vkey, head(HONEST, 5), head(FORKED, 5))
    many = head(FORKED, 5, *LOGS.values())
    refuse("NotEvidence", verify_evidence, replace(evidence, notes=(evidence.notes[0], many)))
    refuse("NotEvidence", verify_evidence, replace(evidence, notes=evidence.notes[:1]))
    refuse("NotEvidence", verify_evidence, replace(evidence, notes=evidence.notes * 2))
    refuse("NotEvidence", verify_evidence, replace(evidence, proof=(bytes(32),)))
    refuse("NotEvidence", verify_evidence, replace(evidence, kind="three-roots"))
    refuse("NotEvidence", verify_evidence, replace(evidence, kind="inconsistent"))
    refuse("WrongLog", verify_evidence, replace(evidence, origin="other"))
    refuse("BadNote", verify_evidence, replace(evidence, notes=(b"x", b"y")), error=EncodingError)


# -- inconsistent


PAIRS = [(old, new) for new in (4, 5, 7, 8, 13, 16, 17) for old in range(3, new)]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_rewritten_prefix_convicts(old, new):
    log = LOGS[ED25519]
    old_note, new_note = head(HONEST, old, log, WITNESS), head(FORKED, new, log, WITNESS)
    proof = prove_consistency(old, new, FORKED)
    prefix_root = root_hash(old, FORKED)
    evidence = inconsistent(log.vkey, old_note, new_note, proof, prefix_root)
    assert evidence.proof == ((prefix_root, *proof) if old & (old - 1) == 0 else tuple(proof))
    verify_evidence(parse_evidence(format_evidence(evidence)), log.vkey)


def test_mldsa_convicts_too():
    log = LOGS[COSIGNATURE_MLDSA44]
    evidence = inconsistent(log.vkey, head(HONEST, 6), head(FORKED, 13), prove_consistency(6, 13, FORKED))
    verify_evidence(parse_evidence(format_evidence(evidence)), log.vkey)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 7), (2, 9), (3, 7), (4, 8), (5, 6), (8, 13), (12, 16)])
def test_an_honest_log_is_never_convicted(old, new):
    log = LOGS[ED25519]
    notes = head(HONEST, old), head(HONEST, new)
    proof = prove_consistency(old, new, HONEST)
    forked_proof = prove_consistency(old, new, FORKED)
    for prefix_root in (root_hash(old, HONEST), root_hash(old, FORKED), bytes(32)):
        for hashes in (proof, forked_proof, [bytes(32)] * len(proof), proof[::-1], [], [*proof, bytes(32)]):
            with pytest.raises(Invalid) as caught:
                inconsistent(log.vkey, *notes, hashes, prefix_root)
            assert caught.value.name in ("NotEvidence", "BadConsistencyProof")


def test_from_a_power_of_two_the_plain_proof_shows_nothing():
    log = LOGS[ED25519]
    notes = head(HONEST, 4), head(FORKED, 7)
    proof = prove_consistency(4, 7, FORKED)
    refuse("NotEvidence", inconsistent, log.vkey, *notes, proof)
    evidence = inconsistent(log.vkey, *notes, proof, root_hash(4, FORKED))
    refuse("BadConsistencyProof", verify_evidence, replace(evidence, proof=tuple(proof)))
    refuse("NotEvidence", verify_evidence, replace(evidence, proof=()))


def test_a_proof_to_another_root_does_not_convict():
    log = LOGS[ED25519]
    notes = head(HONEST, 6), head(FORKED, 13)
    proof = prove_consistency(6, 13, FORKED)
    for hashes in (prove_consistency(6, 13, HONEST), proof[:-1], [bytes(32), *proof[1:]], [*proof[:-1], bytes(32)]):
        refuse("BadConsistencyProof", inconsistent, log.vkey, *notes, hashes)


def test_order_and_sizes():
    log = LOGS[ED25519]
    proof = prove_consistency(6, 13, FORKED)
    refuse("NotEvidence", inconsistent, log.vkey, head(FORKED, 13), head(HONEST, 6), proof)
    refuse("NotEvidence", inconsistent, log.vkey, head(HONEST, 6), head(FORKED, 6), [])
    # Every tree extends the empty one, whatever root was signed for it.
    refuse("NotEvidence", inconsistent, log.vkey, signed(0, bytes(32)), head(FORKED, 6), [])
    evidence = inconsistent(log.vkey, head(HONEST, 6), head(FORKED, 13), proof)
    refuse("NotEvidence", verify_evidence, replace(evidence, notes=evidence.notes[::-1]))


# -- the file


def test_the_form():
    evidence = two_roots(LOGS[ED25519].vkey, head(HONEST, 5), head(FORKED, 5))
    data = format_evidence(evidence)
    value = json.loads(data)
    assert list(value) == ["format", "kind", "origin", "vkey", "notes", "proof"]
    assert value["format"] == "ktlog-evidence/v1"
    assert value["vkey"] == str(LOGS[ED25519].vkey)
    assert [note.encode() for note in value["notes"]] == list(evidence.notes)
    assert data == (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def mutations():
    log = LOGS[ED25519]
    evidence = inconsistent(log.vkey, head(HONEST, 6), head(FORKED, 13), prove_consistency(6, 13, FORKED))
    data = format_evidence(evidence)
    value = json.loads(data)

    def dump(**changes):
        return (json.dumps({**value, **changes}, indent=2, ensure_ascii=False) + "\n").encode()

    assert dump() == data
    yield b""
    yield b"[]\n"
    yield b"{}\n"
    yield b"null"
    yield b"\xff"
    yield b"[" * 100_000
    yield b"1" * 10_000
    yield data[:-1]
    yield data + b"\n"
    yield b" " + data
    yield b"\xef\xbb\xbf" + data
    yield json.dumps(value).encode()
    yield json.dumps(value, indent=2).encode() + b"\n"
    yield data.replace(b'"kind"', b'"kind": "two-roots",\n  "kind"')
    yield data.replace(b'"kind"', b'"Kind"')
    yield dump(extra=1)
    yield dump(format="ktlog-evidence/v2")
    yield dump(kind="other")
    yield dump(kind=None)
    yield dump(origin="")
    yield dump(origin="x" * 256)
    yield dump(origin=["x"])
    yield dump(vkey="x")
    yield dump(vkey=1)
    yield dump(notes=[])
    yield dump(notes=value["notes"] * 2)
    yield dump(notes=[value["notes"][0], "x"])
    yield dump(notes={"0": "x", "1": "y"})
    yield dump(notes=value["notes"][0])
    yield dump(proof=None)
    yield dump(proof=["AAAA"])
    yield dump(proof=[1.5])
    yield dump(proof=value["proof"] * 40)
    yield dump(proof=[value["proof"][0] + "="])
    yield json.dumps({**value, "origin": "\ud800"}, indent=2).encode() + b"\n"
    yield data.replace(b'"origin": "', b'"origin": "\xed\xa0\x80')
    yield b" " * (4 << 20) + data


@pytest.mark.parametrize("data", list(mutations()), ids=lambda data: repr(data[:12]))
def test_what_is_no_evidence_file(data):
    refuse("BadEvidence", parse_evidence, data, error=EncodingError)


def test_evidence_that_cannot_be_written():
    good = two_roots(LOGS[ED25519].vkey, head(HONEST, 5), head(FORKED, 5))
    for bad in (
        replace(good, kind="other"), replace(good, origin="\ud800"), replace(good, notes=(b"\xff", b"\xff")),
        replace(good, notes=good.notes[:1]), replace(good, proof=(b"x",)), Evidence("two-roots", "", good.vkey, ()),
    ):
        refuse("BadEvidence", format_evidence, bad, error=EncodingError)
