"""What the directory map costs: batches, proofs, a restart, memory, and lookups over HTTP.

Where it can be, a cost is compared with the least that it could be on the same machine in the same minute, because
machines are noisy and their ratios less so. Times are medians. Beside wall time stands CPU time, which other work on
the machine lengthens less.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from ktlog import sqlitefile
from ktlog.bench.mapped import enrolled, live_value
from ktlog.bench.mappeer import MemoryMap
from ktlog.bench.mapserve import measure_server
from ktlog.bench.names import ORIGIN, actor_name
from ktlog.bench.row import Row, percentile
from ktlog.bench.usage import counting_syncs
from ktlog.config import Settings
from ktlog.errors import StoreError
from ktlog.keymap.output import format_config
from ktlog.keymap.prefix import PrefixLeaf, encode_prefix_proof, verify
from ktlog.operator.stores import map_config
from ktlog.pkd.erasure import map_index
from ktlog.store.mapcontract import Live, MapStore
from ktlog.store.mapdb import LOG_PAGES, PAGE_SIZE, WRITER_CACHE_KIB, SqliteMapStore

UPDATES = 1_000
NEW = 700
"""Of a batch; the others change actors who are there."""
WARM_UP_BATCHES = 3
PROOFS = 2_000
WARM_UP_PROOFS = 500
_FRAMES = slice(16, 20)
"""Of SQLite's index to the write-ahead log: how many frames count (sqlite.org/walformat.html, mxFrame)."""
_LOG_HEAD, _FRAME_HEAD = 32, 24
NOTE_BYTES = 20_000
"""About as long as a checkpoint with the signatures of three witnesses and a verifier."""


def measure_map(settings: Settings, actors: int, scratch: Path, requests: int, batches: int) -> list[Row]:
    """Every row of the table, for a log that ``ktlog.bench.mapped.build`` made.

    Args:
        scratch: a directory for a copy of the map. requests: lookups over HTTP. batches: that count.

    Raises:
        StoreError: the stores; ``Corrupt``: two ways to the same root or proof disagree.
        Unreachable: the server does not answer.
    """
    chance = random.Random(1)  # noqa: S311 - whom to ask and to change, to be repeatable
    server = measure_server(settings, actors, requests, chance)
    proofs = measure_proofs(settings, actors, chance)
    return [*measure_batches(settings, actors, scratch, batches, chance), *proofs, *server]


def hash_microseconds() -> float:
    """CPU time of one hash of two hashes: how fast this machine is just now."""
    data, count = bytes(65), 100_000
    spent = _timed(lambda: [sha256(data).digest() for _ in range(count)])
    return spent.cpu / count * 1e6


# Proofs


def measure_proofs(settings: Settings, actors: int, chance: random.Random) -> list[Row]:
    """Proofs from a reader's handle, each in a read of its own, of actors who are there and of such who are not."""
    store = _open(settings.map_database, settings, read_only=True)
    try:
        root = store.state().root
        present = [map_index(ORIGIN, actor_name(chance.randrange(actors))) for _ in range(PROOFS)]
        absent = [chance.randbytes(32) for _ in range(PROOFS)]
        for index in [*present, *absent][:WARM_UP_PROOFS]:
            store.prove(index)
        rows = []
        for work, indexes in (("presence", present), ("absence", absent)):
            walls, sizes = [], []
            cpu = time.thread_time()
            for index in indexes:
                started = time.perf_counter()
                proof = store.prove(index)
                walls.append(time.perf_counter() - started)
                sizes.append(len(encode_prefix_proof(proof)))
            cpu = (time.thread_time() - cpu) / len(indexes)
            verify(proof, [index], root)
            rows.append(Row(f"proof of {work}", statistics.median(walls) * 1000, "ms", 0.2, cpu_ms=cpu * 1000))
            rows.append(Row(f"proof of {work}: p99", percentile(walls, 0.99) * 1000, "ms", None))
            rows.append(Row(f"bytes of a proof of {work}, mean", statistics.mean(sizes), "bytes", 800))
        return rows
    finally:
        store.close()


# Batches


@dataclass(frozen=True)
class _Spent:
    """Seconds."""

    wall: float
    cpu: float


@dataclass
class _Times:
    """Of each batch. settling: afterwards. hashing, raw: what the peer spent on the same. file: the bytes to a file.
    written: how many these are."""

    batch: list[_Spent] = field(default_factory=list)
    settling: list[_Spent] = field(default_factory=list)
    hashing: list[_Spent] = field(default_factory=list)
    raw: list[_Spent] = field(default_factory=list)
    file: list[_Spent] = field(default_factory=list)
    written: list[int] = field(default_factory=list)


