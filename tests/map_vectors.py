"""Writes docs/vectors/map-v1.json: the directory map's known answers, for other implementers.

Everything in it is fixed: names, seeds, times, and signatures that are Ed25519's alone, because ML-DSA's are random. To
write it anew: ``python -m tests.map_vectors``. What a refusal changes is said in terms of the format, never of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ktlog.keymap.bundle import Bundle, NoLeaf, Presented, Tombstone, encode_bundle
from ktlog.keymap.output import MapConfig, OutputLeaf, format_config, format_leaf, hash_config, map_origin
from ktlog.keymap.prefix import PrefixLeaf, encode_prefix_proof, parse_prefix_proof, prove, subtree_hash
from ktlog.keymap.value import (
    ListedAux,
    ListedKey,
    Value,
    commit_value,
    derive_opening,
    encode_value,
    tombstone,
)
from ktlog.pkd.actions import aux_data_id
from ktlog.pkd.actors import Cause, Role, Status
from ktlog.pkd.erasure import CarriedMove, ErasureRecord, encode_erasure_record, map_index
from ktlog.pkd.history import history_leaf
from ktlog.pkd.keys import derive_key_id, key_hash
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.encoding import decode_base64, encode_base64
from ktlog.tlog.note import COSIGNATURE_ED25519, ED25519, Note, Signer, format_note, signer_from_seed
from ktlog.tlog.tree import Frontier, hash_leaf, leaf_reader, prove_inclusion

PATH = Path(__file__).resolve().parents[1] / "docs" / "vectors" / "map-v1.json"
ORIGIN, MAP = "keys.example.com", map_origin("keys.example.com")
ALICE, BOB, CAROL, DAVE, ERIN = (f"https://example.com/users/{name}" for name in ["alice", "bob", "carol", "dave", "erin"])
NOW = 1_700_000_000
AUX_TEXT = "age1example"
CONFIG = MapConfig(ORIGIN, "spec")
RECORD = ErasureRecord(5, map_index(ORIGIN, CAROL), 2, 1, 2, ())


def key(number: int) -> bytes:
    return bytes([number]) * 1312


def salt(actor_id: str) -> bytes:
    """32 zero bytes for Alice, the one of the known answers; ones, twos... for the others."""
    return bytes([(ALICE, BOB, CAROL, DAVE, ERIN).index(actor_id)]) * 32


def tree(leaves: Sequence[bytes]) -> bytes:
    return Frontier().extend(map(hash_leaf, leaves)).root()


def listed(*numbers: int) -> tuple[ListedKey, ...]:
    return tuple(ListedKey(number, key_hash(key(number))) for number in numbers)


# -- derivations

HISTORIES = {
    ALICE: [history_leaf(Role.SUBJECT, 0)],
    BOB: [history_leaf(Role.SUBJECT, number) for number in (1, 2, 3)],
    ERIN: [history_leaf(Role.MOVED_IN, 4, (1, tree([history_leaf(Role.SUBJECT, 0)])))],
}
VALUES = {
    ALICE: Value(
        ALICE, 1, 1, 0, Cause.FIRST, 0, Status.ACTIVE, 0, False, listed(0), (), 1, tree(HISTORIES[ALICE])
    ),
    BOB: Value(
        BOB, 3, 1, 0, Cause.FIRST, 1, Status.ACTIVE, 1, False, listed(1, 2),
        (ListedAux(3, "age-v1", aux_data_id("age-v1", AUX_TEXT)),), 3, tree(HISTORIES[BOB]),
    ),
}


def opening(value: Value) -> bytes:
    return derive_opening(salt(value.actor_id), value.version)


def prefix_leaf(value: Value, at: str | None = None) -> PrefixLeaf:
    index = map_index(ORIGIN, at or value.actor_id)
    return PrefixLeaf(index, commit_value(index, value.version, encode_value(value), opening(value)))


def derivations() -> dict[str, str]:
    """The table of docs/protocol.md: name to bytes in hex, a key id and a base64 text as they are."""
    alice, index = VALUES[ALICE], map_index(ORIGIN, ALICE)
    dead = tombstone(ORIGIN, index, 2, 1, 0)
    carried = ErasureRecord(9, index, 5, 2, 3, (
        CarriedMove(7, True, (0, 6), 3, tree([history_leaf(Role.SUBJECT, at) for at in (0, 5, 6)])),
    ))
    return {
        "index": index.hex(),
        "key-id": derive_key_id(ORIGIN, 0),
        "key-hash": key_hash(key(0)).hex(),
        "history-leaf": HISTORIES[ALICE][0].hex(),
        "history-root": alice.history_root.hex(),
        "value": encode_value(alice).hex(),
        "opening": opening(alice).hex(),
        "commitment": prefix_leaf(alice).commitment.hex(),
        "prefix-leaf-hash": prefix_leaf(alice).hash.hex(),
        "map-root": subtree_hash([prefix_leaf(alice)]).hex(),
        "map-root-two": subtree_hash(sorted(map(prefix_leaf, VALUES.values()))).hex(),
        "tombstone": dead.hex(),
        "map-root-erased": subtree_hash([PrefixLeaf(index, dead)]).hex(),
        "moved-in-leaf": HISTORIES[ERIN][0].hex(),
        "erasure-record": encode_erasure_record(RECORD).hex(),
        "erasure-record-carried": encode_erasure_record(carried).hex(),
        "erasures-root": tree([encode_erasure_record(RECORD)]).hex(),
        "config-hash": encode_base64(hash_config(CONFIG)),
    }


# -- a map and its output log


def cosigners() -> tuple[list[Signer], Signer]:
    """Three witnesses, and a verifier."""
    names = ("w1.example", "w2.example", "w3.example", "v1.example")
    signers = [signer_from_seed(name, COSIGNATURE_ED25519, bytes([n]) * 32) for n, name in enumerate(names, 1)]
    return signers[:3], signers[3]


WITNESSES, VERIFIER = cosigners()
LOG = signer_from_seed(MAP, ED25519, bytes([9]) * 32)
INPUT_LOG = signer_from_seed(ORIGIN, ED25519, bytes([8]) * 32)


def policy(quorum: str = "both", log: Signer = LOG) -> str:
    lines = [f"log {log.vkey}"]
    lines += [f"witness w{n} {signer.vkey}" for n, signer in enumerate(WITNESSES, 1)]
    lines += [f"witness v1 {VERIFIER.vkey}", "group witnesses 2 w1 w2 w3", "group verifiers any v1"]
    return "\n".join([*lines, "group both all witnesses verifiers", f"quorum {quorum}", ""])


def checkpoint(
    output: Sequence[bytes], *, signers: Sequence[Signer] | None = None, time: int = NOW, origin: str = MAP,
) -> str:
    """The signed note for these leaves; by default under the log, all witnesses and the verifier."""
    text = format_checkpoint(Checkpoint(origin, len(output), tree(output)))
    chosen = (LOG, *WITNESSES, VERIFIER) if signers is None else signers
    return format_note(Note(text, tuple(signer.sign(text, time) for signer in chosen))).decode("utf-8")


def map_leaves(values: Mapping[str, Value] = VALUES) -> list[PrefixLeaf]:
    """The leaves of *values*, by the actor at whose index each lies, and Carol's tombstone."""
    index = map_index(ORIGIN, CAROL)
    return sorted([
        *(prefix_leaf(value, at) for at, value in values.items()),
        PrefixLeaf(index, tombstone(ORIGIN, index, RECORD.version, RECORD.generation, 0)),
    ])


