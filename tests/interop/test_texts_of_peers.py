"""Notes, cosignatures, proofs and policies: ours read by others, theirs read by us, and where we are the stricter."""

from __future__ import annotations

import itertools
import time
from base64 import b64encode

import pytest

from ktlog.errors import EncodingError, Invalid, KtlogError, PolicyUnmet
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import format_note, open_note, parse_vkey, sign_checkpoint, signer_from_seed
from ktlog.tlog.policy import format_policy, parse_policy
from ktlog.tlog.proof import TlogProof, format_proof, verify_proof
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_inclusion, root_hash
from tests.interop_peers import PeerRefused

ORIGIN = "example.com/log"
NOW = int(time.time())
LOG = signer_from_seed(ORIGIN, 1, b"l" * 32)
WITNESSES = [signer_from_seed(f"w{n}.example", 4 if n < 3 else 6, bytes([n]) * 32) for n in range(4)]
ENTRIES = [b"entry %d" % number for number in range(11)]
SIZES = (1, 2, 7, 11)
URL = "https://w.example"
POLICY = "".join([
    f"log {LOG.vkey}\n", *(f"witness w{n} {signer.vkey} {URL}\n" for n, signer in enumerate(WITNESSES[:2])),
    "group both all w0 w1\nquorum both\n",
])


def tree(size: int):
    return leaf_reader([hash_leaf(entry) for entry in ENTRIES[:size]])


def checkpoint_of(size: int) -> Checkpoint:
    return Checkpoint(ORIGIN, size, root_hash(size, tree(size)))


def refused(peer, do: str, **fields) -> bool:
    try:
        peer.ask(do, **fields)
        return False
    except PeerRefused:
        return True


BOTH = {"tessera", "torchwood"}


def taken_by(name: str, takers: dict[str, set[str]]) -> dict[str, bool]:
    """Who takes what we refuse. In docs/interop.md, so that nobody learns it from a failure."""
    return {peer: peer in takers.get(name, ()) for peer in sorted(BOTH)}


def test_we_read_what_they_signed(tessera):
    log = tessera.ask("key", name=ORIGIN, type=1)
    cosigners = [tessera.ask("key", name="w.example", type=algorithm) for algorithm in (4, 6)]
    text = format_checkpoint(checkpoint_of(7)).decode()
    keys = {"log": [log["skey"]], "cosigners": [key["skey"] for key in cosigners]}
    signed = tessera.ask("sign", text=text, **keys)["note"].encode()
    note, checkpoint = parse_signed_checkpoint(signed)
    assert checkpoint == checkpoint_of(7)
    assert format_note(note) == signed
    vkeys = [parse_vkey(key["vkey"]) for key in (log, *cosigners)]
    verified = open_note(note, vkeys)
    assert [one.vkey for one in verified] == vkeys
    assert verified[0].timestamp == 0
    assert all(abs(one.timestamp - time.time()) < 60 for one in verified[1:])
    with pytest.raises(Invalid):
        open_note(parse_signed_checkpoint(signed.replace(b"\n7\n", b"\n8\n"))[0], vkeys[2:])


@pytest.mark.parametrize("size", SIZES)
def test_both_verify_our_proofs_and_write_the_same_bytes(tessera, torchwood, size):
    signed = sign_checkpoint(checkpoint_of(size), [LOG, *WITNESSES[:2]], NOW)
    for index in range(size):
        hashes = tuple(prove_inclusion(index, size, tree(size)))
        ours = format_proof(TlogProof(index, hashes, signed, b"more" if index % 2 else None))
        entry, other = ENTRIES[index], b"not " + ENTRIES[index]
        read = tessera.ask("proof", proof=ours.decode(), origin=ORIGIN, log=str(LOG.vkey), entry=entry)
        assert (read["index"], read["proof"].encode()) == (index, ours)
        torchwood.ask("proof", proof=ours.decode(), policy=POLICY, entry=entry)
        assert refused(tessera, "proof", proof=ours.decode(), origin=ORIGIN, log=str(LOG.vkey), entry=other)
        assert refused(torchwood, "proof", proof=ours.decode(), policy=POLICY, entry=other)
        theirs = torchwood.ask(
            "format", index=index, hashes=hashes, note=signed.decode(), extra="more" if index % 2 else "",
        )["proof"].encode()
        assert theirs == ours
        assert verify_proof(theirs, entry, parse_policy(POLICY.encode()), NOW).checkpoint == checkpoint_of(size)


def test_a_policy_means_the_same_to_all_for_every_set_of_cosigners(tessera, torchwood):
    named = [f"witness w{n} {signer.vkey} {URL}/{n}" for n, signer in enumerate(WITNESSES)]
    groups = ["group inner any w1 w2", "group outer 2 w0 inner w3", "quorum outer"]
    text = "\n".join([f"log {LOG.vkey}", "# a comment", "", *named, *groups, ""])
    policy = parse_policy(text.encode())
    assert parse_policy(format_policy(policy)) == policy
    met = 0
    for count in range(5):
        for chosen in itertools.combinations(WITNESSES, count):
            signed = sign_checkpoint(checkpoint_of(7), [LOG, *chosen], NOW)
            try:
                policy.open_checkpoint(signed, NOW)
                ours = True
            except PolicyUnmet:
                ours = False
            assert tessera.ask("policy", policy=text, note=signed.decode())["satisfied"] is ours, chosen
            met += ours
            # Torchwood knows no ML-DSA-44: the same question among the three others.
            if WITNESSES[3] not in chosen:
                without = text.replace(named[3] + "\n", "").replace(" w3", "")
                assert refused(torchwood, "verify", policy=without, note=signed.decode()) is not ours, chosen
    assert met == 10  # of 16
    answer = tessera.ask("policy", policy=text, note="")
    assert sorted(answer["asked"]) == [f"{URL}/{n}/add-checkpoint" for n in range(4)]