def measure_batches(
    settings: Settings, actors: int, scratch: Path, batches: int, chance: random.Random
) -> list[Row]:
    """Batches of updates in a copy of the map, and after each the same in memory and the same bytes to a file."""
    path = scratch / "map.db"
    shutil.copyfile(settings.map_database, path)
    store = _open(path, settings, read_only=False)
    try:
        changes = _batch_maker(actors, 2 + WARM_UP_BATCHES + batches, chance)
        first = changes(0)
        tracemalloc.start()
        _update(store, first)
        grown = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        peer, bare = MemoryMap(list(store.leaves())), BareTable(scratch / "bare.db")
        gc.freeze()  # a million leaves of the peer are not the store's to be looked through
        times = _Times()
        for number in range(1, 1 + WARM_UP_BATCHES + batches):
            if number == 1 + WARM_UP_BATCHES:
                times = _Times()
            batch = changes(number)
            times.batch.append(_timed(lambda batch=batch: _update(store, batch)))
            log = _last_log(path)
            times.written.append(len(log))
            times.settling.append(_timed(store.settle))
            times.raw.append(_timed(lambda log=log: bare.commit(log)))
            bare.settle()
            times.file.append(_timed(lambda log=log: _write(scratch / "raw", log)))
            leaves = [PrefixLeaf(change.index, change.commitment) for change in batch]
            times.hashing.append(_timed(lambda leaves=leaves: peer.put(leaves)))
            if peer.root != store.state().root:
                raise StoreError("Corrupt", "the stored map and the one in memory have different roots")
        bare.close()
        with counting_syncs([os.getpid()]) as syncs:
            _update(store, changes(1 + WARM_UP_BATCHES + batches))
    finally:
        gc.unfreeze()
        store.close()
    told = [] if syncs.value is None else [Row("syncs of a batch", syncs.value, "", None)]
    return [
        *_batch_rows(times), *told, Row("memory that a batch needs, SQLite's cache aside", grown / 2**20, "MiB", None)
    ]


def _batch_rows(times: _Times) -> list[Row]:
    def ms(values: Sequence[_Spent], what: str = "wall") -> float:
        return statistics.median(getattr(spent, what) for spent in values) * 1000

    def ratio(what: str) -> float:
        each = zip(times.batch, times.hashing, times.raw, strict=True)
        return statistics.median(
            getattr(batch, what) / (getattr(hashing, what) + getattr(raw, what)) for batch, hashing, raw in each
        )

    def row(work: str, what: str) -> Row:
        peer = ms(times.hashing, what) + ms(times.raw, what)
        return Row(work, ms(times.batch, what), "ms", 2.0, peer=peer, ratio=ratio(what))

    walls = [spent.wall for spent in times.batch]
    return [
        row(f"batch of {UPDATES} updates, durable", "wall"),
        Row("its p99", percentile(walls, 0.99) * 1000, "ms", None),
        Row("updates, batch by batch", UPDATES * len(walls) / sum(walls), "/s", None),
        row("the same in CPU time alone", "cpu"),
        Row("it hashed in memory", ms(times.hashing), "ms", None, cpu_ms=ms(times.hashing, "cpu")),
        Row("its bytes committed to a bare table", ms(times.raw), "ms", None, cpu_ms=ms(times.raw, "cpu")),
        Row("its bytes written to a file and synced", ms(times.file), "ms", None, cpu_ms=ms(times.file, "cpu")),
        Row(
            "moved to its place in the file afterwards", ms(times.settling), "ms", None,
            cpu_ms=ms(times.settling, "cpu"),
        ),
        Row("bytes that it wrote", statistics.median(times.written) / 2**20, "MiB", None),
    ]


def _batch_maker(actors: int, batches: int, chance: random.Random) -> Callable[[int], list[Live]]:
    """Makes a batch by its number: new actors, and a second version of some who are there."""
    share = actors // batches  # of the actors, to each batch: nobody gets a second version twice

    def make(number: int) -> list[Live]:
        first = actors + number * UPDATES
        old = chance.sample(range(number * share, (number + 1) * share), min(UPDATES - NEW, share))
        changes = [_live(one, 1) for one in range(first, first + NEW)] + [_live(one, 2) for one in old]
        return sorted(changes, key=lambda change: change.index)

    return make


def _live(number: int, version: int) -> Live:
    one = enrolled(number, 0)
    return live_value(replace(one.actor, version=version), one.salt, [number, number + 1][:version])


def _update(store: MapStore, changes: Sequence[Live]) -> None:
    state = store.state()
    store.update(
        changes, expected=state, input_size=state.input_size + len(changes), erasures=state.erasures,
        make_leaf=lambda root: root * 8, seal=lambda _after, _leaf: bytes(NOTE_BYTES),
    )


def _open(path: Path, settings: Settings, *, read_only: bool) -> MapStore:
    return SqliteMapStore.open(path, origin=ORIGIN, config=format_config(map_config(settings)), read_only=read_only)


def _last_log(path: Path) -> bytes:
    """What one batch wrote: the write-ahead log of *path* up to its last frame.

    The batch before was moved into the file, so this one began the log anew; what lies behind it is of older ones.
    """
    index = path.with_name(path.name + "-shm").read_bytes()
    frames = int.from_bytes(index[_FRAMES], sys.byteorder)
    with path.with_name(path.name + "-wal").open("rb") as file:
        return file.read(_LOG_HEAD + frames * (_FRAME_HEAD + PAGE_SIZE))


class BareTable:
    """A SQLite file with the map's settings: what committing bytes costs where there is nothing to find or to hash."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlitefile.open_database(path, create=True, page_size=PAGE_SIZE)
        self._connection.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}").fetchone()
        self._connection.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIB}")
        self._connection.execute("CREATE TABLE bare (number INTEGER PRIMARY KEY, data BLOB NOT NULL)")

    def commit(self, data: bytes) -> None:
        """Write *data*, a page in each row, in one transaction."""
        row = PAGE_SIZE - 64
        with sqlitefile.transaction(self._connection):
            self._connection.executemany(
                "INSERT OR REPLACE INTO bare VALUES (?, ?)",
                ((at, data[at : at + row]) for at in range(0, len(data), row)),
            )

    def settle(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def close(self) -> None:
        self._connection.close()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _timed(work: Callable[[], object]) -> _Spent:
    started, used = time.perf_counter(), time.thread_time()
    work()
    return _Spent(time.perf_counter() - started, time.thread_time() - used)