def output_leaf(**changes: Any) -> OutputLeaf:
    return replace(OutputLeaf(
        hash_config(CONFIG), NOW - 5, 5, tree([b"entry %d" % number for number in range(5)]), 1,
        tree([encode_erasure_record(RECORD)]), subtree_hash(map_leaves()),
    ), **changes)


OLDER = output_leaf(time=NOW - 65, input_size=4, input_root=tree([b"entry %d" % n for n in range(4)]), erasures=0,
                    erasures_root=tree([]), map_root=subtree_hash(sorted(map(prefix_leaf, VALUES.values()))))
OUTPUT = [format_config(CONFIG), format_leaf(OLDER), format_leaf(output_leaf())]


def path(output: Sequence[bytes], at: int) -> tuple[bytes, ...]:
    return tuple(prove_inclusion(at, len(output), leaf_reader([hash_leaf(leaf) for leaf in output])))


def bundle(actor_id: str, values: Mapping[str, Value] = VALUES, output: Sequence[bytes] = tuple(OUTPUT)) -> Bundle:
    """The light bundle about *actor_id*, with the texts of auxiliary data."""
    found = prove(map_leaves(values), [map_index(ORIGIN, actor_id)])
    proof = parse_prefix_proof(encode_prefix_proof(found))
    made = Bundle(MAP, len(output), output[-1], path(output, len(output) - 1), proof, NoLeaf())
    if actor_id == CAROL:
        return replace(made, outcome=Tombstone(RECORD.version, RECORD.generation, 0))
    if (value := values.get(actor_id)) is None:
        return made
    return replace(
        made, outcome=Presented(encode_value(value), opening(value)),
        keys=tuple(key(one.leaf_index) for one in value.keys), aux=(AUX_TEXT,) * len(value.aux),
    )


