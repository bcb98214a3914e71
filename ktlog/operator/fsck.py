"""Is a log whole? Everything that it has, computed again from its entries and compared with what is stored.

::

    the small files ─ the map's store, then the log's, each in one snapshot: whoever is read later is never behind
    pages of 256: entries ─ tree, roots, tiles, bundles ─ signatures, records ─ the directory, replayed
    at the map's size: every leaf, value and node of the map
    at the end: the directory's tables, the erasures, the journal, the output log with its files

Nothing is written, and what runs is not disturbed: a reader's snapshot holds back the store's house-keeping, no more.
Memory is that of the replayed directory (some 4 KB for each actor), whatever the number of entries.

The same of published files alone is :mod:`ktlog.operator.fsckurl`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from ktlog.client.publicfiles import PublicRecord
from ktlog.config import Settings
from ktlog.errors import EncodingError, Invalid, KtlogError, StoreError
from ktlog.keymap.output import OutputLeaf, format_config, map_origin, parse_leaf
from ktlog.keymap.updates import KEPT_SECONDS
from ktlog.operator.findings import Finding, Findings
from ktlog.operator.fsckfiles import Documents, judge_journal, judge_log, judge_output, judge_times, read_documents
from ktlog.operator.fsckreplay import Replay
from ktlog.operator.fsckstate import MapCheck, OutputCheck, check_directory, check_note
from ktlog.operator.fscktree import FileCheck, Files, TreeCheck, erasure_roots
from ktlog.operator.mapderive import MapDerivation
from ktlog.operator.stores import map_config, map_exists, open_log, open_map, open_map_tiles, open_tiles
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.entry import leaf_key_hash
from ktlog.pkd.erasure import ErasureRecord
from ktlog.sqlitefile import database_errors, open_database
from ktlog.store.contracts import LogStore, Record
from ktlog.store.mapcontract import MapState, MapStore
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.tiles import TILE_WIDTH
from ktlog.tlog.tree import Frontier, hash_leaf
from ktlog.words import count_entries

UNUSABLE = frozenset({"Corrupt", "NotALog", "MissingStore", "WrongOrigin", "DatabaseError", "Refused"})
"""Names of errors of a store that say that it is damaged, not that it cannot be used now."""

NEVER_CHECKED = (
    "When messages were accepted, what PKD witnesses cosigned, one-time passwords, rate limits and undelivered replies:"
    " nothing else says what they must be.",
)

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@dataclass(frozen=True)
class Scope:
    """How much to check.

    quick: tree, files, documents and the output log; no signature, no record, no directory, no map.
    commitments: every Argon2id commitment, too.
    """

    quick: bool = False
    commitments: bool = False


def check_log(settings: Settings, scope: Scope = Scope()) -> list[Finding]:  # noqa: B008 - frozen
    """:func:`examine` for those who want the findings alone; none: the log is whole."""
    return examine(settings, scope).findings.kept


@dataclass
class Examined:
    """What an examination found. broken: paths of tiles and bundles to be made again, of the log and of its map."""

    findings: Findings
    broken: tuple[list[str], list[str]]


def examine(
    settings: Settings, scope: Scope = Scope(), progress: Progress = lambda *_: None,  # noqa: B008
    now: int | None = None,
) -> Examined:
    """Check the log in *settings*, which may run.

    now: Unix seconds; without it no time is held to be ahead.

    Raises:
        StoreError: it cannot be read now ("Locked", "NoPermission", "OlderSchema" ...); what is damaged is a finding.
    """
    findings = Findings()
    examined = Examined(findings, ([], []))
    if not scope.quick and not settings.uses_postgres:
        for path in (settings.database, settings.map_database):
            _check_pages(path, findings)
    documents = read_documents(settings, findings)
    judge_times(documents, now, findings)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1, "fsck"))
        map_store, map_state = _open_map(settings, stack, findings)
        try:
            store = stack.enter_context(closing(open_log(settings, read_only=True)))
            stack.enter_context(store.snapshot())
            if store.dialect not in DIALECTS:
                raise StoreError("Corrupt", f"it is written in no dialect that is known: {store.dialect!a}")
        except DAMAGE as error:
            findings.add("LogUnreadable", "log.db", _unusable(error).message)
            return examined
        _Examination(settings, scope, progress, documents, store, map_store, map_state, pool, examined).run()
    for sentence in NEVER_CHECKED:
        findings.skip(sentence)
    return examined


def _open_map(settings: Settings, stack: ExitStack, findings: Findings) -> tuple[MapStore | None, MapState | None]:
    try:
        if not map_exists(settings):
            findings.add("MapUnreadable", "map.db", "it is not there")
            return None, None
        map_store = stack.enter_context(closing(open_map(settings, read_only=True)))
        stack.enter_context(map_store.snapshot())
        return map_store, map_store.state()
    except DAMAGE as error:
        findings.add("MapUnreadable", "map.db", _unusable(error, "WrongConfig").message)
        return None, None


DAMAGE = (StoreError, EncodingError)


def _unusable(error: StoreError | EncodingError, *names: str) -> KtlogError:
    """*error*, if it tells of damage."""
    if isinstance(error, StoreError) and error.name not in UNUSABLE.union(names):
        raise error
    return error


def _check_pages(path: Path, findings: Findings) -> None:
    """SQLite's own check: its pages, and that every index has what its table has."""
    if not path.exists():
        return  # said where it is opened
    try:
        connection = open_database(path, read_only=True)
        try:
            with database_errors(path):
                for (line,) in connection.execute("PRAGMA integrity_check(10)"):
                    if line != "ok":
                        findings.add("DatabaseDamaged", path.name, str(line))
        finally:
            connection.close()
    except DAMAGE as error:
        findings.add("DatabaseDamaged", path.name, _unusable(error).message)


