"""sign-subtree: parts of trees that the witness cosigned, and of no others."""

from __future__ import annotations

import pytest

from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.cosignature import subtree_message
from ktlog.tlog.encoding import decode_base64, encode_base64
from ktlog.tlog.note import COSIGNATURE_MLDSA44, Note, format_note, sign_checkpoint
from ktlog.tlog.subtree import prove_subtree
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from tests.witness_log import Log
from tests.witness_site import NAME, Session
from witness import limits

SIZE, START, END = 14, 8, 13


@pytest.fixture
def session(tmp_path):
    session = Session(tmp_path)
    yield session
    session.witness.store.close()


def _hash(log: Log, start: int, end: int) -> bytes:
    hashes = [hash_leaf(log.prefix + b" %d" % index) for index in range(start, end)]
    return root_hash(len(hashes), leaf_reader(hashes))


def body(
    session: Session, *, size: int = SIZE, start: int | str = START, end: int | str = END, digest: bytes | None = None,
    proof: list[bytes] | None = None, signers: tuple | None = None, note: bytes | None = None,
) -> bytes:
    log = session.log
    if digest is None:
        digest = _hash(log, int(start), int(end))
    if proof is None:
        proof = prove_subtree(int(start), int(end), size, log._reader(size))
    if note is None:
        chosen = signers or [one for one in session.signers if one.vkey.algorithm == COSIGNATURE_MLDSA44]
        note = sign_checkpoint(Checkpoint(log.origin, size, log.root(size)), chosen, session.clock.now)
    lines = "".join(f"{encode_base64(item)}\n" for item in (digest, *proof))
    return f"subtree {start} {end}\n{lines}\n".encode() + note


def ask(session: Session, data: bytes):
    return session.client.post("/sign-subtree", data=data)


def refused(session: Session, data: bytes) -> tuple[int, str]:
    answer = ask(session, data)
    return answer.status_code, answer.data.decode().partition(":")[0]


@pytest.mark.parametrize(("start", "end"), [(8, 13), (0, 14), (0, 1), (13, 14), (12, 14), (0, 9)])
def test_a_part_of_a_cosigned_tree_is_signed(session, start, end) -> None:
    assert session.submit(0, SIZE).status_code == 200
    answer = ask(session, body(session, start=start, end=end))
    assert (answer.status_code, answer.content_type) == (200, "text/plain; charset=utf-8"), answer.data
    (line, rest) = answer.data.split(b"\n")
    (vkey,) = (vkey for vkey in session.vkeys if vkey.algorithm == COSIGNATURE_MLDSA44)
    message = subtree_message(NAME, 0, session.log.origin, start, end, _hash(session.log, start, end))
    vkey.mldsa44.verify(decode_base64(line.decode()), message)
    assert rest == b""


def test_the_note_that_monitors_get_is_good_for_it_once_its_other_lines_are_gone(session) -> None:
    session.submit(0, SIZE)
    note, _ = parse_signed_checkpoint(session.monitor().data)
    (own,) = (vkey for vkey in session.vkeys if vkey.algorithm == COSIGNATURE_MLDSA44)
    (line,) = (line for line in note.signatures if line.key_id == own.key_id)
    assert ask(session, body(session, note=format_note(Note(note.text, (line,))))).status_code == 200
    assert refused(session, body(session, note=session.monitor().data)) == (400, "OneSignature")


def test_what_it_did_not_cosign_it_does_not_sign(session) -> None:
    assert refused(session, body(session, signers=session.log.signers[1:])) == (403, "NotCosigned")
    ed25519 = [one for one in session.signers if one.vkey.algorithm != COSIGNATURE_MLDSA44]
    assert refused(session, body(session, signers=ed25519)) == (403, "NoSubtreeKey")
    other = Log("example.com/unknown")
    signer = session.signers[1]
    note = sign_checkpoint(Checkpoint(other.origin, SIZE, other.root(SIZE)), [signer], session.clock.now)
    assert refused(session, body(session, note=note)) == (404, "UnknownOrigin")
    forged = bytearray(body(session))
    forged[-10] ^= 1
    assert refused(session, bytes(forged))[0] in (400, 403)


def test_a_subtree_signature_is_no_cosignature_to_go_on_from(session) -> None:
    """Time 0 is what subtrees are signed under: it must not open the door to another."""
    signer = session.signers[1]
    text = parse_signed_checkpoint(session.log.note(SIZE))[0].text
    note = format_note(Note(text, (signer.sign(text, 0),)))
    assert refused(session, body(session, note=note)) == (403, "NotCosigned")


def test_the_proof_must_hold(session) -> None:
    good = prove_subtree(START, END, SIZE, session.log._reader(SIZE))
    assert refused(session, body(session, digest=bytes(32))) == (422, "BadSubtreeProof")
    assert refused(session, body(session, proof=good[:-1])) == (422, "BadSubtreeProof")
    assert refused(session, body(session, proof=[*good, bytes(32)])) == (422, "BadSubtreeProof")
    assert refused(session, body(session, proof=[bytes(32)] * 63)) == (422, "BadSubtreeProof")


@pytest.mark.parametrize(("start", "end"), [("1", "3"), ("8", "15"), ("8", "8"), ("13", "8")])
def test_what_is_no_subtree_of_the_checkpoint(session, start, end) -> None:
    assert refused(session, body(session, start=start, end=end, digest=bytes(32), proof=[])) == (400, "NoSubtree")


@pytest.mark.parametrize("change", [
    lambda data: data.replace(b"subtree 8 13", b"subtree 08 13"),
    lambda data: data.replace(b"subtree 8 13", b"subtree 8  13"),
    lambda data: data.replace(b"subtree 8 13", b"Subtree 8 13"),
    lambda data: data.replace(b"subtree 8 13", b"subtree 8 13 "),
    lambda data: data.replace(b"subtree 8 13", b"subtree 8"),
    lambda data: data.replace(b"\n", b"\r\n"),
    lambda data: b"",
    lambda data: data.partition(b"\n\n")[0],
    lambda data: b"subtree 8 13\n\n" + data.partition(b"\n\n")[2],
    lambda data: data.replace(b"subtree 8 13\n", b"subtree 8 13\n" + b"A" * 43 + b"=\n" + (b"A" * 43 + b"=\n") * 63),
    lambda data: data.replace(b"=\n", b"\n", 1),
    lambda data: b"\xff" + data,
])
def test_only_the_canonical_form_is_read(session, change) -> None:
    assert refused(session, change(body(session)))[0] == 400
    assert ask(session, body(session)).status_code == 200


def test_so_many_subtrees_of_one_log_and_no_more(session, monkeypatch) -> None:
    """Anybody with a published checkpoint can ask; and what fails counts as every failure does."""
    monkeypatch.setattr(limits, "SUBTREES_BURST", 2.0)
    session.submit(0, SIZE)
    asked = body(session)
    assert [ask(session, asked).status_code for _ in range(3)] == [200, 200, 429]
    refused = ask(session, asked)
    assert refused.data.startswith(b"TooManySubtrees") and int(refused.headers["Retry-After"]) >= 1
    assert session.submit(SIZE, SIZE + 1).status_code == 200  # the log itself is not held up
    monkeypatch.setattr(session.witness._limits, "take_unknown", lambda: 7)
    assert ask(session, b"nothing").headers["Retry-After"] == "7"
