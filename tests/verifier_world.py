"""A verifier that runs on 127.0.0.1, and the log that it replays: real but for the wire between them.

``PublishedLog`` is an operator who keeps everything by the rules, signs it with real keys, and answers for its files.
A lie is a leaf with other members (:meth:`PublishedLog.add_leaf`), or another answer for one path (``lies``).
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from werkzeug.serving import make_server

from ktlog.keymap.output import MapConfig, OutputLeaf, format_config, format_leaf, hash_config, map_origin
from ktlog.keymap.prefix import subtree_hash
from ktlog.pkd.dialects import SPEC, Dialect
from ktlog.pkd.entry import make_entry
from ktlog.pkd.erasure import encode_erasure_record
from ktlog.pkd.keys import encode_public_key
from ktlog.pkd.messages import AddKey, Message
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, sign_checkpoint, signer_from_seed
from ktlog.tlog.tiles import Tile, format_bundle, parse_tile_path, tile_nodes
from ktlog.tlog.tree import Frontier, hash_leaf, leaf_reader, prove_consistency, root_hash
from ktlog.wire.fetch import Response
from tests.erasure_log import ORIGIN
from tests.mapped_log import MappedLog
from tests.pkd_samples import NOW, private, public
from tests.witness_log import join
from witness import follow
from witness.cli import main
from witness.config import WitnessDir
from witness.keys import load_signers
from witness.replays import ReplayStore
from witness.store import WitnessStore
from witness.verifier import Verifier
from witness.web import create_app
from witness.witness import Witness

MAP = map_origin(ORIGIN)
NAME = "v1.verifier.example"
SECONDS = 60.0


def person(name: str) -> str:
    return f"https://example.com/users/{name}"


def signers(origin: str, seed: int) -> tuple:
    return tuple(
        signer_from_seed(origin, algorithm, bytes([seed + number]) * 32)
        for number, algorithm in enumerate((ED25519, COSIGNATURE_MLDSA44))
    )


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


class PublishedLog(MappedLog):
    """A log, its map and its files. ``get`` is what a fetcher asks."""

    def __init__(self, clock: Clock, dialect: Dialect = SPEC, config: MapConfig | None = None) -> None:
        super().__init__(dialect)
        self.clock = clock
        self.signers, self.map_signers = signers(ORIGIN, 1), signers(MAP, 11)
        self.config = config or MapConfig(ORIGIN, dialect.name)
        self.output = [format_config(self.config)]
        self.published: tuple[int, bytes] | None = None
        self.note = b""
        self.lies: dict[str, bytes | Callable[[], bytes | None]] = {}
        self.asked: list[str] = []

    def make_entry(self, preimage: bytes) -> bytes:
        return make_entry(self.dialect, preimage, private("leaf"), public("leaf"))

    # -- what happens

    def enrol(self, name: str, letter: str) -> PublishedLog:
        assert self.log(AddKey(person(name), public(letter), self.clock()), letter)
        return self

    def say(self, message: Message, letter: str) -> PublishedLog:
        assert self.log(message, letter)
        return self

    def publish(self, size: int | None = None, root: bytes | None = None) -> PublishedLog:
        """Show the log as it stands, or as it was."""
        size = len(self.entries) if size is None else size
        root = root_hash(size, self.tree()) if root is None else root
        self.note = sign_checkpoint(Checkpoint(ORIGIN, size, root), self.signers, self.clock())
        self.published = size, root
        return self

    def add_leaf(self, **changes: Any) -> PublishedLog:
        """The next output leaf: the truth about the log as it stands, but for *changes*."""
        told = Frontier().extend(hash_leaf(encode_erasure_record(record)) for record in self.records)
        leaf = OutputLeaf(
            hash_config(self.config), self.clock(), len(self.entries), root_hash(len(self.entries), self.tree()),
            len(self.records), told.root(), subtree_hash(self.map_leaves()),
        )
        self.output.append(format_leaf(replace(leaf, **changes)))
        return self

    def grow(self, **changes: Any) -> PublishedLog:
        """Publish what there is, and a leaf of it."""
        return self.publish().add_leaf(**changes)

    # -- its trees

    def tree(self):
        return leaf_reader([hash_leaf(entry) for entry in self.entries])

    def output_tree(self):
        return leaf_reader([hash_leaf(leaf) for leaf in self.output])

    def map_note(self, size: int | None = None, *, root: bytes | None = None, by: tuple | None = None) -> bytes:
        size = len(self.output) if size is None else size
        root = root_hash(size, self.output_tree()) if root is None else root
        return sign_checkpoint(Checkpoint(MAP, size, root), by or self.map_signers, self.clock())

    def submission(self, old: int, size: int | None = None, *, proof: list[bytes] | None = None, **options: Any) -> bytes:
        size = len(self.output) if size is None else size
        if proof is None:
            proof = prove_consistency(old, size, self.output_tree()) if 0 < old < size else []
        return join(old, proof, self.map_note(size, **options))

    # -- its files

    def get(self, url: str, *, max_bytes: int | None = None, **_: Any) -> Response:
        path = urlsplit(url).path
        assert url.startswith(f"https://{ORIGIN}/") and (max_bytes is None or max_bytes > 0)
        self.asked.append(path)
        lie = self.lies.get(path)
        body = lie() if callable(lie) else lie
        body = self.answer(path) if body is None else body
        return Response(404 if body is None else 200, {}, body or b"", url)

    def answer(self, path: str) -> bytes | None:
        if path == "/checkpoint":
            return self.note or None
        if path == "/leaf-keys":
            return json.dumps({"leaf-keys": [encode_public_key(public("leaf"))]}).encode()
        if path == "/erasures":
            root = Frontier().extend(hash_leaf(encode_erasure_record(record)) for record in self.records).root()
            return json.dumps({"size": len(self.records), "root": encode_base64(root)}).encode()
        if path.startswith("/erasures/"):
            tile = parse_tile_path(f"tile/entries/{path[len('/erasures/'):]}")
            return format_bundle([encode_erasure_record(record) for record in self.records[: tile.width]])
        if path.startswith("/records/"):
            tile = parse_tile_path(f"tile/entries/{path[len('/records/'):]}")
            start = tile.number * 256
            return b"".join(self.line(index) + b"\n" for index in range(start, start + tile.width))
        if path.startswith("/tile/"):
            return self._tile(parse_tile_path(path[1:]), self.entries, self.tree())
        if path.startswith("/map/tile/"):
            return self._tile(parse_tile_path(path[len("/map/"):]), self.output, self.output_tree())
        return None

    def _tile(self, tile: Tile, leaves: list[bytes], tree: Any) -> bytes | None:
        start = tile.number * 256
        if tile.level == "entries":
            found = leaves[start : start + tile.width]
            return format_bundle(found) if len(found) == tile.width else None
        nodes = tile_nodes(tile)
        return b"".join(tree(nodes)) if all((at + 1) << level <= len(leaves) for level, at in nodes) else None

    def line(self, index: int, **changes: Any) -> bytes:
        """The record of an entry; *changes* of its plain text."""
        plain = {**self.plains[index], **changes}
        salts = {name: salt for name, salt in self.pages[index].salts.items() if plain[name] is not None}
        return json.dumps({
            "leaf-index": index, "message": self.preimages[index].decode(), "plain": plain,
            "salts": {name: encode_base64(salt) for name, salt in salts.items()},
            "withheld": None in plain.values(),
        }).encode()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        """``NotChecked BadLeafSignature``: the names at the beginning of what a refusal says."""
        words = self.body.decode().replace(":", "").split()
        return " ".join(words[:2]) if self.status in (422, 503) else words[0]


class Daemon:
    """``ktlog-witness serve --replay`` in this process: the same application, its threads, a real port."""

    def __init__(self, directory: Path, log: PublishedLog, clock: Clock) -> None:
        self.directory = WitnessDir(directory)
        self.log, self.clock = log, clock
        self.reach: Callable[[str], None] = lambda name: None
        run("init", directory, "--name", NAME)
        run("add-log", directory, "--replay", f"https://{ORIGIN}", *map(str, vkeys_of(log)))
        self.start()

    def start(self) -> None:
        store = WitnessStore.open(self.directory.database, reach=lambda name: self.reach(name))
        replays = ReplayStore(store)
        self.verifier = Verifier(replays, self.log, self.clock, self.directory.evidence, wait=SECONDS, cores=2)
        self.witness = Witness(
            store, load_signers(self.directory, NAME), clock=self.clock, reach=lambda name: self.reach(name),
            verifier=self.verifier,
        )
        self.server = make_server("127.0.0.1", 0, create_app(self.witness), threaded=True)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.verifier.start()

    def stop(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()
        self.verifier.stop()
        self.witness.store.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    # -- asking it

    def request(self, method: str, path: str, body: bytes | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=2 * SECONDS)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def post(self, body: bytes) -> Reply:
        return self.request("POST", "/add-checkpoint", body)

    def submit(self, size: int | None = None, **options: Any) -> Reply:
        return self.post(self.log.submission(self.size, size, **options))

    @property
    def size(self) -> int:
        """Of the map's log as this verifier signed it last."""
        log = self.witness.store.log(MAP)
        return 0 if log is None or log.latest is None else log.latest.checkpoint.size

    def status(self) -> dict[str, Any]:
        (found,) = json.loads(self.request("GET", "/replays").body)["logs"]
        return found

    def evidence(self) -> dict[str, Any]:
        (path,) = self.directory.evidence.iterdir()
        return json.loads(path.read_bytes())


def vkeys_of(log: PublishedLog) -> list:
    return [signer.vkey for signer in (*log.signers, *log.map_signers)]


def run(command: str, directory: Path, *arguments: str) -> None:
    main([command, "--dir", str(directory), *arguments], standalone_mode=False)


def quick_follower(patch: Any) -> None:
    """No pauses between two attempts, and short ones between two looks."""
    patch.setattr(follow, "KICK_PAUSE_SECONDS", 0.0)
    patch.setattr(follow, "POLL_SECONDS", 0.05)
