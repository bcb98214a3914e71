"""A log that lies in every way of which evidence can be had, and the file about each lie.

``python -m tests.evidence_world`` writes docs/vectors/evidence anew. The keys are fixed; entries, messages and their
signatures are not, for ML-DSA signs at random. So the examples are kept as they were once written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from client_log import NOW, ORIGIN, key  # noqa: E402
from map_log import ALICE, BOB, MAP, MapLog, say  # noqa: E402

from auditor.evidence import build  # noqa: E402
from auditor.evidence.claims import Logged  # noqa: E402
from ktlog.client.build import add_key, enrol, fireproof, revoke_key  # noqa: E402
from ktlog.keymap.evidence import (  # noqa: E402
    ACTOR_ROLLED_BACK,
    HISTORY_REWRITTEN,
    MapEvidence,
    actor_statement,
    format_map_evidence,
    keep_lines,
)
from ktlog.pkd.canonical import canonical  # noqa: E402
from ktlog.pkd.keychanges import FIRST, KeyChange, Replaced, change_message, format_change  # noqa: E402
from ktlog.pkd.keys import encode_public_key, private_key_from_seed  # noqa: E402
from ktlog.pkd.messages import parse_wire, plain_attributes  # noqa: E402
from ktlog.tlog.encoding import encode_base64url as base64url  # noqa: E402
from ktlog.tlog.evidence import format_evidence, inconsistent, two_roots  # noqa: E402
from ktlog.tlog.note import Vkey  # noqa: E402
from ktlog.tlog.tree import hash_leaf, prove_consistency  # noqa: E402
from ktlog.wire.httpsig_response import Exchange, content_digest, sign_response  # noqa: E402
from ktlog.wire.receipts import LOG_ACTOR_PATH, format_receipt  # noqa: E402

VECTORS = Path(__file__).resolve().parents[1] / "docs" / "vectors" / "evidence"
LOG_ACTOR = f"https://{ORIGIN}{LOG_ACTOR_PATH}"
HTTP_KEYS = tuple(private_key_from_seed(bytes([200 + number]) * 32) for number in range(2))
HTTP_PUBLIC = tuple(private.public_key().public_bytes_raw() for private in HTTP_KEYS)


@cache
def honest() -> MapLog:
    """Bob and Alice enrol, Alice adds a key; the map covers it. Nobody is erased."""
    log = MapLog()
    say(log, enrol, BOB, key(10))
    say(log, enrol, ALICE, key(1))
    log.publish_map(time=NOW - 60)
    say(log, add_key, ALICE, key(2).public_key, key(1))
    return log.publish_map().publish()


def vkeys(log: MapLog) -> tuple[Vkey, ...]:
    return tuple(signer.vkey for signer in log.signers)


def map_vkeys(log: MapLog) -> tuple[Vkey, ...]:
    return tuple(signer.vkey for signer in log.map_signers)


def logged(log: MapLog, count: int | None = None) -> list[Logged]:
    """The log's entries, as whoever read them all along has them."""
    return [
        Logged(entry, row["encrypted-message"].encode(), dict(row["plain"]))
        for entry, row in list(zip(log.entries, log.rows, strict=True))[:count]
    ]


def force(log: MapLog, built) -> int:
    """Log a message that breaks a rule; its index."""
    wire = parse_wire(log.dialect, canonical(dict(built.wire)))
    log.append(wire.preimage, plain_attributes(wire, built.message), {})
    return log.size - 1


def twin() -> tuple[MapLog, MapLog]:
    """One log, and what it shows to somebody else."""
    one, other = honest().fork(), honest().fork()
    say(one, add_key, ALICE, key(3).public_key, key(2))
    say(other, revoke_key, ALICE, key(1).public_key, key(2))
    return one.publish(), other.publish()


def receipt(
    log: MapLog, index: int, *, created: int = NOW, http: int = 0, actor: str = LOG_ACTOR, **changes: object
) -> bytes:
    """What the log answered when it took the message of entry *index*."""
    body = json.dumps({
        "!pkd-context": "fedi-e2ee:v1/api/inbox", "leaf-index": index, "tree-size": index + 1,
        "merkle-leaf": log.rows[index]["merkle-leaf"],
        "merkle-root": "pkd-mr-v1:" + base64url(log.root(index + 1)), **changes,
    }).encode()
    bare = Exchange(
        "POST", f"{actor}/inbox", 202, {"content-type": "application/json"}, body, content_digest(b"the message")
    )
    made = sign_response(bare, [(f"{actor}#pq-key", HTTP_KEYS[http])], created)
    return format_receipt(replace(bare, headers=bare.headers | {name.lower(): value for name, value in made.items()}))


def key_changes(log: MapLog, *, until: int = NOW + 60, time: int = NOW + 30) -> bytes:
    """The log replaced its key for answers; its checkpoint key says so."""
    ed25519 = tuple(f"ed25519:{base64url(signer.vkey.public_key)}" for signer in (log.signers[0], log.map_signers[0]))
    bare = KeyChange(
        log.origin, 0, FIRST, time, log.size, log.root(), "http", until, "planned",
        (
            Replaced("http-ed25519", *ed25519),
            Replaced("http-mldsa44", *(encode_public_key(public) for public in HTTP_PUBLIC)),
        ),
        str(log.signers[1].vkey),
    )
    private = private_key_from_seed(bytes([2]) * 32)  # TinyLog's checkpoint key: seed 1, number 1
    signature = private.sign(change_message(bare))
    return format_change(replace(bare, log_signature=signature)) + b"\n"


# -- one file for each lie


