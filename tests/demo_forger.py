"""The worst case of a saboteur: one with the keys of a log and of all its witnesses.

What it makes is a log in which everything holds but the one thing that it broke.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence

from ktlog.config import load_settings
from ktlog.operator.keys import load_checkpoint_signers, load_leaf_key
from ktlog.pkd.canonical import canonical
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.entry import make_entry
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.encoding import decode_base64url, encode_base64url
from ktlog.tlog.note import Signer, sign_checkpoint
from ktlog.tlog.tiles import entry_bundle_path, format_bundle, tile_path
from ktlog.tlog.tree import Frontier, hash_leaf, leaf_reader, root_hash
from tests.demo_saboteur import Saboteur, flip
from witness.config import WitnessDir
from witness.keys import load_signers

WITNESSES = ("w1", "w2", "w3")


class Forger:
    """Works on the instance alpha of the demo that *saboteur* has hands on."""

    def __init__(self, saboteur: Saboteur) -> None:
        self._saboteur = saboteur
        self._settings = load_settings(saboteur.log, environment={})
        self.leaf_key = load_leaf_key(self._settings.keys)
        self.log_signers = load_checkpoint_signers(self._settings.keys, saboteur.origin)
        self.dialect = DIALECTS["spec"]

    def witness_signers(self) -> tuple[Signer, ...]:
        return tuple(
            signer for name in WITNESSES
            for signer in load_signers(
                WitnessDir(self._saboteur.directory / f"witness-{name}"), f"{name}.witness.example"
            )
        )

    def sign(self, size: int, root: bytes, when: int | None = None) -> bytes:
        """A checkpoint with every signature that anybody asks for, made at *when* (Unix seconds)."""
        signers = (*self.log_signers, *self.witness_signers())
        when = int(time.time()) if when is None else when
        return sign_checkpoint(Checkpoint(self._saboteur.origin, size, root), signers, when)

    def publish(self, note: bytes) -> None:
        self._saboteur.replace("log-alpha/tiles/checkpoint", note)

    def record(self, leaf_index: int) -> tuple[bytes, bytes]:
        """(entry, preimage)."""
        with self._saboteur.database() as database:
            return database.execute(
                "SELECT entry, preimage FROM entries JOIN records USING (leaf_index) WHERE leaf_index = ?",
                (leaf_index,),
            ).fetchone()

    def rewrite(
        self, leaf_index: int, *, entry: bytes | None = None, preimage: bytes | None = None,
        plain: dict[str, str] | None = None, action: str | None = None,
    ) -> None:
        """Replace one entry, or its message, and make everything else fit: hashes, roots, tiles, all signatures."""
        if entry is None:
            assert preimage is not None
            entry = make_entry(self.dialect, preimage, self.leaf_key.private, self.leaf_key.public)
        with self._saboteur.database() as database:
            database.execute(
                "UPDATE entries SET entry = ?, leaf_hash = ? WHERE leaf_index = ?",
                (entry, hash_leaf(entry), leaf_index),
            )
            for table, column, value in (
                ("records", "preimage", preimage), ("records", "action", action),
                ("record_plain", "plain", None if plain is None else json.dumps(plain)),
            ):
                if value is not None:
                    database.execute(f"UPDATE {table} SET {column} = ? WHERE leaf_index = ?", (value, leaf_index))
            entries = [row[0] for row in database.execute("SELECT entry FROM entries ORDER BY leaf_index")]
            self._store_tree(database, entries)
        self._publish_tree(entries)

    def break_leaf_signature(self, leaf_index: int) -> None:
        """An entry whose leaf signature is wrong, in a tree that is right and signed by everybody."""
        entry, _ = self.record(leaf_index)
        self.rewrite(leaf_index, entry=flip(entry, 32 + 100))

    def break_message_signature(self, leaf_index: int) -> None:
        """A message whose signature is wrong, in an entry that is right."""
        self.rewrite(leaf_index, preimage=self._other_message(leaf_index))

    def change_preimage(self, leaf_index: int) -> None:
        """Publish another message than the one that the entry commits to."""
        self._saboteur.sql(
            "UPDATE records SET preimage = ? WHERE leaf_index = ?", self._other_message(leaf_index), leaf_index
        )

    def _other_message(self, leaf_index: int) -> bytes:
        _, preimage = self.record(leaf_index)
        message = json.loads(preimage)
        message["signature"] = encode_base64url(flip(decode_base64url(message["signature"]), 7))
        return canonical(message)

    def _store_tree(self, database: sqlite3.Connection, entries: Sequence[bytes]) -> None:
        frontier = Frontier()
        for size, entry in enumerate(entries, 1):
            frontier = frontier.append(hash_leaf(entry))
            database.execute("UPDATE leaf_roots SET root = ? WHERE tree_size = ?", (frontier.root(), size))
        database.execute("UPDATE log_state SET root = ?, frontier = ?", (frontier.root(), frontier.encode()))

    def _publish_tree(self, entries: Sequence[bytes]) -> None:
        size, hashes = len(entries), [hash_leaf(entry) for entry in entries]
        assert 0 < size < 256, "one tile of each kind"
        tiles = "log-alpha/tiles"
        self._saboteur.replace(f"{tiles}/{tile_path(0, 0, size)}", b"".join(hashes))
        self._saboteur.replace(f"{tiles}/{entry_bundle_path(0, size)}", format_bundle(entries))
        self.publish(self.sign(size, root_hash(size, leaf_reader(hashes))))
