"""Reads over HTTP from a log with two web workers: keys with their proofs, the checkpoint, tiles.

Of the keys one answer in a hundred is verified, after the clock has stopped: the log's signatures on it, and the proof
up to the root of the checkpoint that the witnesses signed. Where nginx is installed, it serves the files as
``deploy/nginx.conf`` has it, beside an nginx that does nothing but send files.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from ktlog.bench.getter import Got, Kept, get
from ktlog.bench.names import ORIGIN, actor_name, bytes_of
from ktlog.bench.nginx import file_servers
from ktlog.bench.reads import measure
from ktlog.bench.row import GENERATOR, Row, cpu_rows
from ktlog.bench.stage import Stage, stage
from ktlog.bench.usage import counting_syncs
from ktlog.config import Settings
from ktlog.demo.processes import wait_until
from ktlog.errors import EncodingError, Invalid
from ktlog.operator.stores import open_log, open_tiles
from ktlog.pkd.keys import pkd_root
from ktlog.store.contracts import TileStore
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64url
from ktlog.tlog.tiles import TILE_WIDTH, entry_bundle_path, tile_path
from ktlog.tlog.tree import hash_leaf, verify_inclusion
from ktlog.wire.actor import ED25519, Multikey, parse_actor
from ktlog.wire.httpsig_response import BOTH, Exchange, verify_response

GOAL = 1_500.0
ACCEPT_ED25519 = 'Accept-Signature: sig1=("@status" "content-digest");alg="ed25519"'
"""What a client says that wants no ML-DSA-44 signature, which costs more than all the rest of an answer."""
HOT = 1_000
"""Actors that the second draw asks for, again and again."""
DRAWN = 20_000
WARM_UP_SECONDS = 1.0
WIRE_GOAL = 0.9
GROWTH_REQUESTS = 2_000
GROWTH_GOAL = 3.0


@dataclass(frozen=True)
class _Log:
    """What answers are verified with."""

    checkpoint: Checkpoint
    keys: dict[str, Multikey]


def measure_read(settings: Settings, actors: int, seconds: float, connections: int) -> list[Row]:
    """Every row of the table, for a log that ``ktlog.bench.mapped.build`` made with *actors* actors.

    Raises:
        Unreachable: the log does not run, or answers with another status than 200.
        Invalid, EncodingError: an answer that does not verify.
    """
    chance = random.Random(1)  # noqa: S311 - whom to ask, to be repeatable
    rows: list[Row] = []
    with stage(settings) as on, tempfile.TemporaryDirectory() as scratch:
        log = _open(on)
        uniform = [_keys_of(chance.randrange(actors)) for _ in range(DRAWN)]
        hot = [_keys_of(chance.randrange(actors)) for _ in range(HOT)]
        for draw, targets, algorithms in (
            ("all actors", uniform, BOTH), ("all actors, signed with Ed25519 alone", uniform, (ED25519,)),
            (f"{HOT:,} of them", hot, BOTH),
        ):
            lines = () if algorithms == BOTH else (ACCEPT_ED25519,)
            for length in (WARM_UP_SECONDS, seconds):
                got = get(
                    on.server, on.port, ORIGIN, targets, length, Path(scratch), connections=connections, headers=lines
                )
            rows += _rows(f"keys with proofs, {draw}", got, GOAL)
            rows.append(Row(f"keys with proofs, {draw}: verified", _verify(log, got.kept, algorithms), "", None))
        for work, targets in _files(settings, log.checkpoint.size, chance):
            got = get(on.server, on.port, ORIGIN, targets, seconds / 2, Path(scratch), connections=connections)
            rows += _rows(f"{work} by a web worker", got, None)
        written = on.server.usage().written
        with counting_syncs(on.server.pids()) as syncs:
            get(on.server, on.port, ORIGIN, uniform, WARM_UP_SECONDS, Path(scratch), connections=connections)
        written = on.server.usage().written - written
        rows.append(Row("bytes written meanwhile, in another such draw", written, "", None))
        rows += [] if syncs.value is None else [Row("syncs in it", syncs.value, "", None)]
        rows.append(Row("memory of the largest process, at most", max(on.server.peaks()) / 2**20, "MiB", None))
        rows += _by_nginx(settings, log.checkpoint.size, seconds / 2, Path(scratch), chance)
    return rows


def measure_growth(small: Path, large: Path) -> list[Row]:
    """How many times longer the slowest answers of *large* take than those of *small*; both directories of logs."""
    first, second = measure([small, large], GROWTH_REQUESTS)
    ratio = second.p99_us / first.p99_us
    return [Row(
        f"keys, {second.actors:,} actors beside {first.actors:,}: p99", second.p99_us / 1000, "ms", GROWTH_GOAL,
        peer=first.p99_us / 1000, ratio=ratio,
    )]


def _keys_of(number: int) -> str:
    return f"/api/actor/{quote(actor_name(number), safe='')}/keys"


def _rows(work: str, got: Got, goal: float | None) -> list[Row]:
    cpu = {**got.usage.cpu, GENERATOR: got.cpu}
    return [
        Row(work, got.count / got.seconds, "/s", goal, at_least=True),
        Row(f"{work}: p50", got.p50_ms, "ms", None),
        Row(f"{work}: p99", got.p99_ms, "ms", None),
        *cpu_rows(work, cpu, got.count),
    ]


def _files(settings: Settings, size: int, chance: random.Random) -> list[tuple[str, Sequence[str]]]:
    """What there is of files: the checkpoint, and whole tiles and bundles if the log has any."""
    found: list[tuple[str, Sequence[str]]] = [("checkpoint", ["/checkpoint"])]
    whole = size // TILE_WIDTH
    if whole:
        tiles = open_tiles(settings)
        numbers = [chance.randrange(whole) for _ in range(256)]
        paths = [f(number) for number in numbers for f in (_tile, _bundle)]
        found.append(("tiles", [f"/{path}" for path in paths if tiles.read(path) is not None]))
    return found


def _tile(number: int) -> str:
    return tile_path(0, number, TILE_WIDTH)


def _bundle(number: int) -> str:
    return entry_bundle_path(number, TILE_WIDTH)


def _by_nginx(settings: Settings, size: int, seconds: float, scratch: Path, chance: random.Random) -> list[Row]:
    """The same files by nginx, in pipelines so that the reader is not what is measured."""
    rows = []
    with file_servers(settings, scratch) as servers:
        if servers is None:
            return [Row("files by nginx: not measured, no nginx or no deploy/nginx.conf here", 0, "", None)]
        for work, targets in _files(settings, size, chance):
            configured, bare = (
                get(server, port, ORIGIN, targets, seconds, scratch, connections=4, in_flight=16)
                for server, port in servers
            )
            rate, peer = configured.count / configured.seconds, bare.count / bare.seconds
            rows.append(Row(f"{work} by nginx", rate, "/s", WIRE_GOAL, peer=peer, ratio=rate / peer, at_least=True))
            rows.append(Row(f"{work} by nginx: bytes", configured.size / configured.seconds / 2**20, "MiB/s", None))
            cpu, least = (got.usage.seconds / got.count * 1000 for got in (configured, bare))
            rows.append(Row(
                f"{work} by nginx: CPU for 1,000", cpu, "s", None, peer=least, ratio=cpu / least if least else None
            ))
    return rows


# Verifying


def _open(on: Stage) -> _Log:
    """The newest checkpoint, and the keys with which the log signs its answers."""
    with closing(open_log(on.settings, read_only=True)) as store:
        size = store.state().size
    tiles = open_tiles(on.settings)
    # What an earlier run appended is published first; from then on the tree stays as it is.
    wait_until("the newest checkpoint", lambda: _published(tiles).size == size, on.processes.ended)
    with tempfile.TemporaryDirectory() as scratch:
        (kept,) = get(on.server, on.port, ORIGIN, ["/users/pubkeydir"], 0.1, Path(scratch), connections=1).kept[:1]
    document = parse_actor(json.loads(kept.body), on.settings.actor_id)
    return _Log(_published(tiles), {key.id: key for key in document.assertion_method})


def _published(tiles: TileStore) -> Checkpoint:
    raw = tiles.checkpoint()
    if raw is None:
        raise Invalid("NotPublished", "the log has published nothing")
    return parse_signed_checkpoint(raw)[1]


def _verify(log: _Log, kept: Sequence[Kept], algorithms: Sequence[str]) -> int:
    now = int(time.time())

    def find(key_id: str) -> Multikey:
        if key_id not in log.keys:
            raise Invalid("UnknownKey", f"the log has no key {key_id}")
        return log.keys[key_id]

    for one in kept:
        status, *lines = one.head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        url = f"https://{ORIGIN}{one.target}"
        exchange = Exchange("GET", url, int(status[9:12]), headers, one.body, None)
        verify_response(exchange, find, now, algorithms=algorithms)
        check_page(log.checkpoint, unquote(one.target.split("/")[3]), json.loads(one.body))
    return len(kept)


def check_page(checkpoint: Checkpoint, actor_id: str, page: dict[str, object]) -> None:
    """Check that *page* is about the tree of *checkpoint*, and that the one key of the actor is in it.

    Raises:
        EncodingError: ``BadPage``. Invalid: the proof leads elsewhere.
    """
    (key,) = page["public-keys"]  # type: ignore[misc]
    number = int(actor_id[-7:])
    root = pkd_root(checkpoint.size, checkpoint.root)
    if (page["actor-id"], page["merkle-root"], key["leaf-index"]) != (actor_id, root, number):
        raise EncodingError("BadPage", f"the answer about {actor_id} is about something else")
    proof = [decode_base64url(node) for node in key["inclusion-proof"]]
    leaf_hash = hash_leaf(bytes_of(f"entry {number}"))
    verify_inclusion(leaf_hash, number, checkpoint.size, proof, checkpoint.root)
