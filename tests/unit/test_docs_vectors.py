"""docs/vectors/map-v1.json keeps its word: by the client, by the verifier's own code and by the map's bare definition."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import ktlog.errors
from ktlog.client import Erased, NeverEnrolled, Present, parse_policy, verify_bundle
from ktlog.keymap.output import hash_config, parse_config
from ktlog.keymap.prefix import Kind, PrefixLeaf, encode_prefix_proof, parse_prefix_proof, verify
from ktlog.keymap.value import parse_history_leaf, parse_value
from ktlog.pkd.erasure import encode_erasure_record, parse_erasure_record
from ktlog.pkd.keys import key_hash
from ktlog.tlog.encoding import decode_base64, encode_base64
from tests import map_vectors, naive_map
from witness.maptree import Added, Came, Key, Strand, rebuild_root
from witness.rules import Ledger

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT: dict[str, Any] = json.loads(map_vectors.PATH.read_text(encoding="utf-8"))
KNOWN: dict[str, str] = DOCUMENT["derivations"]
LOOKUPS = {lookup["name"]: lookup for lookup in DOCUMENT["lookups"]}
ALICE = map_vectors.ALICE


def test_the_file_is_what_the_code_writes() -> None:
    """To write it anew after a change of the format: ``python -m tests.map_vectors``."""
    assert map_vectors.PATH.read_text(encoding="utf-8") == map_vectors.render()
    assert map_vectors.PATH.stat().st_size < 200_000


def test_the_protocol_page_has_the_same_known_answers() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8").partition("## Known answers")[2]
    rows = re.findall(r"^\| `([a-z-]+)` \| .*? \| `([^`]+)` \|$", text, re.MULTILINE)
    assert dict(rows) == KNOWN and len(rows) == len(KNOWN)


# -- derived by other code


def strand() -> Strand:
    """Alice, as the verifier keeps her."""
    made = Strand(bytes.fromhex(KNOWN["index"]))
    made.enter(ALICE, bytes(32))
    made.add(Added(0, Key(0, 1, key_hash(bytes(1312)))))
    return made


def test_the_verifiers_code_derives_the_same() -> None:
    alice = strand()
    ledger = Ledger(map_vectors.ORIGIN, (), {})
    assert ledger.index(ALICE).hex() == KNOWN["index"]
    assert alice.value().hex() == KNOWN["value"]
    assert alice.history.root().hex() == KNOWN["history-root"]
    leaf = alice.leaf(map_vectors.ORIGIN)
    assert leaf.commitment.hex() == KNOWN["commitment"]
    assert rebuild_root([leaf]).hex() == KNOWN["map-root"]
    bob = PrefixLeaf(*map(bytes.fromhex, DOCUMENT["maps"][4]["leaves"][_position(map_vectors.BOB)]))
    assert rebuild_root(sorted([leaf, bob])).hex() == KNOWN["map-root-two"]
    alice.bury(0, 2, 1)
    dead = alice.leaf(map_vectors.ORIGIN)
    assert dead.commitment.hex() == KNOWN["tombstone"]
    assert rebuild_root([dead]).hex() == KNOWN["map-root-erased"]
    erin = Strand(bytes(32))
    erin.enter(map_vectors.ERIN, bytes(32))
    before = 1, bytes.fromhex(KNOWN["history-root"])
    erin.add(Came(4, (Key(0, 1, bytes(32)),), (), False, frozenset(), before))
    assert erin.history.root() == sha256(b"\0" + bytes.fromhex(KNOWN["moved-in-leaf"])).digest()


def _position(actor_id: str) -> int:
    return [leaf.index for leaf in map_vectors.map_leaves()].index(map_vectors.map_index(map_vectors.ORIGIN, actor_id))


def le64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def pae(*pieces: bytes) -> bytes:
    return le64(len(pieces)) + b"".join(le64(len(piece)) + piece for piece in pieces)


def test_the_texts_formulas_give_the_same() -> None:
    """Written out from docs/protocol.md, with nothing but a hash and an HMAC."""
    import hmac
    from base64 import b64encode, urlsafe_b64encode

    origin, actor, index = b"keys.example.com", ALICE.encode(), bytes.fromhex(KNOWN["index"])
    assert sha256(pae(b"ktlog/v1/index", origin, actor)).hexdigest() == KNOWN["index"]
    key_id = sha256(pae(b"ktlog/v1/key-id", origin, bytes(8))).digest()
    assert urlsafe_b64encode(key_id).rstrip(b"=").decode() == KNOWN["key-id"]
    hashed = sha256(b"mldsa44:" + urlsafe_b64encode(bytes(1312)).rstrip(b"=")).digest()
    assert hashed.hex() == KNOWN["key-hash"]
    history = sha256(b"\0" + bytes.fromhex(KNOWN["history-leaf"])).digest()
    assert KNOWN["history-leaf"] == "01" + "00" * 8 and history.hex() == KNOWN["history-root"]
    value = b"".join([
        b"\1", len(actor).to_bytes(2, "big"), actor, bytes([0, 0, 0, 1]) * 2, bytes(4), b"\1", bytes(8), b"\1", bytes(8),
        b"\0", b"\0\1", bytes(8), b"\1", hashed, b"\0\0", bytes(7) + b"\1", history,
    ])
    assert value.hex() == KNOWN["value"] and len(value) == 150
    opening = hmac.digest(bytes(32), pae(b"ktlog/v1/opening", bytes([0, 0, 0, 1])), "sha256")[:16]
    assert opening.hex() == KNOWN["opening"]
    said = opening + b"\x20" + index + bytes([0, 0, 0, 1]) + len(value).to_bytes(4, "big") + value
    commitment = hmac.digest(b"ktlog/v1/commitment", said, "sha256")
    assert commitment.hex() == KNOWN["commitment"]
    assert naive_map.leaf_hash(index, commitment).hex() == KNOWN["prefix-leaf-hash"] == KNOWN["map-root"]
    dead = sha256(pae(b"ktlog/v1/erased", origin, index, bytes([0, 0, 0, 2]), bytes([0, 0, 0, 1]), bytes(8))).digest()
    assert dead.hex() == KNOWN["tombstone"]
    assert b64encode(sha256(DOCUMENT["config"].encode()).digest()).decode() == KNOWN["config-hash"]
    record = bytes.fromhex(KNOWN["erasure-record"])
    assert sha256(b"\0" + record).hexdigest() == KNOWN["erasures-root"]


def test_what_is_encoded_can_be_read() -> None:
    assert parse_value(bytes.fromhex(KNOWN["value"])).actor_id == ALICE
    assert parse_history_leaf(bytes.fromhex(KNOWN["moved-in-leaf"])) == (3, 4, (1, bytes.fromhex(KNOWN["history-root"])))
    for name in ("erasure-record", "erasure-record-carried"):
        data = bytes.fromhex(KNOWN[name])
        assert encode_erasure_record(parse_erasure_record(data)) == data
    assert encode_base64(hash_config(parse_config(DOCUMENT["config"].encode()))) == KNOWN["config-hash"]


@pytest.mark.parametrize("tree", DOCUMENT["maps"], ids=lambda tree: f"{len(tree['leaves'])} leaves")
def test_trees_and_their_proofs(tree: dict[str, Any]) -> None:
    leaves = [PrefixLeaf(*map(bytes.fromhex, leaf)) for leaf in tree["leaves"]]
    held = {leaf.index: leaf.commitment for leaf in leaves}
    root = bytes.fromhex(tree["root"])
    assert root == naive_map.root(held) == rebuild_root(leaves)
    for shown in tree["proofs"]:
        index, data = bytes.fromhex(shown["index"]), bytes.fromhex(shown["proof"])
        kind, depth, leaf, hashes = naive_map.search(held, index)
        result = bytes([kind]) + (b"".join(leaf) if kind == 2 else b"") + bytes([depth])
        assert data == bytes([len(result)]) + result + (32 * len(hashes)).to_bytes(2, "big") + b"".join(hashes)
        proof = parse_prefix_proof(data)
        assert encode_prefix_proof(proof) == data
        found = verify(proof, [index], root, [held.get(index)])
        assert (found != [None]) == (proof.searches[0].kind == Kind.INCLUSION) == (index in held)


def test_the_trees_show_every_kind_of_end() -> None:
    kinds = {bytes.fromhex(shown["proof"])[1] for tree in DOCUMENT["maps"] for shown in tree["proofs"]}
    depths = {bytes.fromhex(shown["proof"])[bytes.fromhex(shown["proof"])[0]] for tree in DOCUMENT["maps"] for shown in tree["proofs"]}
    assert kinds == {1, 2, 3} and {0, 255} <= depths


# -- lookups


def edited(case: dict[str, Any]) -> bytes:
    """The bundle that *case* changes, put together by the format's own rules."""
    data = decode_base64(LOOKUPS[case["from"]]["bundle"])
    header, rest, sections = data[:16], data[16:], {}
    while rest:
        size = int.from_bytes(rest[1:5], "big")
        sections[rest[0]], rest = rest[5 : 5 + size], rest[5 + size :]
    for number, text in case.get("sections", {}).items():
        if text is None:
            del sections[int(number)]
        else:
            sections[int(number)] = decode_base64(text)
    made = header + b"".join(
        bytes([number]) + len(body).to_bytes(4, "big") + body for number, body in sorted(sections.items())
    )
    return made[: len(made) - case.get("truncate", 0)] + bytes.fromhex(case.get("append", ""))


