"""A log in memory with its map and three witnesses, serving everything that a log serves. All signatures are real.

It keeps the rules by the product's own directory; an operator who breaks them says so: :meth:`SimLog.force` logs what
the rules refuse, ``lies[path]`` replaces what is served, and the options of :meth:`SimLog.publish` sign anything. Give
each test a :meth:`SimLog.clone`. Times are Unix seconds by the log's own clock, ``now``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ktlog.keymap.bundle import Bundle, NoLeaf, Outcome, Presented, encode_bundle
from ktlog.keymap.output import MapConfig, OutputLeaf, format_config, format_leaf, hash_config
from ktlog.keymap.prefix import PrefixLeaf, encode_prefix_proof, parse_prefix_proof, prove, subtree_hash
from ktlog.keymap.updates import build_update, format_update
from ktlog.keymap.value import commit_value, parse_value
from ktlog.pkd.actors import Actor
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.entry import make_entry
from ktlog.pkd.erasure import encode_erasure_record, map_index
from ktlog.pkd.keys import ZERO_ROOT_BYTES, encode_public_key, pkd_root
from ktlog.pkd.messages import (
    AddKey,
    CheckpointMessage,
    Message,
)
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.encoding import decode_base64, encode_base64, encode_base64url
from ktlog.tlog.note import (
    Note,
    Signer,
    format_note,
    parse_note,
)
from ktlog.tlog.tiles import TILE_WIDTH, Tile, format_bundle, parse_number_path, parse_tile_path, tile_nodes
from ktlog.tlog.tree import Frontier, hash_leaf, leaf_reader, prove_inclusion, root_hash
from ktlog.wire.fetch import Response
from tests.liars.names import MAP, ORIGIN, STEP, URL, VERIFIER, WITNESSES, cosigner, log_signers, person, witness_path
from tests.liars.tricks import Tricks
from tests.mapped_log import MappedLog, Page
from tests.pkd_samples import NOW, private, public


@dataclass
class Standing:
    """Who was there, and with which history, in a tree that was published."""

    actors: dict[str, Actor]
    histories: dict[str, list[tuple[int, int]]]


class SimLog(Tricks, MappedLog):
    """One log, everything it knows, and what it shows."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.now = NOW
        self.quick = False
        """Whether heads are signed by Ed25519 alone."""
        self.leaf_key = "leaf"
        self.leaf_keys = ["leaf"]
        self.config = MapConfig(ORIGIN, SPEC.name)
        self.output: list[bytes] = [format_config(self.config)]
        self.updates: dict[int, bytes] = {}
        self.old_leaves: list[PrefixLeaf] = []
        self.notes: dict[int, bytes] = {}
        self.map_notes: dict[int, bytes] = {}
        self.note = self.map_note = b""
        self.standings: dict[int, Standing] = {}
        self.lies: dict[str, bytes | Response | Exception | Callable[[], Any] | None] = {}
        """By path below the log ("map/checkpoint"), or by address of a witness: what is served instead; None is 404."""
        self.seen_by: dict[str, bytes] = {}
        """What the witnesses' monitoring addresses show."""
        self.edit_answer: Callable[[dict[str, Any]], Any] = lambda answer: None
        self.denied: set[str] = set()
        self.pruned_below = 0
        """Partial tiles and bundles within the first so many entries are gone, the full ones are there."""
        self.weather: Callable[[str], Response | None] = lambda path: None
        """Asked before each answer; it may raise."""
        self.asked: list[str] = []
        self.known: list[bytes] = []
        """Signed heads that the auditor has from before, or from others."""
        self.receipts: dict[str, bytes] = {}
        """What the log promised, as files."""
        self.then: Callable[[], Any] = lambda: None
        self.values: dict[tuple[str, bytes, bytes], tuple[bytes, ...]] = {}
        """Whatever a map may have said of an actor: id, value and opening; the keys that go with it."""
        self._hashes: list[bytes] = []

    def clone(self) -> SimLog:
        """A twin with the same past."""
        return copy.deepcopy(self)

    # -- writing

    def make_entry(self, preimage: bytes) -> bytes:
        return make_entry(self.dialect, preimage, private(self.leaf_key), public(self.leaf_key))

    def tick(self, seconds: int = 1) -> int:
        self.now += seconds
        return self.now

    def say(self, message: Message, signer: str, root: str | None = None) -> SimLog:
        """Log a message by the rules."""
        if not self.log(message, signer, root):
            raise AssertionError(f"the rules refuse {message}")
        return self

    def force_raw(self, preimage: bytes, plain: dict[str, str | None] | None = None, entry: bytes | None = None) -> SimLog:
        """Log anything at all."""
        return self._keep(self.make_entry(preimage) if entry is None else entry, preimage, plain or {})

    def _keep(self, entry: bytes, preimage: bytes, plain: dict[str, str | None]) -> SimLog:
        self.void.add(self.live.size)
        self.live.append_void(self.live.size, entry)
        self.pages.append(Page(entry))
        self.entries.append(entry)
        self.preimages.append(preimage)
        self.plains.append(plain)
        self.actions.append("")
        return self

    def enrol(self, name: str, letter: str) -> SimLog:
        return self.say(AddKey(person(name), public(letter), self.tick()), letter)

    def chat(self, count: int = 1, root: str | None = None) -> SimLog:
        """Entries that touch nobody."""
        for _ in range(count):
            self.say(checkpoint_message(self), "peer", root)
        return self

    # -- trees

    @property
    def size(self) -> int:
        return len(self.entries)

    def hashes(self) -> list[bytes]:
        """Of the entries. Whoever rewrites one calls :meth:`forget_hashes`."""
        for entry in self.entries[len(self._hashes) :]:
            self._hashes.append(hash_leaf(entry))
        return self._hashes

    def tree(self):
        return leaf_reader(self.hashes())

    def root(self, size: int | None = None) -> bytes:
        return root_hash(self.size if size is None else size, self.tree())

    def root_text(self, size: int) -> str:
        """The root after *size* entries, as messages write it."""
        return pkd_root(size, self.root(size))

    def output_tree(self):
        return leaf_reader([hash_leaf(leaf) for leaf in self.output])

    def erasure_root(self, count: int | None = None) -> bytes:
        return Frontier().extend(hash_leaf(encode_erasure_record(record)) for record in self.records[:count]).root()

    # -- publishing

    def sign(
        self, origin: str, size: int, root: bytes, *, signers: Iterable[Signer] | None = None,
        cosigners: Iterable[Signer] | None = None, cosigned_at: int | None = None, named: str | None = None,
    ) -> bytes:
        """A checkpoint with cosignatures; whoever cosigns shows it at its monitoring address."""
        if cosigners is None:
            names = WITNESSES if origin == ORIGIN else (*WITNESSES, VERIFIER)
            cosigners = [cosigner(name) for name in names]
        text = format_checkpoint(Checkpoint(named or origin, size, root))
        at = self.now if cosigned_at is None else cosigned_at
        if signers is None:
            signers = log_signers(origin)[:1] if self.quick else log_signers(origin)
        lines = [signer.sign(text, at) for signer in signers]
        own = len(lines)
        for signer in cosigners:
            lines.append(signer.sign(text, at))
            if signer.vkey.name in WITNESSES:
                self.seen_by[witness_path(signer.vkey.name, named or origin)] = format_note(
                    Note(text, (*lines[:own], lines[-1]))
                )
        return format_note(Note(text, tuple(lines)))

    def publish(self, size: int | None = None, root: bytes | None = None, **options: Any) -> SimLog:
        """Show the log as it stands, or as something else. options: of :meth:`sign`."""
        size = self.size if size is None else size
        self.note = self.sign(ORIGIN, size, self.root(size) if root is None else root, **options)
        self.notes[size] = self.note
        if size == self.live.size:
            self.standings[size] = Standing(
                dict(self.live.actors), {name: list(rows) for name, rows in self.live.histories.items()}
            )
        return self

    def map_value(self, actor: Actor) -> tuple[bytes, bytes]:
        value, opening = super().map_value(actor)
        self.values[actor.actor_id, value, opening] = tuple(key.public_key for key in actor.keys)
        return value, opening

    def true_leaf(self) -> OutputLeaf:
        return OutputLeaf(
            hash_config(self.config), self.now, self.size, self.root(), len(self.records), self.erasure_root(),
            subtree_hash(self.map_leaves()),
        )

    def add_leaf(self, leaves: list[PrefixLeaf] | None = None, *, sign: bool = True, **changes: Any) -> SimLog:
        """One more output leaf, true but for *changes*, with its update.

        Args:
            leaves: of the map, where they are not the true ones.
        """
        leaves = self.map_leaves() if leaves is None else leaves
        leaf = replace(self.true_leaf(), map_root=subtree_hash(leaves))
        self.output.append(format_leaf(replace(leaf, **changes)))
        before = dict(self.old_leaves)
        new = {one.index: one.commitment for one in leaves if before.get(one.index) != one.commitment}
        number = len(self.output) - 1
        self.updates[number] = format_update(build_update(number, new, prove(self.old_leaves, sorted(new))))
        self.old_leaves = leaves
        return self.sign_map() if sign else self

    def sign_map(self, size: int | None = None, root: bytes | None = None, **options: Any) -> SimLog:
        size = len(self.output) if size is None else size
        root = root_hash(size, self.output_tree()) if root is None else root
        self.map_note = self.map_notes[size] = self.sign(MAP, size, root, **options)
        return self

    def grow(self, **changes: Any) -> SimLog:
        """Some time later: publish what there is, and an output leaf of it. changes: of the leaf; see add_leaf."""
        self.tick(STEP)
        return self.publish().add_leaf(**changes)

    def idle(self, seconds: int) -> SimLog:
        """Nothing happens but that the same heads are cosigned again."""
        self.tick(seconds)
        return self.beat()

    def beat(self) -> SimLog:
        """The same heads, cosigned again now."""
        self.publish(self.published_size, self.published_root)
        return self.sign_map()

    @property
    def published_size(self) -> int:
        return int(parse_note(self.note).text.split(b"\n")[1])

    @property
    def published_root(self) -> bytes:
        return decode_base64(parse_note(self.note).text.split(b"\n")[2].decode())

    # -- serving: what a fetcher asks

    def get(self, url: str, *, max_bytes: int | None = None, **_: Any) -> Response:
        parts = urlsplit(url)
        if parts.scheme != "https":
            raise AssertionError(url)
        path = parts.path.removeprefix("/") if parts.netloc == ORIGIN else url.partition("://")[2]
        self.asked.append(path)
        answer = self.weather(path)
        if answer is not None:
            return answer
        body: Any = self.lies[path] if path in self.lies else self._served(parts.netloc, path, parts.query)
        body = body() if callable(body) else body
        if isinstance(body, Exception):
            raise body
        if isinstance(body, Response):
            return body
        return Response(404, {}, b"{}", url) if body is None else Response(200, {}, body, url)

    def truth(self, path: str, query: str = "") -> bytes:
        """What is served at *path* without a lie."""
        body = self._served(ORIGIN, path, query)
        if body is None:
            raise AssertionError(f"nothing is at {path}")
        return body

    def edit(self, path: str, change: Callable[[bytes], bytes | None]) -> SimLog:
        """Serve something else at *path*, made of what is there now."""
        self.lies[path] = change(self.truth(path))
        return self

    def _served(self, host: str, path: str, query: str) -> bytes | None:
        if host != ORIGIN:
            return self.seen_by.get(path)
        if path == "checkpoint":
            return self.note or None
        if path == "api/info":
            return json.dumps({"public-key": encode_public_key(public("answers"))}).encode()
        if path == "leaf-keys":
            return json.dumps({"leaf-keys": [encode_public_key(public(name)) for name in self.leaf_keys]}).encode()
        if path == "erasures":
            return json.dumps({"size": len(self.records), "root": encode_base64(self.erasure_root())}).encode()
        if path.startswith("erasures/"):
            return _bundle([encode_erasure_record(record) for record in self.records], path.removeprefix("erasures/"))
        if path.startswith("records/"):
            tile = parse_tile_path("tile/entries/" + path.removeprefix("records/"))
            start = tile.number * TILE_WIDTH
            if self._gone(tile) or start + tile.width > self.size:
                return None
            return b"".join(self.line(index) + b"\n" for index in range(start, start + tile.width))
        if path.startswith("tile/"):
            tile = parse_tile_path(path)
            return None if self._gone(tile) else _tile(tile, self.entries, self.tree())
        if path == "map/checkpoint":
            return self.map_note or None
        if path.startswith("map/checkpoint/"):
            return self.map_notes.get(int(path.rpartition("/")[2]))
        if path.startswith("map/tile/"):
            return _tile(parse_tile_path(path.removeprefix("map/")), self.output, self.output_tree())
        if path.startswith("map/updates/"):
            return self.updates.get(parse_number_path(path.removeprefix("map/updates/")))
        if path.startswith("map/bundle/"):
            return bundle_of(self, unquote(path.removeprefix("map/bundle/")))
        if path.startswith("api/actor/") and path.endswith("/keys"):
            asked = {name: values[0] for name, values in parse_qs(query).items()}
            return self._answer(
                unquote(path.removeprefix("api/actor/").removesuffix("/keys")),
                int(asked.get("tree-size", self.published_size)),
            )
        return None

    def _gone(self, tile: Tile) -> bool:
        """Whether it is a partial one whose full one is there, and was dropped."""
        level = 0 if tile.level == "entries" else int(tile.level)
        return tile.width < TILE_WIDTH and (tile.number + 1) * TILE_WIDTH ** (level + 1) <= self.pruned_below

    def line(self, index: int, **changes: Any) -> bytes:
        """The record of an entry. changes: of its members."""
        plain = self.plains[index]
        salts = {
            name: encode_base64(salt) for name, salt in self.pages[index].salts.items() if plain[name] is not None
        }
        return json.dumps({
            "leaf-index": index, "message": self.preimages[index].decode(), "plain": plain, "salts": salts,
            "withheld": None in plain.values(), **changes,
        }).encode()

    def records_path(self, size: int | None = None) -> str:
        size = self.published_size if size is None else size
        return f"records/000.p/{size}"

    def _answer(self, actor_id: str, tree_size: int) -> bytes | None:
        standing = self.standings.get(tree_size)
        actor = None if standing is None else standing.actors.get(actor_id)
        if standing is None or actor is None or actor_id not in self.live.actors or actor_id in self.denied:
            return None
        reader = self.tree()
        root = pkd_root(tree_size, root_hash(tree_size, reader) if tree_size else ZERO_ROOT_BYTES)

        def proof(leaf_index: int) -> list[str]:
            return [encode_base64url(node) for node in prove_inclusion(leaf_index, tree_size, reader)]

        answer: dict[str, Any] = {
            "!pkd-context": "fedi-e2ee:v1/api/actor/get-keys", "actor-id": actor_id, "tree-size": tree_size,
            "merkle-root": root,
            "public-keys": [
                {
                    "created": str(key.created), "key-id": key.key_id, "leaf-index": key.leaf_index,
                    "tree-size": tree_size, "inclusion-proof": proof(key.leaf_index), "merkle-root": root,
                    "public-key": encode_public_key(key.public_key),
                }
                for key in actor.keys
            ],
            "history": [
                {
                    "leaf-index": index, "role": int(role), "merkle-leaf": encode_base64url(self.entries[index]),
                    "encrypted-message": self.preimages[index].decode(), "plain": self.plains[index],
                    "inclusion-proof": proof(index),
                }
                for index, role in standing.histories.get(actor_id, [])
            ],
            "history-next": None,
        }
        self.edit_answer(answer)
        return json.dumps(answer).encode()