def sections(made: Bundle, *numbers: int) -> dict[str, str]:
    """Some sections of a bundle, as the file writes them."""
    data, found = encode_bundle(made)[16:], {}
    while data:
        size = int.from_bytes(data[1:5], "big")
        found[data[0]], data = data[5 : 5 + size], data[5 + size :]
    return {str(number): encode_base64(found[number]) for number in numbers}


# -- what has to be refused


def flipped(text: str, name: str) -> str:
    """*text*, a signed note, with one letter of the signature by *name* changed to another of base64."""
    lines = text.split("\n")
    at = next(number for number, line in enumerate(lines) if line.startswith(f"— {name} "))
    letter = "A" if lines[at][-20] != "A" else "B"
    lines[at] = lines[at][:-20] + letter + lines[at][-19:]
    return "\n".join(lines)


def refusal(name: str, what: str, origin: str = "present", **edits: Any) -> dict[str, Any]:
    kind, _, case = name.partition("/")
    return {"class": kind, "name": case, "what": what, "from": origin, **edits}


def about_heads() -> list[dict[str, Any]]:
    good, older = checkpoint(OUTPUT), checkpoint(OUTPUT[:2])
    own = (LOG, *WITNESSES, VERIFIER)
    return [
        refusal("PolicyUnmet/UnsafePolicy", "the quorum is none", policy=policy("none")),
        refusal("PolicyUnmet/UnsafePolicy", "the quorum needs no verifier", policy=policy("witnesses")),
        refusal("PolicyUnmet/UnsafePolicy", "the quorum needs no witness", policy=policy("verifiers")),
        refusal("Invalid/MalformedBundle", "one byte is missing", truncate=1),
        refusal("Invalid/MalformedBundle", "a byte follows its end", append="00"),
        refusal("Invalid/MalformedBundle", "a section of an unknown type", append="ff00000000"),
        refusal("Invalid/MalformedBundle", "a section is missing", sections={"5": None}),
        refusal("Invalid/MalformedCheckpoint", "a checkpoint without its last line's end", checkpoint=good[:-1]),
        refusal("Invalid/WrongLog", "the input log's checkpoint, under all its signatures",
                checkpoint=checkpoint(OUTPUT, origin=ORIGIN, signers=(INPUT_LOG, *own[1:]))),
        refusal("Invalid/WrongLog", "a bundle of another map", sections={"1": encode_base64(b"keys.example.net/map")}),
        refusal("Invalid/BadLogSignature", "the log did not sign", checkpoint=checkpoint(OUTPUT, signers=own[1:])),
        refusal("Invalid/BadLogSignature", "the log's signature is damaged", checkpoint=flipped(good, MAP)),
        refusal("Invalid/BadCosignature", "a witness's signature is damaged, though the quorum is met without it",
                checkpoint=flipped(good, "w3.example")),
        refusal("PolicyUnmet/TooFewWitnesses", "one witness of two",
                checkpoint=checkpoint(OUTPUT, signers=(LOG, WITNESSES[0], VERIFIER))),
        refusal("PolicyUnmet/TooFewVerifiers", "no verifier", checkpoint=checkpoint(OUTPUT, signers=own[:4])),
        refusal("PolicyUnmet/TooFewWitnesses", "every cosignature is from a time yet to come",
                checkpoint=checkpoint(OUTPUT, time=NOW + 301)),
        refusal("Stale/OldCosignatures", "an hour and a second later", now=NOW + 3601),
        refusal("Stale/BundleBehindCheckpoint", "the checkpoint of the size before", checkpoint=older),
    ]