@dataclass(frozen=True)
class _Row:
    """One entry as it is stored; None for what cannot be read."""

    entry: bytes | None
    leaf_hash: bytes | None
    root: bytes | None
    record: Record | None


def _output(map_store: MapStore, state: MapState) -> Iterator[tuple[bytes, bytes]]:
    """Every leaf of the output log, with its stored hash."""
    for start in range(0, state.output.size, TILE_WIDTH):
        end = min(start + TILE_WIDTH, state.output.size)
        yield from zip(map_store.output_leaves(start, end), map_store.output_hashes(start, end), strict=True)


class _Examination:
    """One run over stores that are open, each in its snapshot."""

    def __init__(
        self, settings: Settings, scope: Scope, progress: Progress, documents: Documents, store: LogStore,
        map_store: MapStore | None, map_state: MapState | None, pool: Executor, examined: Examined,
    ) -> None:
        self._settings = settings
        self._scope = scope
        self._progress = progress
        self._documents = documents
        self._store = store
        self._map = map_store
        self._map_state = map_state
        self._pool = pool
        self._examined = examined
        self._findings = examined.findings
        self._size = store.state().size
        self._erasures = self._read_erasures()

    def run(self) -> None:
        published = self._documents.checkpoint
        files = self._files(open_tiles, "tiles/", 0 if published is None else published.size, self._settings.tiles)
        output = self._output_sizes()
        heads = (one.size for one in (published, self._documents.head) if one is not None)
        tree = TreeCheck(self._findings, frozenset((*output, *heads)))
        replay = self._make_replay()
        self._check_map_at(0, replay)
        for start in range(0, self._size, TILE_WIDTH):
            self._page(start, min(start + TILE_WIDTH, self._size), tree, files, replay)
            self._progress("entries", min(start + TILE_WIDTH, self._size), self._size)
        for tile in tree.partial():
            files.tile(*tile)
        self._examined.broken[0].extend(files.broken)
        self._check_state(tree, replay)
        public = self._size > 0 and self._store.public_since(0) is not None
        judge_log(self._documents, self._size, tree.roots.get, self._findings, public=public)
        if replay is not None:
            replay.finish()
            if replay.broken is None:
                self._progress("actors", 0, len(replay.directory.actors))
                check_directory(
                    self._store, replay.directory, replay.salts, sorted(replay.tokens), replay.operators, self._findings
                )
        newest = self._check_output(tree)
        if self._erasures is not None:
            judge_journal(self._settings, self._erasures, newest, self._findings)

    # The log

    def _files(self, opened: Callable, prefix: str, size: int, root: Path) -> FileCheck:
        local = root if self._settings.place is None else None
        try:
            tiles = opened(self._settings, read_only=True)
            before = tiles.checkpoint()
        except DAMAGE as error:
            self._findings.add("FilesUnreadable", prefix, _unusable(error).message)
            return FileCheck(Files(lambda path: None, prefix, 0), self._findings)
        files = Files(tiles.read, prefix, size, local, lambda: tiles.checkpoint() != before)
        return FileCheck(files, self._findings)

    def _read_erasures(self) -> tuple[ErasureRecord, ...] | None:
        try:
            return self._store.erasures(0, self._store.erasure_count())
        except DAMAGE as error:
            self._findings.add("ErasureDamaged", "log.db erasures", _unusable(error).message)
            return None

    def _make_replay(self) -> Replay | None:
        if self._scope.quick:
            self._findings.skip("Signatures, records, the directory and the map: --quick was asked for.")
            return None
        if self._erasures is None:
            self._findings.skip("Records, the directory and the map: the erasures cannot be read.")
            return None
        keys = self._documents.keys
        leaf_keys = None if keys is None else {leaf_key_hash(key): key for key in keys.leaf_keys}
        if leaf_keys is None:
            self._findings.skip("Leaf signatures: public-keys.json cannot be read.")
        try:
            return Replay(
                self._store.origin, DIALECTS[self._store.dialect], self._erasures, leaf_keys, self._findings,
                self._pool, commitments=self._scope.commitments,
            )
        except Invalid as error:
            self._findings.add("ErasureDamaged", "log.db erasures", error.message)
            self._findings.skip("Records, the directory and the map: the erasures contradict each other.")
            return None

    def _page(self, start: int, end: int, tree: TreeCheck, files: FileCheck, replay: Replay | None) -> None:
        rows = list(self._rows(start, end))
        hashes = []
        for row in rows:
            chosen, full = tree.take(row.entry, row.leaf_hash, row.root)
            self._check_root_found(row.root, tree.frontier)
            hashes.append(chosen)
            for tile in full:
                files.tile(*tile)
        bundle = files.bundle(start // TILE_WIDTH, hashes) or []
        if replay is None:
            return
        for place, (row, leaf_hash) in enumerate(zip(rows, hashes, strict=True)):
            at = start + place
            entry = row.entry
            if entry is None or hash_leaf(entry) != leaf_hash:
                entry = bundle[place] if place < len(bundle) else None  # the published copy may be the right one
            self._replay(replay, at, entry, row.record)
            self._check_map_at(at + 1, replay)

    def _check_root_found(self, root: bytes | None, frontier: Frontier) -> None:
        """The log refuses messages that name a root which it does not find."""
        if root is None or root != frontier.root():
            return  # which is a finding of its own
        try:
            found = self._store.size_of_root(root)
        except DAMAGE as error:
            _unusable(error)
            found = None
        if found != frontier.size:
            self._findings.add("RootPlaceDamaged", f"log.db root_places {frontier.size}", "it leads elsewhere")

    def _replay(self, replay: Replay, at: int, entry: bytes | None, record: Record | None) -> None:
        if entry is None or record is None:
            replay.give_up(at)
            return
        if self._store.seen(record.unique_hash) != at:
            self._findings.add("UniqueHashDamaged", f"log.db entries {at}", "its unique hash does not lead to it")
        replay.take(at, entry, PublicRecord(at, record.preimage, record.plain, record.salts), record)

    def _rows(self, start: int, end: int) -> Iterator[_Row]:
        """The rows of a page; where one of them cannot be read, what can be read of it."""
        try:
            for record in self._store.records(start, end):
                yield _Row(record.entry, record.leaf_hash, record.root, record)
            return
        except DAMAGE as error:
            _unusable(error)
            if end - start == 1:
                self._findings.add("RecordDamaged", f"log.db records {start}", error.message)
                yield _Row(
                    self._or_none(lambda: self._store.entries(start, end)[0]),
                    self._or_none(lambda: self._store.leaf_hashes(start, end)[0]),
                    self._or_none(lambda: self._store.root_after(end)), None,
                )
                return
        middle = (start + end) // 2
        yield from self._rows(start, middle)
        yield from self._rows(middle, end)

    @staticmethod
    def _or_none(read: Callable[[], bytes]) -> bytes | None:
        try:
            return read()
        except DAMAGE as error:
            _unusable(error)
            return None

    def _check_state(self, tree: TreeCheck, replay: Replay | None) -> None:
        state = self._store.state()
        if (state.root, state.frontier) != (tree.frontier.root(), tree.frontier):
            self._findings.add("StateDamaged", "log.db log_state", "it has another root or frontier than the entries")
        if replay is not None and replay.broken is None and replay.directory.greatest_time != state.greatest_time:
            self._findings.add("StateDamaged", "log.db log_state", "its greatest time is not that of any entry")

    # The map

    def _check_map_at(self, size: int, replay: Replay | None) -> None:
        """Compare the map, once the directory is of its size."""
        state = self._map_state
        if self._map is None or state is None or state.input_size != size:
            return
        if replay is None or replay.broken is not None:
            return
        records = self._erasures or ()
        waiting = frozenset(one.index for one in records[state.erasures :])
        numbers = {one.index: number for number, one in enumerate(records[: state.erasures])}
        self._progress("map leaves", 0, state.leaves)
        try:
            derivation = MapDerivation(replay.directory, replay.salts, numbers)
            MapCheck(self._map, derivation, waiting, self._findings).check(state)
        except DAMAGE as error:
            self._findings.add("MapUnreadable", "map.db", _unusable(error).message)

    def _output_sizes(self) -> Iterator[int]:
        """The tree sizes that output leaves speak of."""
        if self._map is None or self._map_state is None:
            return
        try:
            for leaf, _hash in _output(self._map, self._map_state):
                with suppress(EncodingError):
                    yield parse_leaf(leaf).input_size
        except DAMAGE as error:
            _unusable(error, "OutOfRange")  # said where they are checked

    def _updates_since(self, size: int) -> int:
        if self._map is None or size < 2:
            return 0
        try:
            return parse_leaf(self._map.output_leaves(size - 1, size)[0]).time - KEPT_SECONDS
        except DAMAGE as error:
            _unusable(error, "OutOfRange")
            return 0  # said where it is checked

    def _check_output(self, tree: TreeCheck) -> OutputLeaf | None:
        """The output log; returns its newest leaf."""
        if self._map is None or self._map_state is None:
            return None
        state, settings, vkeys = self._map_state, self._settings, self._documents.map_vkeys
        published = self._documents.map_checkpoint
        shown = 0 if published is None else published.size
        files = self._files(open_map_tiles, "tiles/map/", shown, settings.map_tiles)
        origin, roots = map_origin(settings.origin), {}
        check = OutputCheck(
            origin, format_config(map_config(settings)), tree.roots.get,
            erasure_roots(self._erasures or ()) if self._erasures is not None else None, files, self._findings,
            self._updates_since(state.output.size),
        )
        wanted = {one.size for one in (published, self._documents.map_head) if one is not None}
        try:
            for leaf, leaf_hash in _output(self._map, state):
                check.take(leaf, leaf_hash)
                size, root = check.frontier.size, check.frontier.root()
                if size in wanted:
                    roots[size] = root
                if size > 1 and vkeys:
                    note = self._map.checkpoint(size)
                    wrong = check_note(note, Checkpoint(origin, size, root), vkeys)
                    if note is None and size < state.output.size:
                        self._findings.skip("Older signed checkpoints of the map's log: some are not stored.")
                    elif wrong is not None:
                        self._findings.add("OutputCheckpointDamaged", f"map.db output_checkpoints {size}", wrong)
                    self._findings.checked["output checkpoints"] += 1
        except DAMAGE as error:
            self._findings.add("MapUnreadable", "map.db output_leaves", _unusable(error, "OutOfRange").message)
            return None
        check.finish()
        self._examined.broken[1].extend(files.broken)
        if state.output != check.frontier:
            self._findings.add("MapStateDamaged", "map.db map_state", "its output log has another tree than its leaves")
        newest, stored = check.newest, (state.input_size, state.erasures, state.root)
        if newest and (newest.input_size, newest.erasures, newest.map_root) != stored:
            self._findings.add("MapStateDamaged", "map.db map_state", "it is not what the newest output leaf says")
        if state.input_size > self._size:
            what = f"it covers {count_entries(state.input_size)}, and the log has {self._size:,}"
            self._findings.add("MapAheadOfLog", "map.db", what)
        judge_output(self._documents, check.frontier, roots.get, self._map, self._findings)
        return newest
