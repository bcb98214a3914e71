"""A real log to be mirrored, read over its own web application, and a mirror of it.

The store, the sequencer, the publisher, the witnesses' judgement and the application are the product's; only the
network between them is a function call. ``lies`` changes what the network brings: by path, a function of the body.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ktlog.config import Settings, write_settings
from ktlog.errors import KtlogError, Unreachable
from ktlog.operator.create import PUBLIC_KEYS, create_log
from ktlog.operator.mirror import Mirror
from ktlog.operator.publisher import Publisher
from ktlog.operator.shred import plan_for
from ktlog.operator.sources import Source, load_sources, load_status
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.entry import make_entry
from ktlog.pkd.erasure import ErasureRecord, encode_erasure_record
from ktlog.pkd.keys import encode_public_key, key_hash, pkd_root
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    CheckpointMessage,
    Fireproof,
    Message,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    UndoFireproof,
    aux_data_id,
    parse_wire,
)
from ktlog.pkd.state import Change
from ktlog.store.contracts import Batch, LogStore, Record
from ktlog.store.mirror import MirrorStore
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.policy import LogKey, Policy, format_policy
from ktlog.tlog.tiles import format_bundle
from ktlog.tlog.tree import Frontier, hash_leaf
from ktlog.web.app import create_app
from ktlog.wire.fetch import Response
from tests.operator_world import (
    NOW,
    ORIGIN,
    WITNESS_NAMES,
    Clock,
    Desk,
    FakeWitness,
    Network,
    Submission,
    log_signers,
    submission,
    witness_policy,
)
from tests.pkd_samples import ALICE, BOB, CAROL, private, public, revoke_by_token, text_of

DAVE, ERIN, FRED = (f"https://example.com/users/{name}" for name in ("dave", "erin", "fred"))
GINA = "https://example.net/users/gina"
EVERYBODY = (ALICE, BOB, CAROL, DAVE, ERIN, FRED, GINA)
MIRROR_ORIGIN = "keys.mirror.example"


class SourceLog:
    """The log ORIGIN in *directory*. Get from it with ``get``, as with a fetcher."""

    def __init__(self, directory: Path, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.settings = replace(create_log(directory, ORIGIN, "spec", bytes(32)), rate_limit_exempt="127.0.0.0/8")
        write_settings(self.settings)
        vkeys = [str(signer.vkey) for signer in log_signers()]
        (directory / PUBLIC_KEYS).write_text(
            json.dumps({"vkeys": vkeys, "leaf-keys": [encode_public_key(public("leaf"))]})
        )
        self.store = SqliteStore.open(self.settings.database)
        self.desk = Desk(self.store, clock=self.clock)
        witnesses = tuple(FakeWitness(name, 10 * n, self.clock) for n, name in enumerate(WITNESS_NAMES, 1))
        self.policy = witness_policy(witnesses, 2)
        self.publisher = Publisher(
            settings=self.settings, store=self.store, tiles=TileFiles(self.settings.tiles), signers=log_signers(),
            policy=self.policy, fetcher=Network({f"{w.url}/add-checkpoint": w for w in witnesses}), now=self.clock,
        )
        self._client = create_app(self.settings).test_client()
        self.asked: list[str] = []
        self.lies: dict[str, Callable[[bytes], bytes | int | Exception]] = {}
        self.before: Callable[[str], object] = lambda path: None

    def publish(self) -> SourceLog:
        self.publisher.publish(self.desk.size)
        return self

    def get(self, url: str, *, max_bytes: int | None = None) -> Response:
        parts = urlsplit(url)
        assert (parts.scheme, parts.netloc) == ("https", ORIGIN), url
        path = parts.path.removeprefix("/")
        self.before(path)
        self.asked.append(path)
        answer = self._client.get(parts.path, headers={"Host": ORIGIN})
        lie = self.lies.get(path)
        told = answer.data if lie is None else lie(answer.data)
        if isinstance(told, Exception):
            raise told
        if isinstance(told, int):
            return Response(told, {}, b"", url)
        if max_bytes is not None and len(told) > max_bytes:
            raise Unreachable("TooLarge", url)
        return Response(answer.status_code if lie is None else 200, {}, told, url)

    # What happens to it

    def erase(self, actor_id: str) -> None:
        actor = self.store.actor(actor_id)
        assert actor is not None
        self.store.erase(plan_for(self.store, actor), self.store.state())
        self.desk.restart()

    def force(self, message: Message, signer: str) -> None:
        """Log a well-formed message that breaks a rule."""
        state = self.store.state()
        sent = submission(message, signer, pkd_root(state.size, state.root))
        wire = parse_wire(SPEC, sent.preimage)
        entry = make_entry(SPEC, sent.preimage, private("leaf"), public("leaf"))
        frontier = state.frontier.append(hash_leaf(entry))
        record = Record(
            state.size, entry, hash_leaf(entry), frontier.root(), sent.preimage, dict(sent.plain), {}, {},
            wire.unique_hash, wire.action, NOW, NOW,
        )
        after = replace(state, size=state.size + 1, root=frontier.root(), frontier=frontier, greatest_time=NOW * 2)
        self.store.commit(Batch(state, (record,), after, (Change(),)))

    def revoke(self, name: str) -> None:
        self.desk.batch(Submission(parse_wire(SPEC, text_of(SPEC, revoke_by_token(name))).preimage, {}, {}))

    def fill(self) -> SourceLog:
        """All ten kinds of messages; Bob moves to Carol, Fred burns Dave down, a token takes Erin's key."""
        send, time = self.desk.send, iter(range(NOW, NOW + 100))
        send(AddKey(ALICE, public("a"), next(time)))
        send(AddKey(ALICE, public("a2"), next(time)))
        send(AddKey(BOB, public("b"), next(time)), "b")
        send(AddAuxData(BOB, "test", "bob's", None, next(time)), "b")
        send(Fireproof(BOB, next(time)), "b")
        send(MoveIdentity(BOB, CAROL, next(time)), "b")
        send(AddKey(DAVE, public("d"), next(time)), "d")
        send(AddKey(FRED, public("f"), next(time)), "f")
        send(BurnDown(DAVE, FRED, next(time)), "f")
        send(AddKey(ERIN, public("e"), next(time)), "e")
        self.revoke("e")
        send(AddAuxData(ALICE, "test", "mine", None, next(time)))
        send(RevokeAuxData(ALICE, "test", aux_data_id("test", "mine"), None, next(time)))
        send(UndoFireproof(CAROL, next(time)), "b")
        send(RevokeKey(ALICE, public("a"), next(time)), "a2")
        send(CheckpointMessage(
            "https://keys.other.example", pkd_root(3, bytes([7]) * 32), public("o"), f"https://{ORIGIN}",
            self.desk.root, next(time),
        ), "o")
        send(AddKey(GINA, public("g"), next(time)), "g")
        return self

    def tell_erasures(self, *records: ErasureRecord) -> None:
        """Lie: let these be the erasure log."""
        leaves = [encode_erasure_record(record) for record in records]
        frontier = Frontier()
        for leaf in leaves:
            frontier = frontier.append(hash_leaf(leaf))
        head = json.dumps({"size": len(leaves), "root": encode_base64(frontier.root())}).encode()
        self.lies["erasures"] = lambda body: head
        self.lies[f"erasures/000.p/{len(leaves)}"] = lambda body: format_bundle(leaves)

    def close(self) -> None:
        self.store.close()


