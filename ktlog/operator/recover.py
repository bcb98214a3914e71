"""What a restored copy lacks, from somebody who mirrored it: entries, records, erasures, and the map's log.

Everything is checked as a mirror checks it before anything rests on it: the head is the log's and has its quorum,
the copy's own tree is the beginning of it, every entry is in it, every rule was kept. Entries are taken byte for byte;
nothing is signed here.

The map's leaves are taken as they were published. The map itself is derived again, at the size of the newest leaf, and
must come out with the root that this leaf states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from ktlog.client.publicfiles import PublicFiles, PublicRecord
from ktlog.client.verify import Log, open_head
from ktlog.config import Settings
from ktlog.errors import Invalid, StoreError, Unreachable
from ktlog.keymap.output import OutputLeaf, map_origin, parse_leaf
from ktlog.operator.follower import Follower
from ktlog.operator.mapderive import MapDerivation
from ktlog.operator.mirror import Mirror
from ktlog.operator.sources import Source
from ktlog.operator.stores import open_log, open_map
from ktlog.pkd.dialects import DIALECTS
from ktlog.store.contracts import LogStore
from ktlog.store.mapback import append_output_leaves
from ktlog.store.mapcontract import Dead, Live, MapState, MapStore
from ktlog.tlog.note import Vkey
from ktlog.tlog.policy import Policy
from ktlog.tlog.tiles import TILE_WIDTH
from ktlog.tlog.tree import hash_leaf, root_hash
from ktlog.wire.fetch import Fetcher
from ktlog.words import count_entries, some

WORK = "recovery"
YEARS = 100 * 366 * 86_400
"""A log that was lost had nothing cosigned since: how old its last head is says nothing against it."""


class _OwnFiles(PublicFiles):
    """Somebody's copy of our own published files. Which keys signed our entries, we know better."""

    def __init__(self, fetcher: Fetcher, url: str, leaf_keys: Mapping[bytes, bytes]) -> None:
        super().__init__(fetcher, url, attempts=3)
        self._own_keys = leaf_keys

    def leaf_keys(self) -> Mapping[bytes, bytes]:
        return self._own_keys


class _OwnSource(Source):
    """The log itself, mirrored into its own database."""

    @property
    def database(self) -> Path:
        return self.directory.parent.parent / "log.db"


def recover_log(
    settings: Settings, fetcher: Fetcher, url: str, vkeys: tuple[Vkey, ...], leaf_keys: Mapping[bytes, bytes],
    policy: Policy, now: Callable[[], int],
) -> int:
    """Bring the log's store up to the newest head at *url*; returns the size of that.

    Raises:
        Unreachable; Invalid, PolicyUnmet: what is shown there does not hold, or is not of this copy's history.
        StoreError
    """
    log = Log(settings.origin, vkeys, url)
    files = _OwnFiles(fetcher, url, leaf_keys)
    head = open_head(files.checkpoint(), log)
    with closing(open_log(settings, read_only=True)) as store:
        state = store.state()
    if head.size < state.size or root_hash(state.size, files.hashes(head.size, head.root)) != state.root:
        raise Invalid(
            "OtherHistory", f"{url} has {count_entries(head.size)}, which do not begin with this copy's {state.size:,}"
            if head.size >= state.size else f"{url} has {count_entries(head.size)}, and this copy has {state.size:,}",
        )
    source = _OwnSource(log, policy, settings.directory / WORK / "mirror")
    mirror = Mirror(source, fetcher, now, files=files, max_age=YEARS)
    try:
        mirror.poll()
    finally:
        mirror.close()
    return head.size


