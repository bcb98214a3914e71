"""The worst case for a map: a saboteur who has the keys of a log, of its witnesses and of its verifier.

What it publishes is the next leaf of the map's log, in which everything holds but what the sabotage broke.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from ktlog.config import load_settings
from ktlog.keymap.output import OutputLeaf, format_config, format_leaf, map_origin, parse_leaf
from ktlog.keymap.value import Value, commit_value, encode_value, parse_value
from ktlog.operator.keys import load_map_signers
from ktlog.operator.stores import map_config
from ktlog.pkd.erasure import map_index
from ktlog.pkd.history import history_leaf
from ktlog.store.mapcontract import Live, MapState
from ktlog.store.mapdb import SqliteMapStore
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import sign_checkpoint
from ktlog.tlog.tiles import entry_bundle_path, format_bundle, tile_path
from ktlog.tlog.tree import Frontier, hash_leaf
from tests.demo_forger import Forger
from tests.demo_saboteur import Saboteur
from witness.config import WitnessDir
from witness.keys import load_signers

VERIFIER = "v1.verifier.example"


class MapForger:
    """Works on the map of the instance alpha. verifier: whether the verifier's keys sign too."""

    def __init__(self, saboteur: Saboteur, *, verifier: bool = True) -> None:
        self._saboteur = saboteur
        self._settings = load_settings(saboteur.log, environment={})
        signers = load_map_signers(self._settings.keys, saboteur.origin)
        self._signers = (*signers, *Forger(saboteur).witness_signers())
        if verifier:
            self._signers += load_signers(WitnessDir(saboteur.directory / "verifier-v1"), VERIFIER)

    def _open(self) -> closing[SqliteMapStore]:
        config = format_config(map_config(self._settings))
        return closing(SqliteMapStore.open(self._settings.map_database, origin=self._saboteur.origin, config=config))

    def value(self, actor_id: str, edit: Callable[[Value], Value], *, at: str | None = None) -> Live:
        """The change that makes *actor_id*'s value another, in the place of *at*, who need not have one."""
        index = map_index(self._saboteur.origin, at or actor_id)
        with self._open() as store:
            live = store.live(map_index(self._saboteur.origin, actor_id))
        value = edit(parse_value(live.value))
        encoded = encode_value(value)
        commitment = commit_value(index, value.version, encoded, live.opening)
        return Live(index, commitment, encoded, live.opening, live.history)

    def with_history(self, actor_id: str, leaf_indexes: Sequence[int]) -> Live:
        """Let *actor_id* be the subject of exactly these entries."""
        leaves = [history_leaf(1, leaf_index) for leaf_index in leaf_indexes]
        tree = Frontier().extend(map(hash_leaf, leaves))
        change = self.value(actor_id, lambda value: replace(value, history_size=tree.size, history_root=tree.root()))
        return replace(change, history=tree.encode(), news=tuple(leaves), afresh=True)

    def publish(
        self, *changes: Live, edit: Callable[[OutputLeaf], OutputLeaf] = lambda leaf: leaf, leaf: bytes | None = None,
    ) -> None:
        """Publish the next leaf, with *changes* to the map; what it says may be edited, or be *leaf* as it is."""
        with self._open() as store:
            state = store.state()
            newest = parse_leaf(store.output_leaves(state.output.size - 1, state.output.size)[0])
            store.update(
                changes, expected=state, input_size=state.input_size, erasures=state.erasures,
                make_leaf=lambda root: leaf or format_leaf(edit(replace(newest, map_root=root, time=int(time.time())))),
                seal=lambda after, _leaf: self._sign(after),
            )
            size = store.state().output.size
            hashes, leaves = store.output_hashes(0, size), store.output_leaves(0, size)
        assert size < 256, "one tile of each kind"
        tiles = "log-alpha/tiles/map"
        self._saboteur.replace(f"{tiles}/{tile_path(0, 0, size)}", b"".join(hashes))
        self._saboteur.replace(f"{tiles}/{entry_bundle_path(0, size)}", format_bundle(leaves))

    def _sign(self, after: MapState) -> bytes:
        return self.sign(after.output.size, after.output.root())

    def sign(self, size: int, root: bytes, when: int | None = None) -> bytes:
        """A checkpoint of the map's log with every signature that is to be had, made at *when* (Unix seconds)."""
        checkpoint = Checkpoint(map_origin(self._saboteur.origin), size, root)
        return sign_checkpoint(checkpoint, self._signers, int(time.time()) if when is None else when)
