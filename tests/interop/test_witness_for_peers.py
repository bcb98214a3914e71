"""Other implementations' logs and clients ask our witness, and their verifiers read what it answers."""

from __future__ import annotations

import http.client
import time
from base64 import b64decode

import pytest

from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import Note, format_note, open_note, parse_vkey
from ktlog.tlog.subtree import is_subtree, prove_subtree
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from tests.interop_peers import PeerRefused, lines_of_policy
from tests.witness_log import Log
from witness.store import hash_origin

TYPES = {"ed25519": 4, "mldsa44": 6}


def get(our_witness, path: str, body: bytes | None = None) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", our_witness.port, timeout=30)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("kind", TYPES)
def test_a_log_of_tessera_s_publishes_only_with_our_cosignature(tessera, our_witness, tmp_path, kind):
    """Each start of Tessera's knows nothing of the witness: old 0, a 409 with the size, then a proof."""
    key = tessera.ask("key", name=f"example.com/tessera/{kind}", type=1)
    our_witness.add_log(key["vkey"])
    vkey = next(one for one in our_witness.vkeys if one.algorithm == TYPES[kind])
    policy = lines_of_policy({"w": str(vkey)}, our_witness.url)
    log = {"directory": str(tmp_path / "log"), "key": key["skey"], "policy": policy}
    size = 0
    for count in (1, 5, 300):
        size += count
        entries = [b"entry %d" % index for index in range(size - count, size)]
        published = tessera.ask("grow", entries=entries, **log)["checkpoint"].encode()
        note, checkpoint = parse_signed_checkpoint(published)
        assert checkpoint.size == size
        (verified,) = open_note(note, (vkey,))
        assert abs(verified.timestamp - time.time()) < 60
        assert checkpoint.root == root_hash(size, leaf_reader([hash_leaf(b"entry %d" % n) for n in range(size)]))
    status, _, kept = get(our_witness, f"/{hash_origin(checkpoint.origin)}/checkpoint")
    assert (status, parse_signed_checkpoint(kept)[1]) == (200, checkpoint)

    # The same log from nothing is another history, and Tessera publishes none of it.
    log["directory"] = str(tmp_path / "fork")
    with pytest.raises(PeerRefused):
        tessera.ask("grow", entries=[b"another entry"] * 400, **log)
    assert parse_signed_checkpoint(get(our_witness, f"/{hash_origin(checkpoint.origin)}/checkpoint")[2])[1] == checkpoint


def test_the_client_of_transparency_dev_understands_every_answer(tessera, our_witness):
    log, stranger = Log("example.com/log"), Log("example.com/stranger")
    our_witness.add_log(*map(str, log.vkeys))

    def submit(old: int, new: int, proof=None, note=None) -> dict:
        proof = log.proof(old, new) if proof is None else proof
        return tessera.ask("submit", url=our_witness.url, old=old, proof=proof, note=(note or log.note(new)).decode())

    assert submit(0, 1, note=stranger.note(1)) == {"refused": "unknown log", "size": 0}
    assert submit(0, 1, note=Log("example.com/log", seed=9).note(1)) == {"refused": "no valid signature", "size": 0}
    lines = submit(0, 3)["lines"]
    assert submit(0, 5, proof=[]) == {"refused": "stale", "size": 3}
    assert submit(6, 5, proof=[]) == {"refused": "old size", "size": 0}
    assert submit(3, 5, proof=[]) == {"refused": "proof", "size": 0}
    assert submit(3, 3, note=log.note(3, root=b"\x2a" * 32)) == {"refused": "proof", "size": 0}

    # Its library reads both kinds of cosignature; a key of each kind alone too.
    signed = log.note(3).decode() + lines
    for vkeys in (our_witness.vkeys, our_witness.vkeys[:1], our_witness.vkeys[1:]):
        read = tessera.ask("verify", note=signed, origin=log.origin, log=str(log.vkeys[0]), cosigners=list(map(str, vkeys)))
        assert (read["size"], b64decode(read["root"])) == (3, log.root(3))
        assert {(one["name"], one["id"]) for one in read["verified"] if "time" in one} == {
            (vkey.name, vkey.key_id.hex()) for vkey in vkeys
        }
        assert all(abs(one["time"] - time.time()) < 60 for one in read["verified"] if "time" in one)
    with pytest.raises(PeerRefused):
        tessera.ask("verify", note=log.note(5).decode() + lines, origin=log.origin, log=str(log.vkeys[0]),
                    cosigners=[str(our_witness.vkeys[1])])


def test_torchwood_accepts_what_monitors_read(torchwood, our_witness):
    log = Log("example.com/torchwood")
    our_witness.add_log(str(log.vkeys[0]))
    assert get(our_witness, "/add-checkpoint", log.submission(0, 3))[0] == 200
    assert get(our_witness, "/add-checkpoint", log.submission(3, 70))[0] == 200
    status, content_type, kept = get(our_witness, f"/{hash_origin(log.origin)}/checkpoint")
    assert (status, content_type) == (200, "text/plain; charset=utf-8")
    ed25519 = our_witness.vkeys[0]
    policy = f"log {log.vkeys[0]}\nwitness w {ed25519}\nquorum w\n"
    read = torchwood.ask("verify", note=kept.decode(), policy=policy)
    assert (read["size"], b64decode(read["root"])) == (70, log.root(70))
    assert abs(read["times"][ed25519.name] - time.time()) < 60
    with pytest.raises(PeerRefused):
        torchwood.ask("verify", note=kept.decode().replace("\n70\n", "\n71\n"), policy=policy)


def test_the_subtrees_that_it_signs_verify_in_the_library_of_transparency_dev(tessera, our_witness):
    log, size = Log("example.com/subtrees"), 13
    our_witness.add_log(*map(str, log.vkeys))
    answer = get(our_witness, "/add-checkpoint", log.submission(0, size))[2]
    note = parse_signed_checkpoint(log.note(size) + answer)[0]
    vkey = our_witness.vkeys[1]
    own = tuple(line for line in note.signatures if line.key_id == vkey.key_id)
    reader = leaf_reader([hash_leaf(b"entry %d" % index) for index in range(size)])
    ranges = [(start, end) for start in range(size) for end in range(start + 1, size + 1) if is_subtree(start, end)]
    assert len(ranges) > 20
    for start, end in ranges[::5]:
        part = root_hash(end - start, leaf_reader([hash_leaf(b"entry %d" % index) for index in range(start, end)]))
        proof = prove_subtree(start, end, size, reader)
        lines = "".join(f"{encode_base64(one)}\n" for one in (part, *proof))
        body = f"subtree {start} {end}\n{lines}\n".encode() + format_note(Note(note.text, own))
        status, _, signature = get(our_witness, "/sign-subtree", body)
        assert status == 200, signature
        good = {"vkey": str(vkey), "origin": log.origin, "start": start, "end": end, "hash": part,
                "signature": b64decode(signature)}
        tessera.ask("subtree", **good)
        with pytest.raises(PeerRefused):
            tessera.ask("subtree", **good | {"origin": "example.com/other"})


def test_a_witness_key_reads_the_same_there_and_here(tessera):
    for algorithm in (4, 6):
        vkey = parse_vkey(tessera.ask("key", name="example.com/w9", type=algorithm)["vkey"])
        assert (vkey.name, vkey.algorithm) == ("example.com/w9", algorithm)