def ask(bundle: bytes, case: dict[str, Any]):
    return verify_bundle(
        bundle, case.get("checkpoint", DOCUMENT["checkpoint"]).encode(),
        parse_policy(case.get("policy", DOCUMENT["policy"]).encode()), case["actor-id"], case.get("now", DOCUMENT["now"]),
        origin=DOCUMENT["origin"], config=parse_config(DOCUMENT["config"].encode()), max_age_seconds=DOCUMENT["max-age"],
    )


@pytest.mark.parametrize("lookup", LOOKUPS.values(), ids=lambda lookup: lookup["name"])
def test_good_lookups(lookup: dict[str, Any]) -> None:
    answer, expected = ask(decode_base64(lookup["bundle"]), lookup), dict(lookup["answer"])
    kind = {"present": Present, "erased": Erased, "never-enrolled": NeverEnrolled}[expected.pop("outcome")]
    assert type(answer) is kind
    if "key-ids" in expected:
        assert [key.key_id for key in answer.keys] == expected.pop("key-ids")
    if "aux-data" in expected:
        assert [aux.aux_data for aux in answer.aux] == expected.pop("aux-data")
    assert {name: getattr(answer, name.replace("-", "_")) for name in expected} == expected
    assert len(decode_base64(lookup["bundle"])) < 4096


@pytest.mark.parametrize("case", DOCUMENT["refusals"], ids=lambda case: f"{case['name']}: {case['what']}")
def test_refusals(case: dict[str, Any]) -> None:
    kind = getattr(ktlog.errors, case["class"])
    case = {"actor-id": LOOKUPS[case["from"]]["actor-id"]} | case
    with pytest.raises(kind) as caught:
        ask(edited(case), case)
    assert (type(caught.value), caught.value.name) == (kind, case["name"]), str(caught.value)


def test_an_edit_that_changes_nothing_is_accepted() -> None:
    """So the refusals above are for what they change."""
    for name, lookup in LOOKUPS.items():
        assert edited({"from": name}) == decode_base64(lookup["bundle"])
    assert all(case.keys() & {"sections", "checkpoint", "policy", "now", "truncate", "append", "actor-id"}
               for case in DOCUMENT["refusals"])