def bundle_of(log: SimLog, actor_id: str) -> bytes | None:
    """What the newest map of *log* says of an actor, with the proofs of it."""
    index, size = map_index(ORIGIN, actor_id), len(log.output)
    said: Outcome | None = NoLeaf()
    keys: tuple[bytes, ...] = ()
    for leaf in log.old_leaves:
        if leaf.index == index:
            said = None
            for (name, value, opening), theirs in log.values.items():
                if name == actor_id and leaf.commitment == commit_value(
                    index, parse_value(value).version, value, opening
                ):
                    said, keys = Presented(value, opening), theirs
    proof = parse_prefix_proof(encode_prefix_proof(prove(log.old_leaves, [index])))
    path = tuple(prove_inclusion(size - 1, size, log.output_tree()))
    return None if said is None else encode_bundle(Bundle(MAP, size, log.output[-1], path, proof, said, keys))


def _bundle(leaves: list[bytes], name: str) -> bytes | None:
    tile = parse_tile_path(f"tile/entries/{name}")
    found = leaves[tile.number * TILE_WIDTH :][: tile.width]
    return format_bundle(found) if len(found) == tile.width else None


def _tile(tile: Tile, leaves: list[bytes], tree: Any) -> bytes | None:
    if tile.level == "entries":
        found = leaves[tile.number * TILE_WIDTH :][: tile.width]
        return format_bundle(found) if len(found) == tile.width else None
    nodes = tile_nodes(tile)
    return b"".join(tree(nodes)) if all((at + 1) << level <= len(leaves) for level, at in nodes) else None


def checkpoint_message(log: SimLog) -> CheckpointMessage:
    """Another directory tells its root: it touches nobody here, and hides nothing."""
    return CheckpointMessage(
        "https://keys.example.net", pkd_root(1, bytes([7]) * 32), public("peer"), URL, log.live.root_text, log.tick()
    )