def recover_map(
    settings: Settings, fetcher: Fetcher, url: str, vkeys: tuple[Vkey, ...], policy: Policy, now: Callable[[], int],
    tell: Callable[[str], object] = lambda text: None,
) -> int:
    """Bring the map's store up to the newest leaf at *url* (the log's, without ``/map``); returns how many it has.

    Raises:
        Unreachable; Invalid: ``OtherHistory``, ``MapNotRecovered``; PolicyUnmet; StoreError.
    """
    files = PublicFiles(fetcher, f"{url}/map", attempts=3)
    head = open_head(files.checkpoint(), Log(map_origin(settings.origin), vkeys, files.url))
    policy.count(policy.open_cosignatures(head.opened), now())
    with closing(open_map(settings)) as map_store, closing(open_log(settings, read_only=True)) as store:
        state = map_store.state()
        leaves = _read_leaves(files, map_store, state, head.size)
        after = state.output.extend(map(hash_leaf, leaves))
        if (after.size, after.root()) != (head.size, head.root):
            raise Invalid("OtherHistory", f"the map's log at {url} does not begin with the leaves of this copy")
        if not leaves:
            return head.size
        newest = parse_leaf(leaves[-1])
        tell(f"deriving the map of {count_entries(newest.input_size)}")
        changes = _derive(store, map_store, newest)
        notes = _read_notes(files, state.output.size + 1, head.size)
    tree = append_output_leaves(settings.map_database, state.output, leaves[:-1], notes)
    with closing(open_map(settings)) as map_store:
        expected = map_store.state()
        if expected.output != tree:
            raise StoreError("MapMoved", "the map's store was changed by somebody else")
        map_store.update(
            changes, expected=expected, input_size=newest.input_size, erasures=newest.erasures,
            make_leaf=lambda root: _same_root(root, newest, leaves[-1]), seal=lambda _after, _leaf: head.note,
        )
        map_store.scrub()
    return head.size


def _same_root(root: bytes, newest: OutputLeaf, leaf: bytes) -> bytes:
    if root != newest.map_root:
        raise Invalid("MapNotRecovered", "the entries lead to another map than the newest leaf of its log says")
    return leaf


def _read_leaves(files: PublicFiles, map_store: MapStore, state: MapState, size: int) -> list[bytes]:
    """The leaves from the stored size on; what is stored is compared by the root."""
    have = state.output.size
    if size < have:
        has = some(size, "leaf", "leaves")
        raise Invalid("OtherHistory", f"the map's log at {files.url} has {has}, and this copy has {have:,}")
    leaves: list[bytes] = []
    for number in range(have // TILE_WIDTH, -(-size // TILE_WIDTH)):
        leaves += files.entries(number, min(TILE_WIDTH, size - number * TILE_WIDTH))
    return leaves[have % TILE_WIDTH :] if have < size else []


def _read_notes(files: PublicFiles, start: int, end: int) -> dict[int, bytes]:
    """The signed checkpoints of the sizes between, if they are to be had: a mirror keeps only the newest."""
    notes: dict[int, bytes] = {}
    for size in range(start, end):
        try:
            notes[size] = files.file(f"checkpoint/{size}", "NoCheckpoint")
        except (Invalid, Unreachable):
            return notes
    return notes


def _derive(store: LogStore, map_store: MapStore, newest: OutputLeaf) -> list[Live | Dead]:
    """What the stored map lacks of the map of *newest*, from the entries alone."""
    if newest.input_size > store.state().size or store.root_after(newest.input_size) != newest.input_root:
        raise Invalid("MapNotRecovered", f"the map is of {count_entries(newest.input_size)}, and not this copy's")
    records = store.erasures(0, store.erasure_count())
    if sum(record.input_size <= newest.input_size for record in records) != newest.erasures:
        raise Invalid("MapNotRecovered", "somebody was erased since the newest leaf that is to be had of the map's log")
    follower = Follower(store.origin, DIALECTS[store.dialect], records, {})
    salts: dict[str, bytes] = {}
    for start in range(0, newest.input_size, TILE_WIDTH):
        for record in store.records(start, min(start + TILE_WIDTH, newest.input_size)):
            shown = PublicRecord(record.leaf_index, record.preimage, record.plain, record.salts)
            follower.take(record.entry, shown, commitments=False, signed=False)
            salts |= {record.plain[name] or "": salt for name, salt in record.salts.items()}
    numbers = {record.index: number for number, record in enumerate(records[: newest.erasures])}
    derivation = MapDerivation(follower.directory, salts, numbers)
    changes: list[Live | Dead] = []
    for index in derivation.indexes():
        wanted = derivation.change(index)
        if wanted is not None and not _has(map_store, wanted):
            changes.append(wanted)
    return sorted(changes, key=lambda change: change.index)


def _has(map_store: MapStore, wanted: Live | Dead) -> bool:
    if isinstance(wanted, Dead):
        return map_store.dead(wanted.index) == wanted
    live = map_store.live(wanted.index)
    return live is not None and (live.value, live.opening) == (wanted.value, wanted.opening)