def make_two_roots() -> bytes:
    one, other = twin()
    return format_evidence(two_roots(vkeys(one)[1], one.checkpoint, other.checkpoint))


def make_inconsistent() -> bytes:
    one, other = twin()
    say(other, fireproof, ALICE, key(2))
    other.publish()
    found = inconsistent(
        vkeys(one)[1], one.checkpoint, other.checkpoint, prove_consistency(one.size, other.size, other.reader()),
        other.root(one.size),
    )
    return format_evidence(found)


def make_two_leaves() -> bytes:
    one, other = twin()
    say(other, fireproof, ALICE, key(2))
    other.publish()
    return build.evidence_for_two_leaves(
        vkeys(one), 3, (one.checkpoint, one.reader()), (other.checkpoint, other.reader())
    )


def make_bad_leaf_signature() -> bytes:
    log = honest().fork()
    say(log, add_key, ALICE, key(3).public_key, key(2))
    broken = bytearray(log.entries[-1])
    broken[100] ^= 1
    log.entries[-1] = bytes(broken)
    log.publish()
    keys = {log.entries[-1][-32:]: log.leaf_public}
    return build.evidence_for_leaf_signature(vkeys(log), log.checkpoint, log.reader(), 3, log.entries[3], keys)


def make_bad_message() -> bytes:
    log = honest().fork()
    message = log.rows[2]["encrypted-message"].replace(",", ", ", 1).encode()
    log.append(message, {}, {})
    log.publish()
    return build.evidence_for_message(vkeys(log), log.checkpoint, log.reader(), 3, log.entries[3], message)


def make_duplicate_message() -> bytes:
    log = honest().fork()
    log.append(log.rows[2]["encrypted-message"].encode(), log.rows[2]["plain"], {})
    log.publish()
    items = logged(log)
    return build.evidence_for_duplicate(vkeys(log), log.checkpoint, log.reader(), (2, items[2]), (3, items[3]))


def make_broken_promise() -> bytes:
    one, other = twin()
    return build.evidence_for_receipt(
        vkeys(one), other.checkpoint, other.reader(), receipt(one, 3), HTTP_PUBLIC[0], NOW, key_changes(one)
    )


def make_map_contradiction() -> bytes:
    log = honest().fork()
    log.publish_map(time=NOW - 3600).publish_map()
    at = len(log.output) - 2
    return build.evidence_for_output_leaves(
        map_vkeys(log), (at - 1, log.output[at - 1]), (at, log.output[at]), log.sign_map(), log.map_reader()
    )


def statement(log: MapLog, actor_id: str = ALICE, *, leaves: bool = False) -> bytes:
    return actor_statement(log.bundle(actor_id, leaves=leaves), keep_lines(log.sign_map(), map_vkeys(log)[1:]))


def make_actor_rolled_back() -> bytes:
    log = honest().fork()
    older, state = statement(log), log.states[2][ALICE]
    say(log, enrol, "https://alpha.example/users/eve", key(40))
    log.states[-1][ALICE] = state
    log.roles[2] = {}
    log.publish_map()
    return format_map_evidence(MapEvidence(ACTOR_ROLLED_BACK, map_vkeys(log)[1], ALICE, (older, statement(log))))


def make_history_rewritten() -> bytes:
    log = honest().fork()
    older = statement(log, leaves=True)
    say(log, add_key, ALICE, key(4).public_key, key(2))
    log.roles[2] = {}
    log.roles[0] = {**log.roles[0], ALICE: 1}
    log.publish_map()
    items = (older, statement(log, leaves=True))
    return format_map_evidence(MapEvidence(HISTORY_REWRITTEN, map_vkeys(log)[1], ALICE, items))


def make_broken_rule() -> bytes:
    log = honest().fork()
    force(log, fireproof(ALICE, key(66), recent_root=log.recent(), now=NOW + 9))
    say(log, fireproof, ALICE, key(2))
    log.publish_map()
    items, at = logged(log), len(log.output) - 1
    return build.evidence_for_rule(
        map_vkeys(log), log.sign_map(), log.map_reader(), at, log.output[at], "BadMessageSignature", items[:4],
        [hash_leaf(one.entry) for one in items],
    )


def make_wrong_value() -> bytes:
    """The map hides the key that Alice added."""
    log = honest().fork()
    log.states[-1] = log.states[-1] | {ALICE: log.states[2][ALICE]}
    log.roles[2] = {}
    log.publish_map()
    return build.evidence_for_value(map_vkeys(log), ALICE, statement(log), log.sign_map(), logged(log))


def make_wrong_record() -> bytes:
    log = honest()
    return build.evidence_for_record(
        vkeys(log), log.checkpoint, log.reader(), 2, log.entries[2], "PlaintextMismatch"
    )


MAKERS: dict[str, Callable[[], bytes]] = {
    name.removeprefix("make_").replace("_", "-"): made for name, made in sorted(globals().items())
    if name.startswith("make_")
}


@cache
def evidence(kind: str) -> bytes:
    made = MAKERS[kind]()
    if made is None:
        raise AssertionError(f"no evidence was made of {kind}")
    return made


if __name__ == "__main__":
    VECTORS.mkdir(exist_ok=True)
    for kind in MAKERS:
        (VECTORS / f"{kind}.json").write_bytes(evidence(kind))
    log = honest()
    known = {"vkeys": [str(vkey) for vkey in (*vkeys(log), *map_vkeys(log))], "now": NOW}
    (VECTORS / "known.json").write_text(json.dumps(known, indent=2) + "\n")
    print({path.name: path.stat().st_size for path in sorted(VECTORS.iterdir())}, MAP)
