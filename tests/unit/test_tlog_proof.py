from __future__ import annotations

import pytest

from ktlog.errors import EncodingError, Invalid, PolicyUnmet
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    sign_checkpoint,
    signer_from_seed,
)
from ktlog.tlog.policy import parse_policy
from ktlog.tlog.proof import TlogProof, format_proof, parse_proof, verify_proof
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_inclusion, root_hash

NOW = 1_700_000_000
ENTRIES = [b"entry %d" % number for number in range(11)]
READ = leaf_reader([hash_leaf(entry) for entry in ENTRIES])
LOG = signer_from_seed("keys.example.com", COSIGNATURE_MLDSA44, b"l" * 32)
WITNESSES = [signer_from_seed(f"w{n}.example", COSIGNATURE_ED25519, bytes([n]) * 32) for n in range(3)]
LINES = [f"log {LOG.vkey}", *(f"witness w{n} {signer.vkey}" for n, signer in enumerate(WITNESSES))]
POLICY = parse_policy("\n".join([*LINES, "group g 2 w0 w1 w2", "quorum g", ""]).encode())
CHECKPOINT = Checkpoint("keys.example.com", 11, root_hash(11, READ))
SIGNED = sign_checkpoint(CHECKPOINT, [LOG, *WITNESSES[:2]], NOW)


def proof_for(index, checkpoint_bytes=SIGNED, extra=None):
    return TlogProof(index, tuple(prove_inclusion(index, 11, READ)), checkpoint_bytes, extra)


def test_the_form():
    proof = proof_for(3, extra=b"extra")
    data = format_proof(proof)
    head, checkpoint = data.split(b"\n\n", 1)
    lines = head.decode().split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra ZXh0cmE=", "index 3"]
    assert lines[3] == encode_base64(hash_leaf(ENTRIES[2]))
    assert len(lines) == 3 + 4
    assert checkpoint == SIGNED
    assert parse_proof(data) == proof
    assert b"extra" not in format_proof(proof_for(3))


@pytest.mark.parametrize("index", range(11))
def test_every_entry(index):
    verified = verify_proof(format_proof(proof_for(index, extra=b"ignored")), ENTRIES[index], POLICY, NOW)
    assert verified.checkpoint == CHECKPOINT
    assert verified.as_of == NOW


def test_a_tree_of_one():
    entry = b"alone"
    checkpoint = Checkpoint("keys.example.com", 1, hash_leaf(entry))
    data = format_proof(TlogProof(0, (), sign_checkpoint(checkpoint, [LOG, *WITNESSES], NOW)))
    assert data.split(b"\n")[:3] == [b"c2sp.org/tlog-proof@v1", b"index 0", b""]
    verify_proof(data, entry, POLICY, NOW)


def test_what_is_not_proven():
    good = proof_for(3)

    def refuse(name, proof=good, entry=ENTRIES[3], error=Invalid, now=NOW):
        with pytest.raises(error) as caught:
            verify_proof(format_proof(proof), entry, POLICY, now)
        assert caught.value.name == name

    refuse("BadInclusionProof", entry=ENTRIES[4])
    refuse("BadInclusionProof", entry=hash_leaf(ENTRIES[3]))
    refuse("BadInclusionProof", TlogProof(4, good.hashes, SIGNED))
    refuse("BadInclusionProof", TlogProof(11, good.hashes, SIGNED))
    refuse("BadInclusionProof", TlogProof(3, good.hashes[:-1], SIGNED))
    refuse("BadInclusionProof", TlogProof(3, (*good.hashes, bytes(32)), SIGNED))
    refuse("BadInclusionProof", TlogProof(3, good.hashes[::-1], SIGNED))
    refuse("TooFewWitnesses", proof_for(3, sign_checkpoint(CHECKPOINT, [LOG, WITNESSES[0]], NOW)), error=PolicyUnmet)
    refuse("TooFewWitnesses", error=PolicyUnmet, now=NOW - 301)
    refuse("BadLogSignature", proof_for(3, sign_checkpoint(CHECKPOINT, WITNESSES, NOW)))
    other = Checkpoint("other.example", 11, CHECKPOINT.root)
    refuse("WrongLog", proof_for(3, sign_checkpoint(other, [LOG, *WITNESSES], NOW)))


HASH = encode_base64(bytes(32))
HEAD = "c2sp.org/tlog-proof@v1"


@pytest.mark.parametrize(
    "head",
    [
        "",
        "c2sp.org/tlog-proof@v2\nindex 0",
        f"\n{HEAD}\nindex 0",
        HEAD,
        f"{HEAD}\n{HASH}",
        f"{HEAD}\nindex 00",
        f"{HEAD}\nindex -1",
        f"{HEAD}\nindex 1 ",
        f"{HEAD}\nindex  1",
        f"{HEAD}\nindex {2**63}",
        f"{HEAD}\nindex 1\r",
        f"{HEAD}\nindex 1\nindex 1",
        f"{HEAD}\nindex 1\nextra AA==",
        f"{HEAD}\nextra \nindex 1",
        f"{HEAD}\nextra\nindex 1",
        f"{HEAD}\nextra AB==\nindex 1",
        f"{HEAD}\nextra AA==\nextra AA==\nindex 1",
        f"{HEAD}\nextra AA==",
        f"{HEAD}\nindex 1\n{HASH[:-1]}",
        f"{HEAD}\nindex 1\nAAAA",
        f"{HEAD}\nindex 1\n{HASH} ",
        f"{HEAD}\nindex 1\né",
        f"{HEAD}\nindex 1" + f"\n{HASH}" * 64,
    ],
)
def test_bad_heads(head):
    with pytest.raises(EncodingError) as caught:
        parse_proof(head.encode() + b"\n\n" + SIGNED)
    assert caught.value.name == "BadTlogProof"


def test_sixty_three_hashes_parse():
    assert len(parse_proof((f"{HEAD}\nindex 1" + f"\n{HASH}" * 63 + "\n\n").encode() + SIGNED).hashes) == 63


def test_the_checkpoint_is_read_too():
    for rest in (b"", b"\n", SIGNED[:-1], b"\n" + SIGNED, SIGNED.replace(b"\n11\n", b"\n011\n")):
        with pytest.raises(EncodingError):
            parse_proof(f"{HEAD}\nindex 1\n\n".encode() + rest)
    with pytest.raises(EncodingError):
        parse_proof(f"{HEAD}\nindex 1\n".encode() + SIGNED)


@pytest.mark.parametrize(
    "proof",
    [
        TlogProof(-1, (), SIGNED), TlogProof(2**63, (), SIGNED), TlogProof(0, (b"x",), SIGNED),
        TlogProof(0, (bytes(32),) * 64, SIGNED), TlogProof(0, (), b""), TlogProof(0, (), SIGNED, b""),
    ],
)
def test_proofs_that_cannot_be_written(proof):
    with pytest.raises(EncodingError):
        format_proof(proof)