SIGNED = sign_checkpoint(checkpoint_of(7), [LOG, *WITNESSES[:2]], NOW).decode()
LINES = SIGNED.splitlines(keepends=True)


def other_encoding(text: str) -> str:
    """The same 32 bytes with the last unused bits set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return f"{text[:42]}{alphabet[alphabet.index(text[42]) + 1]}="


UNFIT_NOTES = {
    "no last newline": SIGNED[:-1],
    "no empty line": SIGNED.replace("\n\n", "\n"),
    "carriage returns": SIGNED.replace("\n", "\r\n"),
    "a leading zero": SIGNED.replace("\n7\n", "\n07\n"),
    "a plus sign": SIGNED.replace("\n7\n", "\n+7\n"),
    "a root of 31 bytes": SIGNED.replace(LINES[2], b64encode(bytes(31)).decode() + "\n"),
    "a line twice": SIGNED + LINES[4],
    "a hyphen for the dash": SIGNED.replace("\u2014", "-"),
    "a second encoding of the root": SIGNED.replace(LINES[2], other_encoding(LINES[2]) + "\n"),
}


@pytest.mark.parametrize("name", UNFIT_NOTES)
def test_what_is_no_checkpoint_is_none_for_anybody(tessera, torchwood, name):
    """Some of these refuse because the signature covers the change; none takes any of them."""
    note = UNFIT_NOTES[name]
    with pytest.raises(KtlogError):
        parse_policy(POLICY.encode()).open_checkpoint(note.encode(), NOW)
    vkeys = [str(signer.vkey) for signer in WITNESSES[:2]]
    assert {
        "tessera": not refused(tessera, "verify", note=note, origin=ORIGIN, log=str(LOG.vkey), cosigners=vkeys),
        "torchwood": not refused(torchwood, "verify", note=note, policy=POLICY),
    } == taken_by(name, {"a line twice": BOTH})


PROOF = format_proof(TlogProof(3, tuple(prove_inclusion(3, 7, tree(7))), SIGNED.encode(), b"more")).decode()
UNFIT_PROOFS = {
    "another version": PROOF.replace("@v1", "@v2"),
    "a leading zero": PROOF.replace("index 3", "index 03"),
    "a plus sign": PROOF.replace("index 3", "index +3"),
    "no index": PROOF.replace("index 3\n", ""),
    "a hash too many": PROOF.replace("\n\n", f"\n{b64encode(bytes(32)).decode()}\n\n", 1),
    "a hash of 31 bytes": PROOF.replace(PROOF.splitlines()[3], b64encode(bytes(31)).decode()),
    "a second encoding of a hash": PROOF.replace(PROOF.splitlines()[3], other_encoding(PROOF.splitlines()[3])),
    "an extra line of nothing": PROOF.replace("extra bW9yZQ==", "extra "),
    "extra twice": PROOF.replace("extra bW9yZQ==", "extra bW9yZQ==\nextra bW9yZQ=="),
}


@pytest.mark.parametrize("name", UNFIT_PROOFS)
def test_what_is_no_proof(tessera, torchwood, name):
    proof = UNFIT_PROOFS[name]
    with pytest.raises((EncodingError, Invalid)):
        verify_proof(proof.encode(), ENTRIES[3], parse_policy(POLICY.encode()), NOW)
    assert {
        "tessera": not refused(tessera, "proof", proof=proof, origin=ORIGIN, log=str(LOG.vkey), entry=ENTRIES[3]),
        "torchwood": not refused(torchwood, "proof", proof=proof, policy=POLICY, entry=ENTRIES[3]),
    } == taken_by(name, {
        "a leading zero": BOTH, "a plus sign": {"torchwood"}, "a second encoding of a hash": BOTH,
        "an extra line of nothing": BOTH,
    })


UNFIT_POLICIES = {
    "a comment after a line": POLICY.replace("quorum both", "quorum both # all"),
    "an unknown word": POLICY + "verifier v\n",
    "a group that is not defined": POLICY.replace("group both all w0 w1", "group both all w0 w9"),
    "a member twice": POLICY.replace("group both all w0 w1", "group both 2 w0 w0"),
    "a witness of one key twice": POLICY.replace("group", f"witness w9 {WITNESSES[0].vkey} {URL}\ngroup"),
    "a threshold too great": POLICY.replace("both all", "both 3"),
    "a threshold of nothing": POLICY.replace("both all", "both 0"),
    "a threshold with a zero before": POLICY.replace("both all", "both 02"),
    "two quorums": POLICY + "quorum w0\n",
    "no quorum": POLICY.replace("quorum both\n", ""),
    "carriage returns": POLICY.replace("\n", "\r\n"),
    "a space that is none of ASCII's": POLICY.replace("group both", "group\u2003both"),
    "no last newline": POLICY[:-1],
}


@pytest.mark.parametrize("name", UNFIT_POLICIES)
def test_what_is_no_policy(tessera, torchwood, name):
    policy = UNFIT_POLICIES[name]
    with pytest.raises(EncodingError):
        parse_policy(policy.encode())
    assert {
        "tessera": not refused(tessera, "policy", policy=policy, note=SIGNED),
        "torchwood": not refused(torchwood, "verify", policy=policy, note=SIGNED),
    } == taken_by(name, {
        "a comment after a line": BOTH, "a member twice": {"tessera"}, "a witness of one key twice": BOTH,
        "a threshold of nothing": {"tessera"}, "a threshold with a zero before": BOTH, "two quorums": {"tessera"},
        "carriage returns": BOTH, "a space that is none of ASCII's": BOTH, "no last newline": BOTH,
    })
