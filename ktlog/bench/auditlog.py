"""Logs as files, for an audit to read: one of very many entries, and one of real messages with their plaintext.

Signing a million entries takes longer than auditing them. So the large log repeats one bundle: 256 entries that differ,
each signed, under as many names as it takes, which are links to one file. An audit reads, hashes and verifies every one
of them all the same; what it is spared is a disk that is slower than the memory that one file stays in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

from ktlog.bench.names import ORIGIN, actor_name, bytes_of
from ktlog.client.build import enrol
from ktlog.client.keyfile import SigningKey
from ktlog.pkd.canonical import canonical
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.entry import leaf_key_hash, make_entry
from ktlog.pkd.keys import ZERO_ROOT_BYTES, encode_public_key, pkd_root, private_key_from_seed
from ktlog.pkd.messages import parse_wire, plain_attributes
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import ED25519, sign_checkpoint, signer_from_seed
from ktlog.tlog.tiles import TILE_WIDTH, bundles_between, format_bundle, tile_nodes, tiles_between
from ktlog.tlog.tree import EMPTY_ROOT, Frontier, HashReader, Node, hash_leaf, hash_node, leaf_reader, root_hash

TIME = 1_800_000_000
_BUNDLE_LEVEL = 8
_signer = signer_from_seed(ORIGIN, ED25519, bytes_of("audited log"))
VKEY = str(_signer.vkey)
"""What their checkpoints are verified with."""
# How many messages may be bound to one root: those after it must find it recent.
_BATCHES = (1, 63, 96)
_BATCH = 120


@cache
def leaf_key() -> tuple[object, bytes]:
    """The logs' leaf key, and its public half."""
    key = private_key_from_seed(bytes_of("audited leaf key"))
    return key, key.public_key().public_bytes_raw()


@cache
def signed_entries() -> tuple[bytes, ...]:
    """A bundle of entries that differ. Their messages are arbitrary bytes, so it takes a tier without plaintext."""
    key, public = leaf_key()
    return tuple(make_entry(SPEC, b"message %d" % number, key, public) for number in range(TILE_WIDTH))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Raw:
    """The log of *size* entries in *directory*, which repeats :func:`signed_entries`."""

    directory: Path
    size: int


def write_raw(directory: Path, size: int) -> Raw:
    """Make it, or make one that is there larger."""
    entries = signed_entries()
    read = _repeated([hash_leaf(entry) for entry in entries])
    masters: dict[bytes, Path] = {}
    for bundle in bundles_between(0, size):
        _link(directory / bundle.path, format_bundle(entries[: bundle.width]), masters)
    for tile in tiles_between(0, size):
        _link(directory / tile.path, b"".join(read(tile_nodes(tile))), masters)
    _publish(directory, size, root_hash(size, read))
    return Raw(directory, size)


def _repeated(leaf_hashes: Sequence[bytes]) -> HashReader:
    """Hashes of a tree whose every bundle is the same."""
    bundle = leaf_reader(leaf_hashes)
    towers = [bundle([(_BUNDLE_LEVEL, 0)])[0]]

    def one(node: Node) -> bytes:
        level, index = node
        if level < _BUNDLE_LEVEL:
            return bundle([(level, index % (TILE_WIDTH >> level))])[0]
        while len(towers) <= level - _BUNDLE_LEVEL:
            towers.append(hash_node(towers[-1], towers[-1]))
        return towers[level - _BUNDLE_LEVEL]

    return lambda nodes: [one(node) for node in nodes]


def _link(path: Path, content: bytes, masters: dict[bytes, Path]) -> None:
    """A file of this content; a second one is a link to the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    digest = sha256(content).digest()
    if digest not in masters:
        path.write_bytes(content)
        masters[digest] = path
    else:
        os.link(masters[digest], path)


def _publish(directory: Path, size: int, root: bytes) -> None:
    _, public = leaf_key()
    (directory / "leaf-keys").write_text(json.dumps({"leaf-keys": [encode_public_key(public)]}))
    (directory / "erasures").write_text(json.dumps({"size": 0, "root": encode_base64(EMPTY_ROOT)}))
    (directory / "checkpoint").write_bytes(sign_checkpoint(Checkpoint(ORIGIN, size, root), [_signer], TIME))


# Real messages


def write_messages(directory: Path, count: int) -> int:
    """Make a log of *count* AddKeys, each of an actor of its own; gives the number of their commitments.

    Committing takes as long as checking does later; all cores do it.
    """
    key, public = leaf_key()
    frontier, entries, lines = Frontier(), [], []
    commitments = 0
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn")) as pool:
        sizes = iter(_BATCHES)
        while len(entries) < count:
            batch = range(len(entries), min(count, len(entries) + next(sizes, _BATCH)))
            root = pkd_root(frontier.size, frontier.root() if frontier.size else ZERO_ROOT_BYTES)
            for preimage, plain in pool.map(_message, batch, [root] * len(batch)):
                entries.append(make_entry(SPEC, preimage, key, public))  # type: ignore[arg-type]
                frontier = frontier.append(hash_leaf(entries[-1]))
                lines.append(json.dumps({
                    "leaf-index": len(lines), "message": preimage.decode(), "plain": plain,
                    "salts": {name: encode_base64(bytes(32)) for name in plain}, "withheld": False,
                }))
                commitments += len(plain)
    read = leaf_reader([hash_leaf(entry) for entry in entries])
    files = {tile.path: b"".join(read(tile_nodes(tile))) for tile in tiles_between(0, count)}
    for bundle in bundles_between(0, count):
        span = slice(bundle.number * TILE_WIDTH, bundle.number * TILE_WIDTH + bundle.width)
        files[bundle.path] = format_bundle(entries[span])
        files[bundle.path.replace("tile/entries", "records")] = "".join(f"{line}\n" for line in lines[span]).encode()
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    _publish(directory, count, frontier.root())
    return commitments


def _message(number: int, root: str) -> tuple[bytes, dict[str, str | None]]:
    """Preimage and plaintext of one AddKey."""
    built = enrol(actor_name(number), SigningKey.generate(), recent_root=root, now=TIME)
    wire = parse_wire(SPEC, canonical(dict(built.wire)))
    return built.preimage, dict(plain_attributes(wire, built.message))


def signature_parts() -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The raw leaf key, and (signature, signed bytes) of every entry of the bundle: for verifying them and no more."""
    _, public = leaf_key()
    if leaf_key_hash(public) != signed_entries()[0][-32:]:
        raise AssertionError("an entry ends with the hash of the key that signed it")
    return public, [(entry[32:-32], entry[:32]) for entry in signed_entries()]