def other_output(*news: bytes) -> dict[str, Any]:
    """The output log with other leaves from leaf 2 on, honestly signed: its checkpoint and the newest one's sections."""
    output = [*OUTPUT[:2], *news]
    made = bundle(ALICE, output=output)
    return {"checkpoint": checkpoint(output), "sections": sections(made, 2, 3, 4)}


def about_leaves() -> list[dict[str, Any]]:
    config_only = [OUTPUT[0]]
    only = replace(bundle(ALICE, output=config_only), output_path=())
    older = replace(bundle(ALICE), output_leaf=OUTPUT[1], output_path=path(OUTPUT, 1))
    return [
        refusal("Invalid/NotNewestLeaf", "an output log that has no map yet",
                checkpoint=checkpoint(config_only), sections=sections(only, 2, 3, 4)),
        refusal("Invalid/BadOutputProof", "the leaf before, with a true path of its own", sections=sections(older, 3, 4)),
        refusal("Invalid/BadOutputLeaf", "a leaf with a space too many",
                **other_output(format_leaf(output_leaf()).replace(b"time ", b"time  "))),
        refusal("Invalid/BadOutputLeaf", "a leaf from 301 seconds after its cosignatures",
                **other_output(format_leaf(output_leaf(time=NOW + 301)))),
        refusal("Invalid/WrongConfig", "a leaf of another configuration",
                **other_output(format_leaf(output_leaf(config=hash_config(replace(CONFIG, notice=0)))))),
        refusal("Stale/OldMap", "fresh cosignatures on an old map",
                **other_output(format_leaf(output_leaf(time=NOW - 3601)))),
    ]


def about_answers() -> list[dict[str, Any]]:
    alice, bob, dave = VALUES[ALICE], bundle(BOB), bundle(DAVE)
    swapped = {ALICE: alice, BOB: replace(alice)}
    late = {**VALUES, ALICE: replace(alice, keys=(ListedKey(5, key_hash(key(0))),))}
    broken = {**VALUES, ALICE: replace(alice, status=Status.BURNED)}

    def under(values: Mapping[str, Value], actor_id: str) -> dict[str, Any]:
        """A map of *values*, in an output log that is honestly signed."""
        output = [*OUTPUT[:2], format_leaf(output_leaf(map_root=subtree_hash(map_leaves(values))))]
        return {"checkpoint": checkpoint(output), "sections": sections(bundle(actor_id, values, output), 3, 5, 6)}

    def changed(made: Bundle, number: int, at: int) -> dict[str, Any]:
        """One section with one bit of one byte changed."""
        body = bytearray(decode_base64(sections(made, number)[str(number)]))
        body[at] ^= 1
        return {"sections": {str(number): encode_base64(bytes(body))}}

    return [
        refusal("Invalid/BadMapProof", "a hash on the way to the root is damaged", "never enrolled",
                **changed(dave, 5, -1)),
        refusal("Invalid/BadMapProof", "absence shown by a leaf that is not where the search ends", "present",
                sections=_forged_absence()),
        refusal("Invalid/OutcomeMismatch", "absence claimed beside a proof of presence",
                sections={"6": encode_base64(b"\x00"), "7": ""}),
        refusal("Invalid/OutcomeMismatch", "presence claimed beside a proof of absence", "never enrolled",
                sections=sections(bundle(ALICE), 6, 7)),
        refusal("Invalid/CommitmentMismatch", "the opening is damaged", **changed(bundle(ALICE), 6, -1)),
        refusal("Invalid/CommitmentMismatch", "a lower version in the tombstone", "erased",
                sections=sections(replace(bundle(CAROL), outcome=Tombstone(1, 1, 0)), 6)),
        refusal("Invalid/CommitmentMismatch", "an erasure that the newest leaf does not count", "erased",
                sections=sections(replace(bundle(CAROL), outcome=Tombstone(2, 1, 1)), 6)),
        refusal("Invalid/CommitmentMismatch", "a presence for somebody erased", "erased",
                sections=sections(bundle(ALICE), 6, 7)),
        refusal("Invalid/CommitmentMismatch", "another actor's answer", **{"actor-id": BOB}),
        refusal("Invalid/WrongActor", "a map that has Alice's value at Bob's index", **{"actor-id": BOB},
                **under(swapped, BOB)),
        refusal("Invalid/BadValue", "a value whose key is of an entry that the map does not cover",
                **under(late, ALICE)),
        refusal("Invalid/BadValue", "a value with keys, said to be burned down", **under(broken, ALICE)),
        refusal("Invalid/OmittedKey", "one key of two", "two keys",
                sections=sections(replace(bob, keys=bob.keys[:1]), 7)),
        refusal("Invalid/UnlistedKey", "the keys in another order", "two keys",
                sections=sections(replace(bob, keys=bob.keys[::-1]), 7)),
        refusal("Invalid/WrongAuxData", "another text", "two keys",
                sections=sections(replace(bob, aux=("age1other",)), 8)),
    ]