def mirror_settings(directory: Path, log: SourceLog) -> Settings:
    """Settings of another log that mirrors *log*, with its policy in place."""
    settings = Settings(directory, MIRROR_ORIGIN, "spec", replicas=ORIGIN)
    settings.replica_directory.mkdir(parents=True)
    policy = Policy((LogKey(log_signers()[1].vkey),), log.policy.witnesses, log.policy.groups, log.policy.quorum)
    (settings.replica_directory / f"{ORIGIN}.policy").write_bytes(format_policy(policy))
    return settings


def make_mirror(directory: Path, log: SourceLog) -> Mirror:
    (source,) = load_sources(mirror_settings(directory, log))
    return Mirror(source, log, log.clock, random.Random(3))


def mirrored(source: Source) -> MirrorStore:
    """What a mirror has stored; close it."""
    return MirrorStore(source.database, read_only=True)


def everything(store: LogStore) -> dict[str, Any]:
    """Every row that the public files of a log determine: of a log and of its mirror the same."""
    state = store.state()
    actors = {actor_id: store.actor(actor_id) for actor_id in store.actor_ids("", 1000)}
    return {
        "state": (state.size, state.root, state.frontier, state.greatest_time),
        "entries": store.entries(0, state.size),
        "leaves": store.leaf_hashes(0, state.size),
        "records": [replace(record, keys={}, accepted=0) for record in store.records(0, state.size)],
        "roots": [store.root_after(size) for size in range(state.size + 1)],
        # Which keys an actor revoked before an erased one's keys moved in, the public files do not say.
        "actors": {actor_id: actor and replace(actor, revoked=frozenset()) for actor_id, actor in actors.items()},
        "histories": {actor_id: store.history(actor_id) for actor_id in EVERYBODY},
        "salts": {actor_id: store.salt(actor_id) for actor_id in EVERYBODY},
        "erased": {actor_id: store.erased(actor_id) for actor_id in EVERYBODY},
        "holders": {name: store.holders(key_hash(public(name))) for name in ("a", "a2", "b", "d", "e", "f", "g")},
        "tokens": {name: store.token_revoked(key_hash(public(name))) for name in ("a", "b", "e")},
        "erasures": store.erasures(0, store.erasure_count()),
        # What was moved to somebody erased since, a mirror that comes later cannot know.
        "moves": [
            store.carried(record.leaf_index) for record in store.records(0, state.size) if record.plain.get("new-actor")
        ],
    }


def check_same(mirror: Mirror, log: SourceLog) -> None:
    with mirrored(mirror.source) as store:
        assert everything(store) == everything(log.store)
        assert not store.scrub_due()
    size = log.desk.size
    assert (mirror.status.tree_size, mirror.status.error, mirror.status.erasing) == (size, None, False)
    assert load_status(mirror.source) == mirror.status


def stored(mirror: Mirror):
    if not mirror.source.database.exists():
        return None
    with mirrored(mirror.source) as store:
        return everything(store)


def shown(mirror: Mirror) -> bytes | None:
    path = mirror.source.tiles / "checkpoint"
    return path.read_bytes() if path.exists() else None


def refused(mirror: Mirror) -> KtlogError:
    """The error of a poll that must change nothing."""
    before = stored(mirror), shown(mirror)
    with pytest.raises(KtlogError) as caught:
        mirror.poll()
    assert (stored(mirror), shown(mirror)) == before
    assert load_status(mirror.source).error == caught.value.name
    return caught.value


def edit_record(leaf_index: int, **members):
    def edit(body: bytes) -> bytes:
        lines = body.splitlines()
        record = json.loads(lines[leaf_index])
        for name, value in members.items():
            record[name] = record[name] | value if isinstance(value, dict) else value
        lines[leaf_index] = json.dumps(record, ensure_ascii=False).encode()
        return b"\n".join(lines) + b"\n"

    return edit
