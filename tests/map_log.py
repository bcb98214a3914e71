"""A log with its map, in memory: every proof real, every lie one line.

``MapLog`` is a :class:`client_log.TinyLog` whose network also answers for ``O/map``. ``publish_map`` derives the map
from the real actors of the log; ``lie`` changes the bundle before it is sent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any
from urllib.parse import parse_qs, unquote

from client_log import DOMAIN, NOW, ORIGIN, Network, TinyLog, actor, key, make_policy, witness_signers

from ktlog.client import Directory
from ktlog.client.build import add_key, enrol, revoke_key
from ktlog.keymap.bundle import (
    Bundle,
    HistoryItem,
    NoLeaf,
    Page,
    PendingItem,
    Presented,
    Tombstone,
    count_items,
    encode_bundle,
)
from ktlog.keymap.output import MapConfig, OutputLeaf, format_config, format_leaf, hash_config, map_origin
from ktlog.keymap.pages import cut
from ktlog.keymap.prefix import PrefixLeaf, encode_prefix_proof, parse_prefix_proof, prove, subtree_hash
from ktlog.keymap.value import commit_value, derive_opening, encode_value, tombstone, value_of
from ktlog.pkd.actors import Actor, Role
from ktlog.pkd.erasure import erased_actor, map_index
from ktlog.pkd.history import history_leaf
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    Note,
    Signer,
    format_note,
    signer_from_seed,
)
from ktlog.tlog.policy import Group, LogKey, Policy, Witness
from ktlog.tlog.tiles import format_bundle, parse_tile_path, tile_nodes
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_inclusion, root_hash

MAP = map_origin(ORIGIN)
ALICE, BOB, CAROL, DAVE, ROOT = (actor(name) for name in ("alice", "bob", "carol", "dave", "root"))
VERIFIER = "v1.verifier.example"


@cache
def verifier_signers() -> tuple[Signer, ...]:
    return (
        signer_from_seed(VERIFIER, COSIGNATURE_ED25519, bytes([120]) * 32),
        signer_from_seed(VERIFIER, COSIGNATURE_MLDSA44, bytes([121]) * 32),
    )


def map_policy(*logs: MapLog, need: int = 2) -> Policy:
    """Two of three witnesses, and the verifier."""
    base = make_policy([], need)
    witnesses, groups = dict(base.witnesses), dict(base.groups)
    for number, signer in enumerate(verifier_signers()):
        witnesses[f"v1-{number}"] = Witness(f"v1-{number}", signer.vkey)
    groups["verifiers"] = Group("verifiers", 2, ("v1-0", "v1-1"))
    groups["all"] = Group("all", 2, ("witnesses", "verifiers"))
    lines = tuple(LogKey(log.map_signers[1].vkey, f"{log.url}/map") for log in logs)
    return Policy(lines, witnesses, groups, "all")


class MapLog(TinyLog):
    """One log and its map, with all their secrets."""

    def __init__(self, origin: str = ORIGIN, seed: int = 1) -> None:
        super().__init__(origin, seed)
        self.map_origin = map_origin(origin)
        self.map_signers = tuple(
            signer_from_seed(self.map_origin, algorithm, bytes([seed + 10 + number]) * 32)
            for number, algorithm in enumerate((ED25519, COSIGNATURE_MLDSA44))
        )
        self.config = MapConfig(origin, "spec")
        self.output = [format_config(self.config)]
        self.dead: dict[str, Tombstone] = {}
        self.erased_at: dict[str, int] = {}
        self.erasures = 0
        self.actors_in_map: dict[str, Actor] = {}
        self.covered = 0
        self.map_checkpoints: dict[int, bytes] = {}
        self.lie: Callable[[Bundle], Bundle] = lambda bundle: bundle
        self.now = NOW
        self.page_items = 1 << 20

    def fork(self) -> MapLog:
        twin = super().fork()
        for name in ("output", "dead", "erased_at", "map_checkpoints", "actors_in_map"):
            setattr(twin, name, copy.copy(getattr(self, name)))
        twin.states[-1] = dict(twin.states[-1])
        return twin

    # The map

    def erase(self, actor_id: str) -> None:
        """Tombstone an actor; what is published of it beside the map is not this file's affair."""
        row = self.actors[actor_id]
        self.dead[actor_id] = Tombstone(row.version + 1, row.generation, self.erasures)
        self.erased_at[actor_id] = self.size
        self.erasures += 1
        self.states[-1][actor_id] = erased_actor(actor_id, row.version + 1, row.generation, row.erasures + 1)

    def history(self, actor_id: str, size: int) -> list[tuple[int, bytes]]:
        """(leaf index, history leaf) since the last erasure."""
        leaves = []
        for index in range(self.erased_at.get(actor_id, 0), size):
            role = self.roles[index].get(actor_id)
            if role is None:
                continue
            moved_from = None
            if role == Role.MOVED_IN:
                (old,) = (name for name, other in self.roles[index].items() if other == Role.MOVED_OUT)
                before = [leaf for _, leaf in self.history(old, index)]
                moved_from = len(before), merkle(before)
            leaves.append((index, history_leaf(role, index, moved_from)))
        return leaves

    def value(self, actor_id: str):
        leaves = [leaf for _, leaf in self.history(actor_id, self.covered)]
        return value_of(self.actors_in_map[actor_id], len(leaves), merkle(leaves))

    def opening(self, actor_id: str) -> bytes:
        salt = f"{actor_id} {self.erased_at.get(actor_id, 0)}".encode().ljust(32, b"s")[-32:]
        return derive_opening(salt, self.actors_in_map[actor_id].version)

    def map_leaves(self) -> list[PrefixLeaf]:
        leaves = []
        for actor_id in self.actors_in_map:
            index = map_index(self.origin, actor_id)
            value = self.value(actor_id)
            leaves.append(PrefixLeaf(
                index, commit_value(index, value.version, encode_value(value), self.opening(actor_id))
            ))
        for actor_id, dead in self.dead.items():
            if actor_id not in self.actors_in_map:
                index = map_index(self.origin, actor_id)
                leaves.append(PrefixLeaf(
                    index, tombstone(self.origin, index, dead.version, dead.generation, dead.erasure_number)
                ))
        return sorted(leaves)

    def publish_map(self, *, time: int | None = None, size: int | None = None, **changes: Any) -> MapLog:
        """One more output leaf over the log as it stands, and its checkpoint. changes: of the leaf."""
        self.covered = self.size if size is None else size
        self.actors_in_map = {name: row for name, row in self.states[self.covered].items() if row.status}
        leaf = OutputLeaf(
            hash_config(self.config), self.now if time is None else time, self.covered, self.root(self.covered), self.erasures,
            bytes([self.erasures]) * 32, subtree_hash(self.map_leaves()),
        )
        self.output.append(format_leaf(replace(leaf, **changes)))
        self.map_checkpoints[len(self.output)] = self.sign_map()
        return self

    def sign_map(
        self, *, now: int | None = None, witnesses: int = 3, verifiers: bool = True, root: bytes | None = None,
        size: int | None = None, origin: str | None = None, signers: tuple[Signer, ...] | None = None,
    ) -> bytes:
        size = len(self.output) if size is None else size
        text = format_checkpoint(Checkpoint(origin or self.map_origin, size, root or self.map_root(size)))
        others = [signer for pair in witness_signers()[:witnesses] for signer in pair]
        others += verifier_signers() if verifiers else ()
        now = self.now if now is None else now
        return format_note(Note(text, tuple(s.sign(text, now) for s in (*(signers or self.map_signers), *others))))

    def map_reader(self):
        return leaf_reader([hash_leaf(leaf) for leaf in self.output])

    def map_root(self, size: int) -> bytes:
        return root_hash(size, self.map_reader())

    # Bundles

    def item(self, index: int, leaf: bytes, size: int) -> HistoryItem:
        row = self.rows[index]
        path = tuple(prove_inclusion(index, size, self.reader())) if index < size else ()
        return HistoryItem(leaf, self.entries[index], row["encrypted-message"].encode(), row["plain"], path)

    def bundle(self, actor_id: str, *, full: bool = False, leaves: bool = False) -> Bundle:
        size = len(self.output)
        proof = prove(self.map_leaves(), [map_index(self.origin, actor_id)])
        row = self.actors_in_map.get(actor_id)
        bundle = Bundle(
            self.map_origin, size, self.output[-1], tuple(prove_inclusion(size - 1, size, self.map_reader())),
            parse_prefix_proof(encode_prefix_proof(proof)), self.dead.get(actor_id, NoLeaf()),
        )
        if row is not None:
            value = self.value(actor_id)
            bundle = replace(
                bundle, outcome=Presented(encode_value(value), self.opening(actor_id)),
                keys=tuple(held.public_key for held in row.keys), aux=tuple(one.aux_data for one in row.aux),
            )
            if full or leaves:
                bundle = self._with_history(bundle, actor_id)
            if leaves:
                items = tuple(HistoryItem(item.leaf, b"", b"", {}, ()) for item in bundle.history)
                bundle = replace(bundle, history=items, old_histories=((),) * len(bundle.old_histories))
        waiting = [index for index in range(self.covered, self.size) if actor_id in self.roles[index]]
        return replace(bundle, pending=tuple(self.waiting(index) for index in waiting))

    def waiting(self, index: int) -> PendingItem:
        """Entry *index* as it is shown while it is not in the map."""
        row = self.rows[index]
        return PendingItem(index, self.entries[index], row["encrypted-message"].encode(), row["plain"])

    def _with_history(self, bundle: Bundle, actor_id: str) -> Bundle:
        items, old = [], []
        for index, leaf in self.history(actor_id, self.covered):
            items.append(self.item(index, leaf, self.covered))
            if self.roles[index][actor_id] == Role.MOVED_IN:
                (name,) = (one for one, role in self.roles[index].items() if role == Role.MOVED_OUT)
                old.append(tuple(self.item(at, one, self.covered) for at, one in self.history(name, index)))
        return replace(bundle, history=tuple(items), old_histories=tuple(old))

    def map_page(self, bundle: Bundle, start: int) -> Bundle:
        """The page of *bundle* that begins with item *start*, where it has more items than a page."""
        total = count_items(bundle)
        if total <= self.page_items:
            return bundle
        lists = bundle.history, *bundle.old_histories
        parts = cut(list(map(len, lists)), start, self.page_items)
        own, *old = (items[part.start : part.stop] for items, part in zip(lists, parts, strict=True))
        return replace(bundle, history=own, old_histories=tuple(old), page=Page(start, total))

    def answer(self, path: str, query: str) -> tuple[int, bytes]:
        if not path.startswith("/map/"):
            return super().answer(path, query)
        path = path.removeprefix("/map")
        if path == "/checkpoint":
            return 200, self.map_checkpoints[max(self.map_checkpoints)]
        if path.startswith("/checkpoint/"):
            return 200, self.map_checkpoints[int(path.rpartition("/")[2])]
        if path.startswith("/tile/entries/"):
            return 200, format_bundle(self.output[:256])
        if path.startswith("/tile/"):
            nodes = tile_nodes(parse_tile_path(path[1:]))
            if any((index + 1) << level > len(self.output) for level, index in nodes):
                return 404, b"no such tile"
            return 200, b"".join(self.map_reader()(nodes))
        if path.startswith("/bundle/"):
            asked = parse_qs(query)
            wanted = {name: asked.get(name) == ["true"] for name in ("full", "leaves")}
            bundle = self.lie(self.bundle(unquote(path[len("/bundle/"):]), **wanted))
            return 200, encode_bundle(self.map_page(bundle, int(asked.get("from", ["0"])[0])))
        return 404, b""