def _forged_absence() -> dict[str, str]:
    """Alice's own absence, shown by Bob's leaf at Alice's depth: it hashes to no root."""
    bob = prefix_leaf(VALUES[BOB])
    body = bytearray(encode_prefix_proof(prove(map_leaves(), [map_index(ORIGIN, ALICE)])))
    result = b"\x02" + bob.index + bob.commitment + body[2:3]
    forged = bytes([len(result)]) + result + bytes(body[3:])
    return {"5": encode_base64(forged), "6": encode_base64(b"\x00"), "7": ""}


# -- the file


def maps() -> list[dict[str, Any]]:
    """Small trees: the specification's own, and indexes that share all but their last two bits."""
    near = [PrefixLeaf(bytes(31) + bytes([number]), bytes([number + 1]) * 32) for number in (0, 2, 4)]
    far = [PrefixLeaf(bytes([number]) + bytes(31), bytes([number + 1]) * 32) for number in (0, 64, 192)]
    return [
        {
            "leaves": [[leaf.index.hex(), leaf.commitment.hex()] for leaf in leaves],
            "root": subtree_hash(leaves).hex(),
            "proofs": [
                {"index": index.hex(), "proof": encode_prefix_proof(prove(leaves, [index])).hex()} for index in indexes
            ],
        }
        for leaves, indexes in (
            ([], [bytes(32)]),
            (near[:1], [near[0].index, near[1].index]),
            (near, [near[0].index, bytes(31) + b"\x03", b"\xff" * 32]),
            (far, [far[1].index, b"\x80" + bytes(31), b"\x01" * 32]),
            (map_leaves(), [map_index(ORIGIN, who) for who in (ALICE, CAROL, DAVE)]),
        )
    ]


def lookup(name: str, actor_id: str, answer: dict[str, Any]) -> dict[str, Any]:
    made = bundle(actor_id)
    return {"name": name, "actor-id": actor_id, "bundle": encode_base64(encode_bundle(made)), "answer": answer}


def document() -> dict[str, Any]:
    return {
        "format": "ktlog-map-vectors/v1",
        "origin": ORIGIN,
        "now": NOW,
        "max-age": 3600,
        "config": format_config(CONFIG).decode(),
        "policy": policy(),
        "derivations": derivations(),
        "maps": maps(),
        "checkpoint": checkpoint(OUTPUT),
        "lookups": [
            lookup("present", ALICE, {
                "outcome": "present", "version": 1, "generation": 1, "as-of": NOW, "key-ids": [derive_key_id(ORIGIN, 0)],
            }),
            lookup("two keys", BOB, {
                "outcome": "present", "version": 3, "generation": 1, "as-of": NOW,
                "key-ids": [derive_key_id(ORIGIN, number) for number in (1, 2)], "aux-data": [AUX_TEXT],
            }),
            lookup("erased", CAROL, {"outcome": "erased", "version": 2, "generation": 1, "erasure-number": 0}),
            lookup("never enrolled", DAVE, {"outcome": "never-enrolled"}),
        ],
        "refusals": [*about_heads(), *about_leaves(), *about_answers()],
    }


def render() -> str:
    """The whole file."""
    return json.dumps(document(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
