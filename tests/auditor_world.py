"""A small real log in memory for the auditor's tests: real trees, keys, commitments, cosignatures.

``honest_world()`` is built once; tests change a ``clone()`` or what it serves. A lie is one line:
``world.serve["tile/0/000.p/9"] = ...`` for bytes, ``world.append(...)`` for an entry that breaks a rule,
``world.edit_answer = ...`` for the API.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from ktlog.client.verify import Log
from ktlog.pkd.canonical import canonical
from ktlog.pkd.dialects import SPEC, Dialect
from ktlog.pkd.entry import make_entry
from ktlog.pkd.keys import encode_public_key, pkd_root, private_key_from_seed
from ktlog.pkd.messages import (
    AddKey,
    CheckpointMessage,
    Fireproof,
    Message,
    MoveIdentity,
    RevokeKey,
    RevokeKeyThirdParty,
    build_wire,
    encrypted_attributes,
    message_from_plain,
    parse_wire,
    plain_attributes,
)
from ktlog.pkd.replay import Directory
from ktlog.pkd.token import make_token, parse_token
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.encoding import encode_base64, encode_base64url
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    Signer,
    sign_checkpoint,
    signer_from_seed,
)
from ktlog.tlog.policy import Policy, format_policy, parse_policy
from ktlog.tlog.tiles import bundles_between, format_bundle, tile_nodes, tiles_between
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_inclusion, root_hash

NOW = 1_800_000_000
ORIGIN = "keys.alpha.example"
ALICE, BOB, CAROL, DAVE = (f"https://alpha.example/users/{name}" for name in ("alice", "bob", "carol", "dave"))


@cache
def person(name: str) -> MLDSA44PrivateKey:
    """A fixed key for each name."""
    return private_key_from_seed(name.encode().ljust(32, b"."))


def public(name: str) -> bytes:
    return person(name).public_key().public_bytes_raw()


@dataclass(frozen=True)
class Answer:
    """What the fake fetcher gives back."""

    status: int
    body: bytes
    url: str = ""


@cache
def log_signers(seed: int = 1) -> tuple[Signer, Signer]:
    ed25519, mldsa44 = (
        signer_from_seed(ORIGIN, kind, bytes([seed + kind]) * 32) for kind in (ED25519, COSIGNATURE_MLDSA44)
    )
    return ed25519, mldsa44


@cache
def witness_signers() -> tuple[tuple[Signer, Signer], ...]:
    return tuple(
        tuple(
            signer_from_seed(f"w{number}.witness.example", kind, bytes([40 + 10 * number + kind]) * 32)
            for kind in (COSIGNATURE_ED25519, COSIGNATURE_MLDSA44)
        )
        for number in (1, 2, 3)
    )


@cache
def policy_bytes() -> bytes:
    lines = [f"log {log_signers()[1].vkey}"]
    for number, signers in enumerate(witness_signers(), 1):
        lines += [f"witness w{number}-{kind} {signer.vkey}" for kind, signer in zip("ab", signers, strict=True)]
        lines.append(f"group w{number} all w{number}-a w{number}-b")
    lines += ["group witnesses 2 w1 w2 w3", "quorum witnesses"]
    return ("\n".join(lines) + "\n").encode()


@cache
def policy() -> Policy:
    parsed = parse_policy(policy_bytes())
    assert parse_policy(format_policy(parsed)) == parsed
    return parsed


def log_under_audit() -> Log:
    """The log by the key that the policy names."""
    return Log(ORIGIN, (log_signers()[1].vkey,), f"https://{ORIGIN}")


class World:
    """A log with all its secrets, and what it serves. ``clone()`` before changing it."""

    def __init__(self, dialect: Dialect = SPEC, leaf_seed: bytes = b"\x07" * 32) -> None:
        self.dialect = dialect
        self.leaf_key = private_key_from_seed(leaf_seed)
        self.leaf_public = self.leaf_key.public_key().public_bytes_raw()
        self.directory = Directory(ORIGIN)
        self.entries: list[bytes] = []
        self.records: list[dict[str, Any]] = []
        self.serve: dict[str, bytes | Answer | Exception] = {}
        self.edit_answer: Callable[[dict[str, Any]], object] = lambda answer: None
        self.requests: list[str] = []
        self.time = NOW - 1000
        self.cosigned_at = NOW - 10
        self.rows_a_page = 100

    def clone(self) -> World:
        twin = copy.copy(self)
        twin.directory = copy.deepcopy(self.directory)
        twin.entries, twin.records = list(self.entries), copy.deepcopy(self.records)
        twin.serve, twin.requests = dict(self.serve), []
        return twin

    def first(self, count: int) -> World:
        """The same log when it had *count* entries, published."""
        young = World(self.dialect)
        for entry, record in zip(self.entries[:count], self.records[:count], strict=True):
            wire, message = message_from_plain(
                self.dialect, record["message"].encode(), record["plain"], commitments=False
            )
            young.directory.replay(wire, message, entry)
            young.entries.append(entry)
            young.records.append(record)
        return young.publish()

    @property
    def size(self) -> int:
        return len(self.entries)

    # Writing

    def build(self, message: Message, signer: str | None = None, recent_root: str | None = None) -> dict[str, Any]:
        """A signed message, attributes encrypted and committed to."""
        names = () if message.time is None else encrypted_attributes(self.dialect, message.action)
        seeds = {name: (name + str(self.size)).encode().ljust(32, b"-") for name in names}
        return build_wire(
            self.dialect, message, recent_root or self.directory.root_text, signer and person(signer), seeds, seeds
        )

    def say(self, message: Message, signer: str | None = None) -> None:
        """Log a message by the rules."""
        wire = parse_wire(self.dialect, canonical(self.build(message, signer)))
        entry = make_entry(self.dialect, wire.preimage, self.leaf_key, self.leaf_public)
        self.directory.replay(wire, message, entry)
        self._keep(entry, wire.preimage, plain_attributes(wire, message))

    def append(
        self, preimage: bytes, plain: Mapping[str, str | None], *, entry: bytes | None = None, **record: object
    ) -> None:
        """Log anything, rules or no rules. *record* replaces members of the published record."""
        entry = entry or make_entry(self.dialect, preimage, self.leaf_key, self.leaf_public)
        self.directory.append_void(self.size, entry)
        self._keep(entry, preimage, plain, **record)

    def force(self, message: Message, signer: str | None = None, recent_root: str | None = None) -> None:
        """Log a well-formed message that breaks a rule."""
        wire = parse_wire(self.dialect, canonical(self.build(message, signer, recent_root)))
        self.append(wire.preimage, plain_attributes(wire, message))

    def _keep(self, entry: bytes, preimage: bytes, plain: Mapping[str, str | None], **record: object) -> None:
        self.records.append({
            "leaf-index": self.size, "message": preimage.decode(), "plain": dict(plain),
            "salts": {"actor": encode_base64(bytes(32))} if plain else {}, "withheld": False, **record,
        })
        self.entries.append(entry)

    def next_time(self) -> int:
        self.time += 1
        return self.time

    # Publishing

    def reader(self):
        return leaf_reader([hash_leaf(entry) for entry in self.entries])

    def root(self, size: int | None = None) -> bytes:
        return root_hash(self.size if size is None else size, self.reader())

    def checkpoint(
        self, size: int | None = None, root: bytes | None = None, *, witnesses: int = 3, origin: str = ORIGIN,
        signers: tuple[Signer, ...] | None = None,
    ) -> bytes:
        """A checkpoint signed by the log and cosigned by the first *witnesses* witnesses."""
        size = self.size if size is None else size
        checkpoint = Checkpoint(origin, size, self.root(size) if root is None else root)
        cosigners = [signer for pair in witness_signers()[:witnesses] for signer in pair]
        return sign_checkpoint(checkpoint, [*(signers or log_signers()), *cosigners], self.cosigned_at)

    def publish(self, **options: Any) -> World:
        """Serve the whole log as it is now."""
        reader = self.reader()
        for tile in tiles_between(0, self.size):
            self.serve[tile.path] = b"".join(reader(tile_nodes(tile)))
        for bundle in bundles_between(0, self.size):
            start = bundle.number * 256
            self.serve[bundle.path] = format_bundle(self.entries[start : start + bundle.width])
            self.serve[bundle.path.replace("tile/entries", "records")] = self.record_lines(start, start + bundle.width)
        self.serve["leaf-keys"] = json.dumps({"leaf-keys": [encode_public_key(self.leaf_public)]}).encode()
        self.serve["checkpoint"] = self.checkpoint(**options)
        return self

    def record_lines(self, start: int, end: int) -> bytes:
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records[start:end]).encode()

    @property
    def bundle_path(self) -> str:
        """Of the last bundle."""
        return bundles_between(0, self.size)[-1].path

    @property
    def records_path(self) -> str:
        """Of the last page of records."""
        return self.bundle_path.replace("tile/entries", "records")

    # Serving: the one method of a fetcher.

    def get(self, url: str, *, max_bytes: int | None = None) -> Answer:
        parts = urlsplit(url)
        assert parts.scheme == "https" and parts.netloc == ORIGIN, url
        path = parts.path.removeprefix("/")
        self.requests.append(path)
        found = self.serve.get(path)
        if isinstance(found, Exception):
            raise found
        if isinstance(found, Answer):
            return found
        if found is not None:
            return Answer(200, found)
        if path.startswith("api/actor/") and path.endswith("/keys"):
            query, _, after = parts.query.partition("&history-after=")
            assert query == f"include-proofs=true&tree-size={self.size}", parts.query
            return self._answer(unquote(path.removeprefix("api/actor/").removesuffix("/keys")), int(after or -1))
        return Answer(404, b"{}")

    def _answer(self, actor_id: str, after: int = -1) -> Answer:
        actor = self.directory.actors.get(actor_id)
        if actor is None:
            return Answer(404, b"{}")
        reader, root = self.reader(), pkd_root(self.size, self.root())

        def proof(leaf_index: int) -> list[str]:
            return [encode_base64url(node) for node in prove_inclusion(leaf_index, self.size, reader)]

        rows = [row for row in self.directory.histories[actor_id] if row[0] > after]
        shown = rows[:self.rows_a_page]
        answer: dict[str, Any] = {
            "!pkd-context": "fedi-e2ee:v1/api/actor/get-keys",
            "actor-id": actor_id,
            "tree-size": self.size,
            "merkle-root": root,
            "public-keys": [
                {
                    "created": str(key.created), "key-id": key.key_id, "leaf-index": key.leaf_index,
                    "tree-size": self.size, "inclusion-proof": proof(key.leaf_index), "merkle-root": root,
                    "public-key": encode_public_key(key.public_key),
                }
                for key in actor.keys
            ],
            "history": [
                {
                    "leaf-index": index, "role": int(role), "merkle-leaf": encode_base64url(self.entries[index]),
                    "encrypted-message": self.records[index]["message"], "plain": self.records[index]["plain"],
                    "inclusion-proof": proof(index),
                }
                for index, role in shown
            ],
            "history-next": shown[-1][0] if shown != rows else None,
        }
        if after >= 0:
            del answer["public-keys"]
        self.edit_answer(answer)
        return Answer(200, json.dumps(answer, ensure_ascii=False).encode())


def checkpoint_message(world: World) -> CheckpointMessage:
    """A message without encrypted attributes: cheap to make and to check."""
    return CheckpointMessage(
        "https://keys.beta.example", pkd_root(1, bytes([7]) * 32), public("beta"), f"https://{ORIGIN}",
        world.directory.root_text, world.next_time(),
    )


@cache
def honest_world() -> World:
    """Ten entries: enrolments, a rotation, a move, a token, another directory's root. Never changed."""
    world = World()
    world.say(AddKey(ALICE, public("alice-1"), world.next_time()), "alice-1")
    world.say(AddKey(BOB, public("bob"), world.next_time()), "bob")
    world.say(AddKey(ALICE, public("alice-2"), world.next_time()), "alice-1")
    world.say(RevokeKey(ALICE, public("alice-1"), world.next_time()), "alice-2")
    world.say(Fireproof(BOB, world.next_time()), "bob")
    world.say(AddKey(CAROL, public("carol"), world.next_time()), "carol")
    world.say(checkpoint_message(world), "beta")
    world.say(MoveIdentity(BOB, DAVE, world.next_time()), "bob")
    world.say(RevokeKeyThirdParty(parse_token(make_token(person("carol"), public("carol")))))
    world.say(AddKey(ALICE, public("alice-3"), world.next_time()), "alice-2")
    return world.publish()