def merkle(leaves: list[bytes]) -> bytes:
    return root_hash(len(leaves), leaf_reader([hash_leaf(leaf) for leaf in leaves]))


def say(log: TinyLog, build, *arguments):
    return log.accept(build(*arguments, recent_root=log.recent(), now=NOW + log.size))


@cache
def story() -> MapLog:
    """Alice enrols, adds two keys and revokes the first; Bob, Root and Carol enrol; Carol is erased."""
    log = MapLog()
    say(log, enrol, BOB, key(10))
    say(log, enrol, ALICE, key(1))
    say(log, add_key, ALICE, key(2).public_key, key(1))
    log.publish_map(time=NOW - 60)
    say(log, add_key, ALICE, key(3).public_key, key(2))
    say(log, revoke_key, ALICE, key(1).public_key, key(3))
    say(log, enrol, ROOT, key(20))
    say(log, enrol, CAROL, key(30))
    log.erase(CAROL)
    return log.publish_map()


class MapWorld:
    """A log with a map, the network to it, and one client with its state."""

    def __init__(self, directory, log: MapLog | None = None) -> None:
        self.log = (log or story()).fork()
        self.network = Network(self.log)
        self.network.handles[f"alice@{DOMAIN}"] = ALICE
        self.state = directory / "state"
        self.now = NOW
        self.policy = map_policy(self.log)

    def directory(self, **options) -> Directory:
        settings = {"state": self.state, "domains": {DOMAIN: ORIGIN}, "fetcher": self.network, "now": lambda: self.now}
        return Directory(options.pop("policy", self.policy), **(settings | options))

    def lookup(self, name: str = ALICE, *, full: bool = False, **options):
        return self.directory(**options).lookup(name, full=full)

    def serve(self, log: MapLog) -> None:
        self.log = log
        self.network.logs[log.origin] = log

    def remembered(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.state)): path.read_bytes() for path in self.state.rglob("*.json")}
